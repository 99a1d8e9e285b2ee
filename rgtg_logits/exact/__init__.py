"""Toy worlds small enough to enumerate: what guidance is at its best, and what each objective leads to, exactly.

A `World` has a base policy and a reward for every sequence. From it follow the optimum of KL-regularised RLHF, the
policy that any rewards of prefixes give, and the prefix rewards that each training objective has with endless data.
Everything is a pure function of float64 tensors: exact but for rounding, and for worlds of some hundred sequences.

Example:
    ```python
    world = World.random(vocab=3, horizon=4, eos=0, seed=1)
    best, guided_by_cd = optimum(world, beta=1.0), guided(world, value(world), beta=1.0)
    kl(sequence_log_probs(best), sequence_log_probs(guided_by_cd))  # nats
    ```
"""

from rgtg_logits.exact.optima import (
    arm,
    best_value,
    bradley_terry,
    bradley_terry_loss,
    conditional_mean,
    cumulative,
    dpo_ratio,
    full_bt,
    partial_bt,
    value,
    win_weights,
)
from rgtg_logits.exact.policies import (
    expected_reward,
    guided,
    kl,
    optimal_sequences,
    optimum,
    prefix_log_probs,
    prefix_policies,
    rlhf_objective,
    sequence_log_probs,
    soft_value,
    total_variation,
)
from rgtg_logits.exact.world import Table, World

__all__ = [
    "Table",
    "World",
    "arm",
    "best_value",
    "bradley_terry",
    "bradley_terry_loss",
    "conditional_mean",
    "cumulative",
    "dpo_ratio",
    "expected_reward",
    "full_bt",
    "guided",
    "kl",
    "optimal_sequences",
    "optimum",
    "partial_bt",
    "prefix_log_probs",
    "prefix_policies",
    "rlhf_objective",
    "sequence_log_probs",
    "soft_value",
    "total_variation",
    "value",
    "win_weights",
]

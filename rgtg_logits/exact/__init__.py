"""Tabular worlds small enough to enumerate: optimal guidance, and the optimum of each training objective, exactly.

A `World` has a base policy and a reward for every sequence. From these follow the optimum of KL-regularised RLHF, the
policy guided by any rewards of prefixes, and the prefix rewards that minimise each training objective on unlimited
data. All functions are pure functions of float64 tensors: exact up to rounding, for worlds of some hundred sequences.

Example:
    ```python
    world = World.random(vocab=3, horizon=4, eos=0, seed=1)
    best = optimal_policy(world, beta=1.0)
    guided_by_cd = guided_policy(world, value(world), beta=1.0)
    kl_divergence(sequence_log_probs(best), sequence_log_probs(guided_by_cd))  # nats
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
    guided_policy,
    kl_divergence,
    optimal_log_probs,
    optimal_policy,
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
    "guided_policy",
    "kl_divergence",
    "optimal_log_probs",
    "optimal_policy",
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

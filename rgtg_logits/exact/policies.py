"""Policies of a world: base, optimal and guided; their expected reward, and divergences between them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.exact.world import Table, World, check_beta


def prefix_log_probs(policy: Table) -> Table:
    """Log-probability of every prefix of every length under a token-level policy, in nats; -inf where it is 0."""
    table = [torch.zeros((), dtype=torch.float64)]
    for step in policy:
        table.append(table[-1][..., None] + step)
    return tuple(table)


def sequence_log_probs(policy: Table) -> Float[Tensor, "..."]:
    """Log-probability of every full sequence under a token-level policy, in nats."""
    return prefix_log_probs(policy)[-1]


def soft_value(world: World, beta: float) -> Table:
    """The soft value S of every prefix, in units of reward: the value of continuing optimally, less its KL cost.

    S of a full sequence is its reward; before, S(y) = (1/β) log Σ_v π_ref(v|y) exp(β S(yv)), the soft Bellman equation
    (Levine, arXiv 1805.00909). It equals (1/β) log E_π_ref[exp(β r) | y]. S of the empty prefix is log Z / β, the
    maximum of `rlhf_objective`.

    Args:
        world: The world.
        beta: Guidance strength in nats per unit of reward, more than 0.
    """
    check_beta(beta)
    # Backward induction, from full sequences to the empty prefix.
    table = [world.reward]
    for step in reversed(world.policy):
        table.append((step + beta * table[-1]).logsumexp(-1) / beta)
    return tuple(reversed(table))


def optimal_policy(world: World, beta: float) -> Table:
    """The optimum of KL-regularised RLHF as a token-level policy: π*(v|y) = π_ref(v|y) exp(β [S(yv) − S(y)]).

    Arguments as in `soft_value`.
    """
    values = soft_value(world, beta)
    policy = []
    for length, step in enumerate(world.policy):
        advantage = values[length + 1] - values[length][..., None]
        policy.append(step + beta * advantage)
    return tuple(policy)


def optimal_log_probs(world: World, beta: float) -> Float[Tensor, "..."]:
    """Log-probability of every full sequence under the same optimum, π_ref exp(β r) / Z (arXiv 2205.11275), in nats.

    Arguments as in `soft_value`.
    """
    check_beta(beta)
    return _normalise(sequence_log_probs(world.policy) + beta * world.reward)


def guided_policy(world: World, rewards: Table, beta: float) -> Table:
    """The token-level policy guided by rewards of prefixes: π(v|y) ∝ π_ref(v|y) exp(β g(yv)) (arXiv 2406.07780).

    `PartialRewardLogitsProcessor` samples from it. It equals `optimal_policy` if and only if the rewards are the soft
    value up to a constant for each prefix y.

    Args:
        world: The world.
        rewards: Finite reward of every prefix. A constant added to all children of a prefix has no effect. The entry of
            the empty prefix is not used.
        beta: Guidance strength in nats per unit of reward; 0 is the base policy.
    """
    return tuple((step + beta * reward).log_softmax(-1) for step, reward in zip(world.policy, rewards[1:], strict=True))


def prefix_policies(world: World, rewards: Table, beta: float) -> Table:
    """The RLHF optimum over the prefixes of each length i alone, π_i ∝ π_ref exp(β g), in log-probabilities.

    The guided policy is their ratio, π(v|y) ∝ π_{i+1}(yv) / π_i(y) for y of length i, for any rewards
    (arXiv 2406.07780).

    Arguments as in `guided_policy`.
    """
    base_log_probs = prefix_log_probs(world.policy)
    return tuple(_normalise(base + beta * reward) for base, reward in zip(base_log_probs, rewards, strict=True))


def expected_reward(world: World, log_probs: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The mean reward of sequences with these log-probabilities, in units of reward."""
    return (log_probs.exp() * world.reward).sum()


def rlhf_objective(world: World, log_probs: Float[Tensor, "..."], beta: float) -> Float[Tensor, ""]:
    """The objective of KL-regularised RLHF, in units of reward: expected reward − KL to the base policy / β.

    It falls short of its maximum by KL(π‖π*) / β.

    Args:
        world: The world.
        log_probs: Log-probability of every sequence.
        beta: Guidance strength in nats per unit of reward, more than 0.
    """
    check_beta(beta)
    return expected_reward(world, log_probs) - kl_divergence(log_probs, sequence_log_probs(world.policy)) / beta


def kl_divergence(log_p: Float[Tensor, "..."], log_q: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The Kullback-Leibler divergence KL(p‖q) = Σ p log(p/q), in nats; infinite where q is 0 and p is not."""
    # 0 log 0 is 0, which floating point does not know.
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p == float("-inf"), 0.0).sum()


def total_variation(log_p: Float[Tensor, "..."], log_q: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The total variation distance, half the sum of |p − q|: 0 if equal, 1 if disjoint."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum()


def _normalise(log_weights: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log-probabilities in proportion to weights, over all entries."""
    return log_weights.flatten().log_softmax(-1).view(log_weights.shape)

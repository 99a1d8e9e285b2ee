"""Policies of a world: the base, the best, and those that rewards of prefixes guide; how good and how far they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.exact.world import Table, World, positive


def prefix_log_probs(policy: Table) -> Table:
    """Log-probability of every prefix of every length under a tokenwise policy, in nats; -inf where it is 0."""
    table = [torch.zeros((), dtype=torch.float64)]
    for step in policy:
        table.append(table[-1][..., None] + step)
    return tuple(table)


def sequence_log_probs(policy: Table) -> Float[Tensor, "..."]:
    """Log-probability of every full sequence under a tokenwise policy, in nats."""
    return prefix_log_probs(policy)[-1]


def soft_value(world: World, beta: float) -> Table:
    """The soft value S of every prefix, in units of reward: what the best policy makes of it, its KL paid.

    S of a full sequence is its reward; before, S(y) = (1/β) log Σ_v π_ref(v|y) exp(β S(yv)), which is the same as
    (1/β) log E_π_ref[exp(β r) | y] (Levine, arXiv 1805.00909, for the recursion). S of the empty prefix is the largest
    value that `rlhf_objective` can have, log Z / β.

    Args:
        world: The world.
        beta: Guidance strength in nats per unit of reward, more than 0.
    """
    table = [world.reward]
    for step in reversed(world.policy):
        table.append((step + positive(beta) * table[-1]).logsumexp(-1) / beta)
    return tuple(reversed(table))


def optimum(world: World, beta: float) -> Table:
    """The optimum of KL-regularised RLHF as a tokenwise policy: π*(v|y) = π_ref(v|y) exp(β [S(yv) − S(y)]).

    Arguments as in `soft_value`.
    """
    values = soft_value(world, beta)
    return tuple(
        step + beta * (after - before[..., None])
        for step, before, after in zip(world.policy, values[:-1], values[1:], strict=True)
    )


def optimal_sequences(world: World, beta: float) -> Float[Tensor, "..."]:
    """The same optimum as a distribution over sequences, π_ref exp(β r) / Z (arXiv 2205.11275), in log-probabilities.

    Arguments as in `soft_value`.
    """
    return _normalised(sequence_log_probs(world.policy) + positive(beta) * world.reward)


def guided(world: World, rewards: Table, beta: float) -> Table:
    """The tokenwise policy that rewards of prefixes give: π(v|y) ∝ π_ref(v|y) exp(β g(yv)) (arXiv 2406.07780).

    It is what `PartialRewardLogitsProcessor` samples from, and equals `optimum` if and only if the rewards are the soft
    value up to a constant for each prefix y.

    Args:
        world: The world.
        rewards: Reward of every prefix; finite, and fixed up to a constant per parent. That of the empty prefix is not
            used.
        beta: Guidance strength in nats per unit of reward; 0 is the base policy.
    """
    return tuple((step + beta * reward).log_softmax(-1) for step, reward in zip(world.policy, rewards[1:], strict=True))


def prefix_policies(world: World, rewards: Table, beta: float) -> Table:
    """The RLHF optimum over prefixes of each length i by itself, π_i ∝ π_ref exp(β g), in log-probabilities.

    The guided policy is their ratio, π(v|y) ∝ π_{i+1}(yv) / π_i(y) for y of length i, whatever the rewards are
    (arXiv 2406.07780).

    Arguments as in `guided`.
    """
    return tuple(
        _normalised(base + beta * reward) for base, reward in zip(prefix_log_probs(world.policy), rewards, strict=True)
    )


def expected_reward(world: World, log_probs: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The mean reward of sequences with these log-probabilities, in units of reward."""
    return (log_probs.exp() * world.reward).sum()


def rlhf_objective(world: World, log_probs: Float[Tensor, "..."], beta: float) -> Float[Tensor, ""]:
    """What KL-regularised RLHF maximises, in units of reward: expected reward − KL to the base policy / β.

    It falls short of its largest value by KL(π‖π*) / β.

    Args:
        world: The world.
        log_probs: Log-probability of every sequence.
        beta: Guidance strength in nats per unit of reward, more than 0.
    """
    return expected_reward(world, log_probs) - kl(log_probs, sequence_log_probs(world.policy)) / positive(beta)


def kl(log_p: Float[Tensor, "..."], log_q: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The KL divergence of q from p, Σ p log(p/q), in nats; infinite where p goes and q does not."""
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p == float("-inf"), 0.0).sum()


def total_variation(log_p: Float[Tensor, "..."], log_q: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Half the sum of the absolute differences of the probabilities: 0 if equal, 1 if disjoint."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum()


def _normalised(log_weights: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return log_weights.flatten().log_softmax(-1).view(log_weights.shape)

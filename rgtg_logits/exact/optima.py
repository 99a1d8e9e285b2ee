"""The prefix rewards that minimise each training objective, on unlimited data and with a table as the model.

Data are sequences of a sampling policy (the base policy unless given), labelled with their rewards, or pairs of two
independent sequences. y is preferred to y' with probability sigmoid(r(y) − r(y')), the Bradley-Terry model.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.exact.policies import optimal_policy, prefix_log_probs, sequence_log_probs
from rgtg_logits.exact.world import Table, World, check_beta


def conditional_mean(policy: Table, values: Float[Tensor, "..."]) -> Table:
    """E[values | prefix] for every prefix that a policy completes, in the unit of `values`.

    Args:
        policy: Log-probabilities of next tokens.
        values: A finite number for every sequence.
    """
    # Backward induction, from full sequences to the empty prefix.
    table = [values]
    for step in reversed(policy):
        table.append((step.exp() * table[-1]).sum(-1))
    return tuple(reversed(table))


def value(world: World, sampler: Table | None = None) -> Table:
    """E[r | prefix]: the minimiser of the squared error to the final reward (CD-FUDGE, arXiv 2310.17022; VAS).

    Its recursion is that of the soft value without the exponentials, V(y) = Σ_v π_ref(v|y) V(yv).

    Args:
        world: The world.
        sampler: The policy that the data are sampled from; by default the base policy.
    """
    return conditional_mean(world.policy if sampler is None else sampler, world.reward)


def cumulative(world: World, sampler: Table | None = None) -> Table:
    """The minimiser of RAD's cumulative squared error, Σ_t t (v(y_{1:t}) − r(y))² / (1 + … + n) (arXiv 2310.09520).

    The weights of a text of n tokens add up to 1, so a long text has less weight at each of its prefixes than a short
    one: the minimiser is the expected reward with texts weighted by 2 / (n (n + 1)), and `value` if all texts are
    equally long.

    Args:
        world: The world.
        sampler: The policy that the data are sampled from; by default the base policy.
    """
    policy = world.policy if sampler is None else sampler
    lengths = world.lengths().double().view(world.reward.shape)
    weight = 2 / (lengths * (lengths + 1))
    weighted_reward = conditional_mean(policy, weight * world.reward)
    mean_weight = conditional_mean(policy, weight)
    return tuple(reward / total for reward, total in zip(weighted_reward, mean_weight, strict=True))


def best_value(world: World) -> Table:
    """The largest reward among the completions to which the base policy gives probability (FaRMA, arXiv 2502.04517).

    It solves V(y) = max_v V(yv), FaRMA's training target, and is the limit of the soft value for large beta.
    """
    table = [world.reward]
    for step in reversed(world.policy):
        table.append(_mask_impossible(table[-1], step).amax(-1))
    return tuple(reversed(table))


def arm(world: World, beta: float = 1.0) -> Table:
    """Σ log π_r over the tokens of a prefix, in nats, with β_r Σ log π_r trained on pairs (GenARM, arXiv 2410.08193).

    On full sequences log π_r = r / β_r − constant, where the constant normalises π_r over the sequences to which the
    base policy gives probability. The entries of prefixes follow: they are the soft value for a uniform distribution
    over sequences in place of the base policy, and so favour prefixes with many continuations. With guidance strength
    β β_r, the product of base policy and rewards over a sequence is the optimum up to a constant, but the policy that
    is sampled token by token, with each step normalised, is not.

    Args:
        world: The world.
        beta: The paper's β_r, in units of reward per nat, more than 0.
    """
    check_beta(beta)
    table = [world.reward / beta]
    for step in reversed(world.policy):
        table.append(_mask_impossible(table[-1], step).logsumexp(-1))
    log_normaliser = table[-1]
    return tuple(entry - log_normaliser for entry in reversed(table))


def _mask_impossible(values: Float[Tensor, "..."], step: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values, with -inf for next tokens of probability 0."""
    return values.masked_fill(step == float("-inf"), float("-inf"))


def dpo_ratio(world: World, beta: float) -> Table:
    """(1/β) Σ log π_dpo/π_ref over the tokens of a prefix, in units of reward, for the exact DPO policy.

    The minimiser of DPO (arXiv 2305.18290) on pairs is the optimum of KL-regularised RLHF. Its log-ratio to the base
    policy determines the soft value: it is S(prefix) − S(empty) (arXiv 2404.12358).

    Args:
        world: The world.
        beta: 1/β of DPO: guidance strength in nats per unit of reward, more than 0.
    """
    ratios = []
    for optimal, base in zip(optimal_policy(world, beta), world.policy, strict=True):
        # Both are -inf for impossible tokens, and their difference would be NaN.
        ratios.append((optimal - base).masked_fill(base == float("-inf"), 0.0) / beta)
    # Sums over the tokens of a prefix, as for log-probabilities.
    return prefix_log_probs(tuple(ratios))


def win_weights(world: World, sampler: Table | None = None) -> Float[Tensor, "sequences sequences"]:
    """Probability that y and y' are drawn, in this order, and y is preferred: μ(y) μ(y') sigmoid(r(y) − r(y')).

    Args:
        world: The world.
        sampler: The policy μ that both sequences of a pair are sampled from; by default the base policy.
    """
    probability = sequence_log_probs(world.policy if sampler is None else sampler).exp().flatten()
    reward = world.reward.flatten()
    return probability[:, None] * probability * (reward[:, None] - reward).sigmoid()


def full_bt(world: World, sampler: Table | None = None) -> Float[Tensor, "..."]:
    """Bradley-Terry on full sequences: their rewards up to a constant, here with mean 0 under the sampling policy.

    The loss does not depend on rewards of shorter prefixes, so all values of these are optimal.

    Args:
        world: The world.
        sampler: The policy that both sequences of a pair are sampled from; by default the base policy.
    """
    probability = sequence_log_probs(world.policy if sampler is None else sampler).exp()
    scores = bradley_terry(win_weights(world, sampler)).view(world.reward.shape)
    return scores - (probability * scores).sum()


def partial_bt(world: World, sampler: Table | None = None, *, tie_finished: bool = False) -> Table:
    """Bradley-Terry on the prefixes of every pair at every length (PARGS, arXiv 2406.07780), as log-odds.

    Among prefixes a, b of one length it solves Σ_b (W[a,b] + W[b,a]) sigmoid(s(a) − s(b)) = Σ_b W[a,b], where W[a,b]
    is the sum of `win_weights` of the sequences that begin with a over those that begin with b. Only prefixes of one
    length are compared, so a constant per length is free: here the mean under the sampling policy is 0.

    Args:
        world: The world.
        sampler: The policy that both sequences of a pair are sampled from; by default the base policy.
        tie_finished: Whether a finished text has one reward, which it keeps while the other text of the pair goes on,
            and comparisons end with the longer text (`rgtg_logits.train.losses.prefix_comparisons`). Lengths are then
            coupled, and only full sequences have mean 0. Otherwise a text with any number of end-of-text tokens is a
            prefix of its own.
    """
    wins = win_weights(world, sampler)
    lengths = world.lengths() if tie_finished else torch.full_like(world.lengths(), world.horizon)
    # For each length, the number of the text that every sequence begins with.
    prefixes = [_text_numbers(lengths.clamp(max=length), world) for length in range(world.horizon + 1)]
    scores = bradley_terry(_prefix_wins(wins, lengths, prefixes))
    table = []
    for length, numbers in enumerate(prefixes):
        # Sequences are in lexicographic order, so those with a common prefix follow each other.
        one_per_prefix = numbers[:: world.vocab ** (world.horizon - length)]
        table.append(scores[one_per_prefix].view((world.vocab,) * length))
    log_probs = prefix_log_probs(world.policy if sampler is None else sampler)
    means = [(log_prob.exp() * entry).sum() for log_prob, entry in zip(log_probs, table, strict=True)]
    if tie_finished:
        return tuple(entry - means[-1] for entry in table)
    return tuple(entry - mean for entry, mean in zip(table, means, strict=True))


def _prefix_wins(
    wins: Float[Tensor, "sequences sequences"],
    lengths: Int[Tensor, " sequences"],
    prefixes: list[Int[Tensor, " sequences"]],
) -> Float[Tensor, "texts texts"]:
    """Win weights between texts, added up over the prefixes of every pair of sequences until the longer one ends."""
    longer = torch.maximum(lengths[:, None], lengths)
    texts = int(prefixes[-1].max()) + 1
    total = wins.new_zeros(texts, texts)
    for length, numbers in enumerate(prefixes):
        compared = wins.masked_fill(longer < length, 0.0)
        total.index_put_((numbers[:, None], numbers[None]), compared, accumulate=True)
    return total


def _text_numbers(lengths: Int[Tensor, " sequences"], world: World) -> Int[Tensor, " sequences"]:
    """Numbers of the first `lengths` tokens of every sequence, the same for equal texts: by length, then by tokens."""
    shorter_texts = (world.vocab**lengths - 1) // (world.vocab - 1)
    rank = torch.arange(len(lengths)) // world.vocab ** (world.horizon - lengths)
    return shorter_texts + rank


def bradley_terry(wins: Float[Tensor, "texts texts"]) -> Float[Tensor, " texts"]:
    """The scores s that minimise `bradley_terry_loss`, a convex problem, by a damped Newton method.

    A constant is free for every set of texts that are connected by comparisons. A text without comparisons gets 0.

    Args:
        wins: How often the text of the row is preferred to that of the column, with any common factor.

    Raises:
        InvalidArgumentError: If there is no minimum, because some texts always win.
    """
    # A comparison of a text with itself has no gradient.
    wins = wins - wins.diag().diag()
    scores = torch.zeros_like(wins[0])
    for _ in range(100):
        step = _newton_step(wins, scores)
        size = float(step.max() - step.min())
        if size < 1e-8:
            # Newton's method converges quadratically, so after this last step only rounding is left.
            return scores - step
        # This damping always converges for sums of logistic losses (Sun and Tran-Dinh, Math. Program. 178, 2019).
        scores = scores - step * (math.log1p(size) / size)
    raise InvalidArgumentError(
        "Expected every text to lose sometimes, but after 100 steps the scores still grow: there is no finite optimum. "
        "Use rewards that lie closer together."
    )


def _newton_step(wins: Float[Tensor, "texts texts"], scores: Float[Tensor, " texts"]) -> Float[Tensor, " texts"]:
    """The inverse Hessian of the Bradley-Terry loss times its gradient."""
    comparisons = wins + wins.T
    probability = (scores[:, None] - scores).sigmoid()
    gradient = (comparisons * probability).sum(1) - wins.sum(1)
    # The Hessian is the Laplacian of the graph of comparisons with these weights.
    weights = comparisons * probability * probability.T
    degree = weights.sum(1)
    # Rare texts have tiny weights. With 1 on the diagonal, the pseudo-inverse can tell them from exact zeros.
    scale = degree.rsqrt().masked_fill(degree == 0, 0.0)
    laplacian = scale[:, None] * (degree.diag() - weights) * scale
    # A pseudo-inverse, because constants are in the null space.
    return scale * (torch.linalg.pinv(laplacian, hermitian=True) @ (scale * gradient))


def bradley_terry_loss(wins: Float[Tensor, "texts texts"], scores: Float[Tensor, " texts"]) -> Float[Tensor, ""]:
    """The Bradley-Terry loss, the mean of −log sigmoid(s − s') over comparisons, in nats; log 2 if scores are equal.

    Args:
        wins: How often the text of the row is preferred to that of the column, with any common factor.
        scores: Score of every text.
    """
    return (wins * softplus(scores - scores[:, None])).sum() / wins.sum()

"""What each training objective leads to with endless data and a table for a model: its rewards of all prefixes.

Data are sequences of a sampler (the base policy unless given), labelled with their rewards, or pairs of two independent
sequences of which y is preferred to y' with probability sigmoid(r(y) − r(y')).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.exact.policies import optimum, prefix_log_probs, sequence_log_probs
from rgtg_logits.exact.world import Table, World, positive


def conditional_mean(policy: Table, values: Float[Tensor, "..."]) -> Table:
    """E[values | prefix] for every prefix, in the unit of `values`, when a policy completes it.

    Args:
        policy: Log-probabilities of next tokens.
        values: A finite number for every sequence.
    """
    table = [values]
    for step in reversed(policy):
        table.append((step.exp() * table[-1]).sum(-1))
    return tuple(reversed(table))


def value(world: World, sampler: Table | None = None) -> Table:
    """E[r | prefix]: the minimiser of the squared error to the final reward (CD-FUDGE, arXiv 2310.17022; VAS).

    Its recursion is that of the soft value without the exponentials, V(y) = Σ_v π_ref(v|y) V(yv).

    Args:
        world: The world.
        sampler: The policy that the data are from; by default the base policy.
    """
    return conditional_mean(world.policy if sampler is None else sampler, world.reward)


def cumulative(world: World, sampler: Table | None = None) -> Table:
    """The minimiser of RAD's cumulative squared error, Σ_t t (v(y_{1:t}) − r(y))² / (1 + … + n) (arXiv 2310.09520).

    The weights of a text of n tokens add up to 1, so a long text counts less at each of its prefixes than a short one:
    it is the expected reward when texts are drawn in proportion to 2 / (n (n + 1)), and `value` if all are equally
    long.

    Args:
        world: The world.
        sampler: The policy that the data are from; by default the base policy.
    """
    policy = world.policy if sampler is None else sampler
    lengths = world.lengths().double().view(world.reward.shape)
    weight = 2 / (lengths * (lengths + 1))
    weighted, total = conditional_mean(policy, weight * world.reward), conditional_mean(policy, weight)
    return tuple(part / whole for part, whole in zip(weighted, total, strict=True))


def best_value(world: World) -> Table:
    """The largest reward among the completions that the base policy can make (FaRMA, arXiv 2502.04517).

    It solves V(y) = max_v V(yv), which FaRMA is trained on, and is the limit of the soft value for large beta.
    """
    table = [world.reward]
    for step in reversed(world.policy):
        table.append(table[-1].masked_fill(step == float("-inf"), float("-inf")).amax(-1))
    return tuple(reversed(table))


def arm(world: World, beta: float = 1.0) -> Table:
    """Σ log π_r over the tokens of a prefix, in nats, with β_r Σ log π_r trained on pairs (GenARM, arXiv 2410.08193).

    On full sequences log π_r = r / β_r − constant, where the constant makes π_r a distribution over the sequences that
    the base policy can make. Prefixes follow from that: what the soft value is to the base policy, these are to one
    that finds all sequences equally probable, and so they favour prefixes that can go on in many ways. Guided by it
    with strength β β_r, the product of base and rewards over a sequence is the optimum up to a constant, but what is
    sampled token by token, each step normalised, is not.

    Args:
        world: The world.
        beta: The paper's β_r, in units of reward per nat, more than 0.
    """
    table = [world.reward / positive(beta)]
    for step in reversed(world.policy):
        table.append(table[-1].masked_fill(step == float("-inf"), float("-inf")).logsumexp(-1))
    return tuple(entry - table[-1] for entry in reversed(table))


def dpo_ratio(world: World, beta: float) -> Table:
    """(1/β) Σ log π_dpo/π_ref over the tokens of a prefix, in units of reward, for the exact DPO policy.

    On pairs, DPO (arXiv 2305.18290) leads to the optimum of KL-regularised RLHF, and its ratio to the base policy tells
    the soft value: it is S(prefix) − S(empty) (arXiv 2404.12358).

    Args:
        world: The world.
        beta: 1/β of DPO: guidance strength in nats per unit of reward, more than 0.
    """
    ratios = [
        (best - step).masked_fill(step == float("-inf"), 0.0) / beta
        for best, step in zip(optimum(world, beta), world.policy, strict=True)
    ]
    return prefix_log_probs(tuple(ratios))


def win_weights(world: World, sampler: Table | None = None) -> Float[Tensor, "sequences sequences"]:
    """How often y and y' are drawn, in this order, and y is preferred: μ(y) μ(y') sigmoid(r(y) − r(y')).

    Args:
        world: The world.
        sampler: The policy μ that both sequences of a pair are from; by default the base policy.
    """
    probability = sequence_log_probs(world.policy if sampler is None else sampler).exp().flatten()
    reward = world.reward.flatten()
    return probability[:, None] * probability * (reward[:, None] - reward).sigmoid()


def full_bt(world: World, sampler: Table | None = None) -> Float[Tensor, "..."]:
    """Bradley-Terry on full sequences: their rewards up to a constant, here with mean 0 under the sampler.

    Rewards of shorter prefixes do not occur in the loss: any are optimal.

    Args:
        world: The world.
        sampler: The policy that both sequences of a pair are from; by default the base policy.
    """
    probability = sequence_log_probs(world.policy if sampler is None else sampler).exp()
    scores = bradley_terry(win_weights(world, sampler)).view(world.reward.shape)
    return scores - (probability * scores).sum()


def partial_bt(world: World, sampler: Table | None = None, *, tie_finished: bool = False) -> Table:
    """Bradley-Terry on the prefixes of every pair at every length (PARGS, arXiv 2406.07780), as log-odds.

    Among prefixes a, b of one length it solves Σ_b (W[a,b] + W[b,a]) sigmoid(s(a) − s(b)) = Σ_b W[a,b], where W[a,b]
    adds up `win_weights` of all sequences that begin with a and all that begin with b. Prefixes of one length are
    compared with each other only, so a constant per length is free: here the mean under the sampler is 0.

    Args:
        world: The world.
        sampler: The policy that both sequences of a pair are from; by default the base policy.
        tie_finished: Whether a finished text has one reward, which it keeps while the other text of the pair goes on,
            and comparisons end with the longer text (`rgtg_logits.train.losses.prefix_comparisons`). Then lengths hang
            together, and only full sequences have mean 0. Otherwise text and end-of-text tokens together are a prefix
            like any other.
    """
    wins, horizon = win_weights(world, sampler), world.horizon
    lengths = world.lengths() if tie_finished else torch.full_like(world.lengths(), horizon)
    longer = torch.maximum(lengths[:, None], lengths)
    texts = [_texts(lengths.clamp(max=i), world) for i in range(horizon + 1)]
    total = wins.new_zeros((int(texts[-1].max()) + 1,) * 2)
    for i, text in enumerate(texts):
        total.index_put_((text[:, None], text[None]), wins.masked_fill(longer < i, 0.0), accumulate=True)
    scores = bradley_terry(total)
    table = [scores[text[:: world.vocab ** (horizon - i)]].view((world.vocab,) * i) for i, text in enumerate(texts)]
    reached = prefix_log_probs(world.policy if sampler is None else sampler)
    means = [(log_probs.exp() * entry).sum() for log_probs, entry in zip(reached, table, strict=True)]
    return tuple(entry - (means[-1] if tie_finished else mean) for entry, mean in zip(table, means, strict=True))


def bradley_terry(wins: Float[Tensor, "texts texts"]) -> Float[Tensor, " texts"]:
    """The scores s that minimise `bradley_terry_loss`, by Newton's method; the problem is convex.

    A constant is free for every set of texts that hang together by comparisons. A text that is never compared gets 0.

    Args:
        wins: How often the text of the row is preferred to that of the column, with any common factor.

    Raises:
        InvalidArgumentError: If there is no minimum, because some texts always win.
    """
    wins = wins - wins.diag().diag()
    scores, both, won = torch.zeros_like(wins[0]), wins + wins.T, wins.sum(1)
    for _ in range(100):
        probability = (scores[:, None] - scores).sigmoid()
        weights = both * probability * probability.T
        # Rare texts have small weights. Scaled to 1 on the diagonal, what is 0 can be told from what is small.
        degree = weights.sum(1)
        scale = degree.rsqrt().masked_fill(degree == 0, 0.0)
        laplacian = scale[:, None] * (degree.diag() - weights) * scale
        gradient = (both * probability).sum(1) - won
        step = scale * (torch.linalg.pinv(laplacian, hermitian=True) @ (scale * gradient))
        size = float(step.max() - step.min())
        if size < 1e-8:
            return scores - step  # Convergence is quadratic, so this last step leaves nothing but rounding.
        # This damping always converges for sums of logistic losses (Sun and Tran-Dinh, Math. Program. 178, 2019).
        scores = scores - step * (math.log1p(size) / size)
    raise InvalidArgumentError(
        "Expected every text to lose sometimes, but after 100 steps the scores still grow: there is no finite optimum. "
        "Use rewards that lie closer together."
    )


def bradley_terry_loss(wins: Float[Tensor, "texts texts"], scores: Float[Tensor, " texts"]) -> Float[Tensor, ""]:
    """The Bradley-Terry loss, the mean of −log sigmoid(s − s') over comparisons, in nats; log 2 if scores are equal.

    Args:
        wins: How often the text of the row is preferred to that of the column, with any common factor.
        scores: Score of every text.
    """
    return (wins * softplus(scores - scores[:, None])).sum() / wins.sum()


def _texts(lengths: Int[Tensor, " sequences"], world: World) -> Int[Tensor, " sequences"]:
    """Numbers the beginnings of all sequences, so that equal texts have one number: by length, then by tokens."""
    place = torch.arange(len(lengths)) // world.vocab ** (world.horizon - lengths)
    return (world.vocab**lengths - 1) // (world.vocab - 1) + place

"""Loss functions of reward models that score prefixes, as pure functions of tensors.

A reward model with a causal backbone gives the reward of every prefix in one forward; the losses here read that row of
rewards. From preference pairs: Bradley-Terry at every length (`partial_bt`, PARGS) or on finished answers only
(`full_bt`, the usual reward model; `farma_loss` and `arm_loss` on rewards that a language model's head gives). From
answers with a reward each: regressions of every prefix on the reward of the finished answer (`value_loss`,
`cumulative_loss`, `soft_value_loss`). `objectives.py` maps the objectives' names to them.

Rows are padded on the right. The prefix at position t is the text up to and with token t, prompt included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from rgtg_logits.prefix_accuracy import PairRewards


class PrefixComparisons(NamedTuple):
    """Pairs of prefixes that a Bradley-Terry loss compares.

    Attributes:
        chosen: Reward of the prefix of the chosen answer, in the model's own unit.
        rejected: Reward of the prefix of the rejected answer.
        mask: Whether there is a comparison at this position; rewards elsewhere mean nothing.
    """

    chosen: Float[Tensor, "pairs length"]
    rejected: Float[Tensor, "pairs length"]
    mask: Bool[Tensor, "pairs length"]


def prefix_comparisons(rewards: PairRewards) -> PrefixComparisons:
    """Compares the two answers at every position from the first token that differs to the end of the longer answer.

    Before the first different token both prefixes are the same text, so their rewards are equal and carry no gradient.
    An answer that has ended keeps its last reward, because a finished answer is compared with all that the longer one
    becomes.
    """
    lengths = rewards.lengths
    longer = torch.maximum(lengths.chosen, lengths.rejected)
    return PrefixComparisons(
        _hold_last(rewards.chosen, lengths.chosen),
        _hold_last(rewards.rejected, lengths.rejected),
        position_mask(lengths.start, longer, rewards.chosen.shape[1]),
    )


def final_comparisons(rewards: PairRewards) -> PrefixComparisons:
    """Compares the finished answers only: one comparison per pair."""
    chosen = last_rewards(rewards.chosen, rewards.lengths.chosen)[:, None]
    rejected = last_rewards(rewards.rejected, rewards.lengths.rejected)[:, None]
    return PrefixComparisons(chosen, rejected, torch.ones_like(chosen, dtype=torch.bool))


def last_rewards(rewards: Float[Tensor, "rows length"], lengths: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The reward at the last token of each row."""
    return rewards.gather(1, lengths[:, None] - 1)[:, 0]


def bradley_terry(
    comparisons: PrefixComparisons, *, margin: Float[Tensor, " pairs"] | None = None, center: float | None = None
) -> Float[Tensor, "pairs length"]:
    """The loss of each comparison, -log sigmoid(chosen - rejected - margin), in nats; 0 where there is none.

    Args:
        comparisons: The comparisons.
        margin: By how much the chosen answer should win, in reward units, at every prefix of the pair; 0 by default.
        center: Weight of (chosen + rejected)², which pulls rewards towards mean zero (arXiv 2312.09244, eq. 2). None
            or 0 is off, 0.01 is typical.
    """
    difference = comparisons.chosen - comparisons.rejected
    if margin is not None:
        difference = difference - margin[:, None]
    # Negative log-likelihood of the Bradley-Terry model, P(chosen wins) = sigmoid(difference).
    loss = -logsigmoid(difference)
    if center is not None:
        loss = loss + center * (comparisons.chosen + comparisons.rejected) ** 2
    return loss.masked_fill(~comparisons.mask, 0.0)


def partial_bt(rewards: PairRewards, *, margin: Float[Tensor, " pairs"] | None = None) -> Float[Tensor, ""]:
    """The PARGS loss in nats: the mean over all prefix pairs of the batch (arXiv 2406.07780).

    It equals, gradients included, the loss of a data set with one row per prefix pair (the official recipe), so a long
    pair weighs more than a short one: it is not the mean of the means of the pairs. `margin` as in `bradley_terry`.
    """
    comparisons = prefix_comparisons(rewards)
    return bradley_terry(comparisons, margin=margin).sum() / comparisons.mask.sum()


def full_bt(rewards: PairRewards, *, margin: Float[Tensor, " pairs"] | None = None) -> Float[Tensor, ""]:
    """The loss of an ordinary reward model in nats: the mean over the finished pairs of the batch.

    It does not read the rewards of unfinished prefixes. `margin` as in `bradley_terry`.
    """
    return bradley_terry(final_comparisons(rewards), margin=margin).mean()


def farma_loss(
    rewards: PairRewards,
    chosen_max_next: Float[Tensor, "pairs length"],
    rejected_max_next: Float[Tensor, "pairs length"],
    *,
    margin: Float[Tensor, " pairs"] | None = None,
    weight: float = 1.0,
) -> Float[Tensor, "pairs 1"]:
    """Bradley-Terry on the finished answers plus a max-Bellman constraint, in nats for each pair (arXiv 2502.04517).

    The constraint of FaRMA: an unfinished prefix is worth as much as its best continuation by one token. It is the
    squared difference to the largest reward one token later, which is a target (no gradient), averaged over the
    unfinished prefixes of both answers.

    Args:
        rewards: Rewards of all prefixes.
        chosen_max_next: Largest reward of every prefix of the chosen text with any one token more.
        rejected_max_next: Largest reward of every prefix of the rejected text with any one token more.
        margin: By how much the chosen answer should win.
        weight: Weight of the constraint.
    """
    lengths = rewards.lengths
    loss = bradley_terry(final_comparisons(rewards), margin=margin)
    chosen_sum, chosen_count = _max_next_errors(rewards.chosen, chosen_max_next, lengths.start, lengths.chosen)
    rejected_sum, rejected_count = _max_next_errors(
        rewards.rejected, rejected_max_next, lengths.start, lengths.rejected
    )
    constraint = (chosen_sum + rejected_sum) / (chosen_count + rejected_count).clamp(min=1)
    return loss + weight * constraint[:, None]


def arm_loss(
    rewards: PairRewards, *, beta: float = 1.0, margin: Float[Tensor, " pairs"] | None = None
) -> Float[Tensor, "pairs 1"]:
    """Bradley-Terry on beta · Σ log π_r of the finished answers, in nats for each pair (GenARM, arXiv 2410.08193).

    Args:
        rewards: Summed log-probability of the answer up to each token, under the model that is trained.
        beta: Nats of preference per nat of log-probability; the paper's beta_r.
        margin: By how much the chosen answer should win.
    """
    finished = final_comparisons(rewards)
    scaled = finished._replace(chosen=beta * finished.chosen, rejected=beta * finished.rejected)
    return bradley_terry(scaled, margin=margin)


def value_loss(
    rewards: Float[Tensor, "rows length"],
    targets: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows length"],
    *,
    td_lambda: float = 1.0,
) -> Float[Tensor, "rows length"]:
    """Half the squared difference of every prefix to the reward of the finished answer (CD-FUDGE, arXiv 2310.17022).

    Its minimiser is the value function E[r | prefix]: the expected reward of the texts trained on that begin with this
    prefix.

    Args:
        rewards: Reward of every prefix.
        targets: Reward of the finished answer.
        mask: Which prefixes are trained on.
        td_lambda: Below 1, the targets are those of `lambda_returns` instead.
    """
    returns = lambda_returns(rewards, targets, mask, td_lambda=td_lambda, soft=False)
    return (0.5 * (rewards - returns) ** 2).masked_fill(~mask, 0.0)


def cumulative_loss(
    rewards: Float[Tensor, "rows length"], targets: Float[Tensor, " rows"], mask: Bool[Tensor, "rows length"]
) -> Float[Tensor, "rows 1"]:
    """The weighted mean of a row's squared differences, the t-th prefix with weight t (RAD, arXiv 2310.09520).

    The minimiser is that of `value_loss` if all answers are equally long. Otherwise a long answer counts less at each
    of its prefixes than a short one, because the weights of all prefixes of a row add up to 1: the minimiser is the
    expected reward when an answer of n tokens is drawn in proportion to 2 / (n (n + 1)). Arguments as in `value_loss`.
    """
    # Linear weights 1, 2, …, n over the tokens of the answer.
    weight = mask.cumsum(1).masked_fill(~mask, 0)
    squares = ((rewards - targets[:, None]) ** 2).masked_fill(~mask, 0.0)
    return ((squares * weight).sum(1) / weight.sum(1).clamp(min=1))[:, None]


def soft_value_loss(
    rewards: Float[Tensor, "rows length"],
    targets: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows length"],
    *,
    beta: float = 1.0,
    clip: float = 5.0,
    td_lambda: float = 1.0,
) -> Float[Tensor, "rows length"]:
    """The LINEX loss exp(d) − d − 1 of every prefix, with d = beta · target − reward.

    Its minimiser over samples of π_ref is reward = log E[exp(beta · r) | prefix], which is beta times the soft value:
    guided by it with strength 1, π_ref becomes the optimum of KL-regularised RLHF with strength `beta`, token by token.
    (LINEX: Varian, 1975; Zellner, JASA 1986.)

    Args:
        rewards: Reward of every prefix, in nats.
        targets: Reward of the finished answer, in its own unit.
        mask: Which prefixes are trained on.
        beta: Guidance strength that the model is made for, in nats per unit of `targets`.
        clip: Largest d in nats at which the loss is exponential; beyond it, it continues as its tangent, because a few
            samples would dominate the gradient otherwise. The minimiser is unchanged where no d is larger.
        td_lambda: Below 1, the targets are those of `lambda_returns` instead.
    """
    difference = lambda_returns(rewards, beta * targets, mask, td_lambda=td_lambda, soft=True) - rewards
    # The tangent of exp at `clip`, as in the Huber loss: exp(clip) (1 + d − clip).
    bounded = difference.clamp(max=clip)
    exponential = bounded.exp() * (1 + difference - bounded)
    return (exponential - difference - 1).masked_fill(~mask, 0.0)


def lambda_returns(
    rewards: Float[Tensor, "rows length"],
    targets: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows length"],
    *,
    td_lambda: float,
    soft: bool,
) -> Float[Tensor, "rows length"]:
    """The regression target of each prefix, without gradient: the λ-return of TD(λ) (Sutton and Barto, 2018, ch. 12).

    With λ = 1 it is the finished answer's target (Monte Carlo). Below, the return of a prefix is the mean of the
    model's own reward of the prefix one token longer (bootstrapping, weight 1 − λ) and of that prefix's return (weight
    λ); where the prefix one token longer is finished, it is the target. Rewards of single answers are noisy, and a
    prefix learns from them only as far as about 1 / (1 − λ) tokens ahead; for texts drawn from the base model the
    fixed point is the same as the minimiser with λ = 1.

    Args:
        rewards: Reward of every prefix.
        targets: Target of the finished answer.
        mask: Which prefixes are trained on; the last one of a row is the finished answer.
        td_lambda: λ, from 0 to 1.
        soft: Whether means are soft, log E[exp(·)], as `soft_value_loss` needs.
    """
    returns = targets[:, None].expand_as(rewards)
    if td_lambda == 1:
        return returns
    rewards = rewards.detach()
    columns = list(returns.unbind(1))
    # Logarithms, because a soft mean is a log-sum-exp.
    log_weights = torch.tensor([1 - td_lambda, td_lambda], dtype=rewards.dtype, device=rewards.device).log()
    # Backward recursion, because each return depends on the one after it.
    for t in range(rewards.shape[1] - 3, -1, -1):
        if soft:
            mean = torch.logaddexp(log_weights[0] + rewards[:, t + 1], log_weights[1] + columns[t + 1])
        else:
            mean = torch.lerp(rewards[:, t + 1], columns[t + 1], td_lambda)
        # A prefix two tokens longer means that the one a token longer is not finished.
        columns[t] = torch.where(mask[:, t + 2], mean, columns[t])
    return torch.stack(columns, 1)


def position_mask(start: Int[Tensor, " rows"], end: Int[Tensor, " rows"], length: int) -> Bool[Tensor, "rows length"]:
    """Whether start ≤ position < end, for each position of a row."""
    position = torch.arange(length, device=start.device)[None]
    return (position >= start[:, None]) & (position < end[:, None])


def _hold_last(rewards: Float[Tensor, "pairs length"], lengths: Int[Tensor, " pairs"]) -> Float[Tensor, "pairs length"]:
    """The rewards of each row up to its end, and the last one at all later positions."""
    position = torch.arange(rewards.shape[1], device=rewards.device)[None]
    return rewards.gather(1, torch.minimum(position, lengths[:, None] - 1))


def _max_next_errors(
    rewards: Float[Tensor, "pairs length"],
    max_next: Float[Tensor, "pairs length"],
    start: Int[Tensor, " pairs"],
    lengths: Int[Tensor, " pairs"],
) -> tuple[Float[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Sum and number of the squared errors of unfinished prefixes against their best next reward."""
    # No gradient through the target, as in Q-learning (semi-gradient).
    unfinished = position_mask(start, lengths - 1, rewards.shape[1])
    squares = ((rewards - max_next.detach()) ** 2).masked_fill(~unfinished, 0.0)
    return squares.sum(1), unfinished.sum(1)

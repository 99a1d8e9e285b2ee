"""What reward models of prefixes are trained on, as pure functions of tensors.

A reward model with a causal backbone gives the reward of every prefix in one forward; the losses here read that row of
rewards. From preference pairs: Bradley-Terry at every length (`partial_bt`, PARGS) or on finished answers only
(`full_bt`, the usual reward model; `farma` and `arm` on rewards that a language model's head gives). From answers with
a number each: regressions of every prefix on the number of the finished answer (`value`, `cumulative`, `soft_value`).
`objectives.py` lists them with what they lead to.

Rows are padded on the right. The prefix at position t is the text up to and with token t, prompt included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


class PrefixPairs(NamedTuple):
    """Rewards of prefixes that are compared with each other.

    Attributes:
        chosen: Reward of the prefix of the chosen answer, in the model's own unit.
        rejected: Reward of the prefix of the rejected answer.
        exists: Whether there is a comparison at this position; rewards elsewhere mean nothing.
    """

    chosen: Float[Tensor, "pairs length"]
    rejected: Float[Tensor, "pairs length"]
    exists: Bool[Tensor, "pairs length"]


def every_prefix(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    chosen_lengths: Int[Tensor, " pairs"],
    rejected_lengths: Int[Tensor, " pairs"],
    start: Int[Tensor, " pairs"],
) -> PrefixPairs:
    """Pairs the two answers at every position from the first token that differs to the end of the longer answer.

    Before `start` both prefixes are the same text, so their rewards are equal and carry no gradient. After the shorter
    answer has ended it keeps its last reward, because a finished answer is compared with what the other one becomes.

    Args:
        chosen: Reward of every prefix of the chosen text.
        rejected: Reward of every prefix of the rejected text.
        chosen_lengths: Number of tokens of the chosen text, at least 1.
        rejected_lengths: Number of tokens of the rejected text, at least 1.
        start: Length of the longest common prefix of the two texts.
    """
    position = torch.arange(chosen.shape[1], device=chosen.device)[None]
    longer = torch.maximum(chosen_lengths, rejected_lengths)[:, None]
    exists = (position >= start[:, None]) & (position < longer)
    return PrefixPairs(_held(chosen, chosen_lengths), _held(rejected, rejected_lengths), exists)


def finished_answers(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    chosen_lengths: Int[Tensor, " pairs"],
    rejected_lengths: Int[Tensor, " pairs"],
    start: Int[Tensor, " pairs"],
) -> PrefixPairs:
    """Pairs the finished answers only: one comparison per pair.

    Arguments as in `every_prefix`, of which `start` does not matter.
    """
    ends = finished(chosen, chosen_lengths)[:, None], finished(rejected, rejected_lengths)[:, None]
    return PrefixPairs(*ends, torch.ones_like(start, dtype=torch.bool)[:, None])


def finished(rewards: Float[Tensor, "rows length"], lengths: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The reward at the last token of each row."""
    return rewards.gather(1, lengths[:, None] - 1)[:, 0]


def bradley_terry(
    pairs: PrefixPairs, *, margin: Float[Tensor, " pairs"] | None = None, center: float | None = None
) -> Float[Tensor, "pairs length"]:
    """The loss of each comparison, -log sigmoid(chosen - rejected - margin), in nats; 0 where there is none.

    Args:
        pairs: The comparisons.
        margin: By how much the chosen answer should win, in reward units, at every prefix of the pair; 0 by default.
        center: Weight of (chosen + rejected)², which pulls rewards towards mean zero (arXiv 2312.09244, eq. 2). None
            or 0 is off, 0.01 is typical.
    """
    difference = pairs.chosen - pairs.rejected
    loss = -logsigmoid(difference if margin is None else difference - margin[:, None])
    if center is not None:
        loss = loss + center * (pairs.chosen + pairs.rejected) ** 2
    return loss.masked_fill(~pairs.exists, 0.0)


def partial_bt(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    chosen_lengths: Int[Tensor, " pairs"],
    rejected_lengths: Int[Tensor, " pairs"],
    start: Int[Tensor, " pairs"],
    *,
    margin: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, ""]:
    """The PARGS loss in nats: the mean over all prefix pairs of the batch (arXiv 2406.07780).

    It equals, gradients included, the loss of a data set with one row per prefix pair (the official recipe), so a long
    pair weighs more than a short one: it is not the mean of the means of the pairs. Arguments as in `every_prefix` and
    `bradley_terry`.
    """
    pairs = every_prefix(chosen, rejected, chosen_lengths, rejected_lengths, start)
    return bradley_terry(pairs, margin=margin).sum() / pairs.exists.sum()


def full_bt(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    chosen_lengths: Int[Tensor, " pairs"],
    rejected_lengths: Int[Tensor, " pairs"],
    start: Int[Tensor, " pairs"],
    *,
    margin: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, ""]:
    """The loss of an ordinary reward model in nats: the mean over the finished pairs of the batch.

    Rewards of unfinished prefixes do not occur in it. Arguments as in `partial_bt`.
    """
    pairs = finished_answers(chosen, rejected, chosen_lengths, rejected_lengths, start)
    return bradley_terry(pairs, margin=margin).mean()


def farma(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    chosen_best: Float[Tensor, "pairs length"],
    rejected_best: Float[Tensor, "pairs length"],
    lengths: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]],
    *,
    margin: Float[Tensor, " pairs"] | None = None,
    weight: float = 1.0,
) -> Float[Tensor, "pairs 1"]:
    """Bradley-Terry on the finished answers, and every prefix as good as its best next token, in nats for each pair.

    A prefix that is not finished should be worth what the best token makes of it: `weight` times the squared difference
    to the largest reward one token later, which is taken as given (no gradient), averaged over the unfinished prefixes
    of both answers (FaRMA, arXiv 2502.04517).

    Args:
        chosen: Reward of every prefix of the chosen text.
        rejected: Reward of every prefix of the rejected text.
        chosen_best: Largest reward of every prefix of the chosen text with any one token more.
        rejected_best: The same of the rejected text.
        lengths: Tokens of the chosen texts, of the rejected ones, and of their common prefixes.
        margin: By how much the chosen answer should win.
        weight: Of the second part.
    """
    chosen_lengths, rejected_lengths, start = lengths
    loss = bradley_terry(finished_answers(chosen, rejected, chosen_lengths, rejected_lengths, start), margin=margin)
    total, count = torch.zeros_like(chosen[:, 0]), torch.zeros_like(chosen[:, 0])
    for rewards, best, end in ((chosen, chosen_best, chosen_lengths), (rejected, rejected_best, rejected_lengths)):
        unfinished = between(start, end - 1, rewards.shape[1])
        total = total + ((rewards - best.detach()) ** 2).masked_fill(~unfinished, 0.0).sum(1)
        count = count + unfinished.sum(1)
    return loss + weight * (total / count.clamp(min=1))[:, None]


def arm(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    chosen_lengths: Int[Tensor, " pairs"],
    rejected_lengths: Int[Tensor, " pairs"],
    start: Int[Tensor, " pairs"],
    *,
    beta: float = 1.0,
    margin: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, "pairs 1"]:
    """Bradley-Terry on beta · Σ log π_r of the finished answers, in nats for each pair (GenARM, arXiv 2410.08193).

    Args:
        chosen: Log-probability of every token of the chosen text under the model that is trained, summed up to each.
        rejected: The same of the rejected text.
        chosen_lengths: Number of tokens of the chosen text.
        rejected_lengths: Number of tokens of the rejected text.
        start: Length of the longest common prefix of the two texts.
        beta: How many nats of preference a nat of log-probability is worth; the paper's beta_r.
        margin: By how much the chosen answer should win.
    """
    pairs = finished_answers(chosen, rejected, chosen_lengths, rejected_lengths, start)
    return bradley_terry(PrefixPairs(beta * pairs.chosen, beta * pairs.rejected, pairs.exists), margin=margin)


def value(
    rewards: Float[Tensor, "rows length"],
    targets: Float[Tensor, " rows"],
    exists: Bool[Tensor, "rows length"],
    *,
    td_lambda: float = 1.0,
) -> Float[Tensor, "rows length"]:
    """Half the squared difference of every prefix to the reward of the finished answer (CD-FUDGE, arXiv 2310.17022).

    Its minimiser is the expected reward of the answers that begin like this: E[r | prefix] under the texts trained on.

    Args:
        rewards: Reward of every prefix.
        targets: Reward of the finished answer.
        exists: Which prefixes count.
        td_lambda: Below 1, in place of the finished answer's reward that of `lambda_returns`.
    """
    returns = lambda_returns(rewards, targets, exists, td_lambda=td_lambda, soft=False)
    return (0.5 * (rewards - returns) ** 2).masked_fill(~exists, 0.0)


def cumulative(
    rewards: Float[Tensor, "rows length"], targets: Float[Tensor, " rows"], exists: Bool[Tensor, "rows length"]
) -> Float[Tensor, "rows 1"]:
    """The squared differences of a row, the t-th prefix with weight t, divided by the weights (RAD, arXiv 2310.09520).

    The minimiser is that of `value` if all answers are equally long. Otherwise a long answer counts less at each of its
    prefixes than a short one, because the weights of all prefixes of a row add up to 1: it is the expected reward when
    an answer of n tokens is drawn in proportion to 2 / (n (n + 1)). Arguments as in `value`.
    """
    weight = exists.cumsum(1).masked_fill(~exists, 0)
    squares = ((rewards - targets[:, None]) ** 2).masked_fill(~exists, 0.0)
    return ((squares * weight).sum(1) / weight.sum(1).clamp(min=1))[:, None]


def soft_value(
    rewards: Float[Tensor, "rows length"],
    targets: Float[Tensor, " rows"],
    exists: Bool[Tensor, "rows length"],
    *,
    beta: float = 1.0,
    clip: float = 5.0,
    td_lambda: float = 1.0,
) -> Float[Tensor, "rows length"]:
    """The LINEX loss exp(d) − d − 1 of every prefix, with d = beta · target − reward.

    Its minimiser over samples of π_ref is reward = log E[exp(beta · r) | prefix], which is beta times the soft value:
    guided by it with strength 1, π_ref becomes the optimum of KL-regularised RLHF with strength `beta`, token by token.
    (Varian's loss, 1975; Zellner, JASA 1986; that its minimiser is the log of a mean of exponentials is what makes it
    fit here.)

    Args:
        rewards: Reward of every prefix, in nats.
        targets: Reward of the finished answer, in its own unit.
        exists: Which prefixes count.
        beta: Guidance strength that the model is made for, in nats per unit of `targets`.
        clip: The exponential goes on as a straight line behind this d, because a few samples would rule the gradient.
            The minimiser stays what it is where no d is larger.
        td_lambda: Below 1, in place of beta · target that of `lambda_returns`.
    """
    difference = lambda_returns(rewards, beta * targets, exists, td_lambda=td_lambda, soft=True) - rewards
    bounded = difference.clamp(max=clip)
    exponential = bounded.exp() * (1 + difference - bounded)
    return (exponential - difference - 1).masked_fill(~exists, 0.0)


def lambda_returns(
    rewards: Float[Tensor, "rows length"],
    targets: Float[Tensor, " rows"],
    exists: Bool[Tensor, "rows length"],
    *,
    td_lambda: float,
    soft: bool,
) -> Float[Tensor, "rows length"]:
    """What each prefix is fitted to, without gradient: the λ-return of TD(λ) (Sutton and Barto, 2018, chapter 12).

    With λ = 1 it is the target. Below, the return of a prefix is the mean of what the model says of the text one token
    later (weight 1 − λ) and of that text's own return (weight λ); where the text one token later is finished, it is the
    target. Rewards of single answers are noisy, and a prefix learns from them only as far as 1 / (1 − λ) tokens on; for
    texts drawn from the base model the fixed point is the minimiser of λ = 1 all the same.

    Args:
        rewards: Reward of every prefix.
        targets: What a finished answer is fitted to.
        exists: Which prefixes count; the last of them are the finished answers.
        td_lambda: λ, from 0 to 1.
        soft: Whether means are those of exponentials, log E[exp(·)], of which `soft_value` is one.
    """
    ahead, returns = rewards.detach(), targets[:, None].expand_as(rewards)
    if td_lambda == 1:
        return returns
    columns = list(returns.unbind(1))
    here, later = torch.tensor([1 - td_lambda, td_lambda], dtype=rewards.dtype, device=rewards.device).log()
    for t in range(rewards.shape[1] - 3, -1, -1):
        if soft:
            mean = torch.logaddexp(here + ahead[:, t + 1], later + columns[t + 1])
        else:
            mean = torch.lerp(ahead[:, t + 1], columns[t + 1], td_lambda)
        # Two tokens later there is text: so one token later it is not finished.
        columns[t] = torch.where(exists[:, t + 2], mean, columns[t])
    return torch.stack(columns, 1)


def between(start: Int[Tensor, " rows"], end: Int[Tensor, " rows"], length: int) -> Bool[Tensor, "rows length"]:
    """Where start ≤ position < end."""
    position = torch.arange(length, device=start.device)[None]
    return (position >= start[:, None]) & (position < end[:, None])


def _held(rewards: Float[Tensor, "pairs length"], lengths: Int[Tensor, " pairs"]) -> Float[Tensor, "pairs length"]:
    """Rewards up to the end of each row, and the last one from there on."""
    position = torch.arange(rewards.shape[1], device=rewards.device)[None]
    return rewards.gather(1, torch.minimum(position, lengths[:, None] - 1))

"""Bradley-Terry losses over the prefixes of a preference pair.

A reward model with a causal backbone gives the reward of every prefix in one forward. Two objectives read that row of
rewards: `partial_bt` compares the two answers at every length (PARGS, arXiv 2406.07780), `full_bt` compares the
finished answers only (the usual reward model). Everything here is a pure function of tensors.

Rows are padded on the right. The prefix at position t is the text up to and with token t, prompt included.
"""

from __future__ import annotations

from collections.abc import Callable
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


Pairing = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], PrefixPairs]

OBJECTIVES: dict[str, Pairing] = {"partial_bt": every_prefix, "full_bt": finished_answers}
"""Which prefixes each objective compares."""


def _held(rewards: Float[Tensor, "pairs length"], lengths: Int[Tensor, " pairs"]) -> Float[Tensor, "pairs length"]:
    """Rewards up to the end of each row, and the last one from there on."""
    position = torch.arange(rewards.shape[1], device=rewards.device)[None]
    return rewards.gather(1, torch.minimum(position, lengths[:, None] - 1))

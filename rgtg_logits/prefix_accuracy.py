"""Prefix accuracy: how often the chosen answer of a pair has the higher reward when both answers are truncated.

Training, `rgtg check --pairs` and the examples measure it by the functions here, which need nothing but torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PERCENTS = (10, 25, 50, 75, 100)
"""Percentages of an answer's own length at which it is truncated."""


class PairLengths(NamedTuple):
    """Token counts of a batch of preference pairs.

    Attributes:
        chosen: Number of tokens of each chosen text, at least 1.
        rejected: Number of tokens of each rejected text, at least 1.
        start: Length of the longest common prefix of the two texts, in tokens: the prompt, and perhaps more.
    """

    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    start: Int[Tensor, " pairs"]


class PairRewards(NamedTuple):
    """Rewards of all prefixes of a batch of preference pairs.

    Attributes:
        chosen: Reward of every prefix of the chosen text; entry (p, t) is the prefix up to and with token t.
        rejected: Reward of every prefix of the rejected text.
        lengths: Token counts; rewards behind the end of a text mean nothing.
    """

    chosen: Float[Tensor, "pairs length"]
    rejected: Float[Tensor, "pairs length"]
    lengths: PairLengths


def pair_lengths(input_ids: Int[Tensor, "rows length"], attention_mask: Int[Tensor, "rows length"]) -> PairLengths:
    """Measures a batch in the layout of TRL's preference collator: chosen texts, then rejected ones, padded right.

    No prompt length is needed, because the common prefix of the two texts is read from the tokens themselves.
    """
    chosen, rejected = input_ids.chunk(2)
    chosen_mask, rejected_mask = attention_mask.bool().chunk(2)
    equal = (chosen == rejected) & chosen_mask & rejected_mask
    return PairLengths(chosen_mask.sum(1), rejected_mask.sum(1), equal.long().cumprod(1).sum(1))


def prefix_wins(rewards: PairRewards, percents: Sequence[int] = PERCENTS) -> Float[Tensor, "pairs percents"]:
    """Compares the two answers of each pair when each is truncated at a percentage of its own length.

    An answer is the text behind the longest common prefix of the pair. Truncation keeps at least one token and rounds
    up; at 100 % the answer is finished and includes its end-of-text token.

    Args:
        rewards: Rewards of all prefixes of both texts.
        percents: Where to truncate, in percent of the answer's tokens.

    Returns:
        1 where the chosen prefix has the higher reward, 0 where it has the lower one, 0.5 for a tie.
    """
    lengths = rewards.lengths
    chosen = rewards.chosen.gather(1, last_tokens(lengths.chosen, lengths.start, percents))
    rejected = rewards.rejected.gather(1, last_tokens(lengths.rejected, lengths.start, percents))
    return (torch.sign(chosen - rejected) + 1) / 2


def prefix_accuracy(rewards: PairRewards, percents: Sequence[int] = PERCENTS) -> dict[int, float]:
    """The fraction of pairs whose chosen prefix has the higher reward, at each percentage of the answer.

    0.5 is chance, 1 is perfect, ties count half. Arguments as in `prefix_wins`.
    """
    wins = prefix_wins(rewards, percents).double().mean(0)
    return dict(zip(percents, wins.tolist(), strict=True))


def standard_error(accuracy: float, pairs: int) -> float:
    """The standard error √(p (1 − p) / n) of an accuracy p over n independent pairs (binomial proportion)."""
    return math.sqrt(accuracy * (1 - accuracy) / pairs)


def last_tokens(
    lengths: Int[Tensor, " rows"], start: Int[Tensor, " rows"], percents: Sequence[int] = PERCENTS
) -> Int[Tensor, "rows percents"]:
    """The index of the last token of each text whose answer is truncated at each percentage; see `prefix_wins`."""
    cuts = torch.tensor(percents, device=lengths.device)[None]
    answer_lengths = (lengths - start)[:, None]
    # Integers, because 0.1 * 30 is more than 3 in floating point and would round up to 4.
    kept = ((answer_lengths * cuts + 99) // 100).clamp(min=1)
    # An answer that is a prefix of the other one has no token of its own: its reward is that of the common prefix.
    return torch.minimum(start[:, None] + kept, lengths[:, None]) - 1

"""Preference pairs as tokens: where the answers part, and how often a prefix is judged right; and counts of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PERCENTS = (10, 25, 50, 75, 100)
"""Where `prefix_accuracy` cuts the answers."""


class PairLengths(NamedTuple):
    """Number of tokens of each text of a batch of pairs, and of what the two have in common from the beginning."""

    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    start: Int[Tensor, " pairs"]


def pair_lengths(input_ids: Int[Tensor, "rows length"], attention_mask: Int[Tensor, "rows length"]) -> PairLengths:
    """Measures a batch as TRL's collator makes it: chosen texts first, then rejected ones, padded on the right.

    No prompt length is needed, because where the answers part is read from the tokens themselves.
    """
    chosen, rejected = input_ids.chunk(2)
    chosen_mask, rejected_mask = attention_mask.bool().chunk(2)
    same = (chosen == rejected) & chosen_mask & rejected_mask
    return PairLengths(chosen_mask.sum(1), rejected_mask.sum(1), same.long().cumprod(1).sum(1))


def prefix_wins(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    lengths: PairLengths,
    percents: Sequence[int] = PERCENTS,
) -> Float[Tensor, "pairs percents"]:
    """Which answer has the higher reward when each is cut at a percentage of its own length.

    An answer is what follows the longest common prefix of the pair. The cut keeps at least one token and rounds up; at
    100 % it is the finished answer with its end-of-text token.

    Args:
        chosen: Reward of every prefix of the chosen text.
        rejected: Reward of every prefix of the rejected text.
        lengths: Number of tokens of both texts and of their common prefix.
        percents: Where to cut, in percent of the answer.

    Returns:
        1 where the chosen prefix wins, 0 where it loses, 0.5 for a tie.
    """
    ends = [last_tokens(length, lengths.start, percents) for length in (lengths.chosen, lengths.rejected)]
    difference = chosen.gather(1, ends[0]) - rejected.gather(1, ends[1])
    return (torch.sign(difference) + 1) / 2


def prefix_accuracy(
    chosen: Float[Tensor, "pairs length"],
    rejected: Float[Tensor, "pairs length"],
    lengths: PairLengths,
    percents: Sequence[int] = PERCENTS,
) -> dict[int, float]:
    """The fraction of pairs whose chosen prefix has the higher reward, for each percentage of the answer.

    0.5 is chance, 1 is perfect; ties count half. Arguments as in `prefix_wins`.
    """
    wins = prefix_wins(chosen, rejected, lengths, percents).double().mean(0)
    return dict(zip(percents, wins.tolist(), strict=True))


def last_tokens(
    lengths: Int[Tensor, " rows"], start: Int[Tensor, " rows"], percents: Sequence[int] = PERCENTS
) -> Int[Tensor, "rows percents"]:
    """Where texts end whose answers are cut at a percentage of their own length; see `prefix_wins`."""
    cuts = torch.tensor(percents, device=lengths.device)[None]
    # Integers, because 0.1 * 30 is more than 3 in floating point and would round up to 4.
    kept = ((lengths - start)[:, None] * cuts + 99) // 100
    # An answer that is a beginning of the other one has no token of its own: its reward is that of the common prefix.
    return torch.minimum(start[:, None] + kept.clamp(min=1), lengths[:, None]) - 1


@dataclass(frozen=True)
class PairCounts:
    """What became of the rows of a data set, pairs or answers with a reward each.

    Attributes:
        kept: Rows that are used.
        cut: Of these, rows whose texts were cut at `max_length` tokens.
        empty: Left out because there is no answer: none given, an empty text, or no messages.
        identical: Left out because both texts of a pair are the same, or become the same when cut.
        too_long: Left out because a text is longer than `max_length` tokens.
        one_sided: Left out because a pair has one answer only.
        unusable: Left out because the prompt is missing, or a margin or reward is missing or no finite number.
    """

    kept: int
    cut: int = 0
    empty: int = 0
    identical: int = 0
    too_long: int = 0
    one_sided: int = 0
    unusable: int = 0

    @property
    def left_out(self) -> int:
        """All rows that are not used."""
        return sum(getattr(self, reason) for reason in REASONS)

    def __str__(self) -> str:
        reasons = ", ".join(f"{getattr(self, reason)} {reason.replace('_', ' ')}" for reason in REASONS)
        return f"{self.kept} rows kept ({self.cut} cut at max_length), {self.left_out} left out: {reasons}"


REASONS = ("empty", "one_sided", "identical", "too_long", "unusable")
"""Why rows are left out; see `PairCounts`."""

"""Preference pairs as tokens: where the answers part, which rows can be used, how often a prefix is judged right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset, IterableDataset
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
    cuts = torch.tensor(percents, device=chosen.device)[None]
    difference = chosen.gather(1, _last_token(lengths.chosen, lengths.start, cuts)) - rejected.gather(
        1, _last_token(lengths.rejected, lengths.start, cuts)
    )
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


@dataclass(frozen=True)
class PairCounts:
    """What became of the rows of a data set.

    Attributes:
        kept: Pairs that are used.
        cut: Of these, pairs whose texts were cut at `max_length` tokens.
        empty: Left out because an answer is missing or empty.
        identical: Left out because both texts are the same, or become the same when cut.
        too_long: Left out because a text is longer than `max_length` tokens.
    """

    kept: int
    cut: int
    empty: int
    identical: int
    too_long: int

    @property
    def left_out(self) -> int:
        """All pairs that are not used."""
        return self.empty + self.identical + self.too_long


def drop_empty(dataset: Dataset | IterableDataset, **options: Any) -> Dataset | IterableDataset:
    """Leaves out rows without a chosen or a rejected answer: nothing, an empty text, or no messages."""
    return dataset.filter(_has_answers, **options)


def drop_identical(dataset: Dataset | IterableDataset, **options: Any) -> Dataset | IterableDataset:
    """Leaves out tokenised rows without a prefix pair: both texts are the same, or one has no token."""
    return dataset.filter(_differs, **options)


def drop_long(dataset: Dataset | IterableDataset, max_length: int, **options: Any) -> Dataset | IterableDataset:
    """Leaves out tokenised rows with a text of more than `max_length` tokens."""
    return dataset.filter(_fits, fn_kwargs={"max_length": max_length}, **options)


def cut_long(dataset: Dataset | IterableDataset, max_length: int, **options: Any) -> Dataset | IterableDataset:
    """Cuts tokenised texts from the end to `max_length` tokens: what is left is a pair of prefixes all the same.

    The column `cut` then tells which rows were longer.
    """
    return dataset.map(_cut, fn_kwargs={"max_length": max_length}, **options)


def _last_token(
    lengths: Int[Tensor, " pairs"], start: Int[Tensor, " pairs"], cuts: Int[Tensor, "1 percents"]
) -> Int[Tensor, "pairs percents"]:
    # Integers, because 0.1 * 30 is more than 3 in floating point and would round up to 4.
    kept = ((lengths - start)[:, None] * cuts + 99) // 100
    # An answer that is a beginning of the other one has no token of its own: its reward is that of the common prefix.
    return torch.minimum(start[:, None] + kept.clamp(min=1), lengths[:, None]) - 1


def _has_answers(row: Mapping[str, Any]) -> bool:
    return bool(row["chosen"]) and bool(row["rejected"])


def _differs(row: Mapping[str, Any]) -> bool:
    return bool(row["chosen_ids"]) and bool(row["rejected_ids"]) and row["chosen_ids"] != row["rejected_ids"]


def _fits(row: Mapping[str, Any], max_length: int) -> bool:
    return len(row["chosen_ids"]) <= max_length and len(row["rejected_ids"]) <= max_length


def _cut(row: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    short = {name: row[name][:max_length] for name in ("chosen_ids", "rejected_ids")}
    return {**short, "cut": not _fits(row, max_length)}

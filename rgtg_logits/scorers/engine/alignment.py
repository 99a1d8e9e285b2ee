"""Puts token rows that grow by different amounts into one rectangle, without moving what a cache holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count
from operator import ne

import torch
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.padding import PADDING


class Layout:
    """Remembers where the tokens of the last rows stand, and puts the next rows so that what is the same stays there.

    Padding on the left would move all tokens of a row whenever another row grows by more, and a cache holds tokens by
    column. So rows are filled up right behind what is shared, and padding may lie inside a row.
    """

    def __init__(self) -> None:
        self._rows: list[list[int]] = []

    def reset(self) -> None:
        """Forgets the last rows."""
        self._rows = []

    def place(self, texts: Sequence[Sequence[int]]) -> Int[Tensor, "batch length"]:
        """The rows as keys: token ids, with `PADDING` wherever a row has none."""
        parents = [self._parent(index, text) for index, text in enumerate(texts)]
        keep = min((column for _, column in parents), default=0)
        heads = [self._rows[parent][:keep] if keep else [] for parent, _ in parents]
        tails = [text[_count(head) :] for head, text in zip(heads, texts, strict=True)]
        width = max(len(tail) for tail in tails)
        rows = [[*head, *[PADDING] * (width - len(tail)), *tail] for head, tail in zip(heads, tails, strict=True)]
        longest = max(len(text) for text in texts)
        if keep and keep + width > longest + longest // 2 + 16:
            # A third is padding by now, which costs more than reading everything once more.
            self.reset()
            return self.place(texts)
        self._rows = rows
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), -1)

    def _parent(self, index: int, text: Sequence[int]) -> tuple[int, int]:
        """The last row that shares the most with a text (its own, if as good), and how many columns are shared."""
        if not self._rows:
            return 0, 0
        if index < len(self._rows) and _shared(self._rows[index], text) == len(self._rows[index]):
            return index, len(self._rows[index])
        columns = [_shared(row, text) for row in self._rows]
        best = max(range(len(columns)), key=lambda row: (columns[row], row == index))
        return best, columns[best]


def _count(row: Sequence[int]) -> int:
    return len(row) - row.count(PADDING)


def _shared(row: Sequence[int], text: Sequence[int]) -> int:
    """How many leading columns of a row hold the beginning of a text; none if they hold no token of it."""
    columns = [column for column, token in enumerate(row) if token != PADDING] if PADDING in row else range(len(row))
    taken = common_prefix([token for token in row if token != PADDING], text)
    if taken == 0:
        return 0
    return len(row) if taken == len(columns) else columns[taken]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike; no loop in Python, because prompts are long and asked about often."""
    return next(compress(count(), map(ne, one, other)), min(len(one), len(other)))

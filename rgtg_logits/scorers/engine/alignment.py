"""Alignment of token rows that grow by different amounts in one rectangle, without moving cached tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.padding import PADDING
from rgtg_logits.tokenization import common_prefix_length


class RowAligner:
    """Memory of the columns of the previous rows, in which the next rows keep the tokens that they share.

    Left padding would move all tokens of a row whenever another row grows by more, but a cache holds tokens by column.
    So rows are padded right behind the shared columns, and padding may lie inside a row.
    """

    def __init__(self) -> None:
        self._rows: list[list[int]] = []

    def reset(self) -> None:
        """Forgets the previous rows."""
        self._rows = []

    def align(self, texts: Sequence[Sequence[int]]) -> Int[Tensor, "batch length"]:
        """Puts texts into a rectangle of token ids, with `PADDING` where a row has none."""
        sources = [self._source(index, text) for index, text in enumerate(texts)]
        # A cache is rolled back to one length for all rows, so the shortest shared beginning counts.
        shared = min((columns for _, columns in sources), default=0)
        heads = [self._rows[row][:shared] if shared else [] for row, _ in sources]
        tails = [text[_num_tokens(head) :] for head, text in zip(heads, texts, strict=True)]
        width = max(len(tail) for tail in tails)
        longest = max(len(text) for text in texts)
        if shared and shared + width > longest + longest // 2 + 16:
            # A third is padding by now, which costs more than to read everything once more.
            self.reset()
            return self.align(texts)
        # Padding goes between the shared columns and the new tokens.
        rows = [[*head, *[PADDING] * (width - len(tail)), *tail] for head, tail in zip(heads, tails, strict=True)]
        self._rows = rows
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), -1)

    def _source(self, index: int, text: Sequence[int]) -> tuple[int, int]:
        """The previous row that shares most with a text (its own, if as good), and the number of shared columns."""
        if not self._rows:
            return 0, 0
        if index < len(self._rows) and _shared_columns(self._rows[index], text) == len(self._rows[index]):
            return index, len(self._rows[index])
        shared = [_shared_columns(row, text) for row in self._rows]
        best = max(range(len(shared)), key=lambda row: (shared[row], row == index))
        return best, shared[best]


def _num_tokens(row: Sequence[int]) -> int:
    return len(row) - row.count(PADDING)


def _shared_columns(row: Sequence[int], text: Sequence[int]) -> int:
    """Number of leading columns of a row that hold the beginning of a text; 0 if they hold no token of it."""
    if PADDING not in row:
        return common_prefix_length(row, text)
    columns = [column for column, token in enumerate(row) if token != PADDING]
    shared = common_prefix_length([row[column] for column in columns], text)
    if shared == 0:
        return 0
    return len(row) if shared == len(columns) else columns[shared]

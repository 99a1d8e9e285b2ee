"""Left truncation of texts that are longer than the reward model's context."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.padding import PADDING


def dropped(length: int, limit: int) -> int:
    """How many tokens of a text of `length` to leave out on the left so that at most `limit` remain.

    A number that depends on the length alone and grows in steps of a quarter of the limit, so that a text which grows
    token by token keeps its beginning most of the time, and with it whatever is cached.
    """
    block = max(1, limit // 4)
    return max(0, -(-(length - limit) // block) * block)


def cut_left(keys: Int[Tensor, "batch length"], limit: int, bos: int | None) -> Int[Tensor, "batch kept"]:
    """Leaves out the beginning of rows with more than `limit` tokens, but for a start token; see `dropped`.

    Args:
        keys: Token ids with `PADDING` where a row is padded.
        limit: Most tokens of a row.
        bos: The token that starts a text, which a model misses more than any other; None if it has none.
    """
    rows = [row[row != PADDING] for row in keys]
    for index, row in enumerate(rows):
        start = int(len(row) > 0 and limit > 1 and row[0] == bos)
        drop = dropped(len(row), limit)
        rows[index] = torch.cat([row[:start], row[start + drop :]])
    width = max(len(row) for row in rows)
    return torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=PADDING) for row in rows])

"""Left truncation of texts that are longer than the reward model's context."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.padding import PADDING


def num_dropped_tokens(length: int, limit: int) -> int:
    """Number of tokens to drop on the left of a text of `length`, so that at most `limit` remain.

    It depends on the length alone and grows in steps of a quarter of the limit, so that a text that grows token by
    token keeps its beginning most of the time, and with it the cache.
    """
    if length <= limit:
        return 0
    # Dropping one token per step would move all others, and the whole cache would be rebuilt each time.
    block = max(1, limit // 4)
    return math.ceil((length - limit) / block) * block


def truncate_left(
    padded_ids: Int[Tensor, "batch length"], limit: int, bos_token_id: int | None
) -> Int[Tensor, "batch kept"]:
    """Drops the beginning of rows with more than `limit` tokens, but keeps a start token; see `num_dropped_tokens`.

    Args:
        padded_ids: Token ids with `PADDING` where a row is padded.
        limit: Largest number of tokens of a row.
        bos_token_id: The token that starts a text, on which a model depends more than on any other (an attention sink,
            arXiv 2309.17453); None if the model has none.
    """
    rows = [row[row != PADDING] for row in padded_ids]
    for index, row in enumerate(rows):
        start = int(len(row) > 0 and limit > 1 and row[0] == bos_token_id)
        drop = num_dropped_tokens(len(row), limit)
        rows[index] = torch.cat([row[:start], row[start + drop :]])
    width = max(len(row) for row in rows)
    return torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=PADDING) for row in rows])

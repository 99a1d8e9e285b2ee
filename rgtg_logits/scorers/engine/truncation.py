"""Left truncation of texts that are longer than the reward model's context."""

from __future__ import annotations

import math

import numpy as np


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


def truncate_left(row: np.ndarray, limit: int, bos_token_id: int | None) -> np.ndarray:
    """Drops the beginning of a row with more than `limit` tokens, but keeps a start token; see `num_dropped_tokens`.

    Args:
        row: Token ids.
        limit: Largest number of tokens.
        bos_token_id: The token that starts a text, on which a model depends more than on any other (an attention sink,
            arXiv 2309.17453); None if the model has none.
    """
    drop = num_dropped_tokens(len(row), limit)
    if drop == 0:
        return row
    start = int(limit > 1 and row[0] == bos_token_id)
    return np.concatenate([row[:start], row[start + drop :]])

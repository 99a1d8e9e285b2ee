"""The attention mask that lets k candidates share one prefix.

A forward over [new tokens of the prefix | k candidates] gives each candidate the state it would have as the only next
token, if it sees the prefix and itself but none of its siblings, and stands at the position after the prefix.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def sibling_mask(
    text: Int[Tensor, "batch length"], k: int, queries: int, *, window: int | None, dtype: torch.dtype
) -> Float[Tensor, "batch 1 queries slots"]:
    """Additive attention mask for the last `queries` tokens of [prefix | k candidates].

    Args:
        text: 1 where the prefix is text, 0 where it is padding.
        k: Number of candidates.
        queries: New prefix tokens + k; those before are in the cache.
        window: How many tokens back, itself included, a token sees; None for all.
        dtype: The type the model computes in, because sdpa wants mask and queries of one type.

    Returns:
        0 where attention is allowed, the most negative finite number where not. Finite, because a padding token may
        see nothing, and a softmax over -inf alone is NaN. Additive, because eager attention takes a boolean mask wrong.
    """
    length = text.shape[1]
    allowed = _structure(length, k, queries, window, text.device)
    visible = torch.nn.functional.pad(text.bool(), (0, k), value=True)
    mask = torch.zeros(text.shape[0], 1, queries, length + k, dtype=dtype, device=text.device)
    return mask.masked_fill_(~(allowed & visible[:, None])[:, None], torch.finfo(dtype).min)


def _structure(
    length: int, k: int, queries: int, window: int | None, device: torch.device
) -> Bool[Tensor, "queries slots"]:
    slot = torch.arange(length + k, device=device)
    # Every candidate stands right behind the prefix, whatever slot it is stored in.
    position = slot.clamp(max=length)
    query, asking = position[-queries:, None], slot[-queries:, None]
    allowed = (slot < length) & (position <= query) | (slot == asking)
    return allowed if window is None else allowed & (position > query - window)

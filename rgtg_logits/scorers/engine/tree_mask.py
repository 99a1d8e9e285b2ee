"""The attention mask that lets the branches of a row share it.

A forward over [new tokens of the prefix | tokens of the branches] gives each branch the state it would have as the only
one, if its tokens see the prefix and those before them in their own branch, and stand at the positions that follow.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.scorers.engine.token_tree import TokenTree


def tree_mask(
    text: Int[Tensor, "batch length"],
    branches: TokenTree,
    position: Int[Tensor, "batch slots"],
    queries: slice,
    *,
    window: int | None,
    size: int | None = None,
    dtype: torch.dtype,
) -> Float[Tensor, "batch 1 queries visible"]:
    """Additive attention mask of some of the tokens of [prefix | branches].

    Args:
        text: 1 where the prefix is text, 0 where it is padding.
        branches: What follows the prefix.
        position: Position of every token in its own text.
        queries: Which tokens ask; those before the first are in the cache, those behind the last are not yet.
        window: How many tokens back, itself included, a token sees; None for all.
        size: How many slots to cover, if more than are visible.
        dtype: The type the model computes in, because sdpa wants mask and queries of one type.

    Returns:
        0 where attention is allowed, the most negative finite number where not. Finite, because a padding token may
        see nothing, and a softmax over -inf alone is NaN. Additive, because eager attention takes a boolean mask wrong.
    """
    length, device = text.shape[1], text.device
    rows, first = text.shape[0], max(queries.start, length)
    seen = text[:, None, : queries.stop].bool()
    if queries.start < length:
        slot = torch.arange(queries.stop, device=device)
        seen = seen & (slot[:length] <= slot[queries, None])
    allowed = seen.expand(rows, queries.stop - queries.start, -1)
    if queries.stop > length:
        own = branches.visible()[:, first - length : queries.stop - length, : queries.stop - length]
        # Tokens of the prefix see no branch.
        own = torch.nn.functional.pad(own, (0, 0, first - queries.start, 0), value=False)
        allowed = torch.cat([allowed, own.expand(rows, -1, -1)], dim=-1)
    if window is not None:
        # By position, not by slot, because padding may lie between two tokens.
        allowed = allowed & (position[:, None, : queries.stop] > position[:, queries, None] - window)
    if size is not None:
        allowed = torch.nn.functional.pad(allowed, (0, size - allowed.shape[-1]), value=False)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

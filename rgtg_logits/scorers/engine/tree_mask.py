"""The attention mask of tree attention (Medusa, SpecInfer), by which continuations share one copy of their prefix.

In a forward over [new tokens of the prefix | nodes of the token tree] each node gets the state that it would have at
the end of its own text, if it attends to the prefix and to its ancestors, at the position that follows theirs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.scorers.engine.token_tree import TokenTree


def tree_mask(
    attention_mask: Int[Tensor, "batch length"],
    token_tree: TokenTree,
    position_ids: Int[Tensor, "batch slots"],
    queries: slice,
    *,
    window: int | None,
    size: int | None = None,
    dtype: torch.dtype,
) -> Float[Tensor, "batch 1 queries visible"]:
    """Additive attention mask of some slots of [prefix | token tree].

    Args:
        attention_mask: 1 for text, 0 for padding in the prefix.
        token_tree: The continuations of the prefix.
        position_ids: Position of every slot in its own text.
        queries: The slots of this forward; earlier ones are in the cache, later ones are not visible.
        window: Number of tokens, itself included, that a sliding-window layer sees; None for full attention.
        size: Number of key slots to cover, if more than are visible.
        dtype: The type in which the model computes, because sdpa wants mask and queries of one type.

    Returns:
        0 where attention is allowed, the most negative finite number where not. Finite, because a padding token may
        see nothing, and a softmax over -inf alone is NaN. Additive, because eager attention takes a boolean mask wrong.
    """
    device = attention_mask.device
    batch, length = attention_mask.shape
    first_node = max(queries.start, length)
    to_prefix = attention_mask[:, None, : queries.stop].bool()
    if queries.start < length:
        # Causal among the tokens of the prefix; nodes of the tree see all of it.
        slot = torch.arange(queries.stop, device=device)
        to_prefix = to_prefix & (slot[:length] <= slot[queries, None])
    allowed = to_prefix.expand(batch, queries.stop - queries.start, -1)
    if queries.stop > length:
        to_tree = token_tree.ancestor_mask()[:, first_node - length : queries.stop - length, : queries.stop - length]
        # Tokens of the prefix see no node of the tree.
        to_tree = torch.nn.functional.pad(to_tree, (0, 0, first_node - queries.start, 0), value=False)
        allowed = torch.cat([allowed, to_tree.expand(batch, -1, -1)], dim=-1)
    if window is not None:
        # By position, not by slot, because padding may lie between two tokens.
        allowed = allowed & (position_ids[:, None, : queries.stop] > position_ids[:, queries, None] - window)
    if size is not None:
        allowed = torch.nn.functional.pad(allowed, (0, size - allowed.shape[-1]), value=False)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

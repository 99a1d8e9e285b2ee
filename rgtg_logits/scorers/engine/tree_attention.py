"""Tree attention (Medusa, SpecInfer): all continuations in one forward behind one copy of the prefix."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.scorers.engine.kv_cache import PrefixCache
from rgtg_logits.scorers.engine.strategy import Step, Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tree_mask import tree_mask

PREFILL_CHUNK = 512
"""On a CPU, more columns than twice this are read in chunks of about as many (chunked prefill)."""


class TreeAttention(Strategy):
    """All continuations in one forward behind one copy of the prefix, kept apart by the attention mask.

    The token that is sampled need not be read again: its keys and values still lie behind the prefix, and are exactly
    those of the longer prefix, because it attended to the prefix and itself alone.

    Args:
        full: Whether the model has layers with full attention.
        sliding: Whether it has layers with a sliding window.
    """

    can_roll_back = True

    def __init__(self, *arguments: Any, full: bool, sliding: bool) -> None:
        self._full, self._sliding = full, sliding
        super().__init__(*arguments)

    @override
    def reset(self) -> None:
        self._cache = PrefixCache(static=self._compiled is not None)

    @override
    def roll_back(self, length: int) -> None:
        self._cache.truncate(length)

    @override
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        cached = self._restore_cache(step)
        batch, length = step.padded_ids.shape
        token_tree = step.token_tree
        attention_mask = step.attention_mask
        # A node's position is the one it would have if its continuation were alone, whatever slot it takes.
        tree_positions = attention_mask.sum(-1, keepdim=True) + token_tree.depths()
        position_ids = torch.cat([positions(attention_mask), tree_positions], dim=1)
        input_ids = torch.cat([step.input_ids, token_tree.tokens], dim=1)
        new = input_ids.shape[1] - cached
        chunks = self._chunks(cached, input_ids.shape[1], batch, self._chunk_width(new))
        # Only a step that reads nothing but the tree has the shape of the step before it.
        if self._compiled is not None and cached == length and len(chunks) == 1 and length > 0:
            return self._compiled_step(self._compiled, attention_mask, token_tree, position_ids)
        states = []
        for chunk in chunks:
            nodes = max(0, chunk.stop - max(chunk.start, length))
            state, _ = self.reward_model.hidden_states(
                input_ids[:, chunk],
                self._mask(attention_mask, token_tree, position_ids, chunk),
                position_ids[:, chunk],
                self._cache,
                use_cache=True,
                # States of the prefix are not needed, but a forward returns at least one.
                last=max(1, nodes),
            )
            if nodes:
                states.append(state)
        # The cache now holds the tree behind the prefix; the next step finds the sampled node there.
        return _end_states(torch.cat(states, dim=1) if len(states) > 1 else states[0], token_tree)

    def _chunk_width(self, columns: int) -> int:
        """Number of columns to read at once.

        With an explicit mask, attention also computes what the mask excludes: half of everything in a long prompt. A
        chunk sees no column behind its own end. On a GPU, small chunks would wait for kernel launches.
        """
        chunks = max(1, columns // PREFILL_CHUNK) if self.reward_model.device.type == "cpu" else 1
        return math.ceil(columns / chunks)

    def _compiled_step(
        self, compiled: RewardModel, attention_mask: Tensor, token_tree: TokenTree, position_ids: Tensor
    ) -> Float[Tensor, "batch k state"]:
        """The step that reads the tree alone, in shapes that stay the same, so that it is compiled once."""
        length = attention_mask.shape[1]
        nodes = token_tree.tokens.shape[1]
        chunk = slice(length, length + nodes)
        with self._cache.static_step(length, nodes) as size:
            states, _ = compiled.hidden_states(
                _with_own_strides(token_tree.tokens),
                self._mask(attention_mask, token_tree, position_ids, chunk, size),
                _with_own_strides(position_ids[:, chunk]),
                self._cache,
                use_cache=True,
                last=nodes,
            )
        # A recorded CUDA graph writes its next result into the same memory.
        return _end_states(states.clone(), token_tree)

    @profiled("cache")
    def _restore_cache(self, step: Step) -> int:
        """Brings the cache to the prefix that it shares with the rows now; returns its number of columns."""
        kept = step.plan.kept_length
        if kept == 0:
            self.reset()
            return 0
        if step.plan.source_rows is not None:
            self._cache.reorder_cache(step.plan.source_rows)
        if step.sampled_nodes is None:
            self._cache.truncate(kept)
            return kept
        # As after verification in speculative decoding, the sampled node becomes part of the prefix.
        self._cache.accept(kept, kept + step.sampled_nodes)
        return kept + 1

    @profiled("attention mask")
    def _mask(
        self,
        attention_mask: Tensor,
        token_tree: TokenTree,
        position_ids: Tensor,
        queries: slice,
        size: int | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """One mask, or one for each kind of layer, as transformers' `create_masks_for_generate` returns them."""
        dtype = self.reward_model.dtype
        build = partial(tree_mask, attention_mask, token_tree, position_ids, queries, size=size, dtype=dtype)
        if not self._sliding:
            return build(window=None)
        sliding = build(window=self.reward_model.sliding_window)
        if not self._full:
            return sliding
        return {"full_attention": build(window=None), "sliding_attention": sliding}


def _with_own_strides(part: Int[Tensor, "batch some"]) -> Int[Tensor, "batch some"]:
    """The same values with the strides of their own shape, which a compiled forward checks even where unused."""
    return part.flatten().reshape(part.shape)


def _end_states(
    node_states: Float[Tensor, "batch nodes state"], token_tree: TokenTree
) -> Float[Tensor, "batch k state"]:
    """The states of the last node of each continuation."""
    if token_tree.ends is None:
        return node_states
    return node_states.gather(1, token_tree.ends[..., None].expand(-1, -1, node_states.shape[-1]))

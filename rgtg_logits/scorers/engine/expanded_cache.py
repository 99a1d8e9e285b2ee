"""An expanded cache: each continuation behind its own copy of the prefix's cache, as beam search expands it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

from rgtg_logits.scorers.engine.sequence_memory import Placement
from rgtg_logits.scorers.engine.slots import Slot
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tree_attention import SlotStrategy


class ExpandedCache(SlotStrategy):
    """Each continuation on its own copy of the cache: exact wherever caching is, at k times the memory traffic."""

    _keeps_deep_trees = False

    @override
    def run(self, rows: Sequence[np.ndarray], token_tree: TokenTree) -> Float[Tensor, "batch k state"]:
        placements = self._place(rows, token_tree)
        self._read_prefixes(rows, placements)
        tokens, lengths = token_tree.continuations()
        batch, k, depth = tokens.shape
        slots = [place.slot for place in placements]
        ends = [len(row) for row in rows]
        chunks = self._chunks(0, k, batch * depth)
        states = [
            self._continue(slots, ends, tokens[:, part], lengths[:, part], part.start, token_tree.is_flat)
            for part in chunks
        ]
        return torch.cat(states, dim=1)

    def _read_prefixes(self, rows: Sequence[np.ndarray], placements: Sequence[Placement]) -> None:
        """Reads what is new in the rows, those with equally many known and new tokens together."""

        def extent(row: int) -> tuple[int, int]:
            return placements[row].cached, len(rows[row])

        for (start, end), members in groupby(sorted(range(len(rows)), key=extent), key=extent):
            indices = list(members)
            if start == end:
                continue
            input_ids = torch.from_numpy(np.stack([rows[row] for row in indices])).to(self.reward_model.device)
            slots = [placements[row].slot for row in indices]
            cache = _cache_of(slots, [start] * len(slots), 1)
            for chunk in self._chunks(start, end, len(indices)):
                mask = torch.ones_like(input_ids[:, : chunk.stop])
                positions = torch.arange(chunk.start, chunk.stop, device=mask.device).repeat(len(indices), 1)
                self._forward(input_ids[:, chunk], mask, positions, cache, last=1)
            _store(cache, slots, [slice(start, end)] * len(slots), end - start)

    def _continue(
        self,
        slots: Sequence[Slot],
        ends: Sequence[int],
        tokens: Int[Tensor, "batch k depth"],
        lengths: Int[Tensor, "batch k"],
        first_node: int,
        is_flat: bool,
    ) -> Float[Tensor, "batch k state"]:
        """Runs some of the continuations on an expanded copy of the cache."""
        batch, k, depth = tokens.shape
        device = tokens.device
        cache = _cache_of(slots, ends, k)
        end = torch.tensor(ends, device=device).repeat_interleave(k)[:, None]
        longest = max(ends)
        # Right-aligned, so that texts of different lengths go through together. Padding behind shorter continuations
        # counts as text, because no token before it attends to it.
        mask = (torch.arange(longest + depth, device=device) >= longest - end).long()
        states = self._forward(
            tokens.reshape(batch * k, depth), mask, end + torch.arange(depth, device=device), cache, last=depth
        )
        if is_flat:
            # The token that is drawn need not be read again.
            _store_nodes(cache, slots, ends, first_node, k)
        # States behind the end of a shorter continuation belong to its padding.
        place = (lengths.reshape(-1, 1, 1) - 1).expand(-1, -1, states.shape[-1])
        return states.gather(1, place).reshape(batch, k, -1)

    def _forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache, *, last: int
    ) -> Float[Tensor, "rows last state"]:
        states, returned = self.reward_model.hidden_states(
            input_ids, attention_mask, position_ids, cache, use_cache=True, last=last
        )
        if returned is not cache:
            raise TypeError("The model makes a cache of its own.")
        return states


def _cache_of(slots: Sequence[Slot], ends: Sequence[int], copies: int) -> Cache:
    """A cache of the beginnings of sequences, right-aligned, each copied."""
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    longest = max(ends)
    if longest == 0:
        return cache
    # All slots have the same layers, but only those that hold something have any.
    if copies > 1 and _are_consecutive(slots) and min(ends) == longest:
        span = slice(slots[0].index, slots[-1].index + 1)
        for number, buffers in sorted(slots[0].arena.layers.items()):
            _add_layer(cache, number, [b[span, :, :longest].repeat_interleave(copies, dim=0) for b in buffers])
        return cache
    layers = next(slot.arena.layers for slot, end in zip(slots, ends, strict=True) if end)
    for number, buffers in sorted(layers.items()):
        pair = []
        for kind, like in enumerate(buffers):
            rows = like.new_zeros(len(slots), like.shape[1], longest, like.shape[3])
            for row, (slot, end) in enumerate(zip(slots, ends, strict=True)):
                if end:
                    buffer = slot.arena.layers.get(number, *buffers)[kind]
                    rows[row, :, longest - end :] = buffer[slot.index, :, :end]
            pair.append(rows.repeat_interleave(copies, dim=0))
        _add_layer(cache, number, pair)
    return cache


def _are_consecutive(slots: Sequence[Slot]) -> bool:
    first = slots[0]
    return all(slot.arena is first.arena and slot.index == first.index + row for row, slot in enumerate(slots))


def _add_layer(cache: Cache, number: int, states: Sequence[Tensor]) -> None:
    while len(cache.layers) <= number:
        cache.layers.append(DynamicLayer())
    cache.layers[number].update(*states)


def _store(cache: Cache, slots: Sequence[Slot], columns: Sequence[slice], count: int) -> None:
    """Writes the last `count` columns of a cache into slots."""
    for number, layer in enumerate(cache.layers):
        if layer.get_seq_length() == 0:
            # A layer that shares the keys of another one (KV sharing) is never filled.
            continue
        for row, (slot, place) in enumerate(zip(slots, columns, strict=True)):
            buffers = slot.arena.layers.get(number, layer.keys, layer.values)
            for buffer, states in zip(buffers, (layer.keys, layer.values), strict=True):
                buffer[slot.index, :, place] = states[row, :, -count:]


def _store_nodes(cache: Cache, slots: Sequence[Slot], ends: Sequence[int], first_node: int, k: int) -> None:
    """Writes the last column of each copy to where the node of the tree belongs."""
    for number, layer in enumerate(cache.layers):
        if layer.get_seq_length() == 0:
            continue
        for row, (slot, end) in enumerate(zip(slots, ends, strict=True)):
            buffers = slot.arena.layers.get(number, layer.keys, layer.values)
            place = slice(end + first_node, end + first_node + k)
            for buffer, states in zip(buffers, (layer.keys, layer.values), strict=True):
                buffer[slot.index, :, place] = states[row * k : (row + 1) * k, :, -1].transpose(0, 1)

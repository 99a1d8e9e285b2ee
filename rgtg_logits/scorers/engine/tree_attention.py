"""Tree attention (Medusa, SpecInfer): all continuations in one forward behind one copy of the prefix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from rgtg_logits.profiling import profiled
from rgtg_logits.scorers.engine.sequence_memory import Placement, SequenceMemory
from rgtg_logits.scorers.engine.slot_cache import ATTENTION, SlotCache, register_attention
from rgtg_logits.scorers.engine.slots import HostTree
from rgtg_logits.scorers.engine.step_layout import Layout, make_layouts
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree

MAX_PREFILL = 8192
"""More new tokens than this are read in several forwards (chunked prefill), because activations grow with them."""


class SlotStrategy(Strategy):
    """A strategy whose keys and values lie in slots."""

    _keeps_deep_trees = True

    @override
    def reset(self) -> None:
        self._memory = SequenceMemory(self._cache_tokens, is_static=self._compiled is not None)
        self._placements: list[Placement] = []
        # Tokens that were accepted on the device and that the host does not know yet.
        self._pending = 0
        self._is_committed = True

    @override
    def discard(self) -> None:
        for place in self._placements:
            self._memory.wipe(place.slot, place.slot.length + self._pending)

    @override
    @profiled("cache")
    def commit(self, rows: Sequence[np.ndarray], token_tree: TokenTree | None, failed: Collection[int] = ()) -> None:
        self._pending = 0
        self._is_committed = True
        tokens = None if token_tree is None else token_tree.tokens.tolist()
        parents = None if token_tree is None or token_tree.parents is None else token_tree.parents.tolist()
        # Nodes that only fill the rectangle may not have been computed.
        counts = None if token_tree is None else token_tree.counts()
        for index, (row, place) in enumerate(zip(rows, self._placements, strict=True)):
            if index in failed:
                self._memory.clear(place.slot)
                continue
            tree = None
            if tokens is not None and counts is not None and (self._keeps_deep_trees or parents is None):
                count = counts[index]
                tree = HostTree(tokens[index][:count], None if parents is None else parents[index][:count])
            self._memory.commit(place.slot, row, tree)

    @override
    def cache_bytes(self) -> int:
        return self._memory.nbytes()

    @profiled("cache")
    def _place(self, rows: Sequence[np.ndarray], token_tree: TokenTree) -> list[Placement]:
        if not self._is_committed:
            # The last call failed.
            self.discard()
            self._memory.drop([place.slot for place in self._placements])
        self._placements = []
        self._is_committed = False
        self._placements = self._memory.place(rows, token_tree.tokens.shape[1])
        return self._placements


class TreeStrategy(SlotStrategy):
    """A strategy by which all continuations share one copy of the prefix.

    The token that is sampled need not be read again: its keys and values still lie behind the prefix, and are exactly
    those of the longer prefix, because it attended to the prefix and itself alone.
    """

    can_predict = True
    # Whether attention over a prompt needs a mask.
    _is_masked = True
    # Whether rows with fewer nodes cost less.
    _is_ragged = False

    @override
    def run(self, rows: Sequence[np.ndarray], token_tree: TokenTree) -> Float[Tensor, "batch k state"]:
        placements = self._place(rows, token_tree)
        new = sum(len(row) - place.cached for row, place in zip(rows, placements, strict=True))
        max_tokens = self._max_tokens or (MAX_PREFILL if new > MAX_PREFILL else None)
        batch, nodes = token_tree.tokens.shape
        counts = token_tree.counts() if self._is_ragged else [nodes] * batch
        layouts = make_layouts(
            [len(row) for row in rows], placements, counts, max_tokens=max_tokens, masked=self._is_masked
        )
        return end_states(self._node_states(layouts, rows, token_tree), layouts, token_tree)

    @override
    def run_ordinary(
        self, sampled_nodes: Int[Tensor, " batch"], token_tree: TokenTree
    ) -> Float[Tensor, "batch k state"] | None:
        slots = [place.slot for place in self._placements]
        nodes = token_tree.tokens.shape[1]
        lengths = [slot.length + self._pending for slot in slots]
        if any(length + 1 + nodes > slot.arena.capacity for length, slot in zip(lengths, slots, strict=True)):
            return None
        for slot in slots:
            slot.tree = None
        self._memory.accept(slots, lengths, sampled_nodes)
        lengths = [length + 1 for length in lengths]
        placements = [Placement(slot, length) for slot, length in zip(slots, lengths, strict=True)]
        layouts = make_layouts(lengths, placements, [nodes] * len(slots), max_tokens=self._max_tokens)
        return end_states(self._node_states(layouts, [], token_tree), layouts, token_tree)

    @override
    def confirm_ordinary(self) -> None:
        self._pending += 1

    @abstractmethod
    def _node_states(
        self, layouts: Sequence[Layout], rows: Sequence[np.ndarray], token_tree: TokenTree
    ) -> Float[Tensor, "nodes state"]:
        """The states of all nodes, in the order of the layouts."""


class TreeAttention(TreeStrategy):
    """Tree attention over slots: the new tokens of all rows in one row without padding (sequence packing).

    Linear layers read exactly those tokens; attention looks into the slots by a function of transformers'
    `AttentionInterface`, for which the model runs on a view with a config of its own.
    """

    _is_ragged = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        register_attention()
        own = getattr(self.reward_model.text_config, "_attn_implementation", None)
        self._attention = own if own in ("eager", "sdpa") else "sdpa"
        self._is_masked = self._attention == "eager" or self.reward_model.sliding_window is not None
        self._view = self.reward_model.with_attention(ATTENTION)

    @override
    def _node_states(
        self, layouts: Sequence[Layout], rows: Sequence[np.ndarray], token_tree: TokenTree
    ) -> Float[Tensor, "nodes state"]:
        states = []
        for layout in layouts:
            last, _ = self._view.hidden_states(
                layout.tokens(rows, token_tree),
                None,
                layout.positions(token_tree),
                SlotCache(layout, token_tree, self._attention),
                use_cache=True,
                # States of prefixes are not needed, but a forward returns at least one.
                last=max(1, layout.num_nodes),
            )
            if layout.num_nodes:
                states.append(last[0])
        return torch.cat(states) if len(states) > 1 else states[0]


def end_states(
    node_states: Float[Tensor, "nodes state"], layouts: Sequence[Layout], token_tree: TokenTree
) -> Float[Tensor, "batch k state"]:
    """The states of the last node of each continuation, from those of all nodes in the order of the layouts."""
    batch, width = token_tree.tokens.shape
    if len(layouts) == 1 and token_tree.is_flat and layouts[0].is_in_order and len(node_states) == batch * width:
        return node_states.unflatten(0, (batch, width))
    rows, nodes = (torch.cat(parts) for parts in zip(*map(_node_index, layouts), strict=True))
    place = torch.full((batch, width), -1)
    place[rows, nodes] = torch.arange(len(rows))
    if token_tree.ends is not None:
        place = place.gather(1, token_tree.ends.cpu())
    else:
        # What was left out repeats the row's first candidate.
        place = torch.where(place < 0, place[:, :1], place)
    return node_states[place.to(node_states.device)]


def _node_index(layout: Layout) -> tuple[Tensor, Tensor]:
    if not layout.num_nodes:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    return layout.node_index(torch.device("cpu"))

"""Tree attention by a mask, for models whose attention function cannot be exchanged: one forward for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache
from typing_extensions import override

from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine.slot_cache import write
from rgtg_logits.scorers.engine.slots import Arena
from rgtg_logits.scorers.engine.step_layout import Group, Layout
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tree_attention import TreeStrategy


class MaskedTreeAttention(TreeStrategy):
    """Tree attention by a mask that the model is given, in one forward for each group of rows.

    A group are rows with equally many new tokens in consecutive slots, as in an ordinary step.
    """

    @override
    def reset(self) -> None:
        super().reset()
        self._static_caches: dict[Arena, StaticCache] = {}

    @override
    def _node_states(
        self, layouts: Sequence[Layout], rows: Sequence[np.ndarray], token_tree: TokenTree
    ) -> Float[Tensor, "nodes state"]:
        states = []
        for layout in layouts:
            for group in layout.groups:
                state = self._forward(group, rows, token_tree)
                if group.segments[0].is_tree:
                    states.append(state.flatten(0, 1))
        return torch.cat(states) if len(states) > 1 else states[0]

    def _forward(
        self, group: Group, rows: Sequence[np.ndarray], token_tree: TokenTree
    ) -> Float[Tensor, "rows count state"]:
        num_nodes = group.count * len(group.segments) if group.segments[0].is_tree else 0
        layout = Layout([Group(group.segments, 0)], num_nodes)
        shape = len(group.segments), group.count
        input_ids = layout.tokens(rows, token_tree).reshape(shape)
        position_ids = layout.positions(token_tree).reshape(shape)
        # Only a step that reads nothing but trees, behind all slots of an arena, has the shape of the step before it.
        has_same_shape = num_nodes > 0 and len(group.segments) == len(group.arena.slots) and group.arena.layers.items()
        if self._compiled is not None and has_same_shape:
            cache = self._static_cache(group)
            mask = masks(self.reward_model, group, token_tree, group.arena.capacity)
            states, _ = self._compiled.hidden_states(
                input_ids, mask, position_ids, cache, use_cache=True, last=group.count
            )
            # A recorded CUDA graph writes its next result into the same memory.
            return states.clone()
        states, _ = self.reward_model.hidden_states(
            input_ids,
            masks(self.reward_model, group, token_tree, group.visible),
            position_ids,
            GroupCache(group),
            use_cache=True,
            last=group.count if num_nodes else 1,
        )
        return states

    def _static_cache(self, group: Group) -> StaticCache:
        cache = self._static_caches.get(group.arena)
        if cache is None:
            # The arena before it has been outgrown.
            cache = StaticCache(group.arena)
            self._static_caches = {group.arena: cache}
        cache.show(group, self.reward_model.device)
        return cache


class GroupCache(Cache):
    """Writes the keys and values of a forward over one group into its slots, and shows views of them.

    Args:
        group: The group.
    """

    def __init__(self, group: Group) -> None:
        super().__init__(layers=[])
        self._group = group

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values; returns all that the group sees."""
        group = self._group
        write(group, layer_idx, key_states, value_states)
        keys, values = group.arena.layers.get(layer_idx, key_states, value_states)
        return keys[group.slots, :, : group.visible], values[group.slots, :, : group.visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns before the new ones."""
        return self._group.visible - self._group.count


class StaticCache(Cache):
    """All slots of an arena for a compiled forward, in whose steps no shape changes, as transformers' `StaticCache`.

    Args:
        arena: The arena.
    """

    def __init__(self, arena: Arena) -> None:
        super().__init__(layers=[])
        self._buffers = dict(arena.layers.items())
        self._rows = self._columns = torch.empty(0)
        self._length = arena.capacity

    def show(self, group: Group, device: torch.device) -> None:
        """Says where the next forward writes: to places given as tensors, of which only the values change."""
        self._rows, self._columns = group.index(device)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values; returns all columns."""
        keys, values = self._buffers[layer_idx]
        keys[self._rows, :, self._columns] = key_states.transpose(1, 2)
        values[self._rows, :, self._columns] = value_states.transpose(1, 2)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns, because masks cover all of them."""
        return self._length


def masks(
    reward_model: RewardModel, group: Group, token_tree: TokenTree, size: int
) -> Float[Tensor, "rows 1 count size"] | dict[str, Tensor]:
    """One mask, or one for each kind of layer, as transformers' `create_masks_for_generate` returns them."""
    window = reward_model.sliding_window
    layer_types = set(reward_model.layer_types or [])
    full = _mask(reward_model, group, token_tree, None, size)
    if window is None or layer_types == {"full_attention"}:
        return full
    sliding = _mask(reward_model, group, token_tree, window, size)
    if "full_attention" not in layer_types:
        return sliding
    return {"full_attention": full, "sliding_attention": sliding}


def _mask(reward_model: RewardModel, group: Group, token_tree: TokenTree, window: int | None, size: int) -> Tensor:
    mask = group.mask(token_tree, window, reward_model.dtype, reward_model.device)
    # The model is shown columns that no token of the group sees.
    padding = group.first_visible(window), size - group.visible
    if any(padding):
        mask = torch.nn.functional.pad(mask, padding, value=torch.finfo(mask.dtype).min)
    return mask.expand(len(group.segments), -1, -1, -1)

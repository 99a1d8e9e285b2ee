"""transformers' `Cache` on slots, and attention over them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rgtg_logits.scorers.engine.step_layout import Group, Layout
from rgtg_logits.scorers.engine.token_tree import TokenTree

ATTENTION = "rgtg_slots"
"""Name of `slot_attention` among transformers' attention functions."""

AttentionFunction = Callable[..., tuple[Tensor, Any]]


class SlotCache(Cache):
    """Writes the keys and values of a forward into slots, for a model that attends by `slot_attention`.

    Args:
        layout: The forward.
        tree: The nodes behind the rows.
        attention: The model's own attention implementation.
    """

    def __init__(self, layout: Layout, tree: TokenTree, attention: str) -> None:
        super().__init__(layers=[])
        self.groups = layout.groups
        self.tree = tree
        self.attention = attention
        self._masks: dict[object, Tensor | None] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Writes a layer's new keys and values; returns what `slot_attention` takes for all of them."""
        for group in self.groups:
            write(group, layer_idx, group.split(key_states), group.split(value_states))
        states = LayerStates(self, layer_idx, key_states, value_states)
        return states, states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No token lies before all new ones: the stream holds texts of its own."""
        return 0

    def mask(self, group: Group, window: int | None, query: Tensor) -> Tensor | None:
        """The mask of a group, the same in all layers of one kind; None where none is needed."""
        key = (group.start, window, query.dtype, query.device)
        if key not in self._masks:
            self._masks[key] = group.mask(self.tree, window, query.dtype, query.device)
        return self._masks[key]


def write(group: Group, layer: int, keys: Tensor, values: Tensor) -> None:
    """Writes the keys and values `[rows, heads, count, dim]` of a group's tokens into its slots."""
    buffers = group.arena.layers.get(layer, keys, values)
    for buffer, states in zip(buffers, (keys, values), strict=True):
        if group.is_aligned:
            column = group.columns[0]
            buffer[group.slots, :, column : column + group.count] = states
        else:
            slots, columns = group.index(buffer.device)
            buffer[slots, :, columns] = states.transpose(1, 2)


class LayerStates:
    """The keys and values of one layer of a forward, in place of tensors of them.

    Args:
        cache: The cache of the forward.
        layer: The layer's number.
        keys: The layer's new keys.
        values: The layer's new values.
    """

    def __init__(self, cache: SlotCache, layer: int, keys: Tensor, values: Tensor) -> None:
        self.cache = cache
        self._layer = layer
        self._new = keys, values

    def visible(self, group: Group, window: int | None) -> tuple[Tensor, Tensor]:
        """The columns that the group's tokens see, as views of the buffers."""
        keys, values = group.arena.layers.get(self._layer, *self._new)
        columns = slice(group.first_visible(window), group.visible)
        return keys[group.slots, :, columns], values[group.slots, :, columns]


def slot_attention(
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Tensor | None, **options: Any
) -> tuple[Float[Tensor, "1 stream heads dim"], None]:
    """An attention function of transformers' `AttentionInterface`, for keys and values in slots.

    Each group attends by the model's own function, over views of its slots.
    """
    if not isinstance(key, LayerStates):
        raise TypeError(f"{type(module).__name__} does not attend to its cache as a whole.")
    cache = key.cache
    function = _own_function(module, cache.attention)
    # A bidirectional window would need another mask.
    window = options.get("sliding_window")
    takes_causal = cache.attention == "sdpa"
    outputs = []
    for group in cache.groups:
        keys, values = key.visible(group, window)
        needs_mask = not (takes_causal and group.is_whole_prefix and (window is None or group.visible <= window))
        mask = cache.mask(group, window, query) if needs_mask else None
        # Some layers decide by the mask that they were given, which is none.
        options["is_causal"] = mask is None
        output, _ = function(module, group.split(query), keys, values, mask, **options)
        outputs.append(output.reshape(1, -1, *output.shape[2:]))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _own_function(module: nn.Module, attention: str) -> AttentionFunction:
    if attention == "eager":
        # Each modeling file has its own, because eager attention is where architectures differ.
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[attention]


def register_attention() -> None:
    """Makes `slot_attention` known to transformers, without a function for masks, so that models build none."""
    AttentionInterface.register(ATTENTION, slot_attention)

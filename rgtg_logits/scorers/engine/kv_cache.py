"""A key-value cache that grows in place, rolls back, reorders rows and accepts sampled tokens without a forward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 256
"""Buffers hold a multiple of this many slots, so that growing stays rare and candidates find room behind the prefix."""


class _GrowingLayer(DynamicLayer):
    """One layer, whose `keys` and `values` are the filled part of larger buffers.

    transformers' own layer concatenates, which copies the whole prefix for every token.
    """

    key_buffer: Tensor
    value_buffer: Tensor
    is_initialized: bool
    is_static = False
    write_slots: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.write_slots is not None:
            # Slots given as a tensor keep shapes and strides the same in every step of a compiled forward.
            self.key_buffer.index_copy_(-2, self.write_slots, key_states)
            self.value_buffer.index_copy_(-2, self.write_slots, value_states)
            return self.key_buffer, self.value_buffer
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._set_buffers(self._allocate(key_states, end), self._allocate(value_states, end))
            self.is_initialized = True
        self.reserve(start, end)
        self.key_buffer[..., start:end, :] = key_states
        self.value_buffer[..., start:end, :] = value_states
        self.set_length(end)
        return self.keys, self.values

    def reserve(self, filled: int, length: int) -> None:
        """Makes room for `length` slots, of which the first `filled` are in use."""
        if length <= self.key_buffer.shape[-2]:
            return
        keys = self._allocate(self.key_buffer, length)
        values = self._allocate(self.value_buffer, length)
        keys[..., :filled, :] = self.key_buffer[..., :filled, :]
        values[..., :filled, :] = self.value_buffer[..., :filled, :]
        self._set_buffers(keys, values)

    def _allocate(self, states: Tensor, length: int) -> Tensor:
        """An empty buffer for at least `length` slots of such states."""
        # At least half a block is free, because growing for each step would copy the prefix as often as concatenating.
        blocks = math.ceil((length + BLOCK // 2) / BLOCK)
        if self.is_static:
            # A compiled step is compiled again for each size, so sizes double.
            blocks = 1 << (blocks - 1).bit_length()
        shape = list(states.shape)
        shape[-2] = BLOCK * blocks
        # A static step attends to whole buffers, and what is masked must still be finite, because 0 times NaN is NaN.
        return states.new_zeros(shape) if self.is_static else states.new_empty(shape)

    def _set_buffers(self, keys: Tensor, values: Tensor) -> None:
        self.key_buffer, self.value_buffer = keys, values
        if self.is_static:
            # A recorded CUDA graph writes to the same memory every time.
            torch._dynamo.mark_static_address(keys)
            torch._dynamo.mark_static_address(values)

    def set_length(self, length: int) -> None:
        """Makes the first `length` slots the cache; slots behind them keep their content until overwritten."""
        self.keys, self.values = self.key_buffer[..., :length, :], self.value_buffer[..., :length, :]

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        # The tree behind the prefix is reordered as well, because a sampled node may be accepted afterwards.
        length = self.get_seq_length()
        rows = beam_idx.to(self.device)
        self._set_buffers(self.key_buffer[rows], self.value_buffer[rows])
        self.set_length(length)

    def accept(self, length: int, rows: Int[Tensor, " batch"] | slice, slots: Int[Tensor, " batch"] | int) -> None:
        for buffer in (self.key_buffer, self.value_buffer):
            buffer[:, :, length] = buffer[rows, :, slots]
        self.set_length(length + 1)


class _StaticLayer(_GrowingLayer):
    """A layer whose buffers keep their shape and address as long as they can."""

    is_static = True


class PrefixCache(Cache):
    """The keys and values of a batch of prefixes, each stored once.

    All layers keep every token, sliding-window layers too: the mask restricts what they see, and a prefix can be rolled
    back to any length.

    Args:
        static: Whether steps may run in place (`static_step`), for a compiled forward.
    """

    def __init__(self, *, static: bool = False) -> None:
        super().__init__(layer_class_to_replicate=_StaticLayer if static else _GrowingLayer)

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Makes row i the former row `beam_idx[i]`, slots behind its end included."""
        for layer in self._filled_layers:
            layer.reorder_cache(beam_idx)

    @property
    def _filled_layers(self) -> list[_GrowingLayer]:
        # A layer that shares the keys of another one (KV sharing) is never filled.
        return [layer for layer in cast(list[_GrowingLayer], self.layers) if layer.is_initialized]

    def truncate(self, length: int) -> None:
        """Rolls the prefixes back to `length` slots."""
        for layer in self._filled_layers:
            if layer.get_seq_length() != length:
                layer.set_length(length)

    def accept(self, length: int, slots: Int[Tensor, " batch"]) -> None:
        """Rolls the prefixes back to `length` slots and appends to row i the token whose states lie in `slots[i]`.

        As after verification in speculative decoding: the accepted node of the token tree need not be read again.
        """
        if len(slots) == 1 and slots.device.type == "cpu":
            # To look at a value is free on a CPU, and a slice costs half of what an index does.
            slot = int(slots)
            for layer in self._filled_layers:
                layer.accept(length, slice(None), slot)
            return
        rows = torch.arange(slots.shape[0], device=slots.device)
        for layer in self._filled_layers:
            layer.accept(length, rows.to(layer.device), slots.to(layer.device))

    @contextmanager
    def static_step(self, length: int, new: int) -> Iterator[int]:
        """Inside, a forward writes `new` tokens behind the first `length` slots and attends to whole buffers.

        So no shape changes from step to step, as with transformers' `StaticCache`. Yields the number of slots visible.
        """
        layers = self._filled_layers
        for layer in layers:
            layer.reserve(length, length + new)
        write_slots = torch.arange(length, length + new, device=layers[0].device)
        size = layers[0].key_buffer.shape[-2]
        for layer in layers:
            layer.write_slots = write_slots
            layer.set_length(size)
        try:
            yield size
        finally:
            for layer in layers:
                layer.write_slots = None
                layer.set_length(length)

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(layer.key_buffer.nbytes + layer.value_buffer.nbytes for layer in self._filled_layers)

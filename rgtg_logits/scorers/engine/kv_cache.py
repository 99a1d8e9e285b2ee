"""A key-value cache that grows in place and can take back, reorder and adopt tokens."""

from __future__ import annotations

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
    """One layer: `keys` and `values` are the filled part of buffers with room to spare.

    transformers' own layer concatenates, which copies the whole prefix for every token.
    """

    key_buffer: Tensor
    value_buffer: Tensor
    is_initialized: bool
    is_static = False
    slots: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.slots is not None:
            self.key_buffer.index_copy_(-2, self.slots, key_states)
            self.value_buffer.index_copy_(-2, self.slots, value_states)
            return self.key_buffer, self.value_buffer
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._hold(self._room(key_states, end), self._room(value_states, end))
            self.is_initialized = True
        self.reserve(start, end)
        self.key_buffer[..., start:end, :] = key_states
        self.value_buffer[..., start:end, :] = value_states
        self.show(end)
        return self.keys, self.values

    def reserve(self, filled: int, length: int) -> None:
        """Makes room for `length` slots, of which the first `filled` hold something."""
        if length <= self.key_buffer.shape[-2]:
            return
        keys, values = self._room(self.key_buffer, length), self._room(self.value_buffer, length)
        keys[..., :filled, :] = self.key_buffer[..., :filled, :]
        values[..., :filled, :] = self.value_buffer[..., :filled, :]
        self._hold(keys, values)

    def _room(self, states: Tensor, length: int) -> Tensor:
        shape = list(states.shape)
        # At least half a block is free, because growing for each step would copy the prefix as often as concatenating.
        # A compiled step is compiled again for each size, so those double.
        blocks = -(-(length + BLOCK // 2) // BLOCK)
        shape[-2] = BLOCK * (1 << (blocks - 1).bit_length() if self.is_static else blocks)
        # What is masked must still be finite, because 0 times NaN is NaN.
        return states.new_zeros(shape) if self.is_static else states.new_empty(shape)

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self.key_buffer, self.value_buffer = keys, values
        if self.is_static:
            # A recorded graph writes to the same memory every time.
            torch._dynamo.mark_static_address(keys)
            torch._dynamo.mark_static_address(values)

    def show(self, length: int) -> None:
        """Makes the first `length` slots the cache; what lies behind stays in the buffers until overwritten."""
        self.keys, self.values = self.key_buffer[..., :length, :], self.value_buffer[..., :length, :]

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        length = self.get_seq_length()
        rows = beam_idx.to(self.device)
        self._hold(self.key_buffer[rows], self.value_buffer[rows])
        self.show(length)

    def adopt(self, length: int, rows: Int[Tensor, " batch"] | slice, slots: Int[Tensor, " batch"] | int) -> None:
        for buffer in (self.key_buffer, self.value_buffer):
            buffer[:, :, length] = buffer[rows, :, slots]
        self.show(length + 1)


class _StaticLayer(_GrowingLayer):
    """One whose buffers keep their shape and address as long as they can."""

    is_static = True


class PrefixCache(Cache):
    """The keys and values of a batch of prefixes, each stored once.

    All layers keep every token, sliding ones too: the mask says who sees what, and a prefix can be taken back to any
    length.

    Args:
        static: Whether steps may be taken in place (`in_place`), for a compiled forward.
    """

    def __init__(self, *, static: bool = False) -> None:
        super().__init__(layer_class_to_replicate=_StaticLayer if static else _GrowingLayer)

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Makes row i the former row `beam_idx[i]`, what lies behind the end included."""
        for layer in self._layers:
            layer.reorder_cache(beam_idx)

    @property
    def _layers(self) -> list[_GrowingLayer]:
        # A layer that shares another's keys (KV sharing) is never filled.
        return [layer for layer in cast(list[_GrowingLayer], self.layers) if layer.is_initialized]

    def truncate(self, length: int) -> None:
        """Takes the prefixes back to `length` slots."""
        for layer in self._layers:
            if layer.get_seq_length() != length:
                layer.show(length)

    def adopt(self, length: int, slots: Int[Tensor, " batch"]) -> None:
        """Takes the prefixes back to `length` slots, and appends to row i the token that still lies in `slots[i]`."""
        if len(slots) == 1 and slots.device.type == "cpu":
            # A look is free on a CPU, and a slice costs half of what an index does.
            slot = int(slots)
            for layer in self._layers:
                layer.adopt(length, slice(None), slot)
            return
        rows = torch.arange(slots.shape[0], device=slots.device)
        for layer in self._layers:
            layer.adopt(length, rows.to(layer.device), slots.to(layer.device))

    @contextmanager
    def in_place(self, length: int, new: int) -> Iterator[int]:
        """While it lasts, a forward writes `new` tokens behind the first `length` slots and sees whole buffers.

        So nothing that it touches changes its shape from step to step. Yields how many slots it sees.
        """
        for layer in self._layers:
            layer.reserve(length, length + new)
        slots = torch.arange(length, length + new, device=self._layers[0].device)
        size = self._layers[0].key_buffer.shape[-2]
        for layer in self._layers:
            layer.slots = slots
            layer.show(size)
        try:
            yield size
        finally:
            for layer in self._layers:
                layer.slots = None
                layer.show(length)

    def memory(self) -> int:
        """Bytes held."""
        return sum(layer.key_buffer.nbytes + layer.value_buffer.nbytes for layer in self._layers)

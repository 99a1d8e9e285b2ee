"""A key-value cache that grows in place and can take back, reorder and adopt tokens."""

from __future__ import annotations

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

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.key_buffer, self.value_buffer = _room(key_states, end), _room(value_states, end)
            self.is_initialized = True
        elif end > self.key_buffer.shape[-2]:
            self.key_buffer = _grown(self.key_buffer, start, end)
            self.value_buffer = _grown(self.value_buffer, start, end)
        self.key_buffer[..., start:end, :] = key_states
        self.value_buffer[..., start:end, :] = value_states
        self.show(end)
        return self.keys, self.values

    def show(self, length: int) -> None:
        """Makes the first `length` slots the cache; what lies behind stays in the buffers until overwritten."""
        self.keys, self.values = self.key_buffer[..., :length, :], self.value_buffer[..., :length, :]

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        length = self.get_seq_length()
        rows = beam_idx.to(self.device)
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]
        self.show(length)

    def adopt(self, slots: Int[Tensor, " batch"]) -> None:
        length = self.get_seq_length()
        slots = slots.to(self.device)
        rows = torch.arange(slots.shape[0], device=self.device)
        self.key_buffer[:, :, length] = self.key_buffer[rows, :, slots]
        self.value_buffer[:, :, length] = self.value_buffer[rows, :, slots]
        self.show(length + 1)


def _room(states: Tensor, length: int) -> Tensor:
    shape = list(states.shape)
    # At least half a block is free, because growing for each step would copy the prefix as often as concatenating.
    shape[-2] = -(-(length + BLOCK // 2) // BLOCK) * BLOCK
    return states.new_empty(shape)


def _grown(buffer: Tensor, filled: int, length: int) -> Tensor:
    room = _room(buffer, length)
    room[..., :filled, :] = buffer[..., :filled, :]
    return room


class PrefixCache(Cache):
    """The keys and values of a batch of prefixes, each stored once.

    All layers keep every token, sliding ones too: the mask says who sees what, and a prefix can be taken back to any
    length.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_GrowingLayer)

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
            layer.show(length)

    def adopt(self, slots: Int[Tensor, " batch"]) -> None:
        """Appends to row i the token that still lies in slot `slots[i]`, behind the end."""
        for layer in self._layers:
            layer.adopt(slots)

    def memory(self) -> int:
        """Bytes held."""
        return sum(layer.key_buffer.nbytes + layer.value_buffer.nbytes for layer in self._layers)

"""Slots: the keys and values of one sequence each, left-aligned, so that its tokens never move.

A slot is a row of an arena, a buffer of rows of one capacity. A token's column is its position in its text, and the
candidates of a step lie behind the last token. Rows that stand in consecutive slots are views of the buffers, so an
ordinary step copies no prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

BLOCK = 256
"""Capacities are multiples of this many columns, so that growing stays rare."""


class Layers:
    """The keys and values of every layer of an arena, made when the model first shows their shapes.

    Args:
        num_slots: Number of rows.
        capacity: Number of columns.
        is_static: Whether buffers keep their address, as a recorded CUDA graph needs it.
    """

    def __init__(self, num_slots: int, capacity: int, *, is_static: bool = False) -> None:
        self._num_slots = num_slots
        self._capacity = capacity
        self._is_static = is_static
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def get(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers `[slots, heads, columns, dim]` of a layer with such keys and values."""
        if layer not in self._buffers:
            self._buffers[layer] = (self._empty(keys), self._empty(values))
        return self._buffers[layer]

    def _empty(self, states: Tensor) -> Tensor:
        # Zeros, because what a mask excludes must still be finite: 0 times NaN is NaN.
        buffer = states.new_zeros(self._num_slots, states.shape[1], self._capacity, states.shape[3])
        if self._is_static:
            torch._dynamo.mark_static_address(buffer)
        return buffer

    def items(self) -> Iterable[tuple[int, tuple[Tensor, Tensor]]]:
        """The number and the buffers of every layer."""
        return self._buffers.items()

    def buffers(self) -> Iterable[Tensor]:
        """All buffers."""
        for pair in self._buffers.values():
            yield from pair

    def take_from(self, source: Layers, rows: Sequence[int]) -> None:
        """Fills the rows from rows of other layers of the same capacity."""
        for layer, (keys, values) in source.items():
            index = torch.tensor(rows, device=keys.device)
            self._buffers[layer] = (keys[index], values[index.to(values.device)])


class Slot:
    """One sequence of tokens, and where its keys and values are.

    Attributes:
        arena: The arena.
        index: The row in the arena.
        tokens: The tokens, in a buffer that is longer than they are.
        length: Number of tokens whose keys and values are right.
        tree: Token ids and parents of the nodes behind them; None if what lies there is of no use.
        last_used: Number of the call that used it last.
    """

    __slots__ = ("arena", "end_key", "hash", "index", "keys", "last_used", "length", "tokens", "tree")

    def __init__(self, arena: Arena, index: int) -> None:
        self.arena = arena
        self.index = index
        self.tokens = np.empty(0, dtype=np.int64)
        self.length = 0
        self.tree: HostTree | None = None
        self.last_used = 0
        self.hash = 0
        self.keys: list[tuple[int, int | bytes]] = []
        self.end_key: tuple[int, int | bytes] | None = None

    def text(self) -> np.ndarray:
        """The tokens."""
        return self.tokens[: self.length]

    def set_tokens(self, row: np.ndarray) -> None:
        """Makes the slot hold the tokens of a row, of which it may hold the beginning already."""
        if len(row) > len(self.tokens):
            grown = np.empty(max(len(row), self.arena.capacity), dtype=np.int64)
            grown[: self.length] = self.text()
            self.tokens = grown
        self.tokens[self.length : len(row)] = row[self.length :]
        self.length = len(row)


@dataclass(frozen=True)
class HostTree:
    """The nodes behind a sequence, on the host.

    Attributes:
        tokens: Token ids of the nodes.
        parents: Index of each node's parent, -1 for children of the prefix; None if all are.
    """

    tokens: list[int]
    parents: list[int] | None

    def path(self, tokens: np.ndarray) -> list[int]:
        """The nodes from the root on whose tokens are the first ones of a continuation, as far as there are any."""
        if self.parents is None:
            token = int(tokens[0]) if len(tokens) else None
            return [self.tokens.index(token)] if token in self.tokens else []
        path: list[int] = []
        nodes = list(zip(self.tokens, self.parents, strict=True))
        for token in tokens.tolist():
            child = (token, path[-1] if path else -1)
            if child not in nodes:
                break
            path.append(nodes.index(child))
        return path


class Arena:
    """Slots of one capacity.

    Args:
        num_slots: Number of slots.
        capacity: Number of columns of each.
        is_static: See `Layers`.
    """

    def __init__(self, num_slots: int, capacity: int, *, is_static: bool = False) -> None:
        self.capacity = capacity
        self.layers = Layers(num_slots, capacity, is_static=is_static)
        self.slots = [Slot(self, index) for index in range(num_slots)]
        self.free = list(reversed(self.slots))

    @property
    def num_columns(self) -> int:
        """Number of tokens that fit into it."""
        return len(self.slots) * self.capacity

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(buffer.nbytes for buffer in self.layers.buffers())

    def copy_columns(
        self, slots: Int[Tensor, " moves"], source: Int[Tensor, " moves"], target: Int[Tensor, " moves"]
    ) -> None:
        """Copies single columns within slots: the accepted nodes to where the next tokens of their texts belong."""
        if len(slots) == 1 and slots.device.type == "cpu":
            # To look at a value is free on a CPU, and a slice costs half of what an index does.
            slot, old, new = int(slots), int(source), int(target)
            if old != new:
                for buffer in self.layers.buffers():
                    buffer[slot, :, new] = buffer[slot, :, old]
            return
        for buffer in self.layers.buffers():
            if buffer.device != slots.device:
                # Once for all layers on one device.
                slots, source, target = (part.to(buffer.device) for part in (slots, source, target))
            # The right side is copied before anything is written.
            buffer[slots, :, target] = buffer[slots, :, source]


def copy_prefix(source: Slot, target: Slot, length: int, nodes: Sequence[int]) -> None:
    """Copies the first columns of a slot to another one, and behind them accepted nodes."""
    columns = [source.length + node for node in nodes]
    for layer, (keys, values) in source.arena.layers.items():
        targets = target.arena.layers.get(layer, keys, values)
        for buffer, copy in zip((keys, values), targets, strict=True):
            copy[target.index, :, :length] = buffer[source.index, :, :length]
            if columns:
                copy[target.index, :, length : length + len(columns)] = buffer[source.index, :, columns]


@cache
def capacity_for(columns: int) -> int:
    """The capacity of a slot for so many columns, in steps of a block and later of a quarter."""
    capacity = BLOCK
    while capacity < columns:
        capacity += BLOCK * max(1, capacity // (4 * BLOCK))
    return capacity


class SlotPool:
    """All arenas, within a bound on the number of columns that they hold.

    Args:
        is_static: Whether there is one arena for all, with capacities that double, for a compiled forward.
    """

    def __init__(self, *, is_static: bool = False) -> None:
        self.arenas: list[Arena] = []
        self._is_static = is_static

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(arena.nbytes() for arena in self.arenas)

    def num_columns(self) -> int:
        """Number of columns held."""
        return sum(arena.num_columns for arena in self.arenas)

    def used_slots(self) -> list[Slot]:
        """The slots that hold something."""
        free = {slot for arena in self.arenas for slot in arena.free}
        return [slot for arena in self.arenas for slot in arena.slots if slot not in free]

    def room_for(self, columns: int) -> int:
        """The capacity that a slot for so many columns gets."""
        # Half a block is free, because growing for every step would copy the prefix as often as concatenating.
        needed = columns + BLOCK // 2
        if self._is_static:
            return BLOCK << max(0, (needed - 1) // BLOCK).bit_length()
        return capacity_for(needed)

    def take_free(self, capacity: int) -> Slot | None:
        """A free slot of a capacity, if there is one."""
        for arena in self.arenas:
            if arena.capacity == capacity and arena.free:
                return arena.free.pop()
        return None

    def add_arena(self, num_slots: int, capacity: int) -> None:
        """Makes room for more slots."""
        self.arenas.append(Arena(num_slots, capacity, is_static=self._is_static))

    def num_free(self, capacity: int) -> int:
        """Number of free slots of a capacity."""
        return sum(len(arena.free) for arena in self.arenas if arena.capacity == capacity)

    def release(self, slot: Slot) -> None:
        """Frees a slot."""
        slot.length = 0
        slot.tree = None
        slot.arena.free.append(slot)

    def drop_empty(self, kept: int | None = None) -> None:
        """Gives back the arenas that hold nothing, but for those of one capacity, which is about to be needed."""
        self.arenas = [arena for arena in self.arenas if arena.capacity == kept or len(arena.free) < len(arena.slots)]

    def pack(self, arena: Arena) -> None:
        """Moves the used slots of an arena into a smaller one."""
        free = set(arena.free)
        used = [slot for slot in arena.slots if slot not in free]
        packed = Arena(len(used), arena.capacity, is_static=self._is_static)
        packed.layers.take_from(arena.layers, [slot.index for slot in used])
        packed.slots, packed.free = used, []
        for index, slot in enumerate(used):
            slot.arena, slot.index = packed, index
        self.arenas[self.arenas.index(arena)] = packed

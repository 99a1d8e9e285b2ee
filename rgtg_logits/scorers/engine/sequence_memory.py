"""The memory of sequences: which slot each row continues, what is copied from where, and what is forgotten.

A row continues the remembered sequence with which it shares the longest beginning. If all of that sequence is shared,
the row takes its slot and grows in place; otherwise it gets a slot of its own, into which the shared beginning is
copied. So what one sequence does never costs another one its tokens, and a system prompt, beams, return sequences, the
next turn of a chat and a rejected draft read only what is new.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.scorers.engine.prefix_index import PrefixIndex, are_equal
from rgtg_logits.scorers.engine.slots import Arena, HostTree, Slot, SlotPool, copy_prefix

REMEMBERED_CALLS = 64
"""The bound on memory is twice what the largest of so many calls needed."""


@dataclass
class Placement:
    """Where a row's keys and values lie.

    Attributes:
        slot: The slot.
        cached: Number of leading tokens that need not be read.
    """

    slot: Slot
    cached: int


@dataclass
class _Match:
    """A remembered beginning of a row: a slot, how many tokens they share, and accepted nodes behind them."""

    slot: Slot | None = None
    shared: int = 0
    path: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Number of leading tokens that need not be read."""
        return self.shared + len(self.path)


class SequenceMemory:
    """Sequences and their slots.

    Args:
        cache_tokens: Largest number of tokens to keep; the rows of one call are always kept. None: as many as the
            largest of the last calls needed, and as many again.
        is_static: See `SlotPool`.
    """

    def __init__(self, cache_tokens: int | None = None, *, is_static: bool = False) -> None:
        self.pool = SlotPool(is_static=is_static)
        self._index = PrefixIndex()
        # Sequences that have grown, by the number of tokens that the index knows; filed when a row is looked up there.
        self._unfiled: dict[Slot, int] = {}
        self._cache_tokens = cache_tokens
        self._is_static = is_static
        self._needs: deque[int] = deque(maxlen=REMEMBERED_CALLS)
        self._last: list[Slot] = []
        self._call = 0

    def place(self, rows: Sequence[np.ndarray], num_nodes: int) -> list[Placement]:
        """Gives each row a slot with room for its tokens and for nodes behind them, and copies what is known.

        Args:
            rows: Token ids; no row equals another.
            num_nodes: Largest number of nodes behind a row.
        """
        self._call += 1
        matches = [self._match(row, hint) for row, hint in zip_longest(rows, self._last[: len(rows)])]
        for match in matches:
            if match.slot is not None:
                match.slot.last_used = self._call
        slots = self._slots(rows, matches, num_nodes)
        self._copy(matches, slots)
        self._last = slots
        return [Placement(slot, match.cached) for slot, match in zip(slots, matches, strict=True)]

    def _match(self, row: np.ndarray, hint: Slot | None) -> _Match:
        """The remembered beginning of a row; the slot that its predecessor had is tried first."""
        if hint is not None and 0 < hint.length <= len(row) and are_equal(hint.text(), row[: hint.length]):
            match = _with_path(_Match(hint, hint.length), row)
            if match.cached == len(row):
                return match
        self._file()
        slot, shared = self._index.longest(row)
        return _with_path(_Match(slot, shared), row)

    def _file(self) -> None:
        for slot, known in self._unfiled.items():
            self._index.add(slot, known)
        self._unfiled.clear()

    def _slots(self, rows: Sequence[np.ndarray], matches: list[_Match], num_nodes: int) -> list[Slot]:
        """The slot of every row: the one that it continues, or another one."""
        needs = [len(row) + num_nodes for row in rows]
        if self._is_static:
            # All rows in one arena of one capacity, because a compiled step keeps its shape.
            needs = [max(needs)] * len(needs)
        self._needs.append(sum(self.pool.room_for(need) for need in needs))
        slots: list[Slot | None] = []
        taken: set[Slot] = set()
        for match, need in zip(matches, needs, strict=True):
            slot = match.slot
            fits = slot is not None and match.shared == slot.length and need <= slot.arena.capacity
            if slot is None or not fits or slot in taken:
                slots.append(None)
                continue
            taken.add(slot)
            slots.append(slot)
        missing = [row for row, slot in enumerate(slots) if slot is None]
        # Forks come one by one and belong side by side, so room is made for as many as there are rows.
        forks = len(rows) if any(matches[row].slot is not None for row in missing) else 0
        for row, slot in zip(missing, self._new_slots([needs[row] for row in missing], forks), strict=True):
            slots[row] = slot
        return [slot for slot in slots if slot is not None]

    def _new_slots(self, needs: list[int], forks: int) -> list[Slot]:
        """Slots for rows that have none, so that those of one capacity stand side by side."""
        by_capacity: dict[int, list[int]] = defaultdict(list)
        for place, need in enumerate(needs):
            by_capacity[self.pool.room_for(need)].append(place)
        found: dict[int, Slot] = {}
        for capacity, places in by_capacity.items():
            self._make_room(capacity, len(places), forks)
            for place in places:
                slot = self.pool.take_free(capacity)
                assert slot is not None
                # Before room is made for another capacity, which would free it again.
                slot.last_used = self._call
                found[place] = slot
        return [found[place] for place in range(len(needs))]

    def _make_room(self, capacity: int, count: int, forks: int) -> None:
        """Frees so many slots of a capacity: new ones within the bound, or else those that were used longest ago."""
        bound = self._bound()
        pool = self.pool
        idle = sorted(
            (slot for slot in pool.used_slots() if slot.last_used < self._call), key=lambda slot: slot.last_used
        )
        for slot in idle:
            missing = count - pool.num_free(capacity)
            if missing <= 0 or pool.num_columns() + missing * capacity <= bound:
                break
            self._forget(slot)
            pool.drop_empty(capacity)
        self._pack()
        missing = count - pool.num_free(capacity)
        if missing > 0:
            spare = max(0, bound - pool.num_columns()) // capacity
            pool.add_arena(max(missing, min(forks, spare)), capacity)

    def _bound(self) -> int:
        return 2 * max(self._needs) if self._cache_tokens is None else self._cache_tokens

    def _forget(self, slot: Slot) -> None:
        self._unfiled.pop(slot, None)
        self._index.remove(slot)
        self.pool.release(slot)

    def _pack(self) -> None:
        """Gives back what mostly free arenas hold, once more than the bound is held."""
        for arena in list(self.pool.arenas):
            if self.pool.num_columns() <= self._bound():
                return
            if len(arena.slots) > 2 * (len(arena.slots) - len(arena.free)) > 0:
                self.pool.pack(arena)

    def _copy(self, matches: list[_Match], slots: list[Slot]) -> None:
        """Brings what is known of each row into its slot."""
        accepted: dict[Arena, list[tuple[int, int, int]]] = defaultdict(list)
        outgrown = []
        for match, slot in zip(matches, slots, strict=True):
            source = match.slot
            if source is None:
                continue
            if source is not slot:
                # Copied first, because growing in place overwrites nodes that another row may have accepted.
                copy_prefix(source, slot, match.shared, match.path)
                if (
                    match.shared == source.length
                    and source not in slots
                    and source.arena.capacity < slot.arena.capacity
                ):
                    outgrown.append(source)
        for match, slot in zip(matches, slots, strict=True):
            if match.slot is slot:
                moves = accepted[slot.arena]
                for column, node in enumerate(match.path, start=slot.length):
                    moves.append((slot.index, slot.length + node, column))
        for arena, moves in accepted.items():
            if moves:
                rows, sources, targets = torch.tensor(moves).T
                arena.copy_columns(rows, sources, targets)
        for slot in slots:
            # From here on the forward writes there.
            slot.tree = None
        for source in set(outgrown):
            self._forget(source)
        self.pool.drop_empty()

    def accept(self, slots: Sequence[Slot], lengths: Sequence[int], nodes: Int[Tensor, " batch"]) -> None:
        """Appends to each slot's text the token of one of its nodes, of which only the device knows which it is."""
        by_arena: dict[Arena, list[int]] = defaultdict(list)
        for row, slot in enumerate(slots):
            by_arena[slot.arena].append(row)
        for arena, rows in by_arena.items():
            index = torch.tensor([slots[row].index for row in rows], device=nodes.device)
            ends = torch.tensor([lengths[row] for row in rows], device=nodes.device)
            chosen = nodes if len(rows) == len(slots) else nodes[torch.tensor(rows, device=nodes.device)]
            arena.copy_columns(index, ends + chosen, ends)

    def commit(self, slot: Slot, row: np.ndarray, tree: HostTree | None) -> None:
        """Remembers that a slot holds a row, and behind it the nodes of a tree."""
        known = slot.length
        if len(row) != known:
            slot.set_tokens(row)
            self._unfiled.setdefault(slot, known)
        slot.tree = tree

    def drop(self, slots: Sequence[Slot]) -> None:
        """Frees the slots that hold nothing, after a call that failed, and those of rows that failed."""
        for slot in slots:
            if slot.length == 0 and slot not in slot.arena.free:
                self._forget(slot)

    def clear(self, slot: Slot) -> None:
        """Forgets a sequence whose keys and values are not finite."""
        self.wipe(slot, 0)
        self._forget(slot)

    def wipe(self, slot: Slot, length: int) -> None:
        """Overwrites what lies behind the first tokens, because NaN would reach others through what a mask excludes."""
        for buffer in slot.arena.layers.buffers():
            buffer[slot.index, :, length:].zero_()

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.pool.nbytes()


def _with_path(match: _Match, row: np.ndarray) -> _Match:
    slot = match.slot
    if slot is None or slot.tree is None or match.shared < slot.length:
        return match
    match.path = slot.tree.path(row[match.shared :])
    return match

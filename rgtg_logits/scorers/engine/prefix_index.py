"""The prefix index: finds the remembered sequence that begins most like a row, in time that grows with its tokens.

Each remembered sequence is filed under a hash of its first 16, 32, … tokens, and under its length and end, which finds
a row that has grown by one token without reading all of it. The hash of a beginning is a sum of its tokens with random
factors of 64 bits, so those of all beginnings of a row are one cumulative sum. What is found is compared token by
token, so a collision costs time only.
"""

from __future__ import annotations

import numpy as np

from rgtg_logits.scorers.engine.slots import Slot

STRIDE = 16
"""Sequences are filed under each multiple of this many tokens."""
MOST_COMPARED = 16
"""So many of the sequences that are filed alike are compared with a row."""
END = 8
"""Number of tokens at the end under which a sequence is filed."""
Key = tuple[int, int | bytes]
_WORD = (1 << 64) - 1


class _Factors:
    """Random factors, one for each position."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0x5EED)
        self._factors = np.empty(0, dtype=np.uint64)

    def first(self, count: int) -> np.ndarray:
        """The factors of the first positions."""
        if count > len(self._factors):
            more = self._random.integers(1, 1 << 63, max(count, 4096), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            self._factors = np.concatenate([self._factors, more])
        return self._factors[:count]


class PrefixIndex:
    """Remembered sequences by their beginnings."""

    def __init__(self) -> None:
        self._factors = _Factors()
        self._slots: dict[Key, dict[Slot, None]] = {}

    def longest(self, row: np.ndarray) -> tuple[Slot | None, int]:
        """The sequence that shares the longest beginning with a row, and the number of tokens shared."""
        if not self._slots or not len(row):
            return None, 0
        for length in (len(row), len(row) - 1):
            if found := self._slots.get(_end_key(row, length)):
                best = _most_similar(found, row)
                if best[1] >= length:
                    return best
        hashes = self._hashes(row)
        # A sequence that is filed under a length is filed under all shorter ones, so the longest is found by bisection.
        low, high = 0, len(row) // STRIDE
        found = None
        while low < high:
            middle = (low + high + 1) // 2
            length = middle * STRIDE
            slots = self._slots.get((length, int(hashes[length - 1])))
            if slots:
                low, found = middle, slots
            else:
                high = middle - 1
        if found:
            return _most_similar(found, row)
        return self._short(row)

    def _short(self, row: np.ndarray) -> tuple[Slot | None, int]:
        """The best match among sequences by their first token, for what is shorter than a stride."""
        found = self._slots.get((1, self._first_key(row)))
        slot, shared = _most_similar(found, row) if found else (None, 0)
        # Texts that share a start token and little else are read whole, which needs no mask.
        return (slot, shared) if 2 * shared >= len(row) else (None, 0)

    def _first_key(self, row: np.ndarray) -> int:
        return int(self._factors.first(1)[0]) * (int(row[0]) + 1) & _WORD

    def add(self, slot: Slot, known: int) -> None:
        """Files a sequence whose first `known` tokens are filed already."""
        if slot.end_key is not None:
            self._drop(slot.end_key, slot)
        length = slot.length
        if length == known + 1 and known:
            # One more token, the usual case, without numpy.
            factor = int(self._factors.first(length)[known])
            slot.hash = (slot.hash + factor * (int(slot.tokens[known]) + 1)) & _WORD
            if length % STRIDE == 0:
                self._file(slot, (length, slot.hash))
        elif length > known:
            hashes = self._hashes(slot.text(), known, slot.hash)
            slot.hash = int(hashes[-1])
            if not known:
                self._file(slot, (1, int(hashes[0])))
            for end in range((known // STRIDE + 1) * STRIDE, length + 1, STRIDE):
                self._file(slot, (end, int(hashes[end - known - 1])))
        slot.end_key = _end_key(slot.tokens, length)
        self._slots.setdefault(slot.end_key, {})[slot] = None

    def remove(self, slot: Slot) -> None:
        """Forgets a sequence."""
        for key in slot.keys:
            self._drop(key, slot)
        if slot.end_key is not None:
            self._drop(slot.end_key, slot)
        slot.keys = []
        slot.end_key = None
        slot.hash = 0

    def _file(self, slot: Slot, key: Key) -> None:
        slot.keys.append(key)
        self._slots.setdefault(key, {})[slot] = None

    def _drop(self, key: Key, slot: Slot) -> None:
        slots = self._slots.get(key)
        if slots is not None:
            slots.pop(slot, None)
            if not slots:
                del self._slots[key]

    def _hashes(self, row: np.ndarray, known: int = 0, known_hash: int = 0) -> np.ndarray:
        """The hash of each beginning that is longer than a known one."""
        terms = self._factors.first(len(row))[known:] * (row[known:].astype(np.uint64) + np.uint64(1))
        return np.cumsum(terms, dtype=np.uint64) + np.uint64(known_hash)


def _end_key(row: np.ndarray, length: int) -> Key:
    """The key of a sequence by its length and last tokens."""
    return length, row[max(0, length - END) : length].tobytes()


def _most_similar(slots: dict[Slot, None], row: np.ndarray) -> tuple[Slot | None, int]:
    best: Slot | None = None
    shared = 0
    for slot in list(reversed(slots))[:MOST_COMPARED]:
        length = common_prefix(slot.text(), row)
        # A sequence that ends there is better than a longer one, because it can be continued in place.
        if length > shared or (length == shared and best is not None and slot.length < best.length):
            best, shared = slot, length
    return best, shared


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Number of tokens that both begin with."""
    columns = min(len(first), len(second))
    if are_equal(first[:columns], second[:columns]):
        return columns
    differs = first[:columns] != second[:columns]
    return int(differs.argmax())


def are_equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays hold the same tokens; bytes are compared faster than numbers, in spite of the copies."""
    return first.tobytes() == second.tobytes()

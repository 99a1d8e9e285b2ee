"""Comparisons of token sequences."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    first, second = list(first), list(second)
    shared, longest = 0, min(len(first), len(second))
    # Binary search over slices, which are compared in C, because prompts are long and compared at every step.
    while shared < longest:
        middle = (shared + longest + 1) // 2
        if first[shared:middle] == second[shared:middle]:
            shared = middle
        else:
            longest = middle - 1
    return shared

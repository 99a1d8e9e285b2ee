"""Comparisons of token sequences."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    if type(first) is not type(second):
        # A list never equals a tuple.
        first, second = list(first), list(second)
    longest = min(len(first), len(second))
    shared, step = 0, 1
    # Exponential search over slices, which are compared in C, because prompts are long and compared at every step.
    while step <= longest - shared and first[shared : shared + step] == second[shared : shared + step]:
        shared += step
        step *= 2
    while step > 1:
        step //= 2
        if step <= longest - shared and first[shared : shared + step] == second[shared : shared + step]:
            shared += step
    return shared

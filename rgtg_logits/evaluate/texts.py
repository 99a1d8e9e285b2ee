"""What can be said of answers without a judge."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(ids: Sequence[int], n: int) -> float:
    """Share of n-grams that are different; 1 if there are none."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0

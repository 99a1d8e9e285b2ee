"""The prefix tracker: how the cache of the previous rows becomes the cache of the rows now.

Rows may be permuted, duplicated, dropped or rolled back without notice (beams, return sequences, rejected drafts), so
state is only ever a memory of prefixes, never a step count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class CachePlan:
    """Which part of the cache of the previous rows the rows now can use.

    Attributes:
        source_rows: The previous row that each row continues, as `beam_idx` of `Cache.reorder_cache`; None if each
            continues its own.
        kept_length: Number of leading columns of those rows that stay valid. All of them: the rows extend. Fewer: they
            rewind. 0: restart.
    """

    source_rows: Int[Tensor, " batch"] | None
    kept_length: int


class PrefixTracker:
    """Memory of one batch of rows, with which the next batch is compared.

    Args (of its methods):
        padded_ids: Token ids with `PADDING` where a row is padded, so that equal rows are equal prefixes.
    """

    def __init__(self) -> None:
        self._padded_ids: Int[Tensor, "batch length"] | None = None

    @property
    def length(self) -> int:
        """Number of columns remembered."""
        return 0 if self._padded_ids is None else self._padded_ids.shape[1]

    def plan(self, padded_ids: Int[Tensor, "batch length"]) -> CachePlan:
        """Compares rows with those remembered: extend, rewind or restart."""
        if self._padded_ids is None:
            return CachePlan(None, 0)
        known = self._padded_ids.to(padded_ids.device)
        columns = min(known.shape[1], padded_ids.shape[1])
        # The usual case first: every row extends itself, or all are rolled back to the same prefix.
        same_batch = padded_ids.shape[0] == known.shape[0]
        if same_batch and torch.equal(padded_ids[:, :columns], known[:, :columns]):
            return CachePlan(None, columns)
        # Every row against every row: entry (i, j) is the length of the prefix that row i shares with previous row j.
        shared = _common_prefix_lengths(padded_ids[:, None, :columns], known[None, :, :columns])
        rows = torch.arange(padded_ids.shape[0])
        # A row's own place is preferred to an equally good one, because reordering copies the cache.
        if same_batch and bool((shared[rows, rows] == shared.amax(1)).all()):
            return CachePlan(None, int(shared[rows, rows].min()))
        # All rows have the same number of cached columns, so the least similar one decides.
        length, source_rows = shared.max(dim=1)
        return CachePlan(source_rows, int(length.min()))

    def remember(self, padded_ids: Int[Tensor, "batch length"]) -> None:
        """Replaces the rows remembered."""
        self._padded_ids = padded_ids

    def forget(self) -> None:
        """Makes the next plan a restart."""
        self._padded_ids = None


def _common_prefix_lengths(first: Tensor, second: Tensor) -> Tensor:
    """Length of the common prefix along the last axis."""
    same: Bool[Tensor, "*shape length"] = first == second
    differs = torch.nn.functional.pad(~same, (0, 1), value=True)
    # argmax finds the first mismatch; the last column is one for rows without any.
    return differs.to(torch.uint8).argmax(-1)

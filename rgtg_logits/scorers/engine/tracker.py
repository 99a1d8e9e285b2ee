"""The prefix tracker: how the rows of a step follow from those of the step before.

Rows may be permuted, duplicated, dropped or rolled back without notice, so state is only ever a memory of prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """How the rows now follow from the rows last time.

    Attributes:
        parents: For each row now, the row last time that it continues; None if each continues its own.
        keep: How many leading columns of the parents are still right. All of them: the rows extend. Fewer: rewind.
            0: restart.
    """

    parents: Int[Tensor, " batch"] | None
    keep: int


class PrefixTracker:
    """Remembers a batch of rows and says how the next batch follows from it.

    Args (of its methods):
        keys: Token ids with `PADDING` where a row is padded, so that equal keys are equal prefixes.
    """

    def __init__(self) -> None:
        self._keys: Int[Tensor, "batch length"] | None = None

    @property
    def length(self) -> int:
        """Number of columns remembered."""
        return 0 if self._keys is None else self._keys.shape[1]

    def plan(self, keys: Int[Tensor, "batch length"]) -> Plan:
        """Compares the rows now with those remembered: extend, rewind or restart."""
        if self._keys is None:
            return Plan(None, 0)
        known = self._keys.to(keys.device)
        columns = min(known.shape[1], keys.shape[1])
        if keys.shape[0] == known.shape[0] and torch.equal(keys[:, :columns], known[:, :columns]):
            return Plan(None, columns)
        shared = _common_prefix(keys[:, None, :columns], known[None, :, :columns])
        own = torch.arange(keys.shape[0])
        if keys.shape[0] == known.shape[0] and bool((shared[own, own] == shared.amax(1)).all()):
            return Plan(None, int(shared[own, own].min()))
        length, parents = shared.max(dim=1)
        return Plan(parents, int(length.min()))

    def remember(self, keys: Int[Tensor, "batch length"]) -> None:
        """Replaces what is remembered."""
        self._keys = keys

    def forget(self) -> None:
        """Makes the next plan a restart."""
        self._keys = None


def _common_prefix(one: Tensor, other: Tensor) -> Tensor:
    """Length of the common prefix along the last axis."""
    same: Bool[Tensor, "*shape length"] = one == other
    padded = torch.nn.functional.pad(~same, (0, 1), value=True)
    # argmax finds the first mismatch; the column of ones stands for "none".
    return padded.to(torch.uint8).argmax(-1)

"""The previous step of the scoring engine, from which the next one may be predicted."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from rgtg_logits.scorers.engine.request import ScoreRequest


@dataclass(frozen=True)
class PreviousStep:
    """A step in which each row was computed by itself, whole and through the cache.

    Attributes:
        request: Its request, whose prefixes are a rectangle.
        active: The rows that were computed; None if all.
        children: The candidates in the flat tree of the computed rows; None if they are no longer cached.
        longest: Number of tokens of the longest prefix.
        is_committed: Whether the strategy was told the rows.
    """

    request: ScoreRequest
    active: Int[Tensor, " active"] | None
    children: Int[Tensor, "active k"] | None
    longest: int
    is_committed: bool

    def computed(self, part: Tensor) -> Tensor:
        """The computed rows of a part of the request."""
        return part if self.active is None else part[self.active]

    def may_precede(self, request: ScoreRequest, limit: int) -> bool:
        """Whether a request may be an ordinary step behind this one, by shapes alone, which need no look at the device.

        Args:
            request: The request.
            limit: Number of tokens that the model can read.
        """
        padded_ids, former_ids = request.prefixes, self.request.prefixes
        if not (request.token_tree.is_flat and isinstance(padded_ids, Tensor) and isinstance(former_ids, Tensor)):
            return False
        batch, length = former_ids.shape
        # Each row is one token longer now, and one candidate must still fit.
        return padded_ids.shape == (batch, length + 1) and self.longest + 2 <= limit

"""Candidates: the next tokens that get a reward, chosen by top-k, top-p and min-p."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rgtg_logits.columns import Column, column_on, holds, plain_setting, spread
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.profiling import profiled


@dataclass(frozen=True)
class Candidates:
    """The next tokens that get a reward, best first in each row; in the order of their ids, if none is left out.

    A row with fewer candidates than the widest one ends in unused slots, which score -inf and repeat its best token, so
    that every id is a token that the row may take.

    Attributes:
        ids: Token ids.
        scores: The base model's scores of those tokens (any constant per row is free), -inf in an unused slot.
    """

    ids: Int[Tensor, "batch k"]
    scores: Float[Tensor, "batch k"]

    @profiled("candidates")
    def without_unused_slots(self) -> Candidates:
        """Drops the slots that no row uses; looks at the scores, for which the host waits for an accelerator."""
        used = max(1, int((self.scores > float("-inf")).sum(-1).max()))
        return Candidates(self.ids[:, :used], self.scores[:, :used])


@dataclass(frozen=True, kw_only=True)
class CandidateRule:
    """Filters that choose candidates from the base model's scores.

    Tokens that arrive with -inf stay out. The filters apply in this order, each to the tokens that the previous one
    kept. Each is a number for all rows, or has one for each row (`Column`), kept as a tensor [rows, 1] on the CPU.

    Attributes:
        top_k: Keep the k best tokens; 1 or more. The cost of a step grows with the largest k of its rows.
        top_p: Then keep the fewest tokens that hold this share of the remaining probability (nucleus sampling, arXiv
            1904.09751); in (0, 1], 1 keeps all.
        min_p: Then keep tokens at least this fraction as probable as the best one (arXiv 2407.01082); in [0, 1],
            0 keeps all.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    top_k: int | Column = 20
    top_p: float | Column | None = None
    min_p: float | Column | None = None

    def __post_init__(self) -> None:
        top_k = plain_setting(self.top_k)
        if not holds(top_k, lambda k: isinstance(k, int) and k >= 1):
            raise InvalidArgumentError(
                f"Expected top_k to be a whole number of candidates, 1 or more, but got {self.top_k!r}. "
                "Typical values are 10 to 50."
            )
        top_p = plain_setting(self.top_p)
        if self.top_p is not None and not holds(top_p, lambda share: 0 < share <= 1):
            raise InvalidArgumentError(
                f"Expected top_p to be a share of probability in (0, 1], but got {self.top_p!r}. "
                "Leave it out to use top_k alone."
            )
        min_p = plain_setting(self.min_p)
        if self.min_p is not None and not holds(min_p, lambda fraction: 0 <= fraction <= 1):
            raise InvalidArgumentError(
                f"Expected min_p to be a fraction of the best token's probability in [0, 1], but got {self.min_p!r}. "
                "Leave it out to use top_k alone."
            )
        for name, value in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)):
            # A frozen dataclass allows no other way.
            object.__setattr__(self, name, value)

    def for_rows(self, rows: int) -> CandidateRule:
        """The rule for a number of rows; see `spread`.

        Raises:
            InvalidArgumentError: If the rows are no multiple of a column's entries.
        """
        if not any(isinstance(value, Tensor) for value in self._filters()):
            return self
        top_k, top_p, min_p = (spread(value, rows) for value in self._filters())
        return replace(self, top_k=top_k, top_p=top_p, min_p=min_p)

    @profiled("candidates")
    def select(self, scores: Float[Tensor, "batch vocab"]) -> Candidates:
        """Selects the candidates of each row; the scores are not edited."""
        if self._keeps_all(scores):
            # All are candidates, so their order does not matter.
            return Candidates(torch.arange(scores.shape[-1]).expand(scores.shape), scores)
        best, ids = scores.topk(min(self.widest(), scores.shape[-1]), dim=-1)
        if isinstance(self.top_k, Tensor):
            slots = torch.arange(best.shape[-1], device=best.device)
            best = best.masked_fill(slots >= column_on(self.top_k, best), float("-inf"))
        if self.top_p is not None or self.min_p is not None:
            best = best.masked_fill(~self._passes_filters(best), float("-inf"))
        return Candidates(torch.where(best == float("-inf"), ids[:, :1], ids), best)

    def widest(self, rows: Int[Tensor, " some"] | None = None) -> int:
        """The largest `top_k` of all rows, or of the rows with the given indices."""
        if not isinstance(self.top_k, Tensor):
            return self.top_k
        return int((self.top_k if rows is None else self.top_k[rows]).max())

    def _filters(self) -> tuple[Any, Any, Any]:
        return self.top_k, self.top_p, self.min_p

    def _keeps_all(self, scores: Float[Tensor, "batch vocab"]) -> bool:
        """Whether every token is a candidate, which saves sorting the vocabulary.

        Sorting takes as long as a step of a small model on a CPU. An accelerator sorts fast, and the host would have to
        wait for it, so there the answer is always no.
        """
        if scores.device.type != "cpu" or self.top_p is not None or self.min_p is not None:
            return False
        least = int(self.top_k.min()) if isinstance(self.top_k, Tensor) else self.top_k
        return least >= scores.shape[-1] and bool((scores > float("-inf")).all())

    def _passes_filters(self, best: Float[Tensor, "batch k"]) -> Bool[Tensor, "batch k"]:
        probability = best.softmax(-1)
        kept = torch.ones_like(probability, dtype=torch.bool)
        if self.top_p is not None:
            # A token stays if those before it hold less than the share, because that keeps the one that crosses it.
            kept &= probability.cumsum(-1) - probability < column_on(self.top_p, best)
        if self.min_p is not None:
            kept &= probability >= column_on(self.min_p, best) * probability[:, :1]
        return kept


def is_lookup_probe(scores: Float[Tensor, "batch vocab"], candidates: Candidates) -> Bool[Tensor, "1 1"] | None:
    """Whether prompt lookup asks which tokens are forbidden: more tokens than candidates, and all score exactly 1.

    It asks for one row at a time, with a score of 1 for every token that processors in front left possible
    (`PromptLookupCandidateGenerator`). Constraints that replace scores leave others, most often 0, and are guided.

    Returns:
        A condition on the scores' device; None if it certainly does not hold.
    """
    if len(scores) != 1:
        return None
    is_on_cpu = scores.device.type == "cpu"
    # A look is free on a CPU, and the best token hardly ever scores exactly 1.
    if is_on_cpu and float(candidates.scores.amax()) != 1:
        return None
    allowed = scores > float("-inf")
    are_alike = ((scores == 1) | ~allowed).all(-1, keepdim=True)
    used = (candidates.scores > float("-inf")).sum(-1, keepdim=True)
    probe = are_alike & (allowed.sum(-1, keepdim=True) > used)
    return None if is_on_cpu and not bool(probe) else probe

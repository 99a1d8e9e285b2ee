"""Candidates: the next tokens that get a reward, chosen by top-k, top-p and min-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.inputs import plain_number
from rgtg_logits.profiling import profiled


@dataclass(frozen=True)
class Candidates:
    """The next tokens that get a reward, best first in each row; in the order of their ids, if none is left out.

    A row with fewer candidates than the widest one ends in unused slots, which score -inf and repeat its best token, so
    that every id is a token that the row may take.

    Attributes:
        ids: Token ids.
        scores: The base model's scores of those tokens (any constant per row is free), -inf in an unused slot.
        is_tied: Rows whose k best tokens score the same; None where that is unknown.
    """

    ids: Int[Tensor, "batch k"]
    scores: Float[Tensor, "batch k"]
    is_tied: Bool[Tensor, " batch"] | None = None

    @profiled("candidates")
    def without_unused_slots(self) -> Candidates:
        """Drops the slots that no row uses; looks at the scores, for which the host waits for an accelerator."""
        used = max(1, int((self.scores > float("-inf")).sum(-1).max()))
        return Candidates(self.ids[:, :used], self.scores[:, :used], self.is_tied)


@dataclass(frozen=True, kw_only=True)
class CandidateRule:
    """Filters that choose candidates from the base model's scores.

    Tokens that arrive with -inf stay out. The filters apply in this order, each to the tokens that the previous one
    kept.

    Attributes:
        top_k: Keep the k best tokens; 1 or more. The cost of a step grows with it.
        top_p: Then keep the fewest tokens that hold this share of the remaining probability (nucleus sampling, arXiv
            1904.09751); in (0, 1], 1 keeps all.
        min_p: Then keep tokens at least this fraction as probable as the best one (arXiv 2407.01082); in [0, 1],
            0 keeps all.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    top_k: int = 20
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        top_k = plain_number(self.top_k)
        if not isinstance(top_k, int) or top_k < 1:
            raise InvalidArgumentError(
                f"Expected top_k to be a whole number of candidates, 1 or more, but got {self.top_k!r}. "
                "Typical values are 10 to 50."
            )
        top_p = plain_number(self.top_p)
        if self.top_p is not None and not (top_p is not None and 0 < top_p <= 1):
            raise InvalidArgumentError(
                f"Expected top_p to be a share of probability in (0, 1], but got {self.top_p!r}. "
                "Leave it out to use top_k alone."
            )
        min_p = plain_number(self.min_p)
        if self.min_p is not None and not (min_p is not None and 0 <= min_p <= 1):
            raise InvalidArgumentError(
                f"Expected min_p to be a fraction of the best token's probability in [0, 1], but got {self.min_p!r}. "
                "Leave it out to use top_k alone."
            )
        for name, value in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)):
            # A frozen dataclass allows no other way.
            object.__setattr__(self, name, value)

    @profiled("candidates")
    def select(self, scores: Float[Tensor, "batch vocab"]) -> Candidates:
        """Selects the candidates of each row; the scores are not edited."""
        if self._keeps_all(scores):
            # All are candidates, so their order does not matter.
            ids = torch.arange(scores.shape[-1]).expand(scores.shape)
            return Candidates(ids, scores, scores.amin(-1) == scores.amax(-1))
        best, ids = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)
        # The best are sorted, so it is enough to compare the first and the last.
        is_tied = best[:, 0] == best[:, -1]
        if self.top_p is not None or self.min_p is not None:
            best = best.masked_fill(~self._passes_filters(best), float("-inf"))
        return Candidates(torch.where(best == float("-inf"), ids[:, :1], ids), best, is_tied)

    def _keeps_all(self, scores: Float[Tensor, "batch vocab"]) -> bool:
        """Whether every token is a candidate, which saves sorting the vocabulary.

        Sorting takes as long as a step of a small model on a CPU. An accelerator sorts fast, and the host would have to
        wait for it, so there the answer is always no.
        """
        has_no_filter = self.top_k >= scores.shape[-1] and self.top_p is None and self.min_p is None
        return has_no_filter and scores.device.type == "cpu" and bool((scores > float("-inf")).all())

    def has_no_best(self, scores: Float[Tensor, "batch vocab"]) -> Bool[Tensor, "batch 1"]:
        """Rows whose more than `top_k` tokens all score the same, so that no candidates can be chosen.

        No language model gives such scores. Prompt lookup does, to learn which tokens a processor forbids.
        """
        allowed = scores > float("-inf")
        is_tied = ((scores == scores.amax(-1, keepdim=True)) | ~allowed).all(-1, keepdim=True)
        return is_tied & (allowed.sum(-1, keepdim=True) > self.top_k)

    def _passes_filters(self, best: Float[Tensor, "batch k"]) -> Bool[Tensor, "batch k"]:
        probability = best.softmax(-1)
        kept = torch.ones_like(probability, dtype=torch.bool)
        if self.top_p is not None:
            # A token stays if those before it hold less than the share, because that keeps the one that crosses it.
            kept &= probability.cumsum(-1) - probability < self.top_p
        if self.min_p is not None:
            kept &= probability >= self.min_p * probability[:, :1]
        return kept

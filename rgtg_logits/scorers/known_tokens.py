"""The tokens of a base model that a reward model knows: no others are candidates."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rgtg_logits.errors import VocabularyError


class KnownTokens:
    """Token ids of a base model that may be candidates.

    Base models have logits for more ids than that: rows that pad their vocabulary, which no tokenizer writes, and
    special tokens that only their own tokenizer has, such as an added [PAD].

    Args:
        ids: The ids.
        foreign: Ids that stand for another token, or for none, in the reward model's vocabulary, and may not be in the
            text that it reads.
    """

    def __init__(self, ids: Iterable[int], foreign: Iterable[int] = ()) -> None:
        self.ids = frozenset(ids)
        self.foreign = frozenset(foreign)
        self._foreign_ids = torch.tensor(sorted(self.foreign), dtype=torch.long)
        # By width and device: True where a token is unknown, or None if all are known.
        self._unknown: dict[tuple[int, torch.device], Tensor | None] = {}

    @classmethod
    def of_all(cls, parts: Iterable[KnownTokens | None]) -> KnownTokens | None:
        """The tokens that all parts know; None if each knows any token."""
        limited = [part for part in parts if part is not None]
        if not limited:
            return None
        ids = frozenset.intersection(*(part.ids for part in limited))
        return cls(ids, frozenset().union(*(part.foreign for part in limited)))

    def mask(self, scores: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Scores with -inf at unknown tokens, in a new tensor; the same tensor if there are none.

        A row in which only unknown tokens are possible (a forced token) stays as it is.
        """
        unknown = self._unknown_of(scores.shape[-1], scores.device)
        if unknown is None:
            return scores
        masked = scores.masked_fill(unknown, float("-inf"))
        return torch.where(masked.amax(-1, keepdim=True) == float("-inf"), scores, masked)

    def check_text(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Rejects text with a token that the reward model would take for another one.

        Raises:
            VocabularyError: If there is such a token.
        """
        if not self.foreign:
            return
        found = torch.isin(rows, self._foreign_ids.to(rows.device)) & attention_mask.bool()
        if found.any():
            raise VocabularyError(
                f"Expected text in tokens that the reward model has, but got the token {int(rows[found][0])}, which "
                "only the base model's tokenizer has. Leave it out of the prompt, or pass a prompt_format, with which "
                "the reward model reads text."
            )

    def _unknown_of(self, width: int, device: torch.device) -> Bool[Tensor, " vocab"] | None:
        key = (width, device)
        if key not in self._unknown:
            unknown = torch.ones(width, dtype=torch.bool)
            unknown[[token for token in self.ids if token < width]] = False
            self._unknown[key] = unknown.to(device) if unknown.any() else None
        return self._unknown[key]

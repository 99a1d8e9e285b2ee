"""Truncation of texts that are longer than the training allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LengthLimit:
    """The longest text in tokens; longer rows are left out or cut.

    A prefix is worth training on too, so a row is cut from the answer's end. Where the prompt would leave the answer
    less than a quarter of `max_length` (or than the answer's whole length, if that is less), the prompt is cut too,
    from its left behind the start token, until it leaves that much. Both texts of a pair lose the same tokens of their
    common prefix.

    Attributes:
        max_length: Most tokens of a text; None for any number.
        cuts: Whether longer texts are cut; otherwise they are left out.
        bos_token_id: The token that starts every text, if there is one.
    """

    max_length: int | None
    cuts: bool
    bos_token_id: int | None

    def exceeded(self, texts: Sequence[Sequence[int]]) -> bool:
        """Whether any of the texts is too long."""
        return self.max_length is not None and max(map(len, texts)) > self.max_length

    def cut(self, texts: Sequence[list[int]], start: int) -> tuple[list[list[int]], int]:
        """Cuts texts to `max_length` tokens.

        Args:
            texts: Texts that begin with the same prompt.
            start: Number of tokens of the prompt.

        Returns:
            The texts, and how many tokens of the prompt they lost.
        """
        if self.max_length is None or not self.exceeded(texts):
            return list(texts), 0
        answer_length = max(map(len, texts)) - start
        reserved = min(answer_length, math.ceil(self.max_length / 4))
        lost = max(0, start - (self.max_length - reserved))
        # The start token stays in front, because models expect it there (attention sink).
        keeps_bos = 0 < lost < start and texts[0][0] == self.bos_token_id
        first = 1 if keeps_bos else 0
        return [(text[:first] + text[first + lost :])[: self.max_length] for text in texts], lost

"""Laws 6 to 9 of `Scorer` as assertions: what a scorer remembers, seen in the tokens that its model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import RGTGError

LENGTHS = (48, 60, 72, 84)
"""Tokens of the texts. A text that is read again shows, because a step reads two candidates of each row."""
SLACK = 2 * LENGTHS[0] // 3
"""So many tokens more than needed may be read at a step, where candidates are texts of different lengths."""
NEW = 9
"""Tokens of the next turn of a chat."""
ERRORS = (RGTGError, LookupError, RuntimeError, TypeError, ValueError)
"""What a scorer may raise for a token that its model does not have."""

Text = list[int]
ScoreTexts = Callable[[Sequence[Text], Int[Tensor, "batch k"]], tuple[Float[Tensor, "batch k"], int]]
"""Scores candidates of texts, and checks the rewards; returns them, and the number of tokens read."""


@dataclass
class SequenceLaws:
    """Histories of sequences that come and go; see `check_scorer`.

    Attributes:
        score: See `ScoreTexts`.
        vocab_size: Number of token ids to draw from.
        generator: The generator of texts.
        recurrent: Whether only whole sequences can be continued.
        rate: Tokens that the model reads for each token, more than one where it has a tokenizer of its own.
    """

    score: ScoreTexts
    vocab_size: int
    generator: torch.Generator
    recurrent: bool
    rate: float = 1.0

    def check_others_cost_nothing(self) -> None:
        """Law 6: rows join, leave, come back and change places, and other threads ask about others."""
        law = "6: what one sequence does never makes another one be read again"
        texts = self._begun()
        texts = self._step("an ordinary step", law, texts)
        newcomer = self._text(LENGTHS[1])
        *texts, _ = self._step("a row joins", law, [*texts, newcomer], new=len(newcomer))
        texts = self._step("rows change places", law, texts[::-1])
        longest, rest = texts[0], texts[1:]
        rest = self._step("the longest leaves", law, rest)
        texts = self._step("the longest comes back", law, [longest, *rest])
        texts[1] = self._text(LENGTHS[0])
        texts = self._step("one is replaced", law, texts, new=LENGTHS[0])
        others = [self._text(length) for length in LENGTHS[:2]]
        with ThreadPoolExecutor(1) as thread:
            for new in (sum(LENGTHS[:2]), 0):
                others = thread.submit(self._step, "another thread asks", law, others, new=new).result()
                texts = self._step("another thread has asked", law, texts)

    def check_beginnings_are_shared(self) -> None:
        """Law 7: beams and return sequences part, a chat goes on; a system prompt is shared, a draft is rejected."""
        law = "7: a sequence that begins as a known one does reads the rest only"
        text = self._begun()[-1]
        beams = self._step("beams part", law, [text] * 3)
        beams = self._step("beams go on", law, beams)
        turn = [*beams[0], *self._text(NEW)]
        self._step("a chat goes on", law, [turn], new=NEW)
        if self.recurrent:
            return
        self._step("a draft is rejected", law, [turn[: -NEW // 2]])
        shared = LENGTHS[1]
        self._step("a system prompt is shared", law, [[*text[:shared], *self._text(NEW)]], new=NEW)
        self._step("the first one goes on", law, [turn])

    def check_memory_follows_the_model(self, change: Callable[[], object]) -> None:
        """Law 8: rewards of remembered texts, and of texts that continue them, after the model has changed."""
        law = "Broken law 8: what is remembered belongs to the model's state."
        texts = self._begun()
        candidates = self._candidates(len(texts))
        before, _ = self.score(texts, candidates)
        change()
        longer = [[*text, int(row[0])] for text, row in zip(texts, candidates, strict=True)]
        try:
            self.score(longer, self._candidates(len(longer)))
            after, _ = self.score(texts, candidates)
        except AssertionError as error:
            raise AssertionError(f"{law} After change(): {error}") from error
        if torch.equal(after, before):
            raise ValueError("Expected change() to change the model's rewards, but they stayed. Pass another change.")

    def check_errors_are_of_one_row(self) -> None:
        """Law 9: the rewards of other rows after an error, and that they are not read again."""
        law = "9: an error is one row's error"
        texts = self._step("an ordinary step", law, self._begun())
        unknown = [*self._text(LENGTHS[0]), self.vocab_size]
        try:
            self.score([*texts, unknown], self._candidates(len(texts) + 1))
        except ERRORS:
            self._step("another row had an error", law, texts)

    def _begun(self) -> list[Text]:
        """Texts that have been scored once."""
        texts = [self._text(length) for length in LENGTHS]
        candidates = self._candidates(len(texts))
        _, read = self.score(texts, candidates)
        self.rate = max(1.0, read / (sum(LENGTHS) + candidates.numel()))
        return [[*text, int(row[0])] for text, row in zip(texts, candidates, strict=True)]

    def _step(self, event: str, law: str, texts: list[Text], *, new: int = 0) -> list[Text]:
        """Scores texts, of which so many tokens are new; returns each with one of its candidates."""
        candidates = self._candidates(len(texts))
        try:
            _, read = self.score(texts, candidates)
        except AssertionError as error:
            raise AssertionError(f"Broken law {law}. Where {event}: {error}") from error
        needed = round(self.rate * (new + candidates.numel()))
        if read > needed + SLACK:
            raise AssertionError(
                f"Broken law {law}. Where {event}, the model read {read} tokens, but {needed} are needed."
            )
        return [[*text, int(row[0])] for text, row in zip(texts, candidates, strict=True)]

    def _text(self, length: int) -> Text:
        # Not the tokens that pad and end, as a rule the first ones.
        return torch.randint(min(2, self.vocab_size - 1), self.vocab_size, (length,), generator=self.generator).tolist()

    def _candidates(self, rows: int) -> Int[Tensor, "rows 2"]:
        first = torch.randint(2, self.vocab_size, (rows, 1), generator=self.generator)
        return torch.cat([first, (first + 1) % self.vocab_size], dim=1)

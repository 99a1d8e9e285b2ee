"""Prompts that the rows of `generate` do not hold: embeddings, and encoder-decoder base models."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError, PaddingError
from rgtg_logits.padding import row_hashes
from rgtg_logits.tokenization import encode_prompt

_REMEMBERED_ROWS = 2**17
"""Number of rows that are remembered, some MiB of hashes: of several threads, all that may still be continued."""


class HiddenPrompt:
    """Prompts that are not part of the rows, and the answers to them that were seen.

    Any number of calls of `generate` may answer the prompts. Each starts with the rows of the first one, and grows
    token by token; other rows answer other prompts, and are refused.

    Args:
        ids: The prompts' token ids.
        mask: 1 for text, 0 for padding.
        start: Number of leading columns of the rows that are not part of the answer; None for those of the first call.
    """

    def __init__(
        self, ids: Int[Tensor, "prompts length"], mask: Int[Tensor, "prompts length"], start: int | None
    ) -> None:
        self.ids = ids
        self.mask = mask
        self.start = start
        # Whether an answer stands alone, because its prompt has no tokens.
        self._has_empty = not bool(mask.any(-1).all())
        # The first call's rows, one for each prompt.
        self._first: Tensor | None = None
        # Hashes of the rows that were seen, the oldest first.
        self._seen: dict[int, None] = {}

    def followed_by(self, rows: Int[Tensor, "batch passed"]) -> Int[Tensor, "batch length"]:
        """Returns prompt and answer of every row.

        Raises:
            PaddingError: If the rows cannot answer the prompts.
        """
        start = rows.shape[1] if self.start is None else self.start
        prompts = self.ids.shape[0]
        if rows.shape[0] % prompts or rows.shape[1] < start:
            raise PaddingError(
                f"Expected rows that answer the {prompts} prompts given to for_prompt and start with {start} "
                f"tokens of the decoder, but got {rows.shape[0]} rows of {rows.shape[1]} tokens. Call for_prompt again "
                "for other prompts."
            )
        self.start = start
        repeated = self.ids.to(rows.device).repeat_interleave(rows.shape[0] // prompts, dim=0)
        return torch.cat([repeated, rows[:, start:]], dim=1)

    def begins_a_text(self, rows: Int[Tensor, "batch length"]) -> bool:
        """Whether some of the rows, which `followed_by` returned, have no token yet."""
        return self._has_empty and rows.shape[1] == self.ids.shape[1]

    def check(self, rows: Int[Tensor, "batch passed"]) -> None:
        """Refuses rows that do not continue what was seen, and remembers the others; waits for an accelerator.

        Raises:
            PaddingError: If a row is another one.
        """
        repeats = rows.shape[0] // self.ids.shape[0]
        if self._first is None:
            self._first = rows[::repeats].clone()
        length = self._first.shape[1]
        if rows.shape[1] <= length:
            first = self._first[:, : rows.shape[1]].to(rows.device).repeat_interleave(repeats, dim=0)
            is_answer = torch.equal(rows, first)
        else:
            is_answer = all(prefix in self._seen for prefix in row_hashes(rows[:, :-1]).tolist())
        if not is_answer:
            raise PaddingError(
                f"Expected rows that begin or continue an answer to the {self.ids.shape[0]} prompts given to "
                f"for_prompt, but got rows of {rows.shape[1]} tokens that continue none of those seen before. Call "
                "for_prompt again for other prompts, and for answers that start with other tokens."
            )
        for row in row_hashes(rows).tolist():
            # The newest last, also of those that are known.
            self._seen.pop(row, None)
            self._seen[row] = None
        while len(self._seen) > _REMEMBERED_ROWS:
            del self._seen[next(iter(self._seen))]


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase | None, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids of texts, padded on the left, and their attention mask."""
    if tokenizer is None:
        raise InvalidArgumentError(
            "Expected token ids as the prompt, because the processor was made without a tokenizer, but got text. "
            "Pass tokenizer= to PartialRewardLogitsProcessor, or the ids to for_prompt."
        )
    rows = [encode_prompt(tokenizer, text) for text in texts]
    width = max(len(row) for row in rows)
    # Any token may stand in the place of padding, because the mask excludes it.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], dtype=torch.long)
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)

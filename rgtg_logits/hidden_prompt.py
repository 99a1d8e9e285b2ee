"""Prompts that the rows of `generate` do not hold: embeddings, and encoder-decoder base models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError, PaddingError
from rgtg_logits.tokenization import encode_prompt


@dataclass
class HiddenPrompt:
    """Prompts that are not part of the rows.

    Attributes:
        ids: Their token ids.
        mask: 1 for text, 0 for padding.
        start: Number of leading columns of the rows that are not part of the answer; None before the first call.
    """

    ids: Int[Tensor, "prompts length"]
    mask: Int[Tensor, "prompts length"]
    start: int | None

    def followed_by(self, rows: Int[Tensor, "batch passed"]) -> tuple[Int[Tensor, "batch length"], Tensor]:
        """Returns prompt and answer of every row, and the prompts' mask."""
        if self.start is None:
            self.start = rows.shape[1]
        prompts = self.ids.shape[0]
        if rows.shape[0] % prompts or rows.shape[1] < self.start:
            raise PaddingError(
                f"Expected rows that answer the {prompts} prompts given to for_prompt and start with {self.start} "
                f"tokens of the decoder, but got {rows.shape[0]} rows of {rows.shape[1]} tokens. Call for_prompt again "
                "for other prompts."
            )
        repeated = self.ids.to(rows.device).repeat_interleave(rows.shape[0] // prompts, dim=0)
        return torch.cat([repeated, rows[:, self.start :]], dim=1), self.mask


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

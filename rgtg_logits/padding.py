"""Padding: which tokens of the rows that `generate` passes to a processor are text.

`generate` passes rows of token ids and nothing else: no mask, no step number, no prompt length. The attention mask is
inferred from the rows themselves.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.errors import PaddingError
from rgtg_logits.profiling import profiled

PADDING = -1
"""Takes the place of padding in `padded_ids`, rows of token ids in which equal rows are equal prefixes."""


@profiled("padding mask")
def infer_attention_mask(
    rows: Int[Tensor, "batch length"],
    pad_token_id: int | None,
    prompt_mask: Int[Tensor, "prompts prompt_length"] | None = None,
) -> Int[Tensor, "batch length"]:
    """Infers the attention mask of rows: 1 for text, 0 for padding.

    Padding is the leading run of the pad token in a row, or, in the prompt, the zeros of `prompt_mask`. A row that ends
    in two pad tokens has finished, and those are padding as well: two, because one may be the end-of-text token that
    the row has just drawn. A row of nothing but the pad token is all padding.

    Args:
        rows: Token ids as `generate` passes them.
        pad_token_id: The token that pads; None if unknown.
        prompt_mask: The mask of the prompts; each row of it covers the same number of rows (beams, return sequences).

    Raises:
        PaddingError: If the pad token is needed and unknown, or `prompt_mask` does not fit the rows.
    """
    prompt_length = 0
    if prompt_mask is not None:
        mask = _extended_prompt_mask(rows, prompt_mask)
        prompt_length = prompt_mask.shape[1]
    elif pad_token_id is None:
        _check_unpadded(rows)
        return torch.ones_like(rows)
    elif rows.device.type == "cpu" and not (rows == pad_token_id).any():
        # A look is free on a CPU, and most rows hold no padding.
        return torch.ones_like(rows)
    else:
        # From the first token on that is not the pad token, everything is text.
        mask = ((rows != pad_token_id).cumsum(-1) > 0).long()
    if pad_token_id is None or rows.shape[1] - prompt_length < 2:
        return mask
    # The run of pad tokens at the end of the answer, if it has two or more.
    trailing = (rows[:, prompt_length:] == pad_token_id).flip(-1).cumprod(-1).flip(-1)
    mask[:, prompt_length:] *= 1 - trailing * trailing[:, -2:-1]
    return mask


def _extended_prompt_mask(rows: Tensor, prompt_mask: Tensor) -> Tensor:
    batch, length = rows.shape
    prompts, prompt_length = prompt_mask.shape
    if batch % prompts or length < prompt_length:
        raise PaddingError(
            f"Expected rows that continue the {prompts} prompts of {prompt_length} tokens that attention_mask "
            f"describes, but got {batch} rows of {length} tokens. Make a new processor for other prompts."
        )
    mask = torch.ones_like(rows)
    mask[:, :prompt_length] = prompt_mask.to(rows).repeat_interleave(batch // prompts, dim=0)
    return mask


def _check_unpadded(rows: Tensor) -> None:
    """Rejects rows that may be padded on the left: one starts with a repeated token, or they start differently."""
    if rows.shape[0] == 1:
        return
    repeated = (rows[:, :1] == rows[:, 1:2]).any() if rows.shape[1] > 1 else torch.tensor(False)
    if bool(repeated | (rows[:, 0] != rows[0, 0]).any()):
        raise PaddingError(
            f"Expected to know which token pads, because the {rows.shape[0]} rows of this batch may be padded on the "
            "left, but neither the processor nor the reward model names a pad token. "
            "Pass pad_token_id=, tokenizer= or the prompts' attention_mask= to PartialRewardLogitsProcessor."
        )

"""Values that users pass in forms of other libraries: numbers, rows and tokenizers, checked and made plain once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError


def plain_number(value: Any) -> int | float | None:
    """The plain number of a Python, numpy or torch scalar; None for anything else, booleans included."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value


def check_step(input_ids: object, scores: object) -> None:
    """Checks the input of one step of a logits processor.

    Args:
        input_ids: Token ids, [batch, length]; the batch may be empty.
        scores: Logits or log-probabilities, [batch, vocab].

    Raises:
        InvalidArgumentError: If they are no tensors of these shapes and types.
    """
    if isinstance(input_ids, Tensor) and isinstance(scores, Tensor):
        has_axes = input_ids.ndim == 2 and scores.ndim == 2 and len(input_ids) == len(scores) and scores.shape[1] > 0
        if has_axes and _is_integer(input_ids) and scores.is_floating_point():
            return
    raise InvalidArgumentError(
        "Expected input_ids to be a tensor of token ids of shape [batch, length] and scores to be a tensor of floats "
        f"of shape [batch, vocab], but got {_described(input_ids)} and {_described(scores)}. Pass torch tensors with "
        "one row for each text, also for a single text."
    )


def plain_tokenizer(tokenizer: object) -> PreTrainedTokenizerBase | None:
    """The tokenizer itself, or that of a multimodal processor (`AutoProcessor`), which has one; None stays None.

    Raises:
        InvalidArgumentError: If it is neither.
    """
    if tokenizer is None or _is_tokenizer(tokenizer):
        return tokenizer
    inner = getattr(tokenizer, "tokenizer", None)
    if _is_tokenizer(inner):
        return inner
    raise InvalidArgumentError(
        "Expected tokenizer to be the base model's tokenizer, or a processor that has one, but got "
        f"{type(tokenizer).__name__}. Pass AutoTokenizer.from_pretrained(...) of the base model."
    )


def _is_tokenizer(value: object) -> bool:
    # Tokenizers of other libraries count as well, if they answer what is asked of one here.
    if isinstance(value, PreTrainedTokenizerBase):
        return True
    return callable(value) and all(hasattr(value, name) for name in ("decode", "get_vocab", "eos_token_id"))


def _is_integer(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
    return type(value).__name__

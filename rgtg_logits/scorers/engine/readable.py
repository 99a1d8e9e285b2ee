"""Which rows of a request the reward model can read, and the errors of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from torch import Tensor

from rgtg_logits.errors import ContextLengthError, PaddingError, RGTGError, VocabularyError
from rgtg_logits.scorers.engine.request import ScoreRequest


def unreadable_rows(request: ScoreRequest, texts: Sequence[np.ndarray], vocab_size: int) -> dict[int, RGTGError]:
    """The errors of rows without text or with tokens that the model does not have, by row.

    Args:
        request: The request, on the CPU.
        texts: Its rows without padding.
        vocab_size: Number of tokens that the model has.
    """
    finished = request.finished.tolist()
    largest, smallest = _range(request.token_tree.tokens)
    if request.shared_vocabulary:
        largest_candidate, smallest_candidate = _range(request.candidates)
        largest, smallest = np.maximum(largest, largest_candidate), np.minimum(smallest, smallest_candidate)
    errors: dict[int, RGTGError] = {}
    for row, text in enumerate(texts):
        if len(text):
            top, bottom = max(largest[row], text.max()), min(smallest[row], text.min())
        elif finished[row]:
            # An unfinished row without a prefix has its only token in the tree (`VocabularyScorer`).
            errors[row] = empty_row_error(row)
            continue
        else:
            top, bottom = largest[row], smallest[row]
        if top >= vocab_size or bottom < 0:
            errors[row] = _vocabulary_error(int(top if top >= vocab_size else bottom), vocab_size)
    return errors


def _range(ids: Int[Tensor, "batch some"]) -> tuple[np.ndarray, np.ndarray]:
    array = ids.numpy()
    return array.max(1, initial=0), array.min(1, initial=0)


def empty_row_error(row: int) -> PaddingError:
    """The error for a row that is all padding."""
    return PaddingError(
        f"Expected text in every row, but row {row} holds only the padding token. If that token is also the start of "
        "your text (pad == bos), pass the prompts' attention_mask= to PartialRewardLogitsProcessor. If the base model "
        "is an encoder-decoder, pass processor.for_prompt(…), because its rows do not show the prompt."
    )


def context_error(length: int, limit: int) -> ContextLengthError:
    """The error for a prefix that is too long with one of its candidates."""
    return ContextLengthError(
        f"Expected prefixes of at most {limit} tokens, the context of the reward model, but a prefix and its candidate "
        f"have {length}. Shorten the prompt, generate fewer tokens, use a reward model with a longer context, or pass "
        "on_overflow='truncate_left' to let it read the end of the text alone."
    )


def _vocabulary_error(token: int, size: int) -> VocabularyError:
    return VocabularyError(
        f"Expected token ids below {size}, the size of the reward model's vocabulary, but got {token}: the reward "
        "model does not share the base model's tokens. Pass tokenizer= (the base model's tokenizer) to "
        "PartialRewardLogitsProcessor, with a RewardModel that has its own."
    )

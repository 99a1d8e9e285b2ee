"""Finds out which token pads the rows of a base model, from whatever is known of it and of the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.inputs import plain_number
from rgtg_logits.padding import PadToken
from rgtg_logits.scorers import RetokenizingScorer, Scorer


def find_pad_token(
    pad_token_id: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    scorer: Scorer,
    eos_token_ids: int | Sequence[int] | None,
) -> PadToken:
    """Finds the token that pads: the one that the user names, or else the tokenizer's, or else the reward model's.

    Args:
        pad_token_id: The token that the user names. Here and elsewhere, -1 means that there is none.
        tokenizer: The base model's tokenizer.
        scorer: The scorer.
        eos_token_ids: Tokens that end texts besides those of tokenizer and scorer.

    Raises:
        InvalidArgumentError: If `pad_token_id` is no whole number.
    """
    number = plain_number(pad_token_id)
    if pad_token_id is not None and not isinstance(number, int):
        raise InvalidArgumentError(
            f"Expected pad_token_id to be the id of a token, a whole number, but got {pad_token_id!r}. "
            "Pass tokenizer.pad_token_id of the base model, or leave it out."
        )
    begins, ends = _boundaries_of_scorer(scorer) if tokenizer is None else _boundaries(tokenizer)
    ends |= _ids(eos_token_ids)
    boundaries = begins | ends
    for token in _ids(number):
        return PadToken(token, is_given=True, boundaries=boundaries, ends=ends)
    for token in _ids(getattr(tokenizer, "pad_token_id", None)):
        # Rows were padded by this tokenizer. But if the token begins or ends texts as well, a row may begin with it.
        return PadToken(token, is_given=token not in boundaries, boundaries=boundaries, ends=ends)
    for token in _ids(scorer.pad_token_id):
        return PadToken(token, is_dedicated=token not in boundaries, boundaries=boundaries, ends=ends)
    return PadToken(boundaries=boundaries, ends=ends)


def _boundaries_of_scorer(scorer: Scorer) -> tuple[frozenset[int], frozenset[int]]:
    """The tokens that begin and that end texts, by the reward models that share the base model's tokens."""
    begins: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    for part in getattr(scorer, "scorers", [scorer]):
        # A reward model that reads text has other tokens.
        model = None if isinstance(part, RetokenizingScorer) else getattr(part, "reward_model", None)
        for source in (getattr(model, "text_config", None), getattr(model, "tokenizer", None)):
            more_begins, more_ends = _boundaries(source)
            begins |= more_begins
            ends |= more_ends
    return begins, ends


def _boundaries(source: Any) -> tuple[frozenset[int], frozenset[int]]:
    """The tokens that begin and that end texts, by a tokenizer or a configuration."""
    return _ids(getattr(source, "bos_token_id", None)), _ids(getattr(source, "eos_token_id", None))


def _ids(value: Any) -> frozenset[int]:
    """The token ids in a value that is one, several or None; -1 is none."""
    several = value if isinstance(value, Sequence) else [value]
    return frozenset(int(token) for token in several if token is not None and token >= 0)

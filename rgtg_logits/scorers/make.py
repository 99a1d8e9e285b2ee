"""Makes the scorer for whatever a user passes as a reward model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from rgtg_logits.errors import InvalidArgumentError, VocabularyError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.causal import CausalScorer
from rgtg_logits.scorers.engine import EngineOptions
from rgtg_logits.scorers.known_tokens import KnownTokens
from rgtg_logits.scorers.log_ratio import LogRatioScorer
from rgtg_logits.scorers.retokenizing import RetokenizingScorer
from rgtg_logits.scorers.text import checked_eos_token_ids
from rgtg_logits.scorers.vocabulary import VocabularyScorer
from rgtg_logits.tokenization import SharedVocabulary, shared_vocabulary

_DEFAULTS = EngineOptions(
    on_overflow="error", max_tokens_per_forward=None, cache_tokens=None, compile=False, prepack=False
)
"""Options of a processor whose user passes none."""


def make_scorer(
    source: object,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt_format: str | Callable[[str, str], str] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    **options: Unpack[EngineOptions],
) -> Scorer:
    """Makes the scorer for a reward model and a base model's tokenizer; see `PartialRewardLogitsProcessor`."""
    if isinstance(source, Scorer):
        if prompt_format is not None or eos_token_id is not None or options != _DEFAULTS:
            raise InvalidArgumentError(
                "Expected prompt_format, eos_token_id, on_overflow, max_tokens_per_forward, cache_tokens, compile and "
                "prepack to be left out for a Scorer, which has its own. Pass them to the scorer."
            )
        return source
    # Checked for every kind, and before anything is loaded.
    ends = checked_eos_token_ids(eos_token_id)
    if isinstance(source, (str, os.PathLike)):
        source = RewardModel.from_pretrained(source)
    elif isinstance(source, torch.nn.Module):
        source = RewardModel(source)
    if not isinstance(source, RewardModel):
        raise InvalidArgumentError(
            "Expected reward_model to be a Hub id, a folder, a RewardModel, a …ForSequenceClassification model or a "
            f"Scorer, but got {type(source).__name__}."
        )
    shared = None if tokenizer is None else shared_vocabulary(tokenizer, source.tokenizer, ends)
    scorer = _scorer(source, tokenizer, shared, prompt_format, ends, options)
    if tokenizer is not None and shared is not None:
        scorer.known_tokens = _known_tokens(scorer, tokenizer, shared)
    return scorer


def _scorer(
    source: RewardModel,
    tokenizer: PreTrainedTokenizerBase | None,
    shared: SharedVocabulary | None,
    prompt_format: str | Callable[[str, str], str] | None,
    ends: Sequence[int],
    options: EngineOptions,
) -> Scorer:
    shares_ids = shared is None or shared.shares_ids
    if source.kind == "causal" and prompt_format is None and shares_ids:
        return CausalScorer(source, **options)
    if source.kind == "causal":
        if prompt_format is None and shared is not None:
            _warn_of_text(shared)
        return RetokenizingScorer(
            source, _checked_tokenizer(tokenizer), prompt_format=prompt_format, eos_token_id=ends, **options
        )
    if prompt_format is not None or (shared is not None and not shared.shares_ids):
        differing = 0 if shared is None else shared.differing
        example = "" if shared is None or shared.needed is None else f" (such as {shared.needed!r})"
        raise VocabularyError(
            f"Expected the base model and a reward model of kind {source.kind!r} to share a vocabulary, because it "
            f"scores its own next tokens, but {differing} tokens of the base model have another id there, or "
            f"none{example}. Use a reward model trained from this base model's family, without prompt_format."
        )
    if source.kind == "vocabulary":
        return VocabularyScorer(source, **options)
    return LogRatioScorer(source, _load_reference(source), **options)


def _warn_of_text(shared: SharedVocabulary) -> None:
    warnings.warn(
        f"The reward model reads text, because {shared.differing} tokens of the base model (such as "
        f"{shared.needed!r}) have another id in its vocabulary, or none. Each candidate's text is tokenised anew, and "
        "special tokens are left out of it. If the reward model expects a chat, pass prompt_format='chat'.",
        stacklevel=2,
    )


def _known_tokens(scorer: Scorer, tokenizer: PreTrainedTokenizerBase, shared: SharedVocabulary) -> KnownTokens:
    ids = set(tokenizer.get_vocab().values())
    if isinstance(scorer, RetokenizingScorer):
        # Every token has a text.
        return KnownTokens(ids)
    padding = {tokenizer.pad_token_id}
    readable = {token for token in shared.unshared if token < (scorer.vocab_size or 0)}
    return KnownTokens(ids - shared.unshared, readable - padding)


def load_scorer(
    name: str, tokenizer: PreTrainedTokenizerBase, *, dtype: str, device: str, kind: str | None = None
) -> Scorer:
    """Loads a checkpoint in some dtype on some device and makes its scorer; see `RewardModel.from_pretrained`."""
    model = RewardModel.from_pretrained(name, kind=kind, dtype=dtype)
    model.model.to(device)
    return make_scorer(model, tokenizer)


def _load_reference(policy: RewardModel) -> RewardModel | None:
    """Loads the reference model of a policy, in the policy's dtype and on its device."""
    if policy.config.reference is None:
        return None
    reference = RewardModel.from_pretrained(policy.config.reference, kind="log_ratio", dtype=policy.dtype)
    reference.model.to(policy.device)
    return reference


def _checked_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise InvalidArgumentError(
            "Expected the base model's tokenizer, because with prompt_format the reward model reads text, but got "
            "none. Pass tokenizer= to PartialRewardLogitsProcessor."
        )
    return tokenizer

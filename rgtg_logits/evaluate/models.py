"""The models of a method: what draws, what guides, what ranks."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.errors import VocabularyError
from rgtg_logits.evaluate.meter import BaseModelSession
from rgtg_logits.evaluate.methods import Method
from rgtg_logits.reward_model import RewardModel, RewardModelConfig
from rgtg_logits.sampling import Judge, load_base_model, load_reward, reward_function
from rgtg_logits.scorers import (
    CachedScorer,
    LogRatioScorer,
    RetokenizingScorer,
    RewardFunction,
    Scorer,
    WeightedScorer,
    load_scorer,
)
from rgtg_logits.tokenization import differing_tokens

Part = CachedScorer | LogRatioScorer
"""A scorer that reads reward models."""


class Guide(NamedTuple):
    """What guides.

    Attributes:
        sources: The rewards that are summed.
        weights: Factor of each.
        tokenizer: The base model's.
    """

    sources: list[Scorer | RewardFunction]
    weights: tuple[float, ...]
    tokenizer: PreTrainedTokenizerBase

    @property
    def parts(self) -> list[Part]:
        """What of it reads reward models."""
        return [source for source in dict.fromkeys(self.sources) if isinstance(source, Part)]

    def scorer(self) -> Scorer:
        """The sum, which remembers nothing of what was asked before, so that neither rewards nor costs depend on it."""
        for part in self.parts:
            part.reset()
        if self.weights == (1.0,) and self.parts:
            return self.parts[0]
        return WeightedScorer(self.sources, self.weights, tokenizer=self.tokenizer)


class MethodModels(NamedTuple):
    """The models of a method.

    Attributes:
        drawing: What draws.
        beside: The base model, if another one draws.
        guide: What guides, if anything does.
        rank: What ranks several answers, if there are.
    """

    drawing: PreTrainedModel
    beside: BaseModelSession | None
    guide: Guide | None
    rank: Judge | None

    @property
    def readers(self) -> list[nn.Module]:
        """The modules whose forwards read rewards."""
        parts = [] if self.guide is None else self.guide.parts
        guides = [model.backbone for part in parts for model in _reward_models(part)]
        return [*guides, *getattr(self.rank, "readers", ())]

    @property
    def context(self) -> int | None:
        """Tokens that all can read; None without a limit.

        What ranks, and reward models that read text in tokens of their own, are not asked.
        """
        parts = [] if self.guide is None else self.guide.parts
        same = [part for part in parts if not isinstance(part, RetokenizingScorer)]
        models = [model for part in same for model in _reward_models(part)]
        limits = [model.max_length for model in (*models, *([] if self.beside is None else [self.beside.base]))]
        limits.append(getattr(self.drawing.config.get_text_config(), "max_position_embeddings", None))
        return min((limit for limit in limits if limit is not None), default=None)


def _reward_models(part: Part) -> list[RewardModel]:
    reference = part.reference if isinstance(part, LogRatioScorer) else None
    return [part.reward_model, *([] if reference is None else [reference])]


def load_models(
    method: Method,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    guided: bool,
    dtype: str,
    guide_dtype: str,
    device: str,
) -> MethodModels:
    """Loads what a method names.

    Args:
        method: The method.
        base: The base model, which draws if the method names no other.
        tokenizer: Its tokenizer.
        guided: Whether to load what guides.
        dtype: Type of the weights of what draws.
        guide_dtype: Type of the weights of what guides and ranks.
        device: Where to put them.

    Raises:
        CheckpointError: If a model cannot be loaded.
        InvalidArgumentError: If there is no such function, or weights do not fit.
        RewardModelError: If a reward model cannot give rewards of prefixes.
        VocabularyError: If a model does not share the base model's tokens where it has to.
    """
    rank = None if method.ranked_by is None else load_reward(method.ranked_by, dtype=guide_dtype, device=device)
    guide = _load_guide(method, tokenizer, guide_dtype, device) if guided else None
    if method.model is None:
        return MethodModels(base, None, guide, rank)
    drawing, own = load_base_model(method.model, device, dtype)
    ours, other = (RewardModel(model, config=RewardModelConfig(kind="log_ratio")) for model in (base, drawing))
    differing = differing_tokens(tokenizer, own)
    if differing or ours.num_next_tokens != other.num_next_tokens:
        raise VocabularyError(
            f"Expected the model {method.model!r} of the method {method.name!r} to have the base model's "
            f"{ours.num_next_tokens} tokens, but it has {other.num_next_tokens}, and {differing} of the base "
            "model's have another id there, or none. Use a model that was trained from the base model."
        )
    # Answers end where those of the base model do.
    drawing.generation_config = copy.deepcopy(base.generation_config)
    return MethodModels(drawing, BaseModelSession(ours), guide, rank)


def _load_guide(method: Method, tokenizer: PreTrainedTokenizerBase, dtype: str, device: str) -> Guide:
    sources = {name: _load_reward(name, method.kind, tokenizer, dtype, device) for name in dict.fromkeys(method.guide)}
    weights = method.weights or (1.0,) * len(method.guide)
    guide = Guide([sources[name] for name in method.guide], weights, tokenizer)
    # What does not go together says so now.
    guide.scorer()
    return guide


def _load_reward(
    name: str, kind: str | None, tokenizer: PreTrainedTokenizerBase, dtype: str, device: str
) -> Scorer | RewardFunction:
    function = reward_function(name)
    return load_scorer(name, tokenizer, dtype=dtype, device=device, kind=kind) if function is None else function

"""The models of a method: the one that generates, the guides, the ranker."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.errors import VocabularyError
from rgtg_logits.evaluate.divergence import BaseModelSession
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

ModelScorer = CachedScorer | LogRatioScorer
"""A scorer that runs reward models."""


class Guide(NamedTuple):
    """A weighted sum of rewards that guides.

    Attributes:
        sources: The rewards that are summed.
        weights: Factor of each reward.
        tokenizer: The base model's tokenizer.
    """

    sources: list[Scorer | RewardFunction]
    weights: tuple[float, ...]
    tokenizer: PreTrainedTokenizerBase

    @property
    def model_scorers(self) -> list[ModelScorer]:
        """The different scorers among the sources that run reward models."""
        return [source for source in dict.fromkeys(self.sources) if isinstance(source, ModelScorer)]

    def scorer(self) -> Scorer:
        """The scorer of the sum, with empty caches, so that neither rewards nor costs depend on earlier batches."""
        scorers = self.model_scorers
        for scorer in scorers:
            scorer.reset()
        if self.weights == (1.0,) and scorers:
            return scorers[0]
        return WeightedScorer(self.sources, self.weights, tokenizer=self.tokenizer)


class MethodModels(NamedTuple):
    """The models of a method.

    Attributes:
        generator: The model that generates.
        base_session: The base model, if another model generates.
        guide: The guide, if there is one.
        ranker: The judge that ranks answers, for best of n.
    """

    generator: PreTrainedModel
    base_session: BaseModelSession | None
    guide: Guide | None
    ranker: Judge | None

    @property
    def readers(self) -> list[nn.Module]:
        """The modules of reward models, whose forwards are counted."""
        scorers = [] if self.guide is None else self.guide.model_scorers
        guides = [model.backbone for scorer in scorers for model in _reward_models(scorer)]
        return [*guides, *getattr(self.ranker, "readers", ())]

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens of the base model that all models can process; None without a limit.

        The ranker and reward models with a tokenizer of their own have other tokens, so they set no limit here.
        """
        scorers = [] if self.guide is None else self.guide.model_scorers
        limits = [getattr(self.generator.config.get_text_config(), "max_position_embeddings", None)]
        for scorer in scorers:
            if not isinstance(scorer, RetokenizingScorer):
                limits += [model.max_length for model in _reward_models(scorer)]
        if self.base_session is not None:
            limits.append(self.base_session.base.max_length)
        return min((limit for limit in limits if limit is not None), default=None)


def _reward_models(scorer: ModelScorer) -> list[RewardModel]:
    if isinstance(scorer, LogRatioScorer) and scorer.reference is not None:
        return [scorer.reward_model, scorer.reference]
    return [scorer.reward_model]


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
    """Loads the models of a method.

    Args:
        method: The method.
        base: The base model, which generates if the method names no other model.
        tokenizer: Its tokenizer.
        guided: Whether to load the guide.
        dtype: Type of the weights of a model that generates.
        guide_dtype: Type of the weights of guides and the ranker.
        device: Device of the models.

    Raises:
        CheckpointError: If a model cannot be loaded.
        InvalidArgumentError: If there is no such function, or the weights of the guides are wrong.
        RewardModelError: If a reward model cannot score prefixes.
        VocabularyError: If a model has to share the base model's tokens and does not.
    """
    ranker = None if method.ranked_by is None else load_reward(method.ranked_by, dtype=guide_dtype, device=device)
    guide = _load_guide(method, tokenizer, guide_dtype, device) if guided else None
    if method.model is None:
        return MethodModels(base, None, guide, ranker)
    generator, generator_tokenizer = load_base_model(method.model, device, dtype)
    base_policy = RewardModel(base, config=RewardModelConfig(kind="log_ratio"))
    _check_vocabulary(method, base_policy.num_next_tokens, tokenizer, generator, generator_tokenizer)
    # The same tokens end an answer as for the base model.
    generator.generation_config = copy.deepcopy(base.generation_config)
    return MethodModels(generator, BaseModelSession(base_policy), guide, ranker)


def _check_vocabulary(
    method: Method,
    num_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    generator: PreTrainedModel,
    generator_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Checks that a model has the tokens of the base model, which divergence is defined over."""
    num_other = RewardModel(generator, config=RewardModelConfig(kind="log_ratio")).num_next_tokens
    differing = differing_tokens(tokenizer, generator_tokenizer)
    if differing or num_tokens != num_other:
        raise VocabularyError(
            f"Expected the model {method.model!r} of the method {method.name!r} to have the base model's "
            f"{num_tokens} tokens, but it has {num_other}, and {differing} of the base model's tokens have another id "
            "there, or none. Use a model that was trained from the base model."
        )


def _load_guide(method: Method, tokenizer: PreTrainedTokenizerBase, dtype: str, device: str) -> Guide:
    # A checkpoint that is listed twice is loaded once.
    sources = {name: _load_reward(name, method.kind, tokenizer, dtype, device) for name in dict.fromkeys(method.guide)}
    weights = method.weights or (1.0,) * len(method.guide)
    guide = Guide([sources[name] for name in method.guide], weights, tokenizer)
    # Raises errors of guides that do not fit each other at loading time.
    guide.scorer()
    return guide


def _load_reward(
    name: str, kind: str | None, tokenizer: PreTrainedTokenizerBase, dtype: str, device: str
) -> Scorer | RewardFunction:
    function = reward_function(name)
    return load_scorer(name, tokenizer, dtype=dtype, device=device, kind=kind) if function is None else function

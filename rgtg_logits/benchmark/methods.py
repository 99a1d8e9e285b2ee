"""The methods of generating that the benchmark compares.

- plain: `generate` alone;
- floor: plain and one cached single-token reward model step per token, the least that any guidance can cost;
- guided: `PartialRewardLogitsProcessor` with k candidates;
- compiled: the same with the ordinary step compiled, on a GPU a recorded CUDA graph (the first steps compile it);
- top_p: as "guided", with those of the k candidates that hold 0.9 of the probability (nucleus);
- vocabulary: a language model's logits as rewards (`VocabularyScorer`);
- log_ratio: a language model's log-probabilities as rewards (`LogRatioScorer`);
- log_ratio_pair: the same less the log-probabilities of a reference model;
- retokenizing: the reward model of "guided" behind a tokenizer of its own (`RetokenizingScorer`);
- weighted: the sum of two such reward models (`WeightedScorer`);
- replicated: the reward model's cache held k times, one copy per candidate, as RAD and ARGS do;
- recompute: k whole rows through the reward model for every token, without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from rgtg_logits.benchmark.settings import LIBRARY_METHODS
from rgtg_logits.benchmark.workload import BenchmarkModels
from rgtg_logits.instruments import FloorProcessor
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.reward_model import RewardModel, RewardModelConfig
from rgtg_logits.scorers import (
    CachedScorer,
    CausalScorer,
    EngineOptions,
    LogRatioScorer,
    RetokenizingScorer,
    Scorer,
    VocabularyScorer,
    WeightedScorer,
)

TOP_P = 0.9


@dataclass(frozen=True)
class BenchmarkMethod:
    """A method of generating, ready to run once.

    Attributes:
        processor: The logits processor that is called for each token; None for none.
        reward_modules: The modules whose forwards count as reading by a reward model.
        cached_scorers: Scorers that know how much memory their caches hold.
    """

    processor: LogitsProcessor | None
    reward_modules: Sequence[nn.Module]
    cached_scorers: Sequence[CachedScorer | LogRatioScorer] = ()

    def cache_bytes(self) -> int | None:
        """Memory that the caches hold now; None where no scorer knows."""
        if not self.cached_scorers:
            return None
        return sum(scorer.cache_bytes() for scorer in self.cached_scorers)


def make_method(
    name: str, models: BenchmarkModels, top_k: int, prompt_mask: Int[Tensor, "batch length"], *, prepack: bool = False
) -> BenchmarkMethod:
    """Makes one of `METHODS`.

    No token is guided yet, but reward models may be probed and their weights laid out.
    """
    if name in LIBRARY_METHODS:
        return _library_method(name, models, top_k, prompt_mask, prepack=prepack)
    processor: LogitsProcessor | None = None
    if name == "floor":
        processor = FloorProcessor(models.reward_model)
    elif name == "replicated":
        processor = ReplicatedCache(models.reward_model, top_k)
    elif name == "recompute":
        processor = Recompute(models.reward_model, top_k)
    return BenchmarkMethod(processor, _modules(models.reward_model))


def _library_method(
    name: str, models: BenchmarkModels, top_k: int, prompt_mask: Int[Tensor, "batch length"], *, prepack: bool
) -> BenchmarkMethod:
    options = EngineOptions(compile=name == "compiled", prepack=prepack)
    scorer, cached_scorers, reward_models = _scorer(name, models, options)
    top_p = TOP_P if name == "top_p" else None
    processor = PartialRewardLogitsProcessor(scorer, top_k=top_k, top_p=top_p, attention_mask=prompt_mask)
    modules = [module for reward_model in reward_models for module in _modules(reward_model)]
    return BenchmarkMethod(processor, modules, cached_scorers)


def _scorer(
    name: str, models: BenchmarkModels, options: EngineOptions
) -> tuple[Scorer, list[CachedScorer | LogRatioScorer], list[RewardModel]]:
    """The scorer of one of `LIBRARY_METHODS`, its parts that hold a cache, and the reward models that they read."""
    if name == "vocabulary":
        policy = _language_model(models.policy, "vocabulary")
        vocabulary = VocabularyScorer(policy, **options)
        return vocabulary, [vocabulary], [policy]
    if name.startswith("log_ratio"):
        models_read = [models.policy, models.reference] if name == "log_ratio_pair" else [models.policy]
        reward_models = [_language_model(model, "log_ratio") for model in models_read]
        log_ratio = LogRatioScorer(*reward_models, **options)
        return log_ratio, [log_ratio], reward_models
    if name == "retokenizing":
        retokenized = cast(RewardModel, models.retokenized)
        retokenizing = RetokenizingScorer(retokenized, cast(PreTrainedTokenizerBase, models.tokenizer), **options)
        return retokenizing, [retokenizing], [retokenized]
    if name == "weighted":
        both = [models.reward_model, cast(RewardModel, models.second)]
        causals = [CausalScorer(reward_model, **options) for reward_model in both]
        return WeightedScorer(causals, [1.0, 0.5]), [*causals], both
    causal = CausalScorer(models.reward_model, **options)
    return causal, [causal], [models.reward_model]


def _language_model(model: PreTrainedModel | None, kind: str) -> RewardModel:
    return RewardModel(cast(PreTrainedModel, model), config=RewardModelConfig(kind=kind))


def _modules(reward_model: RewardModel) -> list[nn.Module]:
    """The modules that may be called with token ids: a language model is read with its output layer, or without."""
    return [reward_model.model, reward_model.backbone]


class ReplicatedCache(LogitsProcessor):
    """k copies of the prefix in the cache, each behind its candidate, as RAD and ARGS hold it.

    When a token is drawn, the copy that holds it is copied k times again.
    """

    def __init__(self, reward_model: RewardModel, top_k: int) -> None:
        self.reward_model = reward_model
        self.top_k = top_k
        self.cache: DynamicCache | None = None
        self.candidates: Int[Tensor, "batch k"] | None = None

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        best, ids = scores.topk(self.top_k)
        batch = ids.shape[0]
        if self.cache is None or self.candidates is None:
            self.cache = DynamicCache()
            tokens = torch.cat([input_ids.repeat_interleave(self.top_k, dim=0), ids.reshape(-1, 1)], dim=1)
        else:
            drawn = (self.candidates == input_ids[:, -1:]).int().argmax(-1)
            copies = torch.arange(batch, device=ids.device) * self.top_k + drawn
            self.cache.reorder_cache(copies.repeat_interleave(self.top_k))
            tokens = ids.reshape(-1, 1)
        self.candidates = ids
        hidden, _ = self.reward_model.hidden_states(tokens, None, None, self.cache, use_cache=True)
        return _spread(scores, ids, best + self.reward_model.rewards(hidden[:, -1]).reshape(batch, -1))


class Recompute(LogitsProcessor):
    """k whole rows through the reward model for every token, without a cache."""

    def __init__(self, reward_model: RewardModel, top_k: int) -> None:
        self.reward_model = reward_model
        self.top_k = top_k

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        best, ids = scores.topk(self.top_k)
        tokens = torch.cat([input_ids.repeat_interleave(self.top_k, dim=0), ids.reshape(-1, 1)], dim=1)
        hidden, _ = self.reward_model.hidden_states(tokens, None, None)
        return _spread(scores, ids, best + self.reward_model.rewards(hidden[:, -1]).reshape(ids.shape))


def _spread(
    scores: Float[Tensor, "batch vocab"], ids: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"]
) -> Float[Tensor, "batch vocab"]:
    return torch.full_like(scores, float("-inf")).scatter(-1, ids, values.to(scores.dtype))

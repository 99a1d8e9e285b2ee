"""The ways of generating that the benchmark compares.

- plain: `generate` alone;
- floor: plain and one cached single-token reward model step per token, the least that any guidance can cost;
- ours: `PartialRewardLogitsProcessor` with k candidates;
- compiled: the same with the ordinary step compiled, on a GPU a recorded graph (compiling takes its time at first);
- top_p: that of "ours" with those of the k candidates that hold 0.9 of the probability;
- vocabulary: a language model's logits as rewards (`VocabularyScorer`);
- log_ratio, log_ratio_pair: a language model's log-probabilities, alone and less those of another (`LogRatioScorer`);
- retokenizing: the reward model of "ours" behind a tokenizer of its own (`RetokenizingScorer`);
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

from rgtg_logits.benchmark.workload import BenchmarkModels
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

WITHOUT_CANDIDATES = ("plain", "floor")
OURS = ("ours", "compiled", "top_p", "vocabulary", "log_ratio", "log_ratio_pair", "retokenizing", "weighted")
ARMS = (*WITHOUT_CANDIDATES, *OURS, "replicated", "recompute")

TOP_P = 0.9


@dataclass(frozen=True)
class Arm:
    """A way of generating, ready to run once.

    Attributes:
        processor: What is called for each token; None for nothing.
        readers: The modules whose forwards are the reward models' reading.
        cached: Scorers that can tell what their caches hold.
    """

    processor: LogitsProcessor | None
    readers: Sequence[nn.Module]
    cached: Sequence[CachedScorer | LogRatioScorer] = ()

    def cache_bytes(self) -> int | None:
        """Memory that the caches hold now; None where nobody counts."""
        return sum(scorer.cache_bytes() for scorer in self.cached) if self.cached else None


def make_arm(
    name: str, models: BenchmarkModels, top_k: int, prompt_mask: Int[Tensor, "batch length"], *, prepack: bool = False
) -> Arm:
    """Makes one of `ARMS`; the first token is not asked for yet, but models may be probed, and weights laid out."""
    if name in OURS:
        scorer, cached, reading = _scorer(name, models, EngineOptions(compile=name == "compiled", prepack=prepack))
        processor = PartialRewardLogitsProcessor(
            scorer, top_k=top_k, top_p=TOP_P if name == "top_p" else None, attention_mask=prompt_mask
        )
        return Arm(processor, [reader for reward_model in reading for reader in _readers(reward_model)], cached)
    rivals = {"floor": Floor, "replicated": Replicated, "recompute": Recompute}
    rival = rivals[name](models.reward_model, top_k) if name in rivals else None
    return Arm(rival, _readers(models.reward_model))


def _scorer(
    name: str, models: BenchmarkModels, options: EngineOptions
) -> tuple[Scorer, list[CachedScorer | LogRatioScorer], list[RewardModel]]:
    """The scorer of one of `OURS`, those of its parts that hold a cache, and the models that they read with."""
    if name == "vocabulary":
        policy = _language_model(models.policy, "vocabulary")
        vocabulary = VocabularyScorer(policy, **options)
        return vocabulary, [vocabulary], [policy]
    if name.startswith("log_ratio"):
        pair = [models.policy, models.reference] if name == "log_ratio_pair" else [models.policy]
        read = [_language_model(model, "log_ratio") for model in pair]
        ratio = LogRatioScorer(*read, **options)
        return ratio, [ratio], read
    if name == "retokenizing":
        other = cast(RewardModel, models.other)
        retokenizing = RetokenizingScorer(other, cast(PreTrainedTokenizerBase, models.tokenizer), **options)
        return retokenizing, [retokenizing], [other]
    if name == "weighted":
        both = [models.reward_model, cast(RewardModel, models.second)]
        causals = [CausalScorer(reward_model, **options) for reward_model in both]
        return WeightedScorer(causals, [1.0, 0.5]), [*causals], both
    causal = CausalScorer(models.reward_model, **options)
    return causal, [causal], [models.reward_model]


def _language_model(model: PreTrainedModel | None, kind: str) -> RewardModel:
    return RewardModel(cast(PreTrainedModel, model), config=RewardModelConfig(kind=kind))


def _readers(reward_model: RewardModel) -> list[nn.Module]:
    """What may be called with token ids: a language model is read with its output layer, or without."""
    return [reward_model.model, reward_model.backbone]


class Floor(LogitsProcessor):
    """One cached single-token step of the reward model, whose result is thrown away."""

    def __init__(self, reward_model: RewardModel, _: int) -> None:
        self.reward_model, self.cache, self.length = reward_model, DynamicCache(), 0

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        mask = torch.ones_like(input_ids)
        hidden, _ = self.reward_model.hidden_states(input_ids[:, self.length :], mask, None, self.cache, use_cache=True)
        self.reward_model.rewards(hidden[:, -1])
        self.length = input_ids.shape[1]
        return scores


class Replicated(LogitsProcessor):
    """k copies of the prefix, each with its candidate; the copy of the drawn one is copied k times again."""

    def __init__(self, reward_model: RewardModel, top_k: int) -> None:
        self.reward_model, self.top_k = reward_model, top_k
        self.cache: DynamicCache | None = None
        self.last: Int[Tensor, "batch k"] | None = None

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        best, ids = scores.topk(self.top_k)
        batch, device = ids.shape[0], ids.device
        rows = torch.arange(batch, device=device)
        if self.cache is None or self.last is None:
            self.cache = DynamicCache()
            tokens = torch.cat([input_ids.repeat_interleave(self.top_k, dim=0), ids.reshape(-1, 1)], dim=1)
        else:
            drawn = (self.last == input_ids[:, -1:]).int().argmax(-1)
            self.cache.reorder_cache((rows * self.top_k + drawn).repeat_interleave(self.top_k))
            tokens = ids.reshape(-1, 1)
        self.last = ids
        hidden, _ = self.reward_model.hidden_states(tokens, None, None, self.cache, use_cache=True)
        return _spread(scores, ids, best + self.reward_model.rewards(hidden[:, -1]).reshape(batch, -1))


class Recompute(LogitsProcessor):
    """k whole rows for every token."""

    def __init__(self, reward_model: RewardModel, top_k: int) -> None:
        self.reward_model, self.top_k = reward_model, top_k

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

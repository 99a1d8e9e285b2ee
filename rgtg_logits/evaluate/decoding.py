"""Decoding under a policy: each answer with its divergence from the base model, and the cost of its batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import isfinite, log
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, TemperatureLogitsWarper

from rgtg_logits.candidates import CandidateRule
from rgtg_logits.errors import ContextLengthError, InvalidArgumentError
from rgtg_logits.evaluate.divergence import DivergenceMeter
from rgtg_logits.evaluate.diversity import distinct
from rgtg_logits.evaluate.methods import Policy
from rgtg_logits.evaluate.models import MethodModels, load_models
from rgtg_logits.evaluate.records import Record
from rgtg_logits.guidance import scatter_to_vocabulary, truncate
from rgtg_logits.instruments import ForwardCount, Stopwatch, count_forwards
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.sampling import Answer, InverseTransformProcessor, Prompt, Sampler, reward_function

_WHOLE_VOCABULARY = CandidateRule(top_k=sys.maxsize)


class TruncationProcessor(LogitsProcessor):
    """Truncates the distribution to the candidates: guidance without a reward.

    Args:
        rule: Rule that selects the candidates.
    """

    def __init__(self, rule: CandidateRule) -> None:
        self._rule = rule

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Log-probabilities renormalised over the candidates, -inf elsewhere."""
        candidates = self._rule.select(scores)
        return scatter_to_vocabulary(candidates, truncate(candidates), like=scores)


class GreedyProcessor(LogitsProcessor):
    """Greedy decoding as a distribution: all probability on the best token of each row."""

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """The score of the best token, the first one of a tie, and -inf elsewhere."""
        best = scores.argmax(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(1, best, scores.gather(1, best))


@dataclass
class Decoders:
    """Factory of the decoder of each policy. Keeps the last models: a sweep over beta loads them once.

    Attributes:
        base: The base model. Its generation config is replaced; see `Sampler`.
        tokenizer: Its tokenizer.
        max_new_tokens: Longest answer in tokens.
        top_k: Number of candidates, for methods that do not set it; 0 is the whole vocabulary.
        seed: Seed of all random numbers.
        dtype: Type of the weights of models that generate.
        guide_dtype: Type of the weights of models that guide and rank.
        device: Device of all models.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    max_new_tokens: int
    top_k: int
    seed: int
    dtype: str
    guide_dtype: str
    device: str
    _loaded: tuple[object, MethodModels] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # Replaces the generation config of the base model, which models of other methods copy.
        Sampler(self.base, self.tokenizer, max_new_tokens=self.max_new_tokens)

    @staticmethod
    def check(policies: Sequence[Policy]) -> None:
        """Checks that all reward functions can be imported, before any model is loaded.

        Raises:
            InvalidArgumentError: If one cannot.
        """
        for method, _ in policies:
            for name in method.guide:
                reward_function(name)
            if method.ranked_by is not None:
                reward_function(method.ranked_by)

    def open(self, policy: Policy) -> Decoder:
        """The decoder of a policy; see `load_models` for the errors."""
        method = policy.method
        guided = policy.beta > 0
        # Beta is no part of the key, apart from being 0, so that all points of a curve share their models.
        key = (method.model, method.ranked_by, (method.guide, method.weights, method.kind) if guided else None)
        if self._loaded is None or self._loaded[0] != key:
            # Frees the memory of the previous models before new ones are loaded.
            self._loaded = None
            models = load_models(
                method, self.base, self.tokenizer, guided=guided, dtype=self.dtype, guide_dtype=self.guide_dtype,
                device=self.device,
            )  # fmt: skip
            self._loaded = (key, models)
        models = self._loaded[1]
        sampler = Sampler(models.generator, self.tokenizer, max_new_tokens=self.max_new_tokens)
        top_k = self.top_k if policy.method.top_k is None else policy.method.top_k
        rule = CandidateRule(top_k=top_k or sys.maxsize, top_p=policy.method.top_p, min_p=policy.method.min_p)
        return Decoder(policy, models, sampler, self.tokenizer, rule, self.seed)


class _Sample(NamedTuple):
    """A sampled answer: its new tokens, its text, its reward (-inf without one), and sums of `DivergenceMeter`."""

    new: list[int]
    answer: Answer
    reward: float
    kl: float
    log_ratio: float
    nll: float
    cut: float


class _BatchCost(NamedTuple):
    """The cost of a batch; see `records`."""

    rows: int
    steps: int
    seconds: float
    reads: ForwardCount


@dataclass(frozen=True)
class Decoder:
    """Answers prompts under one policy; made by `Decoders.open`.

    Attributes:
        policy: The policy.
        models: Its models.
        sampler: Runs `generate` of the model that generates.
        tokenizer: The base model's tokenizer.
        rule: Rule that selects the candidates.
        seed: Seed of all random numbers.
    """

    policy: Policy
    models: MethodModels
    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    rule: CandidateRule
    seed: int

    @property
    def longest_prompt(self) -> int | None:
        """Most tokens of a prompt whose answer still fits into every context (`MethodModels`); None without a limit."""
        limit = self.models.max_length
        return None if limit is None else limit - self.sampler.max_new_tokens

    def answer(self, prompts: Sequence[Prompt], number: int) -> list[Record]:
        """One answer to each prompt, all in one batch.

        Every policy uses the same random numbers, those of `Sampler.draw` with this seed (common random numbers, which
        reduce the variance of differences between policies). Best of n draws and ranks a whole batch n times, the first
        time with these numbers. Its cost (`batch_seconds`, and the forwards of guides and rankers) is that of all
        draws, for the answers that are kept: `batch_rows` is the number of prompts, and `batch_steps` the length of the
        longest answer.

        Args:
            prompts: The prompts, of one token or more.
            number: The number of the answers among those to their prompts, from 0.

        Raises:
            ContextLengthError: If a prompt leaves no room for the answer.
            InvalidArgumentError: If no answer to a prompt has a finite reward to rank it by.
            NonFiniteRewardError: If a reward of a next token is NaN or infinite.
        """
        self._check_lengths(prompts)
        stopwatch = Stopwatch(self.models.generator.device)
        with count_forwards(self.models.readers) as reads:
            draws = [self._draw(prompts, number, draw, stopwatch) for draw in range(self.policy.method.best_of)]
        steps = max(len(sample.new) for samples in draws for sample in samples)
        cost = _BatchCost(len(prompts), steps, stopwatch.seconds, reads)
        records = []
        for row, prompt in enumerate(prompts):
            kept = self._best(prompt, [samples[row] for samples in draws])
            records.append(self._record(prompt, number, kept, cost))
        return records

    def _check_lengths(self, prompts: Sequence[Prompt]) -> None:
        limit = self.longest_prompt
        longest = max(len(prompt.ids) for prompt in prompts)
        if limit is not None and longest > limit:
            raise ContextLengthError(
                f"Expected prompts of at most {limit} tokens, so that {self.sampler.max_new_tokens} new tokens fit "
                f"into the contexts of all models of {self.policy.title!r}, but one has {longest}. Leave it out, or "
                "lower --max_new_tokens."
            )

    @torch.no_grad()
    def _draw(self, prompts: Sequence[Prompt], number: int, draw: int, stopwatch: Stopwatch) -> list[_Sample]:
        """One sample for each prompt, with its reward if samples are ranked."""
        input_ids, mask = self.sampler.pad_left([prompt.ids for prompt in prompts])
        # The key of the first draw is that of every other policy: common random numbers.
        suffix = f":{draw}" if draw else ""
        keys = [f"{self.seed}:{prompt.index}:{number}{suffix}" for prompt in prompts]
        if self.models.base_session is not None:
            self.models.base_session.start(mask)
        meter = DivergenceMeter(
            InverseTransformProcessor(self.sampler.uniforms(keys), input_ids.shape[1]), rows=len(input_ids),
            eos_token_ids=self.sampler.eos_token_ids, stopwatch=stopwatch, base_session=self.models.base_session,
        )  # fmt: skip
        with stopwatch.counting():
            rows = self.sampler.decode(input_ids, mask, [meter.first, *self._processors(mask), meter.last])
        answers = [self.sampler.answer(prompt, new) for prompt, new in zip(prompts, rows, strict=True)]
        rewards = self._rank(prompts, answers, stopwatch)
        sums = [meter.kl.tolist(), meter.log_ratio.tolist(), meter.nll.tolist(), meter.cut.tolist()]
        return [_Sample(*values) for values in zip(rows, answers, rewards, *sums, strict=True)]

    def _rank(self, prompts: Sequence[Prompt], answers: Sequence[Answer], stopwatch: Stopwatch) -> list[float]:
        """The reward of each answer for ranking; -inf without a ranker, and for rewards that are not finite."""
        if self.models.ranker is None:
            return [float("-inf")] * len(prompts)
        with stopwatch.counting():
            rewards = self.models.ranker(prompts, [answer.text for answer in answers])
        return [reward if reward is not None and isfinite(reward) else float("-inf") for reward in rewards]

    def _processors(self, mask: Int[Tensor, "batch length"]) -> list[LogitsProcessor]:
        """The processors that turn the model that generates into the policy."""
        method = self.policy.method
        processors: list[LogitsProcessor] = []
        if self.models.guide is not None:
            processors.append(
                PartialRewardLogitsProcessor(
                    self.models.guide.scorer(), beta=self.policy.beta, top_k=self.rule.top_k, top_p=self.rule.top_p,
                    min_p=self.rule.min_p, rest=method.rest, tokenizer=self.tokenizer,
                    pad_token_id=self.sampler.pad_token_id, attention_mask=mask,
                )
            )  # fmt: skip
        elif self.rule != _WHOLE_VOCABULARY and method.rest == "drop":
            # The same truncation as a guide applies, so that a strength of 0 is the beginning of its curve.
            processors.append(TruncationProcessor(self.rule))
        # Temperature acts on the guided distribution, as `generate` applies it behind logits processors.
        if method.temperature != 1:
            processors.append(TemperatureLogitsWarper(method.temperature))
        if method.greedy:
            processors.append(GreedyProcessor())
        return processors

    def _best(self, prompt: Prompt, samples: Sequence[_Sample]) -> _Sample:
        """Best of n: the sample with the highest reward, the first one of a tie, with the divergence of that policy."""
        if self.models.ranker is None:
            return samples[0]
        best = max(samples, key=lambda sample: sample.reward)
        n = len(samples)
        if best.reward == float("-inf"):
            raise InvalidArgumentError(
                f"Expected {self.policy.method.ranked_by!r} to give one of the {n} answers to the prompt of row "
                f"{prompt.index} a finite reward, but it gave none. Leave the prompt out if it is too long to be "
                "judged, or rank by another reward."
            )
        # KL of best of n to the policy that is sampled: log n − (n − 1)/n (Beirami et al. 2024, arXiv 2401.01879). The
        # divergence of that policy from the base model is estimated by the log-ratio of the answer kept.
        return best._replace(kl=best.log_ratio + log(n) - (n - 1) / n)

    def _record(self, prompt: Prompt, number: int, sample: _Sample, cost: _BatchCost) -> Record:
        tokens = self.sampler.without_eos(sample.new)
        return Record(
            method=self.policy.method.name, curve=self.policy.method.curve, beta=self.policy.beta,
            greedy=self.policy.method.greedy, prompt=prompt.index, seed=number, prompt_text=prompt.text,
            answer=sample.answer.text, tokens=len(sample.new), ended=not sample.answer.truncated, kl=sample.kl,
            log_ratio=sample.log_ratio, nll=sample.nll, cut=sample.cut, distinct_1=distinct(tokens, 1),
            distinct_2=distinct(tokens, 2), distinct_3=distinct(tokens, 3), batch_rows=cost.rows,
            batch_steps=cost.steps, batch_seconds=cost.seconds, batch_guide_forwards=cost.reads.forwards,
            batch_guide_tokens=cost.reads.tokens,
        )  # fmt: skip

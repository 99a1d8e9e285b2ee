"""Decodes under a policy: every answer with its divergence from the base model, and what its batch cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isfinite, log
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, TemperatureLogitsWarper

from rgtg_logits.candidates import CandidateRule
from rgtg_logits.errors import ContextLengthError, InvalidArgumentError
from rgtg_logits.evaluate.meter import Meter
from rgtg_logits.evaluate.methods import Policy
from rgtg_logits.evaluate.models import MethodModels, load_models
from rgtg_logits.evaluate.records import Record
from rgtg_logits.evaluate.texts import distinct
from rgtg_logits.guidance import spread, truncate
from rgtg_logits.instruments import ForwardCount, Stopwatch, count_forwards
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.sampling import Answer, Draw, Prompt, Sampler, reward_function

_WHOLE = CandidateRule(top_k=sys.maxsize)
"""As many candidates as there are tokens."""


class TruncationProcessor(LogitsProcessor):
    """Cuts the scores to the candidates: guidance without a reward.

    Args:
        rule: How candidates are chosen.
    """

    def __init__(self, rule: CandidateRule) -> None:
        self._rule = rule

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Log-probabilities renormalised over the candidates, -inf elsewhere."""
        candidates = self._rule.select(scores)
        return spread(candidates, truncate(candidates), like=scores)


class Greedy(LogitsProcessor):
    """Leaves the best token of each row: the greedy policy, as a distribution."""

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """The score of the best token, of equal ones the first, and -inf elsewhere."""
        best = scores.argmax(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(1, best, scores.gather(1, best))


class Decoders:
    """Makes the decoder of each policy. The models of the last one stay loaded: a sweep over beta loads them once.

    Args:
        base: The base model. Its generation config is replaced, see `Sampler`.
        tokenizer: Its tokenizer.
        max_new_tokens: Longest answer in tokens.
        top_k: How many candidates, where a method does not say; 0 is the whole vocabulary.
        seed: Seed of every draw.
        dtype: Type of the weights of models that draw.
        guide_dtype: Type of the weights of models that guide and rank.
        device: Where they run.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        top_k: int,
        seed: int,
        dtype: str,
        guide_dtype: str,
        device: str,
    ) -> None:
        self._base, self._tokenizer, self._steps = base, tokenizer, max_new_tokens
        self._top_k, self._seed, self._device = top_k, seed, device
        self._dtype, self._guide_dtype = dtype, guide_dtype
        self._sampler = Sampler(base, tokenizer, max_new_tokens=max_new_tokens)
        self._loaded: tuple[object, MethodModels] | None = None

    @staticmethod
    def check(policies: Sequence[Policy]) -> None:
        """Looks for functions that cannot be imported, before anything is loaded.

        Raises:
            InvalidArgumentError: If there is one.
        """
        for method, _ in policies:
            for name in (*method.guide, *([] if method.ranked_by is None else [method.ranked_by])):
                reward_function(name)

    def open(self, policy: Policy) -> Decoder:
        """The decoder of a policy; see `load_models` for the errors."""
        method, guided = policy.method, policy.beta > 0
        key = (method.model, method.ranked_by, (method.guide, method.weights, method.kind) if guided else None)
        if self._loaded is None or self._loaded[0] != key:
            # What is no longer needed makes room first.
            self._loaded = None
            models = load_models(
                method, self._base, self._tokenizer, guided=guided, dtype=self._dtype, guide_dtype=self._guide_dtype,
                device=self._device,
            )  # fmt: skip
            self._loaded = (key, models)
        models = self._loaded[1]
        sampler = Sampler(models.drawing, self._tokenizer, max_new_tokens=self._steps)
        return Decoder(policy, models, sampler, self._tokenizer, top_k=self._top_k, seed=self._seed)


class _Drawn(NamedTuple):
    """A draw: its new tokens, what they say, its reward (-inf if it has none), and what `Meter` says."""

    new: list[int]
    answer: Answer
    reward: float
    kl: float
    log_ratio: float
    nll: float
    cut: float


class _Cost(NamedTuple):
    """What a batch cost; see `records`."""

    rows: int
    steps: int
    seconds: float
    reads: ForwardCount


class Decoder:
    """Answers prompts under one policy; `Decoders.open` makes it.

    Args:
        policy: The policy.
        models: Its models.
        sampler: Runs `generate` of the model that draws.
        tokenizer: The base model's.
        top_k: How many candidates, if the method does not say; 0 is the whole vocabulary.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        policy: Policy,
        models: MethodModels,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerBase,
        *,
        top_k: int,
        seed: int,
    ) -> None:
        self._policy, self._models, self._sampler, self._tokenizer = policy, models, sampler, tokenizer
        self._seed, method = seed, policy.method
        candidates = top_k if method.top_k is None else method.top_k
        self._rule = CandidateRule(top_k=candidates or _WHOLE.top_k, top_p=method.top_p, min_p=method.min_p)

    @property
    def longest_prompt(self) -> int | None:
        """Most tokens of a prompt whose answer still fits into every context (`MethodModels`); None without a limit."""
        return None if self._models.context is None else self._models.context - self._sampler.steps

    def answer(self, prompts: Sequence[Prompt], number: int) -> list[Record]:
        """One answer to each prompt, all in one batch.

        The random numbers are those of `Sampler.draw` with this seed, whatever the policy. Of the best of several
        answers, the first is the one with these numbers; the batch is drawn and ranked anew for each. What that cost
        (`batch_seconds` and what guides and rankers read) is all of it, for as many answers as are kept: `batch_rows`
        is the number of prompts, and `batch_steps` the tokens of the longest answer.

        Args:
            prompts: The prompts, of one token or more.
            number: Which of the answers to its prompt it is, from 0.

        Raises:
            ContextLengthError: If a prompt leaves no room for the answer.
            InvalidArgumentError: If nothing can rank the answers to a prompt.
            NonFiniteRewardError: If a reward of a next token is NaN or infinite.
        """
        self._check(prompts)
        stopwatch = Stopwatch(self._models.drawing.device)
        with count_forwards(self._models.readers) as reads:
            rounds = [self._draw(prompts, number, round, stopwatch) for round in range(self._policy.method.best_of)]
        steps = max(len(drawn.new) for answers in rounds for drawn in answers)
        kept = [self._best(prompt, answers) for prompt, answers in zip(prompts, zip(*rounds, strict=True), strict=True)]
        cost = _Cost(len(prompts), steps, stopwatch.seconds, reads)
        return [self._record(prompt, number, drawn, cost) for prompt, drawn in zip(prompts, kept, strict=True)]

    def _check(self, prompts: Sequence[Prompt]) -> None:
        limit, longest = self.longest_prompt, max(len(prompt.ids) for prompt in prompts)
        if limit is not None and longest > limit:
            raise ContextLengthError(
                f"Expected prompts of at most {limit} tokens, behind which {self._sampler.steps} new ones fit into the "
                f"contexts of all models of {self._policy.title!r}, but one has {longest}. Leave it out, or lower "
                "--max_new_tokens."
            )

    @torch.no_grad()
    def _draw(self, prompts: Sequence[Prompt], number: int, round: int, stopwatch: Stopwatch) -> list[_Drawn]:
        """One answer to each prompt, ranked if they are to be."""
        rows, mask = self._sampler.padded([prompt.ids for prompt in prompts])
        keys = [f"{self._seed}:{prompt.index}:{number}" + (f":{round}" if round else "") for prompt in prompts]
        if self._models.beside is not None:
            self._models.beside.begin(mask)
        meter = Meter(
            Draw(self._sampler.numbers(keys), rows.shape[1]), rows=len(rows), ends=self._sampler.ends,
            stopwatch=stopwatch, beside=self._models.beside,
        )  # fmt: skip
        with stopwatch.counting():
            new = self._sampler.decode(rows, mask, [meter.first, *self._processors(mask), meter.last])
        answers = [self._sampler.answer(*pair) for pair in zip(prompts, new, strict=True)]
        rewards = [float("-inf")] * len(prompts)
        if self._models.rank is not None:
            with stopwatch.counting():
                given = self._models.rank(prompts, [answer.text for answer in answers])
            rewards = [reward if reward is not None and isfinite(reward) else float("-inf") for reward in given]
        measured = (each.tolist() for each in (meter.kl, meter.log_ratio, meter.nll, meter.cut))
        return [_Drawn(*each) for each in zip(new, answers, rewards, *measured, strict=True)]

    def _processors(self, mask: Int[Tensor, "batch length"]) -> list[LogitsProcessor]:
        """What makes the policy of the model that draws."""
        method, processors = self._policy.method, list[LogitsProcessor]()
        if self._models.guide is not None:
            processors.append(
                PartialRewardLogitsProcessor(
                    self._models.guide.scorer(), beta=self._policy.beta, top_k=self._rule.top_k, top_p=self._rule.top_p,
                    min_p=self._rule.min_p, rest=method.rest, tokenizer=self._tokenizer,
                    pad_token_id=self._sampler.pad, attention_mask=mask,
                )
            )  # fmt: skip
        elif self._rule != _WHOLE and method.rest == "drop":
            processors.append(TruncationProcessor(self._rule))
        if method.temperature != 1:
            processors.append(TemperatureLogitsWarper(method.temperature))
        return [*processors, Greedy()] if method.greedy else processors

    def _best(self, prompt: Prompt, answers: Sequence[_Drawn]) -> _Drawn:
        """The answer that is kept, and the divergence of the policy that keeps it."""
        if self._models.rank is None:
            return answers[0]
        # Of equal ones, the first.
        best, n = max(answers, key=lambda drawn: drawn.reward), len(answers)
        if best.reward == float("-inf"):
            raise InvalidArgumentError(
                f"Expected {self._policy.method.ranked_by!r} to give one of the {len(answers)} answers to the prompt "
                f"of row {prompt.index} a finite reward, but it gave none. Leave the prompt out if it is too long to "
                "be read, or rank by another reward."
            )
        return best._replace(kl=best.log_ratio + log(n) - (n - 1) / n)

    def _record(self, prompt: Prompt, number: int, drawn: _Drawn, cost: _Cost) -> Record:
        said = self._sampler.said(drawn.new)
        return Record(
            method=self._policy.method.name, curve=self._policy.method.curve, beta=self._policy.beta,
            greedy=self._policy.method.greedy, prompt=prompt.index, seed=number, prompt_text=prompt.text,
            answer=drawn.answer.text, tokens=len(drawn.new), ended=not drawn.answer.truncated, kl=drawn.kl,
            log_ratio=drawn.log_ratio, nll=drawn.nll, cut=drawn.cut, distinct_1=distinct(said, 1),
            distinct_2=distinct(said, 2), distinct_3=distinct(said, 3), batch_rows=cost.rows,
            batch_steps=cost.steps, batch_seconds=cost.seconds, batch_guide_forwards=cost.reads.forwards,
            batch_guide_tokens=cost.reads.tokens,
        )  # fmt: skip

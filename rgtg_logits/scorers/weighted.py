"""The weighted sum of several rewards: of scorers, and of functions that judge text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.inputs import plain_number, plain_tokenizer
from rgtg_logits.locks import ObjectLock
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.known_tokens import KnownTokens
from rgtg_logits.scorers.make import make_scorer
from rgtg_logits.scorers.text import Detokenizer, PromptMemory, checked_eos_token_ids

RewardFunction = Callable[[list[str], list[str]], Sequence[float] | Tensor]
"""Gives the rewards of (prompts, responses), one number for each pair, higher is better."""

_MODELS = (RewardModel, nn.Module, str, os.PathLike)


class WeightedScorer(Scorer):
    """The weighted sum of several rewards of the same text.

    Each distinct scorer runs once per step, even if it is listed twice. Each function is called once per step with all
    distinct pairs of a prompt and a response of all unfinished rows: a response is the answer so far and one candidate,
    special tokens left out, so that a candidate that ends the text is judged by the answer so far. A `PromptMemory`
    finds out where prompts end; texts are those of a `Detokenizer`. Safe to call from several threads.

    Args:
        scorers: Reward models, Hub ids, folders, scorers, and functions on text `(prompts: list[str], responses:
            list[str]) -> rewards`. A reward model gets the scorer that the processor would give it.
        weights: Factor of each reward: 0 leaves a reward out of the sum, a negative one reverses it. Rewards of
            different models have different units, so the weights need not sum to 1. An array or a tensor will do.
        tokenizer: The base model's tokenizer; needed by functions, and by reward models with another vocabulary.
        eos_token_id: Tokens that end the base model's text; see `RetokenizingScorer`. A `Scorer` has its own.

    Raises:
        InvalidArgumentError: If there is nothing to sum, weights are missing or not finite, an entry is none of the
            above, a function comes without tokenizer, or the scorers do not agree on which token pads.
        CheckpointError: If a Hub id or folder cannot be loaded.
        RewardModelError: If a reward model cannot give rewards of prefixes.

    Example:
        ```python
        def short(prompts, responses):
            return [-0.01 * len(response) for response in responses]

        scorer = WeightedScorer([RewardModel.from_pretrained("org/rm"), short], [1.0, 0.5], tokenizer=tokenizer)
        ```
    """

    def __init__(
        self,
        scorers: Sequence[Any],
        weights: Sequence[float] | Tensor,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        tokenizer = plain_tokenizer(tokenizer)
        _check(scorers, tokenizer)
        factors = _plain_weights(weights, len(scorers))
        ends = checked_eos_token_ids(eos_token_id)
        self._sources: list[Scorer | RewardFunction] = []
        self._weights: list[float] = []
        for source, weight in _distinct(scorers, factors):
            is_model = isinstance(source, _MODELS)
            self._sources.append(make_scorer(source, tokenizer, eos_token_id=ends) if is_model else source)
            self._weights.append(weight)
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, ends)
        self._prompt_memory = PromptMemory()
        self._lock = ObjectLock()
        vocab_sizes = [scorer.vocab_size for scorer in self._scorers if scorer.vocab_size is not None]
        self.vocab_size = min(vocab_sizes, default=None)
        self.known_tokens = KnownTokens.of_all(scorer.known_tokens for scorer in self._scorers)
        self.pad_token_id = _pad_token(self._scorers, tokenizer)

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The scorers whose rewards are added, without the functions."""
        return tuple(self._scorers)

    @property
    def _scorers(self) -> list[Scorer]:
        return [source for source in self._sources if isinstance(source, Scorer)]

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate; see `Scorer.score`.

        Raises:
            InvalidArgumentError: If a function does not return one number for each pair.
            NonFiniteRewardError: If a reward, or the sum, is NaN or infinite.
        """
        prefixes = _unfinished_rows(rows, attention_mask)
        return self._sum(lambda scorer: scorer.score(rows, attention_mask, candidates), prefixes, candidates)

    @override
    def score_sequences(
        self, prefixes: Sequence[Sequence[int] | Int[Tensor, " length"]], candidates: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate of prefixes without padding; see `Scorer.score_sequences` and `score`."""
        texts = {row: torch.as_tensor(prefix, dtype=torch.long).tolist() for row, prefix in enumerate(prefixes)}
        return self._sum(lambda scorer: scorer.score_sequences(prefixes, candidates), texts, candidates)

    def _sum(
        self, score: Callable[[Scorer], Tensor], prefixes: dict[int, list[int]], candidates: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """The weighted sum of what `score` gives and of what functions give for the unfinished rows' prefixes."""
        with self._lock:
            pairs = self._pairs(prefixes, candidates)
            rewards = []
            for source in self._sources:
                if isinstance(source, Scorer):
                    rewards.append(score(source).to(candidates.device).float())
                else:
                    rewards.append(pairs.rewards(source, candidates))
            total = torch.zeros(candidates.shape, device=candidates.device)
            for weight, reward in zip(self._weights, rewards, strict=True):
                total += weight * reward
            if not total.isfinite().all():
                raise self._not_finite(total, rewards, candidates)
            return total

    def observe(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Shows the rows to the scorers, and remembers where prompts end."""
        with self._lock:
            for scorer in self._scorers:
                scorer.observe(rows, attention_mask)
            self._prompt_memory.prompt_lengths(list(_unfinished_rows(rows, attention_mask).values()))

    def _pairs(self, prefixes: dict[int, list[int]], candidates: Tensor) -> _Pairs:
        """The distinct pairs of this step; none if no function needs them."""
        pairs = _Pairs()
        if self._detokenizer is None or len(self._scorers) == len(self._sources):
            return pairs
        offered = [candidates[row].tolist() for row in prefixes]
        prompt_lengths = self._prompt_memory.prompt_lengths(list(prefixes.values()), offered)
        for (row, prefix), length in zip(prefixes.items(), prompt_lengths, strict=True):
            prompt = self._detokenizer.decode(prefix[:length])
            _, texts = self._detokenizer.decode_candidates(prefix, candidates[row].tolist())
            pairs.add(row, prompt, [self._detokenizer.answer(prompt, text) for text in texts])
        return pairs

    def _not_finite(self, total: Tensor, rewards: list[Tensor], candidates: Tensor) -> NonFiniteRewardError:
        """The error that names the first reward that is not finite, or else the sum."""
        name = "the weighted sum"
        values = total
        for source, reward in zip(self._sources, rewards, strict=True):
            if not reward.isfinite().all():
                name = _name(source)
                values = reward
                break
        row, slot = (~values.isfinite()).nonzero()[0].tolist()
        return NonFiniteRewardError(
            f"Expected finite rewards, but the reward of row {row} with token {int(candidates[row, slot])} is "
            f"{float(values[row, slot])}, by {name}. Let it return finite numbers for every text, the empty one "
            "included, and use smaller weights if only the sum is infinite."
        )


class _Pairs:
    """The distinct pairs of prompt and response in the candidates of a step.

    Attributes:
        indices: Index of every pair.
        by_row: For each unfinished row, the index of each candidate's pair.
    """

    def __init__(self) -> None:
        self.indices: dict[tuple[str, str], int] = {}
        self.by_row: dict[int, list[int]] = {}

    def add(self, row: int, prompt: str, responses: list[str]) -> None:
        """Adds the candidates of a row."""
        self.by_row[row] = [self.indices.setdefault((prompt, response), len(self.indices)) for response in responses]

    def rewards(self, function: RewardFunction, candidates: Int[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
        """The function's reward of each candidate; 0 in finished rows."""
        rewards = torch.zeros(candidates.shape)
        if self.indices:
            prompts = [prompt for prompt, _ in self.indices]
            responses = [response for _, response in self.indices]
            pair_rewards = checked_rewards(function(prompts, responses), len(self.indices), _name(function))
            for row, indices in self.by_row.items():
                rewards[row] = pair_rewards[indices]
        return rewards.to(candidates.device)


def checked_rewards(returned: object, expected: int, name: str) -> Float[Tensor, " pairs"]:
    """Checks the return value of a reward function, and makes it a tensor on the CPU. Not every number need be finite.

    Args:
        returned: The return value.
        expected: Number of pairs of prompt and response that the function was given.
        name: The function's name in errors.

    Raises:
        InvalidArgumentError: If it is not one number for each pair.
    """
    try:
        rewards = torch.as_tensor(returned, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"Expected {name} to return a sequence of {expected} numbers, but got {type(returned).__name__}: {error}. "
            "Return one float for each pair of prompt and response."
        ) from error
    if rewards.shape != (expected,):
        raise InvalidArgumentError(
            f"Expected {name} to return {expected} rewards, one for each pair of prompt and response, but got shape "
            f"{tuple(rewards.shape)}. Return a list of floats or a tensor of one axis."
        )
    return rewards


def _plain_weights(weights: Iterable[Any], expected: int) -> list[float]:
    """The weights as plain numbers, one for each scorer; they may come as an array or a tensor."""
    try:
        given = list(weights)
    except TypeError as error:
        # A number, or an array without an axis.
        raise InvalidArgumentError(
            f"Expected a list of weights, one for each scorer, but got {weights!r}. Use 1.0 for a reward that counts "
            "as it is."
        ) from error
    if not expected or len(given) != expected:
        raise InvalidArgumentError(
            f"Expected one weight for each scorer, and at least one scorer, but got {expected} scorers and "
            f"{len(given)} weights. Use 1.0 for a reward that counts as it is."
        )
    factors = []
    for weight in given:
        number = plain_number(weight)
        if number is None or not math.isfinite(number):
            raise InvalidArgumentError(
                f"Expected weights to be finite numbers, but got {weight!r}. Use 0 to leave a reward out."
            )
        factors.append(float(number))
    return factors


def _check(scorers: Sequence[Any], tokenizer: PreTrainedTokenizerBase | None) -> None:
    for source in scorers:
        if isinstance(source, (Scorer, *_MODELS)):
            continue
        if isinstance(source, type) or not callable(source):
            raise InvalidArgumentError(
                "Expected scorers to be reward models, Hub ids, folders, Scorer objects or functions "
                f"(prompts, responses) -> rewards, but got {source!r}. Pass one of these."
            )
        if tokenizer is None:
            raise InvalidArgumentError(
                f"Expected the base model's tokenizer, because {_name(source)} judges text, but got none. "
                "Pass tokenizer= to WeightedScorer."
            )


def _distinct(sources: Sequence[Any], weights: Sequence[float]) -> list[tuple[Any, float]]:
    """Each distinct source with the sum of its weights."""
    # Lists, because a user's callables need not be hashable.
    distinct: list[Any] = []
    totals: list[float] = []
    for source, weight in zip(sources, weights, strict=True):
        if source in distinct:
            totals[distinct.index(source)] += weight
        else:
            distinct.append(source)
            totals.append(weight)
    return list(zip(distinct, totals, strict=True))


def _unfinished_rows(rows: Tensor, attention_mask: Tensor) -> dict[int, list[int]]:
    """The tokens of each unfinished row, without padding, by the row's index."""
    unfinished = attention_mask[:, -1].nonzero()[:, 0].tolist()
    return {row: rows[row][attention_mask[row].bool()].tolist() for row in unfinished}


def _pad_token(scorers: list[Scorer], tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The base model's pad token, as its tokenizer says, or else as the scorers agree."""
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    pad_tokens = {scorer.pad_token_id for scorer in scorers if scorer.pad_token_id is not None}
    if len(pad_tokens) > 1:
        raise InvalidArgumentError(
            "Expected the scorers to agree on which token pads the base model's rows, but they name "
            f"{sorted(pad_tokens)}. Pass tokenizer= (the base model's, with a pad token) to WeightedScorer, whose pad "
            "token is then taken, or set pad_token_id of each scorer to the base model's."
        )
    return pad_tokens.pop() if pad_tokens else None


def _name(source: object) -> str:
    return str(getattr(source, "__qualname__", type(source).__name__))

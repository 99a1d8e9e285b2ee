"""Several rewards at once: the weighted sum of scorers, and of functions that judge text."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.make import make_scorer
from rgtg_logits.scorers.text import BaseText, PromptMemory

RewardFunction = Callable[[list[str], list[str]], Sequence[float] | Tensor]
"""Gives the rewards of (prompts, responses), one number for each pair, higher is better."""

_MODELS = (RewardModel, nn.Module, str, os.PathLike)


class WeightedScorer(Scorer):
    """The weighted sum of several rewards of the same text.

    Each distinct scorer runs once per step, also if it is listed twice. Each function is called once per step with all
    distinct pairs of a prompt and a response of all unfinished rows: a response is the answer so far and one candidate,
    special tokens left out, so that a candidate that ends the text is judged by the answer so far. Where prompts end is
    told by what was shown before, see `PromptMemory`; texts are those of `BaseText`. Threads take turns.

    Args:
        scorers: Reward models, Hub ids, folders, scorers, and functions on text `(prompts: list[str], responses:
            list[str]) -> rewards`. A reward model gets the scorer that the processor would give it.
        weights: Factor of each reward: 0 leaves a reward out of the sum, a negative one turns it around. Rewards of
            different models have different units, so the weights need not sum to 1.
        tokenizer: The base model's tokenizer; functions need it, and reward models with other tokens.

    Raises:
        InvalidArgumentError: If there is nothing to sum, weights are missing or not finite, an entry is nothing known,
            a function comes without tokenizer, or the scorers do not agree on which token pads.
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
        weights: Sequence[float],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        _check(scorers, weights, tokenizer)
        distinct: list[Any] = []
        for source in scorers:
            if source not in distinct:
                distinct.append(source)
        self._weights = [
            sum(weight for other, weight in zip(scorers, weights, strict=True) if other == source)
            for source in distinct
        ]
        self._judges: list[Scorer | RewardFunction] = [_judge(source, tokenizer) for source in distinct]
        self._text = None if tokenizer is None else BaseText(tokenizer)
        self._memory = PromptMemory()
        self._lock = threading.RLock()
        known = [judge for judge in self._judges if isinstance(judge, Scorer)]
        self.vocab_size = min((scorer.vocab_size for scorer in known if scorer.vocab_size is not None), default=None)
        self.pad_token_id = _pad_token(known, tokenizer)

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
        with self._lock:
            texts = self._texts(rows, attention_mask, candidates)
            rewards = [
                judge.score(rows, attention_mask, candidates).to(candidates.device).float()
                if isinstance(judge, Scorer)
                else texts.rewards(judge, candidates)
                for judge in self._judges
            ]
            total = torch.zeros(candidates.shape, device=candidates.device)
            for weight, reward in zip(self._weights, rewards, strict=True):
                total += weight * reward
            if not total.isfinite().all():
                raise self._not_finite(total, rewards, candidates)
            return total

    def observe(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Lets the scorers know, and remembers where prompts end."""
        with self._lock:
            for judge in self._judges:
                if isinstance(judge, Scorer):
                    judge.observe(rows, attention_mask)
            running = attention_mask[:, -1].nonzero()[:, 0].tolist()
            self._memory.split([rows[row][attention_mask[row].bool()].tolist() for row in running])

    def _texts(self, rows: Tensor, attention_mask: Tensor, candidates: Tensor) -> _Texts:
        """The distinct pairs of this step; none if no function asks for them."""
        texts = _Texts()
        if self._text is None or all(isinstance(judge, Scorer) for judge in self._judges):
            return texts
        running = attention_mask[:, -1].nonzero()[:, 0].tolist()
        prefixes = [rows[row][attention_mask[row].bool()].tolist() for row in running]
        lengths = self._memory.split(prefixes)
        for row, prefix, length in zip(running, prefixes, lengths, strict=True):
            prompt = self._text.read(prefix[:length])[0]
            _, with_candidates = self._text.read_candidates(prefix, candidates[row].tolist())
            texts.add(row, prompt, [self._text.answer(prompt, text) for text in with_candidates])
        return texts

    def _not_finite(self, total: Tensor, rewards: list[Tensor], candidates: Tensor) -> NonFiniteRewardError:
        """Looks for the guilty one."""
        judged = zip((*self._judges, None), (*rewards, total), strict=True)
        judge, reward = next(pair for pair in judged if not pair[1].isfinite().all())
        row, slot = (~reward.isfinite()).nonzero()[0].tolist()
        by = "the weighted sum" if judge is None else _name(judge)
        return NonFiniteRewardError(
            f"Expected finite rewards, but the reward of row {row} with token {int(candidates[row, slot])} is "
            f"{float(reward[row, slot])}, by {by}. Let it return finite numbers for every text, the empty one "
            "included, and use smaller weights if only the sum is infinite."
        )


class _Texts:
    """The distinct pairs of prompt and response that the candidates of a step make.

    Attributes:
        pairs: Every pair once, and its place.
        places: For each unfinished row, the places of its candidates' pairs.
    """

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], int] = {}
        self.places: dict[int, list[int]] = {}

    def add(self, row: int, prompt: str, responses: list[str]) -> None:
        """Adds the candidates of a row."""
        self.places[row] = [self.pairs.setdefault((prompt, response), len(self.pairs)) for response in responses]

    def rewards(self, function: RewardFunction, candidates: Int[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
        """What a function says of each candidate; 0 in finished rows."""
        rewards = torch.zeros(candidates.shape)
        if self.pairs:
            answer = function([prompt for prompt, _ in self.pairs], [response for _, response in self.pairs])
            of_pairs = checked_rewards(answer, len(self.pairs), _name(function))
            for row, places in self.places.items():
                rewards[row] = of_pairs[places]
        return rewards.to(candidates.device)


def checked_rewards(answer: object, expected: int, name: str) -> Float[Tensor, " pairs"]:
    """What a function on text returned, as a tensor on the CPU; not every number need be finite.

    Args:
        answer: What it returned.
        expected: Number of pairs of prompt and response that it was given.
        name: What it is called in errors.

    Raises:
        InvalidArgumentError: If it is not one number for each pair.
    """
    try:
        rewards = torch.as_tensor(answer, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"Expected {name} to return a sequence of {expected} numbers, but got {type(answer).__name__}: {error}. "
            "Return one float for each pair of prompt and response."
        ) from error
    if rewards.shape != (expected,):
        raise InvalidArgumentError(
            f"Expected {name} to return {expected} rewards, one for each pair of prompt and response, but got shape "
            f"{tuple(rewards.shape)}. Return a list of floats or a tensor of one axis."
        )
    return rewards


def _check(scorers: Sequence[Any], weights: Sequence[float], tokenizer: PreTrainedTokenizerBase | None) -> None:
    if not scorers or len(scorers) != len(weights):
        raise InvalidArgumentError(
            f"Expected one weight for each scorer, and at least one scorer, but got {len(scorers)} scorers and "
            f"{len(weights)} weights. Use 1.0 for a reward that counts as it is."
        )
    for weight in weights:
        if not (isinstance(weight, (int, float)) and math.isfinite(weight)):
            raise InvalidArgumentError(
                f"Expected weights to be finite numbers, but got {weight!r}. Use 0 to leave a reward out."
            )
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


def _judge(source: Any, tokenizer: PreTrainedTokenizerBase | None) -> Scorer | RewardFunction:
    return make_scorer(source, tokenizer) if isinstance(source, _MODELS) else source


def _pad_token(scorers: list[Scorer], tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The base model's pad token, as its tokenizer says, or else as the scorers agree."""
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    known = {scorer.pad_token_id for scorer in scorers if scorer.pad_token_id is not None}
    if len(known) > 1:
        raise InvalidArgumentError(
            f"Expected the scorers to agree on which token pads the base model's rows, but they name {sorted(known)}. "
            "Pass tokenizer= (the base model's, with a pad token) to WeightedScorer, whose pad token is then taken, or "
            "set pad_token_id of each scorer to the base model's."
        )
    return next(iter(known), None)


def _name(judge: object) -> str:
    return str(getattr(judge, "__qualname__", type(judge).__name__))

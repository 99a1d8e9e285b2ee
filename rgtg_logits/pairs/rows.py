"""Rows of preference pairs or labelled answers, made of answers and their rewards. Pure functions of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from math import exp, isfinite
from typing import Any

from rgtg_logits.pairs.settings import PairSettings
from rgtg_logits.sampling import Messages, Prompt, hashed_uniforms


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer and its reward.

    Attributes:
        text: The answer.
        truncated: Whether it was cut at the longest length.
        reward: Its reward in the reward's own unit, perhaps not finite; None if the text was empty or too long to be
            judged.
    """

    text: str
    truncated: bool
    reward: float | None

    @property
    def flaw(self) -> str | None:
        """The reason why it cannot be used; None if it can."""
        if not self.text:
            return "empty answer"
        if self.reward is None:
            return "too long for the reward"
        return None if isfinite(self.reward) else "reward not finite"


@dataclass
class RowCounts:
    """Counts of the rows made and left out.

    Attributes:
        rows: Rows made.
        left_out: Rows not made, by reason.
        ties: Pairs of answers with equal rewards.
    """

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ties: int = 0


def make_rows(
    prompts: Sequence[Prompt], answers: Iterable[ScoredAnswer], settings: PairSettings, counts: RowCounts
) -> Iterator[dict[str, Any]]:
    """Makes the rows, in the order of the prompts.

    Args:
        prompts: The prompts.
        answers: `settings.num_answers` answers to each prompt, those to one prompt together.
        settings: How to make the rows.
        counts: Updated while the rows are made.
    """
    remaining = iter(answers)
    build = _pairs if settings.format == "pairs" else _labels
    for prompt in prompts:
        for row in build(prompt, list(islice(remaining, settings.num_answers)), settings, counts):
            counts.rows += 1
            yield row


def answer_pairs(answers: int, most: int) -> list[tuple[int, int]]:
    """Which answers are compared: first 0 with 1, 2 with 3 and so on, which share no answer, then all other pairs."""
    disjoint = [(index, index + 1) for index in range(0, answers - 1, 2)]
    others = [pair for pair in combinations(range(answers), 2) if pair not in disjoint]
    return [*disjoint, *others][:most]


def _labels(
    prompt: Prompt, answers: Sequence[ScoredAnswer], settings: PairSettings, counts: RowCounts
) -> Iterator[dict[str, Any]]:
    for answer in answers:
        if answer.flaw is not None:
            counts.left_out[answer.flaw] += 1
            continue
        yield {
            "prompt": prompt.value,
            "completion": _completion(prompt, answer),
            "reward": answer.reward,
            "truncated": answer.truncated,
        }


def _pairs(
    prompt: Prompt, answers: Sequence[ScoredAnswer], settings: PairSettings, counts: RowCounts
) -> Iterator[dict[str, Any]]:
    for first, second in answer_pairs(settings.num_answers, settings.num_pairs):
        one = answers[first]
        other = answers[second]
        flaw = _pair_flaw(one, other, settings, counts)
        if flaw is not None:
            counts.left_out[flaw] += 1
            continue
        first_wins = _first_wins(one, other, settings, f"{prompt.index}:{first}>{second}")
        chosen, rejected = (one, other) if first_wins else (other, one)
        yield {
            "prompt": prompt.value,
            "chosen": _completion(prompt, chosen),
            "rejected": _completion(prompt, rejected),
            "chosen_reward": chosen.reward,
            "rejected_reward": rejected.reward,
            "chosen_truncated": chosen.truncated,
            "rejected_truncated": rejected.truncated,
        }


def _pair_flaw(one: ScoredAnswer, other: ScoredAnswer, settings: PairSettings, counts: RowCounts) -> str | None:
    """The reason why two answers make no pair, if there is one; counts ties."""
    flaw = one.flaw or other.flaw
    if flaw is not None:
        return flaw
    # Equal texts would teach nothing, whichever is chosen.
    if one.text == other.text:
        return "identical answers"
    if one.reward == other.reward:
        counts.ties += 1
        return "tie" if settings.label == "argmax" else None
    return None


def _first_wins(one: ScoredAnswer, other: ScoredAnswer, settings: PairSettings, key: str) -> bool:
    difference = (one.reward or 0.0) - (other.reward or 0.0)
    if settings.label == "argmax":
        return difference > 0
    # A Bradley-Terry draw: the label is noisy, as that of a human judge with these rewards would be.
    number = float(hashed_uniforms(f"{settings.seed}:{key}", 1))
    return number < win_probability(settings.scale * difference)


def win_probability(difference: float) -> float:
    """The probability of winning in the Bradley-Terry model: sigmoid of the difference of rewards, in nats."""
    # Two branches, because exp of a large number overflows.
    if difference >= 0:
        return 1 / (1 + exp(-difference))
    return exp(difference) / (1 + exp(difference))


def _completion(prompt: Prompt, answer: ScoredAnswer) -> str | Messages:
    """The answer in the form of its prompt: a text, or a list of one message."""
    if isinstance(prompt.value, str):
        return answer.text
    return [{"role": "assistant", "content": answer.text}]

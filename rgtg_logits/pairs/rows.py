"""From judged answers to rows of preference pairs or labelled answers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, isfinite
from typing import Any

from rgtg_logits.pairs.settings import PairSettings
from rgtg_logits.sampling import Messages, Prompt, uniforms


@dataclass(frozen=True)
class Judged:
    """An answer and what it is worth.

    Attributes:
        text: The answer.
        truncated: Whether it was cut at the longest length.
        reward: Its reward in the reward's own unit; perhaps not finite; None if the text was too long to be judged, or
            empty.
    """

    text: str
    truncated: bool
    reward: float | None

    @property
    def flaw(self) -> str | None:
        """Why it cannot be used, if it cannot."""
        if not self.text:
            return "empty answer"
        if self.reward is None:
            return "too long for the reward"
        return None if isfinite(self.reward) else "reward not finite"


@dataclass
class Counts:
    """What became of the answers.

    Attributes:
        rows: Rows made.
        left_out: Rows not made, by reason.
        ties: Pairs of answers with equal rewards.
    """

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ties: int = 0


def make_rows(
    prompts: Sequence[Prompt], judged: Iterable[Judged], settings: PairSettings, counts: Counts
) -> Iterator[dict[str, Any]]:
    """Makes the rows, in the order of the prompts, and counts as it goes.

    Args:
        prompts: The prompts.
        judged: `settings.drawn` answers to each of them.
        settings: How to make them.
        counts: Is added to.
    """
    answers, build = iter(judged), _pairs if settings.format == "pairs" else _labels
    for prompt in prompts:
        for row in build(prompt, [next(answers) for _ in range(settings.drawn)], settings, counts):
            counts.rows += 1
            yield row


def couples(answers: int, most: int) -> list[tuple[int, int]]:
    """Which answers are compared: first 0 with 1, 2 with 3, ..., then all others."""
    first = [(index, index + 1) for index in range(0, answers - 1, 2)]
    return [*first, *(pair for pair in combinations(range(answers), 2) if pair not in first)][:most]


def _labels(
    prompt: Prompt, answers: Sequence[Judged], settings: PairSettings, counts: Counts
) -> Iterator[dict[str, Any]]:
    for answer in answers:
        if answer.flaw is not None:
            counts.left_out[answer.flaw] += 1
            continue
        yield {
            "prompt": prompt.value,
            "completion": _said(prompt, answer),
            "reward": answer.reward,
            "truncated": answer.truncated,
        }


def _pairs(
    prompt: Prompt, answers: Sequence[Judged], settings: PairSettings, counts: Counts
) -> Iterator[dict[str, Any]]:
    for one, other in couples(settings.drawn, settings.compared):
        both = answers[one], answers[other]
        flaw = both[0].flaw or both[1].flaw or ("identical answers" if both[0].text == both[1].text else None)
        tie = flaw is None and both[0].reward == both[1].reward
        counts.ties += tie
        if tie and settings.label == "argmax":
            flaw = "tie"
        if flaw is not None:
            counts.left_out[flaw] += 1
            continue
        chosen, rejected = both if _first_wins(*both, settings, f"{prompt.index}:{one}>{other}") else both[::-1]
        yield {
            "prompt": prompt.value,
            "chosen": _said(prompt, chosen),
            "rejected": _said(prompt, rejected),
            "chosen_reward": chosen.reward,
            "rejected_reward": rejected.reward,
            "chosen_truncated": chosen.truncated,
            "rejected_truncated": rejected.truncated,
        }


def _first_wins(one: Judged, other: Judged, settings: PairSettings, key: str) -> bool:
    difference = (one.reward or 0.0) - (other.reward or 0.0)
    if settings.label == "argmax":
        return difference > 0
    number = float(uniforms(f"{settings.seed}:{key}", 1))
    return number < win_probability(settings.scale * difference)


def win_probability(difference: float) -> float:
    """The Bradley-Terry model: sigmoid of the difference of rewards, in nats."""
    # Split in two, because exp of a large number overflows.
    return 1 / (1 + exp(-difference)) if difference >= 0 else exp(difference) / (1 + exp(difference))


def _said(prompt: Prompt, answer: Judged) -> str | Messages:
    if isinstance(prompt.value, str):
        return answer.text
    return [{"role": "assistant", "content": answer.text}]

"""Losses by the name of their objective, and the data of a batch that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rgtg_logits.train.losses import (
    arm,
    between,
    bradley_terry,
    cumulative,
    every_prefix,
    farma,
    finished_answers,
    soft_value,
    value,
)


class Reading(NamedTuple):
    """What a reward model says of a batch.

    Attributes:
        rewards: Reward of every prefix; for pairs, the chosen texts first, then the rejected ones.
        best: Largest reward of every prefix with any one token more, for objectives that need it (kind "vocabulary").
    """

    rewards: Float[Tensor, "rows length"]
    best: Float[Tensor, "rows length"] | None = None


class Pairs(NamedTuple):
    """What is known of a batch of preference pairs: tokens of the texts and of what both begin with, and the margin."""

    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    start: Int[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"] | None = None

    @property
    def texts(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Tokens of every text, and of its beginning that is not trained on; chosen ones first."""
        return torch.cat([self.chosen, self.rejected]), torch.cat([self.start, self.start])


class Labelled(NamedTuple):
    """What is known of a batch of answers with a reward each: tokens of the texts and of their prompts, and rewards."""

    lengths: Int[Tensor, " rows"]
    start: Int[Tensor, " rows"]
    rewards: Float[Tensor, " rows"]

    @property
    def texts(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Tokens of every text, and of its beginning that is not trained on."""
        return self.lengths, self.start


class Terms(NamedTuple):
    """The parts of a loss, which is their sum divided by their number.

    Attributes:
        losses: Each part; 0 where there is none.
        exists: Where there is one.
    """

    losses: Float[Tensor, "rows parts"]
    exists: Bool[Tensor, "rows parts"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The numbers in the losses; each belongs to the objectives that its comment names.

    Attributes:
        center: Of (chosen + rejected)², for "partial_bt" and "full_bt"; None or 0 is off.
        beta: Guidance strength that "soft_value" is made for, in nats per unit of the data's rewards.
        clip: Where the exponential of "soft_value" becomes a line, in nats.
        arm_beta: Nats of preference per nat of log-probability, for "arm".
        farma_weight: Of the constraint of "farma".
        td_lambda: Of the finished answer's reward against later predictions, for "value" and "soft_value".
    """

    center: float | None = None
    beta: float = 1.0
    clip: float = 5.0
    arm_beta: float = 1.0
    farma_weight: float = 1.0
    td_lambda: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The loss of an objective.

    Attributes:
        terms: Parts of the loss, from the model's rewards for a batch, the batch's data (`Pairs` or `Labelled`), and
            the weights.
        count: Number of parts of each row of a batch, from the data alone.
    """

    terms: Callable[[Reading, Any, Weights], Terms]
    count: Callable[[Any], Int[Tensor, " rows"]]


def _each(parts: Tensor) -> Terms:
    """One part a row."""
    return Terms(parts, torch.ones_like(parts, dtype=torch.bool))


def _partial_bt(reading: Reading, rows: Pairs, weights: Weights) -> Terms:
    chosen, rejected = reading.rewards.chunk(2)
    pairs = every_prefix(chosen, rejected, rows.chosen, rows.rejected, rows.start)
    return Terms(bradley_terry(pairs, margin=rows.margin, center=weights.center), pairs.exists)


def _full_bt(reading: Reading, rows: Pairs, weights: Weights) -> Terms:
    chosen, rejected = reading.rewards.chunk(2)
    pairs = finished_answers(chosen, rejected, rows.chosen, rows.rejected, rows.start)
    return Terms(bradley_terry(pairs, margin=rows.margin, center=weights.center), pairs.exists)


def _farma(reading: Reading, rows: Pairs, weights: Weights) -> Terms:
    if reading.best is None:
        raise TypeError("The objective 'farma' needs the largest reward behind every prefix.")
    (chosen, rejected), (chosen_best, rejected_best) = reading.rewards.chunk(2), reading.best.chunk(2)
    lengths = (rows.chosen, rows.rejected, rows.start)
    return _each(
        farma(chosen, rejected, chosen_best, rejected_best, lengths, margin=rows.margin, weight=weights.farma_weight)
    )


def _arm(reading: Reading, rows: Pairs, weights: Weights) -> Terms:
    chosen, rejected = reading.rewards.chunk(2)
    lengths = (rows.chosen, rows.rejected, rows.start)
    return _each(arm(chosen, rejected, *lengths, beta=weights.arm_beta, margin=rows.margin))


def _value(reading: Reading, rows: Labelled, weights: Weights) -> Terms:
    exists = _answers(reading, rows)
    return Terms(value(reading.rewards, rows.rewards, exists, td_lambda=weights.td_lambda), exists)


def _cumulative(reading: Reading, rows: Labelled, _: Weights) -> Terms:
    return _each(cumulative(reading.rewards, rows.rewards, _answers(reading, rows)))


def _soft_value(reading: Reading, rows: Labelled, weights: Weights) -> Terms:
    exists = _answers(reading, rows)
    options = {"beta": weights.beta, "clip": weights.clip, "td_lambda": weights.td_lambda}
    return Terms(soft_value(reading.rewards, rows.rewards, exists, **options), exists)


def _answers(reading: Reading, rows: Labelled) -> Bool[Tensor, "rows length"]:
    return between(rows.start, rows.lengths, reading.rewards.shape[1])


def _one(rows: Pairs | Labelled) -> Int[Tensor, " rows"]:
    return torch.ones_like(rows.start)


def _longer_answer(rows: Pairs) -> Int[Tensor, " pairs"]:
    return torch.maximum(rows.chosen, rows.rejected) - rows.start


def _every_token(rows: Labelled) -> Int[Tensor, " rows"]:
    return rows.lengths - rows.start


LOSSES: dict[str, Loss] = {
    "partial_bt": Loss(_partial_bt, _longer_answer),
    "full_bt": Loss(_full_bt, _one),
    "value": Loss(_value, _every_token),
    "soft_value": Loss(_soft_value, _every_token),
    "cumulative": Loss(_cumulative, _one),
    "farma": Loss(_farma, _one),
    "arm": Loss(_arm, _one),
}
"""The loss of each of `rgtg_logits.objectives.OBJECTIVES`, by name."""

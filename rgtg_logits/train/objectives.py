"""Losses by the name of their objective, and the data of a batch that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rgtg_logits.prefix_accuracy import PairLengths, PairRewards
from rgtg_logits.train.losses import (
    arm_loss,
    bradley_terry,
    cumulative_loss,
    farma_loss,
    final_comparisons,
    position_mask,
    prefix_comparisons,
    soft_value_loss,
    value_loss,
)


class PrefixRewards(NamedTuple):
    """Rewards of a batch, from one forward.

    Attributes:
        rewards: Reward of every prefix; for pairs, the chosen texts first, then the rejected ones.
        max_next: Largest reward of every prefix with any one token more, for objectives that need it (kind
            "vocabulary").
    """

    rewards: Float[Tensor, "rows length"]
    max_next: Float[Tensor, "rows length"] | None = None


class AnswerSpans(NamedTuple):
    """Where the answers are within the texts of a batch.

    Attributes:
        start: Index of the first token that is trained on; the prompt is before it.
        end: Number of tokens of the text.
    """

    start: Int[Tensor, " rows"]
    end: Int[Tensor, " rows"]


class PairBatch(NamedTuple):
    """Data of a batch of preference pairs besides the tokens.

    Attributes:
        chosen: Number of tokens of each chosen text.
        rejected: Number of tokens of each rejected text.
        start: Number of tokens that both texts begin with.
        margin: By how much the chosen answer should win, in reward units.
    """

    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    start: Int[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"] | None = None

    @property
    def spans(self) -> AnswerSpans:
        """The answers of all texts, chosen ones first."""
        return AnswerSpans(torch.cat([self.start, self.start]), torch.cat([self.chosen, self.rejected]))

    def split(self, rewards: Float[Tensor, "rows length"]) -> PairRewards:
        """Rewards of all texts (chosen ones first) as rewards of pairs."""
        chosen, rejected = rewards.chunk(2)
        return PairRewards(chosen, rejected, PairLengths(self.chosen, self.rejected, self.start))


class LabelBatch(NamedTuple):
    """Data of a batch of answers with a reward each, besides the tokens.

    Attributes:
        lengths: Number of tokens of each text.
        start: Number of tokens of its prompt.
        rewards: Reward of the finished answer, in the data's unit.
    """

    lengths: Int[Tensor, " rows"]
    start: Int[Tensor, " rows"]
    rewards: Float[Tensor, " rows"]

    @property
    def spans(self) -> AnswerSpans:
        """The answers of all texts."""
        return AnswerSpans(self.start, self.lengths)


class LossTerms(NamedTuple):
    """The terms of a loss, which is their sum divided by their number.

    Attributes:
        losses: Each term; 0 where there is none.
        mask: Where there is a term.
    """

    losses: Float[Tensor, "rows terms"]
    mask: Bool[Tensor, "rows terms"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The numbers in the losses; each belongs to the objectives that its line names.

    Attributes:
        center: Weight of (chosen + rejected)², for "partial_bt" and "full_bt"; None or 0 is off.
        beta: Guidance strength that "soft_value" is made for, in nats per unit of the data's rewards.
        clip: Where the exponential of "soft_value" becomes a line, in nats.
        arm_beta: Nats of preference per nat of log-probability, for "arm".
        farma_weight: Weight of the constraint of "farma".
        td_lambda: λ of the λ-returns that "value" and "soft_value" regress on; 1 is the finished answer's reward.
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
        terms: Terms of the loss, from the rewards of a batch, its data (`PairBatch` or `LabelBatch`) and the settings.
        count: Number of terms of each row of a batch, from its data alone.
    """

    terms: Callable[[PrefixRewards, Any, LossSettings], LossTerms]
    count: Callable[[Any], Int[Tensor, " rows"]]


def _one_per_row(losses: Tensor) -> LossTerms:
    return LossTerms(losses, torch.ones_like(losses, dtype=torch.bool))


def _partial_bt(prefixes: PrefixRewards, batch: PairBatch, settings: LossSettings) -> LossTerms:
    comparisons = prefix_comparisons(batch.split(prefixes.rewards))
    losses = bradley_terry(comparisons, margin=batch.margin, center=settings.center)
    return LossTerms(losses, comparisons.mask)


def _full_bt(prefixes: PrefixRewards, batch: PairBatch, settings: LossSettings) -> LossTerms:
    comparisons = final_comparisons(batch.split(prefixes.rewards))
    losses = bradley_terry(comparisons, margin=batch.margin, center=settings.center)
    return LossTerms(losses, comparisons.mask)


def _farma(prefixes: PrefixRewards, batch: PairBatch, settings: LossSettings) -> LossTerms:
    if prefixes.max_next is None:
        raise TypeError("The objective 'farma' needs the largest reward one token later, for every prefix.")
    rewards = batch.split(prefixes.rewards)
    chosen_max_next, rejected_max_next = prefixes.max_next.chunk(2)
    losses = farma_loss(rewards, chosen_max_next, rejected_max_next, margin=batch.margin, weight=settings.farma_weight)
    return _one_per_row(losses)


def _arm(prefixes: PrefixRewards, batch: PairBatch, settings: LossSettings) -> LossTerms:
    return _one_per_row(arm_loss(batch.split(prefixes.rewards), beta=settings.arm_beta, margin=batch.margin))


def _value(prefixes: PrefixRewards, batch: LabelBatch, settings: LossSettings) -> LossTerms:
    mask = _answer_mask(prefixes, batch)
    losses = value_loss(prefixes.rewards, batch.rewards, mask, td_lambda=settings.td_lambda)
    return LossTerms(losses, mask)


def _cumulative(prefixes: PrefixRewards, batch: LabelBatch, _: LossSettings) -> LossTerms:
    return _one_per_row(cumulative_loss(prefixes.rewards, batch.rewards, _answer_mask(prefixes, batch)))


def _soft_value(prefixes: PrefixRewards, batch: LabelBatch, settings: LossSettings) -> LossTerms:
    mask = _answer_mask(prefixes, batch)
    losses = soft_value_loss(
        prefixes.rewards, batch.rewards, mask, beta=settings.beta, clip=settings.clip, td_lambda=settings.td_lambda
    )
    return LossTerms(losses, mask)


def _answer_mask(prefixes: PrefixRewards, batch: LabelBatch) -> Bool[Tensor, "rows length"]:
    return position_mask(batch.start, batch.lengths, prefixes.rewards.shape[1])


def _one(rows: PairBatch | LabelBatch) -> Int[Tensor, " rows"]:
    return torch.ones_like(rows.start)


def _longer_answer(rows: PairBatch) -> Int[Tensor, " pairs"]:
    return torch.maximum(rows.chosen, rows.rejected) - rows.start


def _every_token(rows: LabelBatch) -> Int[Tensor, " rows"]:
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

"""Evaluation metrics: statistics of each row of a batch, and their aggregate over a whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.prefix_accuracy import PERCENTS, last_tokens, prefix_wins
from rgtg_logits.train.losses import position_mask
from rgtg_logits.train.objectives import LabelBatch, LossTerms, PairBatch, PrefixRewards

QUANTILES = (5, 25, 50, 75, 95)
"""Percentages of the quantiles of rewards in `EvaluationMetrics`."""

_TOTALS = ("label", "loss", "terms", "prefixes", "reward", "squared_reward")
"""The last columns of `row_statistics`."""


@dataclass(frozen=True)
class EvaluationMetrics:
    """Metrics of an evaluation set, exact over the set however it was batched.

    Attributes:
        rows: Number of pairs, or of answers with a reward.
        loss: The objective's mean over all its terms.
        by_percent: From percent of the answer to prefix accuracy (pairs), or to Pearson's correlation of the prefix's
            reward with the answer's (labels).
        prefixes: Number of all prefixes of the answers.
        reward_mean: Mean of their rewards.
        reward_std: Standard deviation of their rewards.
        reward_quantiles: From percent to the reward that this share of prefixes does not exceed, over the answers
            truncated at `PERCENTS`.
    """

    rows: int
    loss: float
    by_percent: dict[int, float]
    prefixes: int
    reward_mean: float
    reward_std: float
    reward_quantiles: dict[int, float]


def row_statistics(
    prefixes: PrefixRewards, batch: PairBatch | LabelBatch, terms: LossTerms
) -> Float[Tensor, "rows statistics"]:
    """The sufficient statistics of a batch for `aggregate`, one line per pair or answer.

    Returns:
        In one tensor, which processes can gather at once: the figure at each of `PERCENTS` (wins of pairs, rewards of
        answers), the rewards there (of both answers of a pair), and the columns `_TOTALS`: the answer's reward in the
        data (0 for pairs), sum and number of the terms of the loss, and number, sum and sum of squares of the rewards
        of prefixes.
    """
    rewards = prefixes.rewards.detach().double()
    start, end = batch.spans
    truncated = rewards.gather(1, last_tokens(end, start))
    if isinstance(batch, PairBatch):
        at_percents = prefix_wins(batch.split(rewards))
        labels = torch.zeros_like(at_percents[:, 0])
    else:
        at_percents = truncated
        labels = batch.rewards.double()
    answer_mask = position_mask(start, end, rewards.shape[1])
    moments = torch.stack([(rewards**power * answer_mask).sum(1) for power in range(3)], dim=1)
    # The two texts of a pair are one line.
    moments = moments.view(-1, len(labels), 3).sum(0)
    truncated = torch.cat(list(truncated.split(len(labels))), dim=1)
    totals = torch.stack([labels, terms.losses.detach().double().sum(1), terms.mask.double().sum(1)], dim=1)
    return torch.cat([at_percents.double(), truncated, totals, moments], dim=1)


def aggregate(statistics: Float[Tensor, "rows statistics"], *, pairs: bool) -> EvaluationMetrics:
    """The metrics of a set, from the `row_statistics` of all its batches."""
    at_percents = statistics[:, : len(PERCENTS)]
    truncated = statistics[:, len(PERCENTS) : -len(_TOTALS)]
    totals = dict(zip(_TOTALS, statistics[:, -len(_TOTALS) :].unbind(1), strict=True))
    # Tensors, in which a set without any prefix gives NaN and no error.
    sums = {name: column.sum() for name, column in totals.items()}
    if pairs:
        by_percent = at_percents.mean(0).tolist()
    else:
        by_percent = [correlation(column, totals["label"]) for column in at_percents.T]
    mean = float(sums["reward"] / sums["prefixes"])
    variance = float(sums["squared_reward"] / sums["prefixes"]) - mean**2
    # By numpy, because torch (2.13) refuses more than 16 million numbers.
    quantiles = np.percentile(truncated.numpy(), QUANTILES)
    return EvaluationMetrics(
        rows=len(statistics),
        loss=float(sums["loss"] / sums["terms"]),
        by_percent=dict(zip(PERCENTS, by_percent, strict=True)),
        prefixes=int(sums["prefixes"]),
        reward_mean=mean,
        # Rounding may make a variance of zero negative.
        reward_std=max(0.0, variance) ** 0.5,
        reward_quantiles=dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
    )


def correlation(one: Float[Tensor, " rows"], other: Float[Tensor, " rows"]) -> float:
    """Pearson's correlation coefficient; 0 where one of the two is constant, because it is undefined there."""
    one = one.double() - one.double().mean()
    other = other.double() - other.double().mean()
    spread = float(one.norm() * other.norm())
    return float(one @ other) / spread if spread > 0 else 0.0

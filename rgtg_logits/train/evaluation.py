"""What an evaluation measures of each row, and what that comes to over a whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.train.data import PERCENTS, PairLengths, last_tokens, prefix_wins
from rgtg_logits.train.losses import between
from rgtg_logits.train.objectives import Labelled, Pairs, Reading, Terms

QUANTILES = (5, 25, 50, 75, 95)
"""Percent at which `Measured` tells rewards."""


@dataclass(frozen=True)
class Measured:
    """What was measured on a set; exact over it, however it was batched.

    Attributes:
        rows: Pairs, or answers with a reward.
        loss: The objective's mean over all its parts.
        by_percent: From percent of the answer to prefix accuracy (pairs), or to Pearson's correlation of the prefix's
            reward with the answer's (labels).
        prefixes: Number of all prefixes of the answers.
        reward_mean: Mean of their rewards.
        reward_std: Their standard deviation.
        reward_quantiles: From percent to the reward that this share of prefixes does not exceed, of the answers cut at
            `PERCENTS`.
    """

    rows: int
    loss: float
    by_percent: dict[int, float]
    prefixes: int
    reward_mean: float
    reward_std: float
    reward_quantiles: dict[int, float]


def row_figures(reading: Reading, known: Pairs | Labelled, terms: Terms) -> Float[Tensor, "rows figures"]:
    """All that `measured` needs of a batch, one line per pair or answer.

    Returns:
        What is known at each of `PERCENTS` (wins of pairs, rewards of answers), the rewards there (of both answers of a
        pair), the answer's own reward (0 for pairs), sum and number of the parts of the loss, and number, sum and sum
        of squares of the rewards of prefixes.
    """
    rewards = reading.rewards.detach().double()
    lengths, start = known.texts
    sample = rewards.gather(1, last_tokens(lengths, start))
    if isinstance(known, Pairs):
        chosen, rejected = rewards.chunk(2)
        at_percents = prefix_wins(chosen, rejected, PairLengths(known.chosen, known.rejected, known.start))
        own = torch.zeros_like(at_percents[:, 0])
    else:
        at_percents = sample
        own = known.rewards.double()
    answers = between(start, lengths, rewards.shape[1])
    moments = torch.stack([(rewards**power * answers).sum(1) for power in range(3)], dim=1)
    # Both texts of a pair are one row.
    moments = moments.view(-1, len(own), 3).sum(0)
    sample = torch.cat(list(sample.split(len(own))), dim=1)
    parts = torch.stack([own, terms.losses.detach().double().sum(1), terms.exists.double().sum(1)], dim=1)
    return torch.cat([at_percents.double(), sample, parts, moments], dim=1)


def measured(figures: Float[Tensor, "rows figures"], *, pairs: bool) -> Measured:
    """Puts together what `row_figures` says of all batches of a set."""
    at_percents, (own, losses, parts, counts, sums, squares) = figures[:, : len(PERCENTS)], figures[:, -6:].unbind(1)
    by_percent = at_percents.mean(0).tolist() if pairs else [correlation(column, own) for column in at_percents.T]
    mean = float(sums.sum() / counts.sum())
    # By numpy, because torch (2.13) refuses more than 16 million numbers.
    quantiles = np.percentile(figures[:, len(PERCENTS) : -6].numpy(), QUANTILES)
    return Measured(
        rows=len(figures),
        loss=float(losses.sum() / parts.sum()),
        by_percent=dict(zip(PERCENTS, by_percent, strict=True)),
        prefixes=int(counts.sum()),
        reward_mean=mean,
        reward_std=max(0.0, float(squares.sum() / counts.sum()) - mean**2) ** 0.5,
        reward_quantiles=dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
    )


def correlation(one: Float[Tensor, " rows"], other: Float[Tensor, " rows"]) -> float:
    """Pearson's correlation coefficient; 0 where one of them does not vary, because it then tells nothing."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    spread = float(one.norm() * other.norm())
    return float(one @ other) / spread if spread > 0 else 0.0

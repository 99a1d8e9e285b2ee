"""Records of single steps, and how the rows of one step continue those of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-6
"""Probabilities up to this one may be rounding errors of a sum in float32."""


@dataclass(frozen=True)
class StepRecord:
    """One call of the processor.

    Attributes:
        rows: The prefixes, padding included.
        candidates: The candidate tokens.
        base: Log-probabilities of the base model in nats, renormalised over the candidates if the guided ones are
            (`rest="drop"`); -inf in unused slots.
        rewards: Rewards of the candidates; None if the reward model was not called.
        guided: Log-probabilities after guidance, in nats.
    """

    rows: Int[Tensor, "batch length"]
    candidates: Int[Tensor, "batch k"]
    base: Float[Tensor, "batch k"]
    rewards: Float[Tensor, "batch k"] | None
    guided: Float[Tensor, "batch k"]

    def divergence(self) -> Float[Tensor, " batch"]:
        """Exact KL(guided ‖ base) of each row, in nats."""
        guided = self.guided.double()
        base = self.base.double()
        # Unused slots have probability 0 and contribute nothing, but 0 · (inf - inf) would be NaN.
        candidates = (guided.exp() * (guided - base)).masked_fill(self.guided.isneginf(), 0.0).sum(-1)
        # All other tokens, the tail, change by the same factor, so that one product covers them.
        tail = _tail(guided)
        return candidates + (tail * self.tail_change()).masked_fill(tail <= ROUNDING, 0.0)

    def tail_change(self) -> Float[Tensor, " batch"]:
        """Change of the log-probability of every token outside the candidates, in nats; 0 if they have none."""
        guided = _tail(self.guided.double())
        base = _tail(self.base.double())
        empty = (guided <= ROUNDING) | (base <= ROUNDING)
        return torch.where(empty, 0.0, guided.clamp(min=ROUNDING).log() - base.clamp(min=ROUNDING).log())


def _tail(log_probabilities: Float[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
    """Probability of all tokens outside the candidates."""
    return 1 - log_probabilities.exp().sum(-1)


def origins_of(rows: Tensor, later: Tensor) -> list[int | None]:
    """The index of the row that each later row continues; None if there is none."""
    prefixes = [row.tobytes() for row in rows.cpu().numpy()]
    first_index: dict[bytes, int] = {}
    for index, prefix in enumerate(prefixes):
        first_index.setdefault(prefix, index)
    origins: list[int | None] = []
    for index, row in enumerate(later[:, : rows.shape[1]].cpu().numpy()):
        prefix = row.tobytes()
        # Several rows may be equal, as at the first step of several return sequences: the one in its place goes first.
        if index < len(prefixes) and prefixes[index] == prefix:
            origins.append(index)
        else:
            origins.append(first_index.get(prefix))
    return origins


def drawn_candidates(step: StepRecord, later: Tensor | None) -> Bool[Tensor, "batch k"]:
    """Mask of the candidates with which later rows continue the rows of a step."""
    candidates = step.candidates.cpu()
    used = ~step.base.cpu().isneginf()
    mask = torch.zeros_like(used)
    width = step.rows.shape[1]
    if later is None or later.shape[1] <= width:
        return mask
    for origin, token in zip(origins_of(step.rows, later), later[:, width].tolist(), strict=True):
        if origin is not None:
            mask[origin] |= (candidates[origin] == token) & used[origin]
    return mask

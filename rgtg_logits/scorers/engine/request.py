"""Requests to the scoring engine, and which of their rows have to be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import PaddingError
from rgtg_logits.scorers.engine.token_tree import TokenTree


@dataclass(frozen=True)
class ScoreRequest:
    """Prefixes and their continuations, with the way in which rewards are read from states.

    Attributes:
        padded_ids: Token ids of the rows, `PADDING` where padded, on the model's device.
        token_tree: Continuations of each row, on the model's device.
        candidates: The next tokens that the continuations stand for, as the scorer got them, on the model's device.
        finished: Rows that need no rewards.
        rewards_from_states: Takes the state at the end of each continuation, and `candidates`, to rewards.
        shared_vocabulary: Whether `candidates` are token ids of the reward model.
    """

    padded_ids: Int[Tensor, "batch length"]
    token_tree: TokenTree
    candidates: Int[Tensor, "batch k"]
    finished: Tensor
    rewards_from_states: Callable[
        [Float[Tensor, "rows continuations state"], Int[Tensor, "rows k"]], Float[Tensor, "rows k"]
    ]
    shared_vocabulary: bool = True

    def select_rows(self, rows: Int[Tensor, " some"]) -> ScoreRequest:
        """The request for some of the rows."""
        return replace(
            self,
            padded_ids=self.padded_ids[rows],
            token_tree=self.token_tree.select(rows),
            candidates=self.candidates[rows],
            finished=self.finished[rows],
        )

    def to(self, device: torch.device) -> ScoreRequest:
        """The same request on another device."""
        return replace(
            self,
            padded_ids=self.padded_ids.to(device),
            token_tree=self.token_tree.to(device),
            candidates=self.candidates.to(device),
            finished=self.finished.to(device),
        )


@dataclass(frozen=True)
class Duplicates:
    """Rows that equal others, such as beams and return sequences before they part, and are computed once.

    Attributes:
        unfinished: Indices of all unfinished rows.
        computed_as: For each of them, which of the computed rows it equals.
    """

    unfinished: Int[Tensor, " unfinished"]
    computed_as: Int[Tensor, " unfinished"]


def rows_to_compute(request: ScoreRequest) -> tuple[Int[Tensor, " active"] | None, Duplicates | None]:
    """Indices of the rows to compute (None: all), and how the others follow from them (None: no row equals another).

    Args:
        request: A request on the CPU.
    """
    if len(request.padded_ids) == 1:
        return None, None
    # Beams and return sequences are equal in the first step of `generate`, whose prefill is the expensive one.
    unfinished = (~request.finished).nonzero()[:, 0]
    rows = torch.cat([request.padded_ids, request.token_tree.flattened()], dim=1)[unfinished]
    distinct = _distinct_rows(rows)
    if distinct is not None:
        # Compared last, because candidates may be a whole vocabulary, and rows of equal text are rare.
        distinct = _distinct_rows(torch.cat([rows, request.candidates[unfinished]], dim=1))
    if distinct is None:
        return (unfinished if len(unfinished) < len(request.padded_ids) else None), None
    first, inverse = distinct
    return unfinished[first], Duplicates(unfinished, inverse)


def _distinct_rows(rows: Int[Tensor, "batch columns"]) -> tuple[Tensor, Tensor] | None:
    """The first of each set of equal rows, and for every row the one that it equals; None if all rows differ."""
    distinct, inverse = rows.unique(dim=0, return_inverse=True)
    if len(distinct) == len(rows):
        return None
    first = torch.full((len(distinct),), len(rows)).scatter_reduce_(0, inverse, torch.arange(len(rows)), "amin")
    # In order of appearance, so that rows that stay distinct keep their places in the cache.
    order = first.argsort()
    return first[order], order.argsort()[inverse]


def scatter_rows(
    rewards: Float[Tensor, "active k"],
    batch: int,
    active: Int[Tensor, " active"] | None,
    duplicates: Duplicates | None,
) -> Float[Tensor, "batch k"]:
    """Rewards of all rows from those of the computed rows; 0 in finished rows.

    Args:
        rewards: Rewards of the computed rows.
        batch: Number of rows.
        active: Indices of the computed rows; None if all were computed.
        duplicates: How further rows follow from them, if any do.
    """
    if active is None:
        return rewards
    if duplicates is not None:
        # Each unfinished row takes the rewards of the row that it equals.
        active = duplicates.unfinished.to(rewards.device)
        rewards = rewards[duplicates.computed_as.to(rewards.device)]
    return torch.zeros(batch, rewards.shape[1], device=rewards.device).index_copy(0, active, rewards)


def empty_row_error(row: int) -> PaddingError:
    """The error for a row that is all padding."""
    return PaddingError(
        f"Expected text in every row, but row {row} holds only the padding token. If that token is also the start of "
        "your text (pad == bos), pass the prompts' attention_mask= to PartialRewardLogitsProcessor. If the base model "
        "is an encoder-decoder, pass processor.for_prompt(…), because its rows do not show the prompt."
    )

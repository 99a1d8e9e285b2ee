"""Requests to the scoring engine, and which of their rows have to be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.padding import PADDING
from rgtg_logits.scorers.engine.token_tree import TokenTree

Prefixes = Int[Tensor, "batch length"] | Sequence[np.ndarray]
"""Token ids of rows: a rectangle with `PADDING` where padded, on the model's device; or one array for each row."""


@dataclass(frozen=True)
class ScoreRequest:
    """Prefixes and their continuations, with the way in which rewards are read from states.

    Attributes:
        prefixes: Token ids of the rows.
        token_tree: Continuations of each row, on the model's device.
        candidates: The next tokens that the continuations stand for, as the scorer got them, on the model's device.
        finished: Rows that need no rewards.
        rewards_from_states: Takes the state at the end of each continuation, and `candidates`, to rewards.
        shared_vocabulary: Whether `candidates` are token ids of the reward model.
    """

    prefixes: Prefixes
    token_tree: TokenTree
    candidates: Int[Tensor, "batch k"]
    finished: Tensor
    rewards_from_states: Callable[
        [Float[Tensor, "rows continuations state"], Int[Tensor, "rows k"]], Float[Tensor, "rows k"]
    ]
    shared_vocabulary: bool = True

    def to(self, device: torch.device) -> ScoreRequest:
        """The same request on another device."""
        return replace(
            self,
            prefixes=self.prefixes.to(device) if isinstance(self.prefixes, Tensor) else self.prefixes,
            token_tree=self.token_tree.to(device),
            candidates=self.candidates.to(device),
            finished=self.finished.to(device),
        )

    def texts(self) -> list[np.ndarray]:
        """The token ids of each row without padding, on the host."""
        return unpadded_rows(self.prefixes)


def unpadded_rows(prefixes: Prefixes) -> list[np.ndarray]:
    """The token ids of each row without padding, on the host."""
    if not isinstance(prefixes, Tensor):
        return list(prefixes)
    rows = prefixes.cpu().numpy()
    is_text = rows != PADDING
    if is_text.all():
        return list(rows)
    counts = is_text.sum(1)
    width = rows.shape[1]
    # A slice is a view, and padding is on the left, as a rule.
    on_left = (is_text[:, 1:] >= is_text[:, :-1]).all(1)
    return [
        row[width - count :] if left else row[mask]
        for row, mask, count, left in zip(rows, is_text, counts.tolist(), on_left.tolist(), strict=True)
    ]


def node_counts(tokens: Int[Tensor, "batch k"]) -> list[int] | None:
    """Number of candidates of each row, behind which its first one is repeated; None if that would save little.

    Args:
        tokens: One-token continuations, on the CPU.
    """
    array = tokens.numpy()
    batch, k = array.shape
    if batch == 0 or k < 2 or not (array[:, -1] == array[:, 0]).any():
        return None
    differs = array != array[:, :1]
    counts = np.where(differs.any(1), k - differs[:, ::-1].argmax(1), 1)
    # Rows with as many candidates attend together, which a few tokens less are not worth.
    return None if 4 * int(counts.sum()) > 3 * batch * k else [int(count) for count in counts]


def distinct_rows(texts: Sequence[np.ndarray], token_tree: TokenTree) -> tuple[list[int], list[int]]:
    """The first of each set of rows with equal text and continuations, and for every row the one that it equals.

    Beams and return sequences are equal in the first step of `generate`, whose prefill is the expensive one.
    """
    if len(texts) == 1:
        return [0], [0]
    trees = token_tree.flattened().numpy()
    first: list[int] = []
    equals: list[int] = []
    seen: dict[object, list[int]] = {}
    for row, text in enumerate(texts):
        # The end tells most texts apart, without reading all of them.
        alike = seen.setdefault((len(text), text[-8:].tobytes(), trees[row].tobytes()), [])
        same = next((place for place in alike if np.array_equal(texts[first[place]], text)), None)
        if same is None:
            same = len(first)
            alike.append(same)
            first.append(row)
        equals.append(same)
    return first, equals

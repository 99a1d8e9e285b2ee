"""The contract of a strategy: how a reward model is run over [new tokens of the prefixes | token trees]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine.token_tree import TokenTree


class Strategy(ABC):
    """Runs the model over steps, and owns the memory of sequences.

    A step is `run`, and then `commit` if its states are good. After any error, or without `commit`, what was remembered
    before is still right.

    Args:
        reward_model: The model.
        max_tokens: Largest number of tokens in one forward, to bound memory. None: all.
        cache_tokens: Largest number of tokens to remember; see `SequenceMemory`.
        compiled: The same model with a compiled forward, for strategies whose steps keep their shape. None: not
            compiled.

    Attributes:
        can_predict: Whether `run_ordinary` is there.
    """

    can_predict = False

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        max_tokens: int | None = None,
        cache_tokens: int | None = None,
        compiled: RewardModel | None = None,
    ) -> None:
        self.reward_model = reward_model
        self._max_tokens = max_tokens
        self._cache_tokens = cache_tokens
        self._compiled = compiled
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forgets all sequences and frees the cache."""

    @abstractmethod
    def run(self, rows: Sequence[np.ndarray], token_tree: TokenTree) -> Float[Tensor, "batch k state"]:
        """State of the last layer at the end of each continuation, each behind its own row alone.

        Args:
            rows: Token ids of each row, without padding; no row equals another with the same tree.
            token_tree: Continuations of the rows, on the model's device.
        """

    def run_ordinary(
        self, sampled_nodes: Int[Tensor, " batch"], token_tree: TokenTree
    ) -> Float[Tensor, "batch k state"] | None:
        """The states of a step in which each row has grown by one node of its tree; see `ScoringEngine`.

        Returns:
            None if the rows outgrow their slots.
        """
        raise TypeError(f"{type(self).__name__} cannot take a step before the rows are known.")

    def confirm_ordinary(self) -> None:
        """Accepts the step of `run_ordinary`; its tokens are told to `commit`, at the latest before the next `run`."""
        raise TypeError(f"{type(self).__name__} cannot take a step before the rows are known.")

    def discard(self) -> None:
        """Wipes out what a step has written that was not committed, because it may not be finite."""
        return None

    def commit(self, rows: Sequence[np.ndarray], token_tree: TokenTree | None, failed: Collection[int] = ()) -> None:
        """Remembers the rows of the last step and the nodes behind them, but for those whose states are not finite.

        Args:
            rows: The rows.
            token_tree: Their continuations, on the CPU; None if what lies behind the rows is of no use.
            failed: Indices of rows to forget.
        """
        return None

    def cache_bytes(self) -> int:
        """Memory that the cache holds; 0 for a cache that does not report it."""
        return 0

    def _chunks(self, start: int, end: int, rows: int) -> list[slice]:
        """Splits columns of `rows` rows into chunks that fit into one forward."""
        width = end - start
        if self._max_tokens is not None:
            width = min(width, max(1, self._max_tokens // rows))
        return [slice(first, min(first + width, end)) for first in range(start, end, max(1, width))]

"""The base class of scorers that read one reward model through a cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import Unpack, override

from rgtg_logits.locks import ObjectLock
from rgtg_logits.padding import PADDING
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.engine.deprecated import current_options, old_path
from rgtg_logits.scorers.engine.options import EngineOptions
from rgtg_logits.scorers.engine.request import Prefixes, ScoreRequest
from rgtg_logits.scorers.engine.scoring_engine import ScoringEngine


class CachedScorer(Scorer):
    """A scorer whose every step is one request to a `ScoringEngine`.

    One object may serve several threads: they take turns, and each finds its own rows again.
    """

    def __init__(self, reward_model: RewardModel, *, trees: bool = False, **options: Unpack[EngineOptions]) -> None:
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size
        self.pad_token_id = reward_model.pad_token_id
        self._engine = ScoringEngine(reward_model, trees=trees, **current_options(options))
        self._lock = ObjectLock()

    @property
    def strategy(self) -> str:
        """The strategy of running the model; see `CausalScorer`."""
        return self._engine.strategy

    @property
    def path(self) -> str:
        """Deprecated name of `strategy`."""
        return old_path(self.strategy)

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        with self._lock:
            self._engine.reset()

    def cache_bytes(self) -> int:
        """Memory that the cache of the remembered sequences holds, in bytes."""
        return self._engine.cache_bytes()

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate in one forward; see `Scorer.score`.

        Raises:
            PaddingError: If a row is all padding.
            VocabularyError: If the reward model does not have a token.
            ContextLengthError: If a prefix and one candidate are longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        padded_ids = torch.where(attention_mask.bool(), rows, PADDING).to(self.reward_model.device)
        finished = ~attention_mask[:, -1].bool()
        return self._scored(padded_ids, finished.to(self.reward_model.device), candidates)

    @override
    def score_sequences(
        self, prefixes: Sequence[Sequence[int] | Int[Tensor, " length"]], candidates: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate of prefixes without padding; see `Scorer.score_sequences` and `score`."""
        rows = [torch.as_tensor(prefix, dtype=torch.long).cpu().numpy() for prefix in prefixes]
        finished = torch.zeros(len(rows), dtype=torch.bool, device=self.reward_model.device)
        return self._scored(rows, finished, candidates)

    def _scored(self, prefixes: Prefixes, finished: Tensor, candidates: Tensor) -> Float[Tensor, "batch k"]:
        with self._lock:
            request = self._request(prefixes, finished, candidates)
            return self._engine.score(request).to(candidates.device)

    @abstractmethod
    def _request(
        self, prefixes: Prefixes, finished: Bool[Tensor, " batch"], candidates: Int[Tensor, "batch k"]
    ) -> ScoreRequest:
        """Builds the engine's request of one step.

        Args:
            prefixes: See `ScoreRequest`.
            finished: Rows that need no rewards, on the model's device.
            candidates: Next tokens to score.
        """

"""The base class of scorers that read one reward model through a cache."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from rgtg_logits.locks import ObjectLock
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.engine.deprecated import current_options, old_path
from rgtg_logits.scorers.engine.options import EngineOptions
from rgtg_logits.scorers.engine.request import ScoreRequest
from rgtg_logits.scorers.engine.scoring_engine import ScoringEngine


class CachedScorer(Scorer):
    """A scorer whose every step is one request to a `ScoringEngine`.

    One object may serve several threads: they take turns, and each finds its own rows again, at the price of the cache.
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
        """Memory that the cache of the previous rows holds."""
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
        with self._lock:
            request = self._request(rows, attention_mask, candidates)
            return self._engine.score(request).to(candidates.device)

    @abstractmethod
    def _request(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> ScoreRequest:
        """Builds the engine's request of one step."""

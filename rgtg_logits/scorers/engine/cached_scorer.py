"""What the scorers that read one reward model through a cache have in common."""

from __future__ import annotations

from abc import abstractmethod
from threading import RLock

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.engine.options import EngineOptions
from rgtg_logits.scorers.engine.scoring_engine import ScoreRequest, ScoringEngine


class CachedScorer(Scorer):
    """A scorer whose every step is one question to a `ScoringEngine`.

    One object may serve several threads: they take turns, and each finds its own rows again, at the price of the cache.
    """

    def __init__(self, reward_model: RewardModel, *, trees: bool = False, **options: Unpack[EngineOptions]) -> None:
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size
        self.pad_token_id = reward_model.pad_token_id
        self._reader = ScoringEngine(reward_model, trees=trees, **options)
        self._lock = RLock()

    @property
    def path(self) -> str:
        """How the model is run; see `CausalScorer`."""
        return self._reader.path

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        with self._lock:
            self._reader.reset()

    def cache_bytes(self) -> int:
        """Memory that the cache of the last rows holds."""
        return self._reader.cache_bytes()

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
            question = self._question(rows, attention_mask, candidates)
            return self._reader.read(question).to(candidates.device)

    @abstractmethod
    def _question(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> ScoreRequest:
        """What to ask the model."""

"""Rewards of next tokens from language models that were trained as policies: log-probabilities and their ratios."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack, override

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.locks import ObjectLock
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.engine import EngineOptions, old_path
from rgtg_logits.scorers.vocabulary import LogProbabilityScorer


class LogRatioScorer(Scorer):
    r"""Scores prefixes by log π(prefix), or by log π(prefix) − log π_ref(prefix), in nats.

    - One model: an autoregressive reward model (GenARM, arXiv 2410.08193), whose reward of a prefix is the sum of the
      log-probabilities of its tokens.
    - Two models: a policy trained by DPO (arXiv 2305.18290) and the reference that it started from. With beta =
      1/β_dpo this is the exact implicit reward, and guidance moves any base model as DPO moved the reference.

    A reward is a total, fixed up to a constant per row: the scorer returns the total less that of the row itself, which
    is the one new term, log π(v | row) − log π_ref(v | row). So a step is one cached single-token forward of each
    model, and k may be the whole vocabulary.

    Args:
        policy: A model of kind "log_ratio"; its token ids are taken to be those of the rows.
        reference: The reference model, of the same kind and vocabulary; None for log π alone.
        options: How to run them; see `EngineOptions`.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the checkpoint names a reference and none is given.
        RewardModelError: If a model is not causal, has no logits, or no strategy is exact on it.
    """

    def __init__(
        self, policy: RewardModel, reference: RewardModel | None = None, **options: Unpack[EngineOptions]
    ) -> None:
        if reference is None and policy.config.reference is not None:
            raise InvalidArgumentError(
                f"Expected the reference model {policy.config.reference!r}, against which the policy was trained, but "
                "got none. Load it with RewardModel.from_pretrained(…, kind='log_ratio') and pass it as reference=."
            )
        models = [policy] if reference is None else [policy, reference]
        self._scorers = [LogProbabilityScorer(model, **options) for model in models]
        self.reward_model = policy
        self.reference = reference
        self.vocab_size = min(scorer.vocab_size or 0 for scorer in self._scorers)
        self.pad_token_id = policy.pad_token_id
        self._lock = ObjectLock()

    @property
    def strategy(self) -> str:
        """The strategy of running the policy; see `CausalScorer`."""
        return self._scorers[0].strategy

    @property
    def path(self) -> str:
        """Deprecated name of `strategy`."""
        return old_path(self.strategy)

    def reset(self) -> None:
        """Forgets all rows and frees the caches."""
        for scorer in self._scorers:
            scorer.reset()

    def cache_bytes(self) -> int:
        """Memory that the caches of the previous rows hold."""
        return sum(scorer.cache_bytes() for scorer in self._scorers)

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate; see `Scorer.score` and, for the errors, `CausalScorer.score`."""
        with self._lock:
            rewards = [scorer.score(rows, attention_mask, candidates) for scorer in self._scorers]
        return self._difference(rewards)

    @override
    def score_sequences(
        self, prefixes: Sequence[Sequence[int] | Int[Tensor, " length"]], candidates: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate of prefixes without padding; see `Scorer.score_sequences`."""
        with self._lock:
            rewards = [scorer.score_sequences(prefixes, candidates) for scorer in self._scorers]
        return self._difference(rewards)

    def _difference(self, rewards: list[Tensor]) -> Tensor:
        return rewards[0] if self.reference is None else rewards[0] - rewards[1]

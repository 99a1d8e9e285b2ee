"""Rewards of next tokens from a causal reward model, one cached forward per step."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine import CachedScorer, EngineOptions, Prefixes, ScoreRequest, TokenTree


class CausalScorer(CachedScorer):
    """Scores k candidates of every row in one forward over [new prefix tokens | k candidates], the prefix cached once.

    The strategy by which the candidates share the prefix is chosen when the scorer is made, by a numeric probe on the
    loaded model:

    - "tree_attention": one copy of the prefix whatever k is, by an attention function that keeps the candidates apart
      (as in Medusa and SpecInfer), in one forward over just the new tokens of all rows (sequence packing);
    - "masked_tree_attention": the same by a mask, for models whose attention function cannot be exchanged, and for
      compiled steps; rows of different capacity go through one after the other;
    - "expand": each candidate on its own copy of the cache, for models that cannot do that (recurrent layers, ALiBi by
      slot); "expand_model_cache", the same on a cache that only the model can make;
    - "recompute": no cache, for models that have none.

    All give the same rewards up to rounding. Between calls the scorer remembers sequences, each by itself: rows that
    come, go, change places, part, take turns or go back cost what of their text is new, and nothing else. Equal rows
    (beams and return sequences before they part) are computed once.

    Args:
        reward_model: The model; its token ids are taken to be those of the rows.
        options: `strategy` (one of the names above), `speculate`, `on_overflow`, `max_tokens_per_forward`,
            `cache_tokens`, `compile`, `prepack`; see `EngineOptions`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, or no strategy is exact on it.
    """

    def __init__(self, reward_model: RewardModel, **options: Unpack[EngineOptions]) -> None:
        super().__init__(reward_model, **options)

    def _request(self, prefixes: Prefixes, finished: Tensor, candidates: Tensor) -> ScoreRequest:
        candidates = candidates.to(self.reward_model.device)
        return ScoreRequest(
            prefixes=prefixes,
            token_tree=TokenTree(candidates),
            candidates=candidates,
            finished=finished,
            rewards_from_states=self._rewards_from_states,
        )

    def _rewards_from_states(
        self, states: Float[Tensor, "rows k state"], _: Int[Tensor, "rows k"]
    ) -> Float[Tensor, "rows k"]:
        return self.reward_model.rewards(states)

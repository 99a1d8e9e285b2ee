"""Rewards of next tokens from a causal reward model, one cached forward per step."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from rgtg_logits.padding import PADDING
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine import CachedScorer, EngineOptions, ScoreRequest, TokenTree


class CausalScorer(CachedScorer):
    """Scores k candidates of every row in one forward over [new prefix tokens | k candidates], the prefix cached once.

    The strategy by which the candidates share the prefix is chosen when the scorer is made, by a numeric probe on the
    loaded model:

    - "tree_attention": one copy of the prefix whatever k is, and a mask that keeps the candidates apart, as in Medusa
      and SpecInfer (also "tree_attention_sliding" and "tree_attention_mixed", for models with a sliding window in all
      or in some layers);
    - "expand": each candidate on its own copy of the cache, for models that cannot do that (recurrent layers, ALiBi by
      slot); "expand_model_cache", the same on a cache that only the model can make;
    - "recompute": no cache, for models that have none.

    All give the same rewards up to rounding. Between calls the scorer keeps a memory of the previous rows: other
    prompts, permuted, duplicated, dropped or rolled-back rows cost a recomputation of what changed and nothing else.
    Equal rows (beams and return sequences before they part) are computed once.

    Args:
        reward_model: The model; its token ids are taken to be those of the rows.
        options: `strategy` (one of the names above), `speculate`, `on_overflow`, `max_tokens_per_forward`, `compile`,
            `prepack`; see `EngineOptions`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, or no strategy is exact on it.
    """

    def __init__(self, reward_model: RewardModel, **options: Unpack[EngineOptions]) -> None:
        super().__init__(reward_model, **options)

    def _request(self, rows: Tensor, attention_mask: Tensor, candidates: Tensor) -> ScoreRequest:
        device = self.reward_model.device
        candidates = candidates.to(device)
        return ScoreRequest(
            padded_ids=torch.where(attention_mask.bool(), rows, PADDING).to(device),
            token_tree=TokenTree(candidates),
            candidates=candidates,
            finished=~attention_mask[:, -1].bool().to(device),
            rewards_from_states=self._rewards_from_states,
        )

    def _rewards_from_states(
        self, states: Float[Tensor, "rows k state"], _: Int[Tensor, "rows k"]
    ) -> Float[Tensor, "rows k"]:
        return self.reward_model.rewards(states)

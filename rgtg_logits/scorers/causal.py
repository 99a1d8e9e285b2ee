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

    How the candidates share the prefix is decided when the scorer is made, by a numeric probe on the loaded model:

    - "siblings": through an attention mask, one copy of the prefix whatever k is (also "siblings_sliding" and
      "siblings_mixed", for models with windowed attention in all or in some layers);
    - "expand": each candidate on its own copy of the cache, for models that cannot do that (recurrent layers, ALiBi by
      slot); "expand_own", the same on a cache that only the model can make;
    - "recompute": no cache, for models that have none.

    All give the same rewards up to rounding. What is kept between calls is a memory of the last rows: other prompts,
    permuted, duplicated, dropped or rolled-back rows cost a recomputation of what changed and nothing else. Equal rows
    (beams and return sequences before they part) are computed once.

    Args:
        reward_model: The model; its token ids are taken to be those of the rows.
        options: `path` (one of the names above), `speculate`, `on_overflow`, `max_tokens_per_forward`, `compile`,
            `prepack`; see `EngineOptions`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, or no path is exact on it.
    """

    def __init__(self, reward_model: RewardModel, **options: Unpack[EngineOptions]) -> None:
        super().__init__(reward_model, **options)

    def _question(self, rows: Tensor, attention_mask: Tensor, candidates: Tensor) -> ScoreRequest:
        device = self.reward_model.device
        keys = torch.where(attention_mask.bool(), rows, PADDING).to(device)
        asked, finished = candidates.to(device), ~attention_mask[:, -1].bool().to(device)
        return ScoreRequest(keys, TokenTree(asked), asked, finished, self._values)

    def _values(self, states: Float[Tensor, "rows k state"], _: Int[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
        return self.reward_model.rewards(states)

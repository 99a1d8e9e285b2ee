"""Rewards of next tokens from a causal reward model, one cached forward per step."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.prefix import PADDING
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers._branches import Branches
from rgtg_logits.scorers._cached import CachedScorer
from rgtg_logits.scorers._reader import Question


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
        path: One of the names above, or "auto" for the cheapest that is exact.
        speculate: Whether to take the ordinary step before looking at the rows, which keeps an accelerator busy; by
            default everywhere but on a CPU, where looking is free.
        on_overflow: What to do with a text longer than the model can read: "error", or "truncate_left" to let it read
            the end alone (and a start token), which it says once. The beginning is left out in steps of a quarter of
            the context, so that the cache is rebuilt rarely.
        max_tokens_per_forward: Most tokens (rows × columns, at least one per row) in one forward, to bound memory.
            Results are unchanged.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, or no path is exact on it.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        path: str = "auto",
        speculate: bool | None = None,
        on_overflow: str = "error",
        max_tokens_per_forward: int | None = None,
    ) -> None:
        super().__init__(
            reward_model, path=path, speculate=speculate, on_overflow=on_overflow,
            max_tokens_per_forward=max_tokens_per_forward,
        )  # fmt: skip

    def _question(self, rows: Tensor, attention_mask: Tensor, candidates: Tensor) -> Question:
        device = self.reward_model.device
        keys = torch.where(attention_mask.bool(), rows, PADDING).to(device)
        asked, finished = candidates.to(device), ~attention_mask[:, -1].bool().to(device)
        return Question(keys, Branches(asked), asked, finished, self._values)

    def _values(self, states: Float[Tensor, "rows k state"], _: Int[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
        return self.reward_model.rewards(states)

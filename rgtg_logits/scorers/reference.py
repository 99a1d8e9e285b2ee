"""The obviously right scorer that every fast one is compared with."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer


class ReferenceScorer(Scorer):
    """Scores each candidate by itself: no cache, no batch, no padding.

    Cost: `batch · k` forwards of the whole prefix per step. For tests and doubts.
    """

    def __init__(self, reward_model: RewardModel) -> None:
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size
        self.pad_token_id = reward_model.pad_token_id

    @torch.no_grad()
    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Runs the model once per candidate and reads the last reward; see `Scorer.score`."""
        rewards = torch.zeros(candidates.shape, device=candidates.device)
        for row in range(rows.shape[0]):
            if not attention_mask[row, -1]:
                continue
            prefix = rows[row][attention_mask[row].bool()]
            for slot in range(candidates.shape[1]):
                text = torch.cat([prefix, candidates[row, slot : slot + 1]])
                rewards[row, slot] = self.reward_model.score_tokens(text[None])[0, -1]
        return rewards

"""Scorers without a cache, in other batch shapes than the reference, that cached scorers are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.scorers import ReferenceScorer, Scorer

EXTRA_PADDING = 3
"""Columns of padding that are added to find out whether padding matters."""


class ReshapedScorer(ReferenceScorer):
    """Scores all candidates of a row in one uncached forward that is padded on the left.

    In half precision this alone changes rewards, because the kernels add up in another order.
    """

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Runs the model once per row; see `Scorer.score`."""
        rewards = torch.zeros(candidates.shape, device=candidates.device)
        for row in attention_mask[:, -1].nonzero()[:, 0].tolist():
            prefix = rows[row][attention_mask[row].bool()].tolist()
            texts = [self.read(prefix, candidate) for candidate in candidates[row].tolist()]
            # Where the reward model reads text, the texts of one row may differ in length.
            width = max(map(len, texts))
            tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
            mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
            prefix_rewards = self.reward_model.score_tokens(pad_left(tokens), pad_left(mask))
            ends = mask.sum(-1, keepdim=True).to(prefix_rewards.device) + EXTRA_PADDING - 1
            rewards[row] = prefix_rewards.gather(1, ends)[:, 0]
        return rewards


class RelativeScorer(Scorer):
    """Log-probabilities of a policy less those of its reference, if it has one, each row around its mean.

    A constant per row is free, and it is large: the sum over a long text, beside the one term by which candidates
    differ. Left in, it would set the size of rounding.

    Args:
        scorers: The policy's scorer, and perhaps its reference's.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = scorers
        self.vocab_size = scorers[0].vocab_size
        self.pad_token_id = scorers[0].pad_token_id

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Calls each scorer once; see `Scorer.score`."""
        rewards = self.scorers[0].score(rows, attention_mask, candidates)
        for reference in self.scorers[1:]:
            rewards = rewards - reference.score(rows, attention_mask, candidates)
        return rewards - rewards.mean(-1, keepdim=True)


def pad_left(rows: Int[Tensor, "batch length"]) -> Int[Tensor, "batch longer"]:
    """Rows, or their mask, with `EXTRA_PADDING` more columns of padding on the left."""
    return torch.nn.functional.pad(rows, (EXTRA_PADDING, 0))

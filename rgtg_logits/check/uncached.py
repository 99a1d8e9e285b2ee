"""Scorers without a cache for every kind of reward model, in two batch shapes, which a cached one is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.scorers import ReferenceScorer, Scorer

EXTRA = 3
"""Columns of padding added to see whether padding matters."""


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
            found = self.reward_model.score_tokens(padded(tokens), padded(mask))
            ends = mask.sum(-1, keepdim=True).to(found.device) + EXTRA - 1
            rewards[row] = found.gather(1, ends)[:, 0]
        return rewards


class RelativeScorer(Scorer):
    """The rewards of a policy less those of its reference, if there is one, each row around its mean.

    A total over a long text is large beside the one term that the candidates differ by, and so would be what passes for
    its rounding. A constant per row is free.

    Args:
        scorers: Of the policy and perhaps of its reference.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = scorers
        self.vocab_size, self.pad_token_id = scorers[0].vocab_size, scorers[0].pad_token_id

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Asks both; see `Scorer.score`."""
        policy, *reference = (scorer.score(rows, attention_mask, candidates) for scorer in self.scorers)
        rewards = policy - reference[0] if reference else policy
        return rewards - rewards.mean(-1, keepdim=True)


def padded(rows: Int[Tensor, "batch length"]) -> Int[Tensor, "batch longer"]:
    """Rows, or their mask, with some more padding on the left."""
    return torch.nn.functional.pad(rows, (EXTRA, 0))

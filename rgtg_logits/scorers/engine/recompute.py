"""Recomputation without a cache, for models that have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from rgtg_logits.reward_model import positions
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree


class Recompute(Strategy):
    """All continuations of a row behind copies of its prefix, without cache and padding."""

    @override
    def reset(self) -> None:
        pass

    @override
    def run(self, rows: Sequence[np.ndarray], token_tree: TokenTree) -> Float[Tensor, "batch k state"]:
        tokens, lengths = token_tree.continuations()
        states: Tensor | None = None
        for row, text in enumerate(rows):
            prefix = torch.from_numpy(text).to(tokens.device)
            # Continuations of one length at a time, so that none needs padding.
            for length in lengths[row].unique().tolist():
                slots = (lengths[row] == length).nonzero()[:, 0]
                for chunk in self._chunks(0, len(slots), len(prefix) + length):
                    end_states = self._end_states(prefix, tokens[row, slots[chunk], :length])
                    if states is None:
                        states = end_states.new_zeros(*lengths.shape, end_states.shape[-1])
                    states[row, slots[chunk]] = end_states
        assert states is not None
        return states

    def _end_states(self, prefix: Tensor, continuations: Tensor) -> Float[Tensor, "k state"]:
        input_ids = torch.cat([prefix.expand(continuations.shape[0], -1), continuations], dim=1)
        mask = torch.ones_like(input_ids)
        states, _ = self.reward_model.hidden_states(input_ids, mask, positions(mask), last=1)
        return states[:, -1]

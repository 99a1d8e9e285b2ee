"""Rewards of next tokens from a language model whose logits are rewards: one cached single-token step, whatever k."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import no_prefix_error
from rgtg_logits.scorers.engine import CachedScorer, EngineOptions, Prefixes, ScoreRequest, TokenTree


class VocabularyScorer(CachedScorer):
    """Scores next tokens by the logits of a causal language model: the logit of v behind a prefix is r(prefix, v).

    Such models (FaRMA, arXiv 2502.04517; RAD with a head over the vocabulary) give the rewards of all next tokens at
    once, so a step is one cached forward over one token, and k may be the whole vocabulary.

    Args:
        reward_model: A model of kind "vocabulary"; its token ids are taken to be those of the rows.
        options: How to run it; see `EngineOptions`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, has no logits, or no strategy is exact on it.
    """

    def __init__(self, reward_model: RewardModel, **options: Unpack[EngineOptions]) -> None:
        parts = self._split(reward_model)
        self._output_layer: nn.Linear | None = None if parts is None else parts[1]
        super().__init__(reward_model if parts is None else parts[0], **options)
        self.reward_model = reward_model
        self.vocab_size = min(reward_model.vocab_size, reward_model.num_next_tokens)

    @staticmethod
    def _split(reward_model: RewardModel) -> tuple[RewardModel, nn.Linear] | None:
        # The output layer is a quarter of a small model, and only its rows of the candidates are needed.
        return reward_model.split_output_layer()

    def _request(self, prefixes: Prefixes, finished: Tensor, candidates: Tensor) -> ScoreRequest:
        device = self.reward_model.device
        # The last token of a row is the one node of its tree. When another token follows, it need not be read again.
        if isinstance(prefixes, Tensor):
            before: Prefixes = prefixes[:, :-1]
            last = prefixes[:, -1:].clamp(min=0)
        elif not all(map(len, prefixes)):
            raise no_prefix_error()
        else:
            before = [row[:-1] for row in prefixes]
            last = torch.from_numpy(np.stack([row[-1:] for row in prefixes])).to(device)
        return ScoreRequest(
            prefixes=before,
            token_tree=TokenTree(last),
            candidates=candidates.to(device),
            finished=finished,
            rewards_from_states=self._rewards_from_states,
        )

    @profiled("head")
    def _rewards_from_states(
        self, states: Float[Tensor, "rows 1 state"], candidates: Int[Tensor, "rows k"]
    ) -> Float[Tensor, "rows k"]:
        state = states[:, 0]
        layer = self._output_layer
        if layer is None:
            return state.float().gather(-1, candidates.to(state.device))
        device = layer.weight.device
        state = state.to(device)
        candidates = candidates.to(device)
        if 4 * candidates.shape[1] > layer.weight.shape[0]:
            # One matrix product over the whole vocabulary is faster than gathering many rows.
            return layer(state).float().gather(-1, candidates).to(states.device)
        rewards = (layer.weight[candidates] @ state[..., None])[..., 0]
        if layer.bias is not None:
            rewards = rewards + layer.bias[candidates]
        return rewards.float().to(states.device)


class LogProbabilityScorer(VocabularyScorer):
    """Scores next tokens by their log-probability, in nats: log π(v | prefix)."""

    @staticmethod
    def _split(_: RewardModel) -> None:
        # All logits are needed to normalise.
        return None

    @profiled("head")
    def _rewards_from_states(
        self, logits: Float[Tensor, "rows 1 vocab"], candidates: Int[Tensor, "rows k"]
    ) -> Float[Tensor, "rows k"]:
        return logits[:, 0].float().log_softmax(-1).gather(-1, candidates.to(logits.device))

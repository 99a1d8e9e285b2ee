"""Rewards of whole texts, without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model.forward import token_scores
from rgtg_logits.tokenization import encode_finished

if TYPE_CHECKING:
    from rgtg_logits.reward_model.model import RewardModel


class ScoringMixin:
    """The methods of `RewardModel` that score texts and rows of token ids."""

    tokenizer: PreTrainedTokenizerBase | None

    @torch.no_grad()
    def score_tokens(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length"]:
        """The reward of every prefix of every row, in one forward.

        "causal": the head on each token's state. "vocabulary": the logit of each token given the tokens before it.
        "log_ratio": the sum of the log-probabilities of the tokens so far, without any reference model. With the last
        two, the first token of a text has nothing before it and gets 0. In a text longer than `uniform_length`, its
        prefixes are read as the whole text is, which is exact for the whole alone.

        Args:
            input_ids: Token ids, padded on either side.
            attention_mask: 1 for text, 0 for padding; all text by default.

        Returns:
            Rewards in the model's own unit; entry (b, t) is the reward of row b up to and including token t. 0 at
            padding.
        """
        model = cast("RewardModel", self)
        input_ids = input_ids.to(model.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(model.device)
        uniform = model.uniform_length
        if uniform is not None and int(mask.sum(-1).max()) > uniform:
            return self._score_each(input_ids, mask)
        states, _ = model.hidden_states(input_ids, mask, positions(mask))
        return self._token_rewards(states, input_ids, mask)

    def _score_each(self, input_ids: Tensor, mask: Tensor) -> Float[Tensor, "batch length"]:
        """`score_tokens` of each row by itself, because the longest would decide how all are rotated."""
        model = cast("RewardModel", self)
        # The last token of a text is scored by what comes before it, which is read as it was without that token.
        end = None if model.kind == "causal" else -1
        rewards = torch.zeros(input_ids.shape, device=model.device)
        for row, row_mask in enumerate(mask.bool()):
            ids = input_ids[row, row_mask][None]
            ones = torch.ones_like(ids)
            if ids[:, :end].numel():
                states, _ = model.hidden_states(ids[:, :end], ones[:, :end], positions(ones[:, :end]))
                rewards[row, row_mask] = self._token_rewards(states, ids, ones)[0]
        return rewards

    def _token_rewards(self, states: Tensor, input_ids: Tensor, mask: Tensor) -> Float[Tensor, "batch length"]:
        """The reward of each token from the states; of logits, those of the last column are not needed."""
        model = cast("RewardModel", self)
        if model.kind == "causal":
            return model.rewards(states).masked_fill(mask == 0, 0.0)
        scores = token_scores(states, input_ids, mask, log_softmax=model.kind == "log_ratio")
        return scores if model.kind == "vocabulary" else scores.cumsum(-1).masked_fill(mask == 0, 0.0)

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int = 16
    ) -> Float[Tensor, " batch"]:
        """The rewards of finished texts.

        Each text is prompt + response, tokenised in one go and closed with one end of text, as in training (see
        `tokenization.encode_finished`); its reward is the last one of `score_tokens`. With "log_ratio" that sums over
        the prompt too, so it compares responses to one prompt.

        Raises:
            InvalidArgumentError: If the lists differ in length, or the model came without a tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with a tokenizer, because score() reads text, but it has none. "
                "Pass tokenizer= to RewardModel, or use score_tokens()."
            )
        if len(prompts) != len(responses):
            raise InvalidArgumentError(
                f"Expected one response for each prompt, but got {len(prompts)} prompts and {len(responses)} responses."
            )
        rows = [
            encode_finished(self.tokenizer, prompt + response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self.score_rows(rows, batch_size=batch_size)

    def score_rows(self, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> Float[Tensor, " batch"]:
        """The reward of each whole row of token ids, which need not be of the same length; on the CPU."""
        scores = [self._score_batch(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return torch.cat(scores) if scores else torch.empty(0)

    def _score_batch(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, " batch"]:
        # Padded on the right, so that no architecture sees padding before text.
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        input_ids = torch.zeros_like(mask)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
        rewards = self.score_tokens(input_ids, mask).cpu()
        return rewards.gather(1, lengths[:, None] - 1)[:, 0]


def positions(mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """The position of each token in its own text; padding on the left is not counted.

    Models with learned positions would count columns, padding included, if they were not given positions.
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)

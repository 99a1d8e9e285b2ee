"""Rewards of whole texts, without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import ContextLengthError, InvalidArgumentError
from rgtg_logits.reward_model.forward import token_scores
from rgtg_logits.reward_model.texts import Conversations, Messages, Texts, paired
from rgtg_logits.tokenization import encode_conversation, encode_finished

if TYPE_CHECKING:
    from rgtg_logits.reward_model.model import RewardModel


class ScoringMixin:
    """The methods of `RewardModel` that score texts and rows of token ids."""

    tokenizer: PreTrainedTokenizerBase | None

    @torch.no_grad()
    def score_tokens(
        self,
        input_ids: Int[Tensor, "batch length"] | Texts | Conversations,
        attention_mask: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length"]:
        """The reward of every prefix of every row, in one forward.

        "causal": the head on each token's state. "vocabulary": the logit of each token given the tokens before it.
        "log_ratio": the sum of the log-probabilities of the tokens so far, without any reference model. With the last
        two, the first token of a text has nothing before it and gets 0. In a text longer than `uniform_length`, its
        prefixes are read as the whole text is, which is exact for the whole alone.

        Args:
            input_ids: Token ids, padded on either side; or texts or conversations, encoded as `score` encodes them and
                padded on the right.
            attention_mask: 1 for text, 0 for padding; all text by default.

        Returns:
            Rewards in the model's own unit; entry (b, t) is the reward of row b up to and including token t. 0 at
            padding.
        """
        model = cast("RewardModel", self)
        if not isinstance(input_ids, Tensor):
            rows = [self._encoded(text) for text in paired(input_ids, None)]
            if not rows:
                return torch.empty(0, 0)
            input_ids, attention_mask = _padded(rows)
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
        self, prompts: Texts | Conversations, responses: Texts | Conversations | None = None, *, batch_size: int = 16
    ) -> Float[Tensor, " batch"]:
        """The rewards of finished texts, or of conversations.

        A text is prompt + response, tokenised in one go and closed with one end of text, as in training (see
        `tokenization.encode_finished`). A conversation is rendered by the model's chat template, as in training. The
        reward is the last one of `score_tokens`. With "log_ratio" that sums over the prompt too, so it compares
        responses to one prompt.

        Args:
            prompts: Texts, or conversations (lists of messages with "role" and "content"). One may stand alone.
            responses: The response to each: a text, which continues a text, and is the assistant's message of a
                conversation; or messages. Left out, prompts are whole texts and conversations.
            batch_size: Number of texts in one forward.

        Raises:
            InvalidArgumentError: If the lists differ in length, hold anything else, or a text has no token; if the
                model came without a tokenizer, or has to read messages and has no chat template.
            ContextLengthError: If a text is longer than the model can read.
        """
        texts = paired(prompts, responses)
        return self.score_rows([self._encoded(text) for text in texts], batch_size=batch_size)

    def _encoded(self, text: str | Messages) -> list[int]:
        if self.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with a tokenizer, because score() reads text, but it has none. "
                "Pass tokenizer= to RewardModel, or use score_tokens()."
            )
        if isinstance(text, str):
            return encode_finished(self.tokenizer, text)
        return encode_conversation(self.tokenizer, text)

    def score_rows(self, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> Float[Tensor, " batch"]:
        """The reward of each whole row of token ids, which need not be of the same length; on the CPU.

        Raises:
            InvalidArgumentError: If a row has no token.
            ContextLengthError: If a row is longer than the model can read.
        """
        limit = cast("RewardModel", self).max_length
        for index, row in enumerate(rows):
            if not len(row):
                raise InvalidArgumentError(
                    f"Expected tokens in every text, but text {index} has none, and neither begins nor ends with a "
                    "special token. Leave it out."
                )
            if limit is not None and len(row) > limit:
                raise ContextLengthError(
                    f"Expected texts of at most {limit} tokens, the context of the reward model, but text {index} has "
                    f"{len(row)}. Shorten it, or use a reward model with a longer context."
                )
        scores = [self._score_batch(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return torch.cat(scores) if scores else torch.empty(0)

    def _score_batch(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, " batch"]:
        input_ids, mask = _padded(rows)
        rewards = self.score_tokens(input_ids, mask).cpu()
        return rewards.gather(1, mask.sum(-1, keepdim=True) - 1)[:, 0]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Rows and their mask, padded on the right, so that no architecture sees padding before text."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    input_ids = torch.zeros_like(mask)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    return input_ids, mask


def positions(mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """The position of each token in its own text; padding on the left is not counted.

    Models with learned positions would count columns, padding included, if they were not given positions.
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)

"""The reference scorer: no cache, no batch, no padding. Every fast scorer is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.text import Detokenizer, Retokenizer, checked_eos_token_ids
from rgtg_logits.tokenization import encode_finished, encode_prompt


class ReferenceScorer(Scorer):
    """Scores each candidate by itself: no cache, no batch, no padding.

    Cost: `batch · k` forwards of the whole prefix per step. For tests and doubts.

    Args:
        reward_model: A model of any kind. Of kind "log_ratio", a reward is log π of the whole text, without any
            reference model.
        tokenizer: The base model's tokenizer, for a model of kind "causal" with another one: the model reads each
            candidate's whole text, as in `RetokenizingScorer`. Left out, token ids are taken to be those of the rows.
        prompt_format: Format of prompt and answer for the reward model; see `RetokenizingScorer`.
        prompts: The base model's tokens of every prompt that rows begin with, where `prompt_format` has to distinguish
            prompt and answer.
        eos_token_id: Tokens that end the base model's text; see `RetokenizingScorer`.

    Raises:
        InvalidArgumentError: If a model that has to read text has no tokenizer, scores its own next tokens, or lacks
            the chat template that `prompt_format` needs, or if `eos_token_id` is no token id.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        prompt_format: str | Callable[[str, str], str] | None = None,
        prompts: Sequence[Sequence[int]] = (),
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size if tokenizer is None else len(tokenizer)
        self.pad_token_id = reward_model.pad_token_id if tokenizer is None else tokenizer.pad_token_id
        self._reader: _TextReader | None = None
        ends = checked_eos_token_ids(eos_token_id)
        if tokenizer is not None and prompt_format is None:
            self._reader = _TextReader(reward_model, tokenizer, ends)
        elif tokenizer is not None:
            self._reader = _FormattedTextReader(reward_model, tokenizer, ends, prompt_format, prompts)

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
            prefix = rows[row][attention_mask[row].bool()].tolist()
            for slot, candidate in enumerate(candidates[row].tolist()):
                tokens = self.read(prefix, candidate)
                rewards[row, slot] = self.reward_model.score_tokens(torch.tensor([tokens]))[0, -1]
        return rewards

    def read(self, prefix: list[int], candidate: int) -> list[int]:
        """Tokens, in the reward model's vocabulary, of a prefix without padding and a candidate."""
        return [*prefix, candidate] if self._reader is None else self._reader.tokens(prefix, candidate)


class _TextReader:
    """Text in a reward model's own tokens, tokenised as a whole each time."""

    def __init__(self, reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        rm_tokenizer = reward_model.tokenizer
        if rm_tokenizer is None or reward_model.kind != "causal":
            missing = "no tokenizer" if rm_tokenizer is None else f"the kind {reward_model.kind!r}"
            raise InvalidArgumentError(
                "Expected a reward model of kind 'causal' with its tokenizer, because it has to read text, but it has "
                f"{missing}. Leave tokenizer out, or pass RewardModel(model, tokenizer)."
            )
        self._detokenizer = Detokenizer(tokenizer, ends, incremental=False)
        self._rm_tokenizer = rm_tokenizer
        self._anchor = _anchor_token(reward_model, rm_tokenizer)

    def tokens(self, prefix: list[int], candidate: int) -> list[int]:
        """The tokens of the text; if the candidate ends it, of the text so far and its end."""
        if self._detokenizer.is_end(candidate):
            tokens = encode_finished(self._rm_tokenizer, self._detokenizer.decode(prefix))
        else:
            tokens = encode_prompt(self._rm_tokenizer, self._detokenizer.decode([*prefix, candidate]))
        return tokens or [self._anchor]


class _FormattedTextReader(_TextReader):
    """Text that a prompt format puts together from prompt and answer."""

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        prompt_format: str | Callable[[str, str], str] | None,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(reward_model, tokenizer, ends)
        self._retokenizer = Retokenizer(
            tokenizer, self._rm_tokenizer, prompt_format, eos_token_ids=ends, incremental=False
        )
        self._prompts = sorted(map(list, prompts), key=len, reverse=True)

    def tokens(self, prefix: list[int], candidate: int) -> list[int]:
        """The tokens of the text, in which the longest known prompt that the prefix begins with is the prompt."""
        end = self._prompt_length(prefix)
        (row,) = self._retokenizer.encode([prefix[:end]], [prefix[end:]], [[candidate]])
        return row.candidates[0] or [self._anchor]

    def _prompt_length(self, prefix: list[int]) -> int:
        for prompt in self._prompts:
            if prefix[: len(prompt)] == prompt:
                return len(prompt)
        raise InvalidArgumentError(
            f"Expected a row that begins with one of the {len(self._prompts)} prompts that this scorer was given, "
            "but none does. Pass prompts= of all rows that will be scored."
        )


def _anchor_token(reward_model: RewardModel, rm_tokenizer: PreTrainedTokenizerBase) -> int:
    """The token at which a text without any token is read."""
    candidates = (
        rm_tokenizer.bos_token_id,
        reward_model.text_config.bos_token_id,
        rm_tokenizer.eos_token_id,
        reward_model.pad_token_id,
    )
    for token in candidates:
        if token is not None:
            return token
    return 0

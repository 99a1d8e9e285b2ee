"""The obviously right scorer that every fast one is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.text import Detokenizer, Retokenizer
from rgtg_logits.tokenization import encode_finished, encode_prompt


class ReferenceScorer(Scorer):
    """Scores each candidate by itself: no cache, no batch, no padding.

    Cost: `batch · k` forwards of the whole prefix per step. For tests and doubts.

    Args:
        reward_model: A model of any kind. Of "log_ratio", a reward is log π of the whole text, without any reference
            model.
        tokenizer: The base model's tokenizer, for a model of kind "causal" with another one: it reads each candidate's
            whole text, as `RetokenizingScorer` says. Left out, token ids are taken to be those of the rows.
        prompt_format: How prompt and answer are put for the reward model; see `RetokenizingScorer`.
        prompts: The base model's tokens of every prompt that rows begin with, which `prompt_format` has to tell from
            the answer.

    Raises:
        InvalidArgumentError: If a model that is to read text has no tokenizer, scores its own next tokens, or has no
            chat template where one is asked for.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        prompt_format: str | Callable[[str, str], str] | None = None,
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size if tokenizer is None else len(tokenizer)
        self.pad_token_id = reward_model.pad_token_id if tokenizer is None else tokenizer.pad_token_id
        self._texts: _WholeTexts | None = None
        if tokenizer is not None and prompt_format is None:
            self._texts = _WholeTexts(reward_model, tokenizer)
        elif tokenizer is not None:
            self._texts = _FormattedTexts(reward_model, tokenizer, prompt_format, prompts)

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
        """What the reward model reads of a prefix without padding and a candidate, in its own tokens."""
        return [*prefix, candidate] if self._texts is None else self._texts.tokens(prefix, candidate)


class _WholeTexts:
    """Text in a reward model's own tokens, the whole of it tokenised from scratch each time."""

    def __init__(self, reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
        own = reward_model.tokenizer
        if own is None or reward_model.kind != "causal":
            missing = "no tokenizer" if own is None else f"the kind {reward_model.kind!r}"
            raise InvalidArgumentError(
                "Expected a reward model of kind 'causal' with its tokenizer, because it has to read text, but it has "
                f"{missing}. Leave tokenizer out, or pass RewardModel(model, tokenizer)."
            )
        self._base, self._own = Detokenizer(tokenizer, incremental=False), own
        # A text without any token still has to be read at something.
        starts = (own.bos_token_id, reward_model.text_config.bos_token_id, own.eos_token_id, reward_model.pad_token_id)
        self._anchor = next((token for token in starts if token is not None), 0)

    def tokens(self, prefix: list[int], candidate: int) -> list[int]:
        """The tokens of the text; if the candidate ends it, of the text so far and its end."""
        if self._base.is_end(candidate):
            tokens = encode_finished(self._own, self._base.decode(prefix))
        else:
            tokens = encode_prompt(self._own, self._base.decode([*prefix, candidate]))
        return tokens or [self._anchor]


class _FormattedTexts(_WholeTexts):
    """The same of texts put by a format."""

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: str | Callable[[str, str], str] | None,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(reward_model, tokenizer)
        self._writer = Retokenizer(tokenizer, self._own, prompt_format, incremental=False)
        self._prompts = sorted(map(list, prompts), key=len, reverse=True)

    def tokens(self, prefix: list[int], candidate: int) -> list[int]:
        """The tokens of the text, where the longest prompt that the prefix begins with is not answer."""
        end = next((len(prompt) for prompt in self._prompts if prefix[: len(prompt)] == prompt), None)
        if end is None:
            raise InvalidArgumentError(
                f"Expected a row that begins with one of the {len(self._prompts)} prompts that this scorer was given, "
                "but none does. Pass prompts= all that will be asked about."
            )
        (row,) = self._writer.encode([prefix[:end]], [prefix[end:]], [[candidate]])
        return row.candidates[0] or [self._anchor]

"""Rewards from a causal reward model that reads text, because its tokens are not those of the base model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine import (
    CachedScorer,
    EngineOptions,
    Layout,
    ScoreRequest,
    TokenTree,
    common_prefix,
    dropped,
    no_text,
)
from rgtg_logits.scorers.text import EncodedRow, PromptMemory, Retokenizer

SLACK = 64
"""Tokens of its context that a reward model keeps free for a candidate when the beginning of a text is left out."""


class RetokenizingScorer(CachedScorer):
    """Scores candidates by a reward model with another tokenizer: it reads their text.

    Every candidate's whole text (prompt, answer so far, candidate) is tokenised by the reward model's tokenizer as if
    alone, which is exact where tokens merge across the candidate's boundary. A candidate's reward is that of the text
    as far as it is text: one that ends in half a character counts as the text before it, one that is a special token
    as no text, and the base model's end-of-text token as the reward model's.

    The tokens that all candidates of a row share are read once and cached; their different endings go through in the
    same forward as a tree. A step costs one forward over a few tokens more than `CausalScorer` reads.

    Args:
        reward_model: A model of kind "causal" with its tokenizer.
        tokenizer: The base model's tokenizer.
        prompt_format: How prompt and answer are put for the reward model. None: one after the other, as the base model
            wrote them, special tokens left out. "chat": by the reward model's chat template, the answer as the last,
            unfinished message; turns that the base model's chat template wrote are told apart again. A function of
            prompt and answer text that returns the whole text. Where a prompt ends is told from which rows follow from
            which: a row that continues none seen before is a prompt.
        options: How to run it; see `EngineOptions`. With on_overflow="truncate_left" there is room for a candidate of
            64 tokens or a quarter of the context, whichever is less.

    Raises:
        InvalidArgumentError: If an argument is out of its range, the reward model came without a tokenizer, or a chat
            template is asked for and missing.
        RewardModelError: If the model is not causal, or no path is exact on it.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_format: str | Callable[[str, str], str] | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        if reward_model.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with its tokenizer, because it has to read text, but it came without one. "
                "Pass RewardModel(model, tokenizer) or load it with RewardModel.from_pretrained."
            )
        self._retokenizer = Retokenizer(tokenizer, reward_model.tokenizer, prompt_format)
        super().__init__(reward_model, trees=True, **options)
        # Texts are cut here, by what depends on the row alone; the reader would look at the longest candidate.
        self._truncates, self._reader.on_overflow = self._reader.on_overflow == "truncate_left", "error"
        self.vocab_size = len(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
        known = (self._reader.bos, reward_model.tokenizer.eos_token_id, reward_model.pad_token_id, 0)
        self._anchor = next(token for token in known if token is not None)
        self._prompts = PromptMemory()
        self._layout = Layout()

    def reset(self) -> None:
        """Forgets all rows, where their prompts end, and frees the cache."""
        with self._lock:
            super().reset()
            self._layout.reset()
            self._prompts = PromptMemory()

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate's text; see `Scorer.score` and, for the errors, `CausalScorer.score`."""
        empty = (attention_mask == 0).all(-1).nonzero()[:, 0].tolist()
        if empty:
            raise no_text(empty[0])
        running = attention_mask[:, -1].nonzero()[:, 0]
        rewards = torch.zeros(candidates.shape, device=candidates.device)
        if len(running) == 0:
            return rewards
        return rewards.index_copy(
            0, running, super().score(rows[running], attention_mask[running], candidates[running])
        )

    def observe(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Remembers where the rows' prompts end."""
        running = attention_mask[:, -1].nonzero()[:, 0]
        with self._lock:
            self._prompts.split(_texts(rows[running], attention_mask[running]))

    @profiled("tokenisation")
    def _question(self, rows: Tensor, attention_mask: Tensor, candidates: Tensor) -> ScoreRequest:
        texts = _texts(rows, attention_mask)
        ends = self._prompts.split(texts)
        encoded = self._retokenizer.encode(
            [text[:end] for text, end in zip(texts, ends, strict=True)],
            [text[end:] for text, end in zip(texts, ends, strict=True)],
            candidates.tolist(),
        )
        fitting = [self._fit(row) for row in encoded]
        shared = [_common(row) for row in fitting]
        device = self.reward_model.device
        keys = self._layout.place([row[0][:common] for row, common in zip(fitting, shared, strict=True)])
        branches = TokenTree.grow(
            [[tokens[common:] for tokens in row] for row, common in zip(fitting, shared, strict=True)]
        )
        finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
        asked = candidates.to(device)
        return ScoreRequest(keys.to(device), branches.to(device), asked, finished, self._values, own_ids=False)

    def _values(self, states: Float[Tensor, "rows k state"], _: Int[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
        return self.reward_model.rewards(states)

    def _fit(self, row: EncodedRow) -> list[list[int]]:
        """The candidates' tokens, without a beginning that the model cannot read."""
        limit = self.reward_model.max_length
        # A text without any token (a start token and half a character, say) still has to be read at something.
        candidates = [tokens or [self._anchor] for tokens in row.candidates]
        if limit is None or not self._truncates:
            return candidates
        # By the length of the row alone, because a candidate's reward must not depend on its siblings.
        drop = dropped(len(row.own) + min(SLACK, limit // 4), limit)
        if drop == 0:
            return candidates
        self._reader.warn_of_overflow(limit)
        start = int(row.own[0] == self._reader.bos)
        return [[*tokens[:start], *tokens[start + drop :]] for tokens in candidates]


def _texts(rows: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """The rows without padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(rows, attention_mask, strict=True)]


def _common(candidates: list[list[int]]) -> int:
    """How many tokens all candidates begin with, short of the last token of any: each has one to be read at."""
    # What the first and the last in order share, all share.
    shared = common_prefix(min(candidates), max(candidates))
    return min(shared, min(map(len, candidates)) - 1)

"""The scorer for reward models with another vocabulary: the reward model reads the text of each candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
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
    Prefixes,
    ScoreRequest,
    TokenTree,
    empty_row_error,
    num_dropped_tokens,
    unpadded_rows,
)
from rgtg_logits.scorers.text import EncodedRow, PromptMemory, Retokenizer, checked_eos_token_ids
from rgtg_logits.tokenization import common_prefix_length

SLACK = 64
"""Tokens of the reward model's context that truncation keeps free for a candidate."""


class RetokenizingScorer(CachedScorer):
    """Scores candidates by a reward model with another tokenizer, which reads their text.

    Every candidate's whole text (prompt, answer so far, candidate) is tokenised by the reward model's tokenizer as if
    alone, which is exact where tokens merge across the candidate's boundary. A candidate that ends in half a character
    counts as the text before that character, a special token as no text, and a token that ends the base model's text
    as the end of a finished text of the reward model.

    The tokens that all candidates of a row share are read once and cached; their different endings go through in the
    same forward by tree attention. A step costs one forward over a few tokens more than `CausalScorer` reads.

    Args:
        reward_model: A model of kind "causal" with its tokenizer.
        tokenizer: The base model's tokenizer.
        prompt_format: Format of prompt and answer for the reward model. None: one after the other, as the base model
            wrote them, special tokens left out. "chat": by the reward model's chat template, the answer as the last,
            unfinished message; the turns of a prompt that the base model's chat template rendered are parsed first. A
            function of prompt and answer text: the whole text that it returns. Prompts are found by which rows continue
            which: a row that continues no earlier one is a prompt; see `PromptMemory`.
        eos_token_id: Tokens that end the base model's text besides its tokenizer's own, as in generation configs. The
            special token that its chat template writes directly behind an assistant's message is among them anyway.
        options: How to run the reward model; see `EngineOptions`. With on_overflow="truncate_left" there is room for a
            candidate of 64 tokens or a quarter of the context, whichever is less.

    Raises:
        InvalidArgumentError: If an argument is out of its range, the reward model came without a tokenizer, or a chat
            template is needed and missing.
        RewardModelError: If the model is not causal, or no strategy is exact on it.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_format: str | Callable[[str, str], str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        if reward_model.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with its tokenizer, because it has to read text, but it came without one. "
                "Pass RewardModel(model, tokenizer) or load it with RewardModel.from_pretrained."
            )
        ends = checked_eos_token_ids(eos_token_id)
        self._retokenizer = Retokenizer(tokenizer, reward_model.tokenizer, prompt_format, eos_token_ids=ends)
        super().__init__(reward_model, trees=True, **options)
        # Texts are truncated here, by the row alone; the engine would go by the longest candidate.
        self._truncates = self._engine.on_overflow == "truncate_left"
        self._engine.on_overflow = "error"
        self.vocab_size = len(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
        known = (self._engine.bos_token_id, reward_model.tokenizer.eos_token_id, reward_model.pad_token_id, 0)
        self._anchor = next(token for token in known if token is not None)
        self._prompts = PromptMemory()

    def reset(self) -> None:
        """Forgets all rows, where their prompts end, and frees the cache."""
        with self._lock:
            super().reset()
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
            raise empty_row_error(empty[0])
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
            self._prompts.prompt_lengths(_texts(rows[running], attention_mask[running]))

    @profiled("tokenisation")
    def _request(self, prefixes: Prefixes, finished: Tensor, candidates: Tensor) -> ScoreRequest:
        texts = [row.tolist() for row in unpadded_rows(prefixes)]
        ends = self._prompts.prompt_lengths(texts, candidates.tolist(), self._retokenizer.can_be_prompt)
        encoded = self._retokenizer.encode(
            [text[:end] for text, end in zip(texts, ends, strict=True)],
            [text[end:] for text, end in zip(texts, ends, strict=True)],
            candidates.tolist(),
        )
        fitting = [self._fit(row) for row in encoded]
        shared = [_common(row) for row in fitting]
        device = self.reward_model.device
        beginnings = [np.array(row[0][:common], dtype=np.int64) for row, common in zip(fitting, shared, strict=True)]
        token_tree = TokenTree.from_continuations(
            [[tokens[common:] for tokens in row] for row, common in zip(fitting, shared, strict=True)]
        )
        return ScoreRequest(
            prefixes=beginnings,
            token_tree=token_tree.to(device),
            candidates=candidates.to(device),
            finished=finished,
            rewards_from_states=self._rewards_from_states,
            shared_vocabulary=False,
        )

    def _rewards_from_states(
        self, states: Float[Tensor, "rows k state"], _: Int[Tensor, "rows k"]
    ) -> Float[Tensor, "rows k"]:
        return self.reward_model.rewards(states)

    def _fit(self, row: EncodedRow) -> list[list[int]]:
        """The candidates' tokens, without the beginning that does not fit into the model's context."""
        limit = self.reward_model.max_length
        # A text without any token (a start token and half a character, say) still has to be read at something.
        candidates = [tokens or [self._anchor] for tokens in row.candidates]
        if limit is None or not self._truncates:
            return candidates
        # By the length of the row alone, because a candidate's reward must not depend on the other candidates.
        drop = num_dropped_tokens(len(row.prefix) + min(SLACK, limit // 4), limit)
        if drop == 0:
            return candidates
        self._engine.warn_of_overflow(limit)
        start = int(row.prefix[0] == self._engine.bos_token_id)
        return [[*tokens[:start], *tokens[start + drop :]] for tokens in candidates]


def _texts(rows: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """The rows without padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(rows, attention_mask, strict=True)]


def _common(candidates: list[list[int]]) -> int:
    """Number of tokens that all candidates begin with, short of the last token of any, at which its reward is read."""
    # The first and the last in lexicographic order share the least.
    shared = common_prefix_length(min(candidates), max(candidates))
    return min(shared, min(map(len, candidates)) - 1)

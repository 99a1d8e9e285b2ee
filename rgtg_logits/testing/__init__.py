"""Tools for tests, of this package and of users: tiny models and tokenizers, and the laws of a scorer as assertions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    set_seed,
)

from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.scorers import Scorer
from rgtg_logits.testing.sequence_laws import SequenceLaws
from rgtg_logits.testing.tokenizers import TOKENIZER_KINDS, tiny_tokenizer

__all__ = [
    "EOS",
    "PAD",
    "TINY",
    "TOKENIZER_KINDS",
    "VOCAB_SIZE",
    "check_scorer",
    "tiny_base_model",
    "tiny_config",
    "tiny_reward_model",
    "tiny_tokenizer",
    "tiny_vocabulary_model",
]

VOCAB_SIZE = 61
PAD, EOS = 0, 1

_SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_GPT = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}

TINY: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "gpt2": _GPT,
    "qwen3": _SMALL,
    "mistral": {**_SMALL, "sliding_window": 8},
    "gemma2": {**_SMALL, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "bloom": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neo": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 128,
    },
    "jamba": {
        **_SMALL,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}
"""Tiny configurations by model type, together covering the kinds of attention in decoders."""


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A configuration of the given type with 61 tokens, two layers and a width of 32."""
    options = {"pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS, **TINY[model_type], **changes}
    return AutoConfig.for_model(model_type, **options)


def tiny_base_model(model_type: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A language model with random weights, whose next tokens are neither uniform nor certain."""
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.3)
    return model


def tiny_reward_model(model_type: str = "llama", *, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A sequence classifier with random weights and a head so large that its rewards change the tokens drawn."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(tiny_config(model_type, num_labels=1, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Random weights of the usual size make attention nearly uniform, which would hide a wrong mask.
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if name.startswith("score") else 0.2)
    return model


def tiny_vocabulary_model(model_type: str = "llama", *, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A language model whose random logits are so large that, read as rewards, they change the tokens drawn."""
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def check_scorer(
    scorer: Scorer,
    reference: Scorer | None = None,
    *,
    vocab_size: int | None = None,
    pad_token_id: int = 0,
    rounds: int = 4,
    lengths: tuple[int, int] = (2, 10),
    seed: int = 0,
    tolerance: float = 1e-4,
    count: Callable[[], int] | None = None,
    recurrent: bool = False,
    change: Callable[[], object] | None = None,
) -> float:
    """Checks the laws of `Scorer` on random rows, and returns the largest difference of rewards.

    Laws 6, 7 and 9 speak of what a scorer remembers, which shows in what its model reads: they are checked if `count`
    is passed, on texts of up to 100 tokens, and law 8 if `change` is.

    Args:
        scorer: The scorer to check.
        reference: A scorer without a cache to compare with (law 5), such as `ReferenceScorer`; left out, that law is
            not checked.
        vocab_size: Number of token ids to draw from; by default the scorer's.
        pad_token_id: The token that pads.
        rounds: Number of random histories.
        lengths: Smallest and largest number of tokens of the longest row of a batch. A model that treats distant tokens
            differently (by a sliding window, say) is only checked where rows reach that far.
        seed: Seed of the histories.
        tolerance: Largest difference between rewards, in the scorer's unit, that counts as rounding.
        count: Gives the number of tokens that the scorer's model has read so far, as `tokens` of
            `rgtg_logits.instruments.count_forwards` does.
        recurrent: Whether the model's memory of a text cannot be cut back, so that only whole texts are continued.
        change: Changes the model, of scorer and reference alike: its weights, or its active adapter.

    Raises:
        AssertionError: If a law is broken; the message names it.
        ValueError: If no vocabulary size is known, or `change` has nothing to be compared with, or changes no reward.
    """
    size = vocab_size or scorer.vocab_size
    if size is None:
        raise ValueError("Expected to know the vocabulary, but the scorer has no vocab_size. Pass vocab_size=.")
    if change is not None and reference is None:
        raise ValueError("Expected a reference where change is given, to compare with. Pass a scorer without a cache.")
    generator = torch.Generator().manual_seed(seed)
    laws = _Laws(scorer, reference, size, pad_token_id, lengths, tolerance, generator, count)
    for _ in range(rounds):
        laws.check_round()
    sequences = SequenceLaws(laws.score_texts, size, generator, recurrent)
    if count is not None:
        sequences.check_others_cost_nothing()
        sequences.check_beginnings_are_shared()
        sequences.check_errors_are_of_one_row()
    if change is not None:
        sequences.check_memory_follows_the_model(change)
    return laws.worst


@dataclass
class _Laws:
    """The laws of a scorer; see `check_scorer`.

    Attributes:
        worst: Largest difference of rewards so far.
        read: Tokens that the scorer's model read in the last call, if they are counted.
    """

    scorer: Scorer
    reference: Scorer | None
    vocab_size: int
    pad_token_id: int
    lengths: tuple[int, int]
    tolerance: float
    generator: torch.Generator
    count: Callable[[], int] | None = None
    worst: float = 0.0
    read: int = 0

    def check_round(self) -> None:
        """Scores one random batch, also permuted, split, padded, extended, duplicated and rewound."""
        rows, candidates = self._random_batch()
        first = self._score(rows, candidates)
        order = torch.randperm(len(rows), generator=self.generator)
        self._compare(self._score(rows[order], candidates[order]), first[order], "permuting rows permutes results")
        for row in range(len(rows)):
            alone = self._score(rows[row : row + 1], candidates[row : row + 1])
            self._compare(alone, first[row : row + 1], "a row alone gives the same as in a batch")
        padded = torch.cat([torch.full((len(rows), 2), self.pad_token_id), rows], dim=1)
        self._compare(self._score(padded, candidates), first, "left padding changes nothing")
        prefixes = [row[row != self.pad_token_id].tolist() for row in rows]
        sequences = self.scorer.score_sequences(prefixes, candidates)
        self._compare(sequences, first, "sequences give the same as padded rows")
        sampled = candidates.gather(1, self._random_ints(candidates.shape[1], (len(rows), 1)))
        longer = torch.cat([rows, sampled], dim=1)
        duplicated = longer.repeat_interleave(2, dim=0)
        second = self._score(duplicated, candidates.repeat_interleave(2, dim=0))[::2]
        self._compare(self._score(longer, candidates), second, "duplicated rows give the same")
        self._score(*self._random_batch())
        self._compare(self._score(rows, candidates), first, "a repeated call gives the same")
        self._compare(self._score(longer, candidates), second, "a repeated call gives the same")
        self._compare(self._score(longer[:1], candidates[:1]), second[:1], "dropping rows changes nothing")

    def score_texts(self, texts: Sequence[list[int]], candidates: Tensor) -> tuple[Tensor, int]:
        """Scores candidates of texts, and checks the rewards; returns them, and the number of tokens read."""
        width = max(map(len, texts))
        rows = torch.tensor([[self.pad_token_id] * (width - len(text)) + text for text in texts])
        mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
        return self._checked(rows, mask, candidates), self.read

    def _random_batch(self) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch k"]]:
        batch = self._random_int(2, 4)
        length = self._random_int(*self.lengths)
        k = self._random_int(2, 5)
        rows = self._random_ints(self.vocab_size - 1, (batch, length)) + 1
        rows[rows == self.pad_token_id] = (self.pad_token_id + 1) % self.vocab_size
        for row in range(1, batch):
            rows[row, : int(self._random_ints(length - 1, (1,)))] = self.pad_token_id
        candidates = [torch.randperm(self.vocab_size, generator=self.generator)[:k] for _ in range(batch)]
        return rows, torch.stack(candidates)

    def _score(self, rows: Tensor, candidates: Tensor) -> Tensor:
        return self._checked(rows, infer_attention_mask(rows, self.pad_token_id), candidates)

    def _checked(self, rows: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        before = self.count() if self.count is not None else 0
        rewards = self.scorer.score(rows, mask, candidates)
        self.read = self.count() - before if self.count is not None else 0
        if not bool(rewards.isfinite().all()):
            raise AssertionError(f"Broken law: rewards are finite. Got {rewards.tolist()}.")
        if self.reference is not None:
            expected = self.reference.score(rows, mask, candidates)
            self._compare(rewards, expected, "results equal those without a cache")
        return rewards

    def _compare(self, rewards: Tensor, expected: Tensor, law: str) -> None:
        # Rewards are fixed up to a constant per row.
        difference = float(((rewards - rewards[:, :1]) - (expected - expected[:, :1])).abs().max())
        self.worst = max(self.worst, difference)
        if not difference <= self.tolerance:
            raise AssertionError(f"Broken law: {law}. Rewards differ by {difference:.3g}, more than {self.tolerance}.")

    def _random_int(self, low: int, high: int) -> int:
        return int(self._random_ints(high - low + 1, (1,))) + low

    def _random_ints(self, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, max(high, 1), shape, generator=self.generator)

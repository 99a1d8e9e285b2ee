"""For tests, ours and yours: tiny models and tokenizers built in code, and the laws of a scorer as assertions."""

from __future__ import annotations

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

from rgtg_logits.padding import text_mask
from rgtg_logits.scorers import Scorer
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
"""Tiny configurations by model type, together covering the ways a decoder can attend."""


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
    """A sequence classifier with random weights and a head so large that its rewards change what is drawn."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(tiny_config(model_type, num_labels=1, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Random weights of the usual size make attention nearly uniform, which would hide a wrong mask.
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if name.startswith("score") else 0.2)
    return model


def tiny_vocabulary_model(model_type: str = "llama", *, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A language model whose random logits are so large that, read as rewards, they change what is drawn."""
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
) -> float:
    """Checks the laws of `Scorer` on random rows, and returns the worst difference seen.

    Args:
        scorer: The scorer to check.
        reference: A scorer without a cache to compare with (law 5), such as `ReferenceScorer`; left out, that law is
            not checked.
        vocab_size: Token ids to draw from; by default the scorer's.
        pad_token_id: The token that pads.
        rounds: How many random histories.
        lengths: Fewest and most tokens of the longest row of a batch. A model that treats distant tokens differently (a
            window, say) is only checked where rows reach that far.
        seed: Seed of the histories.
        tolerance: Largest difference between rewards, in the scorer's unit, that is taken for rounding.

    Raises:
        AssertionError: If a law is broken; the message names it.
        ValueError: If no vocabulary size is known.
    """
    size = vocab_size or scorer.vocab_size
    if size is None:
        raise ValueError("Expected to know the vocabulary, but the scorer has no vocab_size. Pass vocab_size=.")
    laws = _Laws(scorer, reference, size, pad_token_id, lengths, tolerance, torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        laws.round()
    return laws.worst


class _Laws:
    def __init__(
        self,
        scorer: Scorer,
        reference: Scorer | None,
        size: int,
        pad: int,
        lengths: tuple[int, int],
        tolerance: float,
        generator: torch.Generator,
    ) -> None:
        self.scorer, self.reference, self.size, self.pad, self.lengths = scorer, reference, size, pad, lengths
        self.tolerance, self.generator, self.worst = tolerance, generator, 0.0

    def round(self) -> None:
        """One random batch that is asked about, permuted, split, padded, extended, rewound and asked about again."""
        rows, candidates = self.batch()
        first = self.ask(rows, candidates)
        order = torch.randperm(len(rows), generator=self.generator)
        self.expect(self.ask(rows[order], candidates[order]), first[order], "permuting rows permutes results")
        for row in range(len(rows)):
            alone = self.ask(rows[row : row + 1], candidates[row : row + 1])
            self.expect(alone, first[row : row + 1], "a row alone gives the same as in a batch")
        padded = torch.cat([torch.full((len(rows), 2), self.pad), rows], dim=1)
        self.expect(self.ask(padded, candidates), first, "left padding changes nothing")
        drawn = candidates.gather(1, self.integers(candidates.shape[1], (len(rows), 1)))
        longer = torch.cat([rows, drawn], dim=1)
        doubled = longer.repeat_interleave(2, dim=0)
        second = self.ask(doubled, candidates.repeat_interleave(2, dim=0))[::2]
        self.expect(self.ask(longer, candidates), second, "duplicated rows give the same")
        self.ask(*self.batch())
        self.expect(self.ask(rows, candidates), first, "asking again gives the same")
        self.expect(self.ask(longer, candidates), second, "asking again gives the same")
        self.expect(self.ask(longer[:1], candidates[:1]), second[:1], "dropping rows changes nothing")

    def batch(self) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch k"]]:
        shortest, longest = self.lengths
        ranges = ((2, 4), (shortest, longest), (2, 5))
        batch, length, k = (int(self.integers(high - low + 1, (1,))) + low for low, high in ranges)
        rows = self.integers(self.size - 1, (batch, length)) + 1
        rows[rows == self.pad] = (self.pad + 1) % self.size
        for row in range(1, batch):
            rows[row, : int(self.integers(length - 1, (1,)))] = self.pad
        candidates = torch.stack([torch.randperm(self.size, generator=self.generator)[:k] for _ in range(batch)])
        return rows, candidates

    def ask(self, rows: Tensor, candidates: Tensor) -> Tensor:
        mask = text_mask(rows, self.pad)
        rewards = self.scorer.score(rows, mask, candidates)
        if not bool(rewards.isfinite().all()):
            raise AssertionError(f"Broken law: rewards are finite. Got {rewards.tolist()}.")
        if self.reference is not None:
            self.expect(rewards, self.reference.score(rows, mask, candidates), "results equal those without a cache")
        return rewards

    def expect(self, got: Tensor, wanted: Tensor, law: str) -> None:
        # A constant per row is free.
        difference = float(((got - got[:, :1]) - (wanted - wanted[:, :1])).abs().max())
        self.worst = max(self.worst, difference)
        if not difference <= self.tolerance:
            raise AssertionError(f"Broken law: {law}. Rewards differ by {difference:.3g}, more than {self.tolerance}.")

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, max(high, 1), shape, generator=self.generator)

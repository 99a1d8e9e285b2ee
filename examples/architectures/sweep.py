"""One architecture: a tiny model with random weights, and the error of its cached rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from tiny import REACH, tiny_config
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from rgtg_logits import CausalScorer, ReferenceScorer, RewardModel, Scorer
from rgtg_logits.errors import RGTGError
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.reward_model import check_decoder, classifier_class
from rgtg_logits.testing import PAD, VOCAB_SIZE, check_scorer

ROUNDING = 1e-4
"""Largest error, in spreads of the rewards, that counts as rounding."""
SENSITIVE = 0.05
"""Smallest spread, and smallest part of it that the prefix decides, at which exactness is informative."""
LARGEST = 3_000_000
"""Parameters of the largest model that is built: a larger one has a size that `tiny` does not set."""
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NameError)
"""Exceptions of a model that does not fit; an error of this library would give the reason."""


@dataclass(frozen=True)
class Row:
    """The result for one architecture.

    Attributes:
        name: The model type.
        model: Name of the model's class, "" if there is none.
        outcome: The strategy that the probe chose, or the reason why there is none.
        error: Worst difference to the reference, in the unit of the reward.
        spread: Standard deviation of the rewards of a row's candidates, in the same unit.
        prefix: The part of the spread that the prefix decides.
    """

    name: str
    model: str
    outcome: str
    error: float | None = None
    spread: float | None = None
    prefix: float | None = None


def examine(name: str, *, prepack: bool = False, **changes: Any) -> Row:
    """Builds the reward model of a type and compares the scorer that the library chooses with the reference.

    Args:
        name: A model type, perhaps followed by a comma and a remark.
        prepack: Whether to lay its weights out beforehand.
        changes: Options of its configuration.
    """
    kind = ""
    try:
        config = tiny_config(name.partition(",")[0], **changes)
        cls = classifier_class(config)
        kind = cls.__name__
        check_decoder(config, kind)
        reward_model = RewardModel(_random(cls, config))
        scorer, reference = CausalScorer(reward_model, prepack=prepack), ReferenceScorer(reward_model)
        error = worst_error(scorer, reference)
        spread, prefix = sensitivity(reference)
    except RGTGError as refusal:
        return Row(name, kind, f"refused: {_clause(refusal)}")
    except (ImportError, StrictDataclassError, _TooLargeError) as obstacle:
        return Row(name, kind, f"not built: {_clause(obstacle)}")
    except FAILURES as failure:
        return Row(name, kind, f"**unclear error**: {type(failure).__name__}: {_clause(failure)}")
    outcome = scorer.strategy
    if not error <= ROUNDING * spread:
        outcome = f"**inexact**: {outcome}"
    elif not min(spread, prefix) >= SENSITIVE:
        outcome = f"**says nothing**: {outcome}"
    return Row(name, kind, outcome, error, spread, prefix)


def worst_error(scorer: Scorer, reference: Scorer) -> float:
    """The worst difference on short rows, on rows that reach past every window, and on rows that grow past them."""
    lengths = ((2, 10), (REACH + 4, REACH + 16))
    errors = [check_scorer(scorer, reference, rounds=2, lengths=each, tolerance=float("inf")) for each in lengths]
    return max(*errors, _error_while_growing(scorer, reference))


def _error_while_growing(scorer: Scorer, reference: Scorer) -> float:
    """As in generation: the same rows, longer by one of the candidates each time."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, VOCAB_SIZE, (2, REACH - 6), generator=generator)
    rows[1, :5] = PAD
    worst = 0.0
    for _ in range(12):
        candidates = torch.stack([torch.randperm(VOCAB_SIZE - 1, generator=generator)[:3] + 1 for _ in rows])
        mask = infer_attention_mask(rows, PAD)
        difference = scorer.score(rows, mask, candidates) - reference.score(rows, mask, candidates)
        worst = max(worst, float(_relative_to_row(difference).abs().max()))
        rows = torch.cat([rows, candidates[:, :1]], dim=1)
    return worst


def sensitivity(reference: Scorer) -> tuple[float, float]:
    """The spread of the rewards, and the part of it that the prefix decides: the same candidates on other prefixes."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1, VOCAB_SIZE, (6, 10), generator=generator)
    candidates = (torch.randperm(VOCAB_SIZE - 1, generator=generator)[:4] + 1).expand(6, -1)
    rewards = _relative_to_row(reference.score(rows, torch.ones_like(rows), candidates))
    return float(rewards.std()), float((rewards - rewards.mean(0)).std() / rewards.std())


def _relative_to_row(rewards: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """Rewards around the mean of their row, because they are fixed up to a constant per row."""
    return rewards - rewards.mean(-1, keepdim=True)


class _TooLargeError(Exception):
    pass


def _random(cls: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model whose weights are so large that a token seen or missed changes its reward."""
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in cls._from_config(config).parameters())
    except NotImplementedError:
        size = 0  # Some layers compute values when they are built, which needs memory.
    if size > LARGEST:
        raise _TooLargeError(f"{size / 1e6:.0f}M parameters with the tiny configuration")
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if name.startswith(("score", "classifier")) else 0.2)
            elif not parameter.any():
                # Gates and biases start at 0, which would hide what they guard.
                parameter.normal_(std=0.2)
    return model


def _clause(error: Exception) -> str:
    """The first clause of an error's message."""
    text = " ".join(str(error).split())
    return text.split(", but")[0].split(". ")[0].replace("|", "/")

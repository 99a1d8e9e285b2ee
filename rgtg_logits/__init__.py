"""Reward-guided text generation for transformers: one logits processor, exact and cached."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rgtg_logits.decoding_step import GuidedStep, guided_step
    from rgtg_logits.errors import RGTGError
    from rgtg_logits.processor import PartialRewardLogitsProcessor
    from rgtg_logits.reward_model import RewardModel, RewardModelConfig
    from rgtg_logits.scorers import (
        CausalScorer,
        LogRatioScorer,
        ReferenceScorer,
        RetokenizingScorer,
        Scorer,
        VocabularyScorer,
        WeightedScorer,
    )
    from rgtg_logits.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "CausalScorer",
    "GuidedStep",
    "LogRatioScorer",
    "PartialRewardLogitsProcessor",
    "RGTGError",
    "ReferenceScorer",
    "RetokenizingScorer",
    "RewardModel",
    "RewardModelConfig",
    "Scorer",
    "Trace",
    "VocabularyScorer",
    "WeightedScorer",
    "__version__",
    "guided_step",
]

_MODULES = {
    "CausalScorer": "scorers",
    "GuidedStep": "decoding_step",
    "LogRatioScorer": "scorers",
    "PartialRewardLogitsProcessor": "processor",
    "RGTGError": "errors",
    "ReferenceScorer": "scorers",
    "RetokenizingScorer": "scorers",
    "RewardModel": "reward_model",
    "RewardModelConfig": "reward_model",
    "Scorer": "scorers",
    "Trace": "trace",
    "VocabularyScorer": "scorers",
    "WeightedScorer": "scorers",
    "guided_step": "decoding_step",
}
"""The module of each public name. It is imported when the name is first used (PEP 562), because torch and transformers
take seconds to import, which `rgtg --help` does not need."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES.values():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

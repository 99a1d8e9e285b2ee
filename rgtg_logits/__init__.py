"""Reward-guided text generation for transformers: one logits processor, exact and cached."""

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
]

"""Scorers, which give rewards of next tokens: their contract, and one file for each."""

from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.causal import CausalScorer
from rgtg_logits.scorers.engine import CachedScorer, EngineOptions, check_causal
from rgtg_logits.scorers.known_tokens import KnownTokens
from rgtg_logits.scorers.log_ratio import LogRatioScorer
from rgtg_logits.scorers.make import load_scorer, make_scorer
from rgtg_logits.scorers.reference import ReferenceScorer
from rgtg_logits.scorers.retokenizing import RetokenizingScorer
from rgtg_logits.scorers.text import Detokenizer, Retokenizer, checked_eos_token_ids
from rgtg_logits.scorers.vocabulary import VocabularyScorer
from rgtg_logits.scorers.weighted import RewardFunction, WeightedScorer, checked_rewards

__all__ = [
    "CachedScorer",
    "CausalScorer",
    "Detokenizer",
    "EngineOptions",
    "KnownTokens",
    "LogRatioScorer",
    "ReferenceScorer",
    "Retokenizer",
    "RetokenizingScorer",
    "RewardFunction",
    "Scorer",
    "VocabularyScorer",
    "WeightedScorer",
    "check_causal",
    "checked_eos_token_ids",
    "checked_rewards",
    "load_scorer",
    "make_scorer",
]

"""Everything that gives rewards of next tokens."""

from rgtg_logits.scorers._options import ReaderOptions
from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.causal import CausalScorer
from rgtg_logits.scorers.log_ratio import LogRatioScorer
from rgtg_logits.scorers.make import make_scorer
from rgtg_logits.scorers.reference import ReferenceScorer
from rgtg_logits.scorers.retokenizing import RetokenizingScorer
from rgtg_logits.scorers.vocabulary import VocabularyScorer
from rgtg_logits.scorers.weighted import WeightedScorer

__all__ = [
    "CausalScorer",
    "LogRatioScorer",
    "ReaderOptions",
    "ReferenceScorer",
    "RetokenizingScorer",
    "Scorer",
    "VocabularyScorer",
    "WeightedScorer",
    "make_scorer",
]

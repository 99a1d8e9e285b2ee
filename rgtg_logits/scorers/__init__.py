"""Everything that gives rewards of next tokens."""

from rgtg_logits.scorers.base import Scorer
from rgtg_logits.scorers.causal import CausalScorer
from rgtg_logits.scorers.reference import ReferenceScorer

__all__ = ["CausalScorer", "ReferenceScorer", "Scorer"]

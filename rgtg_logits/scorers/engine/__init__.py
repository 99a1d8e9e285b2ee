"""The engine behind every fast scorer: it reads a reward model behind token rows, each prefix cached once."""

from rgtg_logits.scorers.engine.alignment import Layout, common_prefix
from rgtg_logits.scorers.engine.cached_scorer import CachedScorer
from rgtg_logits.scorers.engine.options import EngineOptions
from rgtg_logits.scorers.engine.probe import check_causal
from rgtg_logits.scorers.engine.scoring_engine import ScoreRequest, no_text
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.truncation import dropped

__all__ = [
    "CachedScorer",
    "EngineOptions",
    "Layout",
    "ScoreRequest",
    "TokenTree",
    "check_causal",
    "common_prefix",
    "dropped",
    "no_text",
]

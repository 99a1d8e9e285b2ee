"""The engine behind every fast scorer: runs a reward model over token rows, each prefix cached once."""

from rgtg_logits.scorers.engine.cached_scorer import CachedScorer
from rgtg_logits.scorers.engine.deprecated import old_path
from rgtg_logits.scorers.engine.options import EngineOptions
from rgtg_logits.scorers.engine.probe import check_causal
from rgtg_logits.scorers.engine.readable import empty_row_error
from rgtg_logits.scorers.engine.request import Prefixes, ScoreRequest, unpadded_rows
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.truncation import num_dropped_tokens

__all__ = [
    "CachedScorer",
    "EngineOptions",
    "Prefixes",
    "ScoreRequest",
    "TokenTree",
    "check_causal",
    "empty_row_error",
    "num_dropped_tokens",
    "old_path",
    "unpadded_rows",
]

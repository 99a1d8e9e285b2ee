"""All strategies of running a reward model by name; `probe` finds out which of them are exact on a model."""

from __future__ import annotations

from rgtg_logits.scorers.engine.expanded_cache import ExpandedCache
from rgtg_logits.scorers.engine.masked_attention import MaskedTreeAttention
from rgtg_logits.scorers.engine.model_cache import ModelCache
from rgtg_logits.scorers.engine.recompute import Recompute
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.tree_attention import TreeAttention

STRATEGIES: dict[str, type[Strategy]] = {
    "tree_attention": TreeAttention,
    "masked_tree_attention": MaskedTreeAttention,
    "expand": ExpandedCache,
    "expand_model_cache": ModelCache,
    "recompute": Recompute,
}
"""Classes of the strategies, cheapest first."""

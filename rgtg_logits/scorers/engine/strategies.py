"""All strategies of running a reward model by name; `probe` finds out which of them are exact on a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rgtg_logits.scorers.engine.expanded_cache import ExpandedCache
from rgtg_logits.scorers.engine.recompute import Recompute
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.tree_attention import TreeAttention

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "tree_attention": partial(TreeAttention, full=True, sliding=False),
    "tree_attention_sliding": partial(TreeAttention, full=False, sliding=True),
    "tree_attention_mixed": partial(TreeAttention, full=True, sliding=True),
    "expand": partial(ExpandedCache, model_cache=False),
    "expand_model_cache": partial(ExpandedCache, model_cache=True),
    "recompute": Recompute,
}
"""Makers of each strategy, cheapest first."""

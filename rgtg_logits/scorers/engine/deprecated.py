"""Names of version 0.1 that are accepted for one more release: the option and attribute `path`, and its values."""

from __future__ import annotations

import warnings
from typing import cast

from rgtg_logits.scorers.engine.options import EngineOptions

OLD_STRATEGIES = {
    "siblings": "tree_attention",
    "siblings_sliding": "tree_attention",
    "siblings_mixed": "tree_attention",
    "tree_attention_sliding": "tree_attention",
    "tree_attention_mixed": "tree_attention",
    "expand_own": "expand_model_cache",
}
"""Today's name of each strategy that was renamed."""


def current_options(options: EngineOptions) -> EngineOptions:
    """The options of a scorer under today's names, with a warning for old ones."""
    renamed = cast(dict[str, object], dict(options))
    if "path" in renamed:
        _warn("the option path=", "strategy=", stacklevel=5)
        renamed["strategy"] = renamed.pop("path")
    strategy = renamed.get("strategy")
    if isinstance(strategy, str) and strategy in OLD_STRATEGIES:
        _warn(f"the strategy {strategy!r}", repr(OLD_STRATEGIES[strategy]), stacklevel=5)
        renamed["strategy"] = OLD_STRATEGIES[strategy]
    return cast(EngineOptions, renamed)


def old_path(strategy: str) -> str:
    """The value of the attribute `path`: the old name of a strategy, with a warning."""
    _warn("the attribute path", "strategy, whose values have new names", stacklevel=4)
    # The first of the old names that became one.
    old_names = {new: old for old, new in reversed(OLD_STRATEGIES.items())}
    return old_names.get(strategy, strategy)


def _warn(old: str, new: str, *, stacklevel: int) -> None:
    warnings.warn(
        f"Expected names of this release, but got {old}. Use {new}. The next release no longer knows the old name.",
        FutureWarning,
        stacklevel=stacklevel,
    )

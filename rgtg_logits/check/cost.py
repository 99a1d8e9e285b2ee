"""What a guided token costs on the two models, as a ratio to a plain one."""

from __future__ import annotations

import gc

from rgtg_logits.benchmark import BenchmarkSettings, Measurement, measure
from rgtg_logits.check.findings import Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.errors import RGTGError
from rgtg_logits.scorers import CausalScorer, Scorer

PROMPT_LENGTH, NEW_TOKENS, ROUNDS = 64, 6, 3
"""Size of a run in tokens, and how many runs: a glance, not a benchmark."""
PATHS = {
    "siblings": ("ok", "one forward per token, the prefix stored once"),
    "expand": ("note", "a copy of the prefix per candidate, so that memory grows with top_k"),
    "recompute": ("note", "no cache, top_k whole texts are read again for every token"),
}
"""What a path of `CausalScorer` costs, by the beginning of its name."""


def describe_path(scorer: Scorer) -> Finding:
    """Which path the probe chose, and what that costs."""
    if not isinstance(scorer, CausalScorer):
        return Finding("cost", "path", "note", f"{type(scorer).__name__}, whose cost is not known here")
    status, meaning = PATHS[scorer.path.partition("_")[0]]
    advice = "Exact, but slow; a plain attention model without ALiBi or recurrent layers shares the prefix."
    return Finding("cost", "path", status, f"{scorer.path}: {meaning}", advice if status == "note" else "")


def measure_cost(pair: ModelPair, scorer: Scorer, *, top_k: int, seed: int) -> list[Finding]:
    """Times plain and guided generation in turns, on random tokens; medians."""
    length = min(PROMPT_LENGTH, (pair.max_length or 2 * PROMPT_LENGTH) - NEW_TOKENS)
    if length < 1 or not isinstance(scorer, CausalScorer):
        reason = "the context is too short" if length < 1 else "only CausalScorer can be measured"
        return [Finding("cost", "time", "note", f"not measured: {reason}")]
    arms = ["plain", "ours"]
    # The floor is one step on a cache of keys and values, and reads whatever token is drawn, padding rows included.
    if scorer.path.startswith("siblings") and pair.base.config.get_text_config().vocab_size <= scorer.vocab_size:
        arms.append("floor")
    settings = BenchmarkSettings(top_k=top_k, new_tokens=NEW_TOKENS, device=str(pair.base.device), seed=seed)
    items = {arm: Measurement(arm, length, 1) for arm in arms}
    # Each measurement collects garbage first, which takes longer than a few tokens unless what is there is left out.
    gc.freeze()
    try:
        for _ in range(ROUNDS):
            for item in items.values():
                measure(item, pair.base, pair.reward_model, settings)
    except (OSError, RGTGError) as error:
        # No fault of the pair: memory cannot be read here, or the random prompt led to tokens that no text leads to.
        return [Finding("cost", "time", "note", f"not measured: {error}")]
    finally:
        gc.unfreeze()
    medians = {arm: item.medians() for arm, item in items.items()}
    names = (("first_ms", f"first (prompt {length})"), ("further_ms", "further token"))
    return [_ratio(name, {arm: figures[key] for arm, figures in medians.items()}) for key, name in names]


def _ratio(name: str, milliseconds: dict[str, float]) -> Finding:
    plain, ours = milliseconds["plain"], milliseconds["ours"]
    value = f"{ours / plain:.2f} × plain ({ours:.1f} ms against {plain:.1f})"
    if "floor" in milliseconds:
        value += f"; one RM step {milliseconds['floor'] / plain:.2f} ×"
    return Finding("cost", name, "ok", value, figures={f"{arm}_ms": figure for arm, figure in milliseconds.items()})

"""Whether `generate`, as the base model's generation config sets it, leaves the guided distribution as it is."""

from __future__ import annotations

from typing import Any

from rgtg_logits.check.findings import Finding
from rgtg_logits.check.models import ModelPair

NEUTRAL: dict[str, float] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""The settings that `generate` applies behind a user's processor, by the value with which they change nothing."""
DEFAULT_TOP_K = 50
"""The `top_k` of `generate` where nobody sets one."""


def check_generation(pair: ModelPair, top_k: int) -> list[Finding]:
    """Findings on settings that change guided draws, and on the way to generate that no processor reaches.

    Args:
        pair: The models.
        top_k: Number of candidates.
    """
    config = pair.base.generation_config
    return [_sampling(config, top_k), _paged(config)]


def _sampling(config: Any, top_k: int) -> Finding:
    changing = {}
    for name, neutral in NEUTRAL.items():
        value = getattr(config, name, None)
        if name == "top_k":
            # A cut behind the candidates changes nothing, if it lets as many tokens through.
            value = DEFAULT_TOP_K if value is None else value
            value = neutral if value >= top_k else value
        if value is not None and value != neutral:
            changing[name] = value
    if not changing:
        return Finding("generate", "generation config", "ok", "leaves guided draws as they are")
    effects = []
    if "temperature" in changing:
        effects.append(f"temperature {changing['temperature']:g} divides beta and the base model's log-probabilities")
    cuts = [f"{name} {value:g}" for name, value in changing.items() if name != "temperature"]
    if cuts:
        effects.append(f"{', '.join(cuts)} cut{'s' if len(cuts) == 1 else ''} the guided distribution")
    neutral_values = ", ".join(f"{name}={NEUTRAL[name]}" for name in changing)
    return Finding(
        "generate", "generation config", "note", f"generate applies its own settings afterwards: {'; '.join(effects)}",
        f"Pass {neutral_values} to generate for the guided distribution itself.", dict(changing),
    )  # fmt: skip


def _paged(config: Any) -> Finding:
    value = "generate_batch and generate(cache_implementation='paged') call no processor: their texts are unguided"
    if str(getattr(config, "cache_implementation", None) or "").startswith("paged"):
        return Finding(
            "generate", "paged generation", "fail", f"set by the generation config. {value}",
            "Pass cache_implementation='dynamic' to generate.",
        )  # fmt: skip
    return Finding("generate", "paged generation", "ok", f"not used here. {value}")

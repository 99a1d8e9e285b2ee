"""The end of a training, in words: where the model is, how good it is, and what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rgtg_logits.train.model_card import EvaluationRecord


def summarize(folder: str, base: str, records: Mapping[str, EvaluationRecord], source: str, *, pairs: bool) -> str:
    """The lines that `rgtg train` ends with.

    Args:
        folder: Where the model was saved.
        base: The base model's name.
        records: The evaluations.
        source: What it was evaluated on, in words.
        pairs: Whether the figures are accuracies of pairs, or correlations.
    """
    lines = [f"The reward model is in {folder}"]
    for record in records.values():
        figures = ", ".join(f"{value:.2f} at {percent} %" for percent, value in record.metrics.by_percent.items())
        what = "Prefix accuracy" if pairs else "Correlation of prefixes with the reward"
        lines.append(f"{what} on {record.name} ({record.metrics.rows} rows, {source}): {figures} of the answer")
    if not records:
        lines.append(f"Prefix accuracy: {source}")
    place = shlex.quote(folder)
    lines += [
        f"Check it with a base model:  rgtg check {shlex.quote(base)} {place}",
        f"Share it:                    rgtg push {place} NAME",
    ]
    return "\n".join(lines)

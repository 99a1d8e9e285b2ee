"""The pictures of a model card: accuracy or correlation by position, and reward against divergence.

Each PNG file carries a digest of the numbers that it shows, so that an outdated picture is recognised without drawing
it again.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rgtg_logits.card.facts import CardFacts, Guidance, PrefixEvaluation, known_fields
from rgtg_logits.drawing import COLORS, INK, interval_bars, new_figure, save_png, style_axes
from rgtg_logits.files import write_atomically

PREFIX_ACCURACY = "prefix_accuracy.png"
PREFIX_CORRELATION = "prefix_correlation.png"
REWARD_AGAINST_KL = "reward_against_kl.png"

_DIGEST_KEY = "Facts"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STYLES = tuple(zip(COLORS, ("o", "s", "^", "D"), strict=False))


def expected_digests(facts: CardFacts) -> dict[str, str]:
    """The pictures that these facts give, from file name to a digest of the numbers that each shows."""
    numbers: dict[str, Any] = {
        PREFIX_ACCURACY: [_plotted(item) for item in facts.evaluations if item.prefix_accuracy],
        PREFIX_CORRELATION: [_plotted(item) for item in facts.evaluations if item.correlation],
    }
    # A single point is no curve.
    if facts.guidance is not None and len(facts.guidance.points) > 1:
        numbers[REWARD_AGAINST_KL] = asdict(facts.guidance, dict_factory=known_fields)
    return {
        name: hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        for name, data in numbers.items()
        if data
    }


def read_digest(path: Path) -> str | None:
    """The digest that a picture carries; None if there is no picture, or not one of these."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if not content.startswith(_PNG_SIGNATURE):
        return None
    position = len(_PNG_SIGNATURE)
    # A PNG file is a list of chunks: length, type, data, checksum.
    while position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        key, _, text = content[position + 8 : position + 8 + length].partition(b"\0")
        if kind == b"tEXt" and key.decode("latin-1") == _DIGEST_KEY:
            return text.decode("latin-1")
        position += length + 12
    return None


def draw(facts: CardFacts, name: str, path: Path) -> None:
    """Draws one of the pictures of `expected_digests`. Needs matplotlib."""
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    if name == REWARD_AGAINST_KL and facts.guidance is not None:
        _draw_guidance(axes, facts.guidance)
    else:
        _draw_positions(axes, facts.evaluations, accuracy=name == PREFIX_ACCURACY)
    style_axes(axes)
    metadata = {_DIGEST_KEY: expected_digests(facts)[name]}
    write_atomically(path, lambda file: save_png(figure, file, dpi=120, metadata=metadata))


def _plotted(item: PrefixEvaluation) -> Mapping[str, Any]:
    """The plotted numbers, with keys as text, as in JSON."""
    figures = {str(percent): value for percent, value in item.figures.items()}
    errors = {str(percent): value for percent, value in item.standard_error.items()}
    return {"name": item.name, "figures": figures, "errors": errors}


def _draw_positions(axes: Any, evaluations: tuple[PrefixEvaluation, ...], *, accuracy: bool) -> None:
    shown = [item for item in evaluations if (item.prefix_accuracy if accuracy else item.correlation)]
    for index, item in enumerate(shown):
        color, marker = _STYLES[index % len(_STYLES)]
        percents = list(item.figures)
        # Sets are shifted a little, so that their error bars do not hide each other.
        shift = 0.8 * (index - (len(shown) - 1) / 2)
        errors = [item.standard_error.get(percent, 0.0) for percent in percents] if item.standard_error else None
        axes.errorbar(
            [percent + shift for percent in percents], list(item.figures.values()), yerr=errors, label=item.name,
            color=color, marker=marker, linestyle="--" if item.baseline else "-", linewidth=1.6, markersize=5,
            elinewidth=1.1, capsize=3,
        )  # fmt: skip
    axes.axhline(0.5 if accuracy else 0.0, color=INK, linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(sorted({percent for item in shown for percent in item.figures}))
    axes.set_xlabel("Answers cut at (percent of their length)")
    bars = " (bars: one standard error)" if any(item.standard_error for item in shown) else ""
    axes.set_ylabel("Prefix accuracy" if accuracy else "Correlation with the reward")
    axes.set_title(f"Held-out {'pairs' if accuracy else 'answers'}{bars}", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_guidance(axes: Any, guidance: Guidance) -> None:
    points = sorted(guidance.points, key=lambda point: point.beta)
    color, marker = _STYLES[0]
    errors = {
        "xerr": interval_bars([point.kl for point in points], [point.kl_interval for point in points]),
        "yerr": interval_bars([point.reward for point in points], [point.reward_interval for point in points]),
    }
    axes.errorbar(
        [point.kl for point in points], [point.reward for point in points], **errors, color=color, marker=marker,
        linewidth=1.6, markersize=5, elinewidth=1.1, capsize=3,
    )  # fmt: skip
    for point in points:
        axes.annotate(
            f"{point.beta:g}",
            (point.kl, point.reward),
            xytext=(7, -11),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    axes.margins(x=0.1, y=0.1)
    axes.set_xlabel(f"KL to the unguided model ({guidance.kl})")
    axes.set_ylabel("Reward")
    bars = f"; bars: {guidance.confidence} % intervals" if guidance.confidence is not None else ""
    axes.set_title(f"Guided generation (numbers: beta{bars})", loc="left", fontsize=10, color=INK)

"""Colours, figures and interval bars that all pictures share. Needs matplotlib when a picture is drawn.

Pictures are drawn once, on a transparent ground, and shown on light and on dark pages. So every colour is a mid-tone: a
contrast of 3 or more to white as well as to near black (#15171b), of 4 or more for text.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, BinaryIO

# After the Okabe-Ito palette, which colour-blind readers can tell apart, with its light colours darkened, and purple
# for black and yellow, which have no mid-tone of their own. Markers differ as well.
COLORS = ("#1F7FC4", "#D55E00", "#009E73", "#C46A9B", "#B58100", "#8E6BCB", "#3AA0B8")
INK = "#7A7F87"
"""Text, axes and whatever is no line of its own."""


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches, on a transparent ground."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (heavy, and not needed without pictures)

    # Without pyplot, so that neither a window nor the settings of the caller's own figures are touched.
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def style_axes(axes: Any) -> None:
    """Gives axes the colours of `INK`, a light grid, and no frame at the top and on the right."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    axes.tick_params(colors=INK, which="both", labelsize=8.5)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color=INK, alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)


def interval_bars(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> list[list[float]] | None:
    """Distances from values down and up to the ends of their intervals, as `errorbar` takes them.

    Args:
        values: The values.
        intervals: Lower and upper end of each; None without an interval.

    Returns:
        Distances below and above, 0 where an end is missing or not finite; None if no value has an interval.
    """
    if not any(intervals):
        return None
    below, above = [], []
    for value, interval in zip(values, intervals, strict=True):
        low, high = (value, value) if interval is None else interval
        below.append(_distance(low, value))
        above.append(_distance(value, high))
    return [below, above]


def _distance(low: float, high: float) -> float:
    return max(high - low, 0.0) if isfinite(high - low) else 0.0


def save_png(figure: Any, file: BinaryIO, *, dpi: int, metadata: dict[str, Any] | None = None) -> None:
    """Writes a figure as PNG: equal figures give equal bytes where the fonts are the same."""
    # The version of matplotlib is left out, because it would change the bytes.
    figure.savefig(file, dpi=dpi, format="png", metadata={"Software": None, **(metadata or {})})

"""The figure: reward against divergence from the base model, one curve per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # A script on a server has no window.

import matplotlib.pyplot as plt

# From the Okabe-Ito palette, which stays apart for colour-blind readers; line and marker differ as well.
STYLES = {
    "PARGS sampling": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "ARGS sampling": {"color": "#D55E00", "linestyle": "-", "marker": "s"},
    "PARGS greedy": {"color": "#0072B2", "linestyle": ":", "marker": "o", "markerfacecolor": "white"},
    "ARGS greedy": {"color": "#D55E00", "linestyle": ":", "marker": "s", "markerfacecolor": "white"},
}


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws both rewards against the KL per token, with 95 % intervals."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), sharex=True, layout="constrained")
    for panel, reward, title in zip(panels, ("gold", "judge"), ("Gold reward", "Independent judge"), strict=True):
        for method, style in STYLES.items():
            mode = method.split()[1]
            curve = [line for line in lines if line["method"] in (method, f"base {mode}")]
            _curve(panel, sorted(curve, key=lambda line: line["beta"]), reward, method, style)
        panel.set_title(f"{title} (numbers: beta; both start at 0)", loc="left", fontsize=10)
        panel.set_xlabel("KL to the base model (nats per token)")
        panel.set_ylabel("Log-odds of positive sentiment (nats)")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.margins(x=0.15, y=0.1)
    draft = path.with_name(f".draft-{path.name}")
    figure.savefig(draft, dpi=150)
    plt.close(figure)
    draft.replace(path)


def _curve(panel: Any, curve: Sequence[dict[str, Any]], reward: str, method: str, style: dict[str, str]) -> None:
    x, y = ([line[name] for line in curve] for name in ("kl_per_token", reward))
    error = {
        f"{axis}err": [
            [line[name] - line[f"{name}_interval"][0] for line in curve],
            [line[f"{name}_interval"][1] - line[name] for line in curve],
        ]
        for axis, name in (("x", "kl_per_token"), ("y", reward))
    }
    panel.errorbar(x, y, **error, **style, linewidth=1.6, markersize=5, elinewidth=0.9)
    # PARGS lies to the left of ARGS, so its strengths are written on the left and those of ARGS on the right.
    side, align = ((-7, 2), "right") if method.startswith("PARGS") else ((6, -9), "left")
    panel.annotate(
        method,
        (x[-1], y[-1]),
        xytext=(0, 10),
        textcoords="offset points",
        color=style["color"],
        fontsize=9,
        ha="center",
    )
    for line, left, up in zip(curve[1:], x[1:], y[1:], strict=True):
        panel.annotate(
            f"{line['beta']:g}",
            (left, up),
            xytext=side,
            textcoords="offset points",
            color="#555555",
            fontsize=7,
            ha=align,
        )

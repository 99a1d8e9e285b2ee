"""Draws the curves of the main list in three panels, and what is sensitive to what: a figure each.

    python examples/reviews/figures.py --output_dir runs/reviews

The curves are reward against divergence from the base model (`curves-gold.png`, ...), where `rgtg evaluate` draws all
of them in one picture. Number of candidates, strength, size of the reward model and number of pairs are those of the
lists `k`, `large`, `layers` and `pairs`: guidance by a partial reward model at several strengths. Bars: 95 % intervals.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from transformers import HfArgumentParser

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#1a1c20", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS = {
    "Scalar heads": ("ARGS", "PARGS", "RAD", "CD", "soft value", "CD, TD", "soft value, TD"),
    "Logits: one token a step": (
        "ARGS, vocabulary", "FaRMA", "PARGS, vocabulary", "GenARM", "CD, vocabulary",
        "soft value, TD, vocabulary",
    ),
    "From the pairs alone, beside fine-tuning": (
        "PARGS", "soft value of pairs, vocab.", "guided answers thrice, vocab.", "DPO pair", "DPO", "best of n", "RL",
    ),
}  # fmt: skip
"""Which curves stand together."""
TITLES = {
    "k": "Number of candidates",
    "layers": "Size of the reward model (the base model has 6 layers)",
    "pairs": "Pairs that the reward model learnt from",
}


@dataclass
class Arguments:
    """Where the evaluations are."""

    output_dir: str = "runs/reviews"


def read(folder: Path) -> list[dict[str, Any]]:
    """The policies of an evaluation."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["policies"]


def lines(policies: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The guided policies by method, by divergence."""
    found: dict[str, list[dict[str, Any]]] = {}
    for policy in sorted((p for p in policies if p["beta"]), key=lambda p: p["kl"][0]):
        found.setdefault(policy["name"], []).append(policy)
    order = list(dict.fromkeys(p["name"] for p in policies if p["beta"]))
    return {name: found[name] for name in order}


def draw(axes: Axes, points: list[dict[str, Any]], index: int, label: str, judge: str = "gold") -> None:
    """One line."""
    x = [point["kl"][0] for point in points]
    y, low, high = zip(*(point["judges"][judge]["reward"] for point in points), strict=True)
    error = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    axes.errorbar(x, y, yerr=error, color=COLORS[index], marker=MARKERS[index], capsize=2, lw=1.2, ms=5, label=label)


def compared(policies: list[dict[str, Any]], name: str, path: Path) -> None:
    """A line for each setting."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for index, (label, points) in enumerate(lines(policies).items()):
        draw(axes, points, index, label)
    axes.set(title=TITLES[name], xlabel="KL to the base model, nats of an answer", ylabel="gold reward")
    axes.legend(frameon=False)
    save(figure, path)


def panels(policies: list[dict[str, Any]], judge: str, path: Path) -> None:
    """The main list: curves that answer one question together."""
    figure, all_axes = plt.subplots(1, len(PANELS), figsize=(15, 5), layout="constrained", sharey=True, sharex=True)
    base = next(policy["judges"][judge]["reward"][0] for policy in policies if policy["name"] == "base")
    for axes, (title, names) in zip(all_axes, PANELS.items(), strict=True):
        for index, name in enumerate(names):
            points = sorted((p for p in policies if p["curve"] == name), key=lambda p: p["kl"][0])
            if points:
                draw(axes, points, index, name, judge)
        axes.plot(0, base, marker="*", color=COLORS[5], ms=11, ls="")
        axes.axhline(base, color="0.6", lw=0.8, ls=":")
        # Reward grows with about the root of the divergence, so that curves are nearly straight.
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xticks([0, 1, 2, 5, 10, 20, 30, 40])
        axes.set_xlim(0, 45)
        axes.grid(color="0.9", lw=0.6)
        axes.set(title=title, xlabel="KL to the base model, nats of an answer")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, loc="upper left", fontsize=9)
    all_axes[0].set_ylabel(f"reward ({judge})")
    save(figure, path)


def strength(policies: list[dict[str, Any]], path: Path) -> None:
    """Far too much guidance: what each judge says of it, and how probable and how varied the texts still are."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    points = sorted((p for p in policies if p["name"] == "PARGS"), key=lambda p: p["beta"])
    for index, judge in enumerate(points[0]["judges"]):
        beta = [point["beta"] for point in points]
        y, low, high = zip(*(point["judges"][judge]["reward"] for point in points), strict=True)
        left.fill_between(beta, low, high, color=COLORS[index], alpha=0.15, lw=0)
        left.plot(beta, y, color=COLORS[index], marker=MARKERS[index], label=judge)
    left.set(title="Reward by judge", xlabel="beta", ylabel="reward")
    left.legend(frameon=False)
    (one,) = right.plot(beta, [p["perplexity"][0] for p in points], color=COLORS[0], marker="o", label="perplexity")
    right.set(title="Texts", xlabel="beta", ylabel="perplexity under the base model")
    other = right.twinx()
    (two,) = other.plot(beta, [p["distinct"][1] for p in points], color=COLORS[1], marker="s", label="distinct-2")
    other.set(ylabel="distinct-2", ylim=(0, 1))
    right.legend(handles=[one, two], frameon=False, loc="center left")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(beta, [f"{value:g}" for value in beta])
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a figure whose bytes do not depend on when."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def main(args: Arguments) -> None:
    """Draws what has been evaluated."""
    out = Path(args.output_dir) / "evaluation"
    if (out / "val-main").is_dir():
        policies = read(out / "val-main")
        if (out / "val-best").is_dir():
            known = {policy["name"] for policy in policies}
            policies += [policy for policy in read(out / "val-best") if policy["name"] not in known]
        for judge in policies[0]["judges"]:
            panels(policies, judge, out / f"curves-{judge}.png")
    for name in TITLES:
        if (out / f"val-{name}").is_dir():
            compared(read(out / f"val-{name}"), name, out / f"sensitivity-{name}.png")
    if (out / "val-large").is_dir():
        strength(read(out / "val-large"), out / "sensitivity-beta.png")


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])

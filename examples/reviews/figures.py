"""Figures of the evaluations: the curves of the main list in three panels, and four sensitivities.

    python examples/reviews/figures.py --output_dir runs/reviews

The curves show reward against divergence from the base model (`curves-gold.png`, ...); `rgtg evaluate` draws all of
them in one picture. The sensitivities to the number of candidates, the strength, the size of the reward model and the
number of pairs come from the lists `k`, `large`, `layers` and `pairs`. Bars: 95 % intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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
"""Curves by panel."""
TITLES = {
    "k": "Number of candidates",
    "layers": "Size of the reward model (the base model has 6 layers)",
    "pairs": "Training pairs of the reward model",
}


@dataclass
class Arguments:
    """The folder of the run."""

    output_dir: str = "runs/reviews"


def read(folder: Path) -> list[dict[str, Any]]:
    """Reads the policies of an evaluation."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["policies"]


def by_divergence(policies: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Policies in the order of their divergence."""
    return sorted(policies, key=lambda policy: policy["kl"][0])


def curves(policies: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The guided policies of each method, by divergence."""
    points: dict[str, list[dict[str, Any]]] = {}
    for policy in policies:
        if policy["beta"]:
            points.setdefault(policy["name"], []).append(policy)
    return {name: by_divergence(of_method) for name, of_method in points.items()}


def draw(axes: Axes, points: list[dict[str, Any]], index: int, label: str, judge: str = "gold") -> None:
    """Draws one curve with its intervals."""
    kl = [point["kl"][0] for point in points]
    reward, low, high = np.array([point["judges"][judge]["reward"] for point in points]).T
    axes.errorbar(
        kl, reward, yerr=[reward - low, high - reward], color=COLORS[index], marker=MARKERS[index], capsize=2, lw=1.2,
        ms=5, label=label,
    )  # fmt: skip


def draw_sensitivity(policies: list[dict[str, Any]], name: str, path: Path) -> None:
    """A figure with a curve for each setting of one thing."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for index, (label, points) in enumerate(curves(policies).items()):
        draw(axes, points, index, label)
    axes.set(title=TITLES[name], xlabel="KL to the base model, nats of an answer", ylabel="gold reward")
    axes.legend(frameon=False)
    save(figure, path)


def draw_panels(policies: list[dict[str, Any]], judge: str, path: Path) -> None:
    """The main list: a panel for each group of curves."""
    figure, all_axes = plt.subplots(1, len(PANELS), figsize=(15, 5), layout="constrained", sharey=True, sharex=True)
    (base,) = [policy["judges"][judge]["reward"][0] for policy in policies if policy["name"] == "base"]
    for axes, (title, names) in zip(all_axes, PANELS.items(), strict=True):
        for index, name in enumerate(names):
            points = by_divergence(policy for policy in policies if policy["curve"] == name)
            if points:
                draw(axes, points, index, name, judge)
        axes.plot(0, base, marker="*", color=COLORS[5], ms=11, ls="")
        axes.axhline(base, color="0.6", lw=0.8, ls=":")
        # Reward grows about with the root of the divergence, so that curves are nearly straight on this scale.
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xticks([0, 1, 2, 5, 10, 20, 30, 40])
        axes.set_xlim(0, 45)
        axes.grid(color="0.9", lw=0.6)
        axes.set(title=title, xlabel="KL to the base model, nats of an answer")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, loc="upper left", fontsize=9)
    all_axes[0].set_ylabel(f"reward ({judge})")
    save(figure, path)


def draw_strengths(policies: list[dict[str, Any]], path: Path) -> None:
    """Guidance up to far too strong: reward by each judge, and perplexity and diversity of the texts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    points = sorted((policy for policy in policies if policy["name"] == "PARGS"), key=lambda policy: policy["beta"])
    beta = [point["beta"] for point in points]
    for index, judge in enumerate(points[0]["judges"]):
        reward, low, high = np.array([point["judges"][judge]["reward"] for point in points]).T
        left.fill_between(beta, low, high, color=COLORS[index], alpha=0.15, lw=0)
        left.plot(beta, reward, color=COLORS[index], marker=MARKERS[index], label=judge)
    left.set(title="Reward by judge", xlabel="beta", ylabel="reward")
    left.legend(frameon=False)
    perplexity = [point["perplexity"][0] for point in points]
    distinct = [point["distinct"][1] for point in points]
    (line,) = right.plot(beta, perplexity, color=COLORS[0], marker="o", label="perplexity")
    right.set(title="Texts", xlabel="beta", ylabel="perplexity under the base model")
    twin = right.twinx()
    (twin_line,) = twin.plot(beta, distinct, color=COLORS[1], marker="s", label="distinct-2")
    twin.set(ylabel="distinct-2", ylim=(0, 1))
    right.legend(handles=[line, twin_line], frameon=False, loc="center left")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(beta, [f"{value:g}" for value in beta])
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a figure without the version of matplotlib, so that equal figures have equal bytes."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def main(args: Arguments) -> None:
    """Draws the figures of all evaluations that are there."""
    out = Path(args.output_dir) / "evaluation"
    if (out / "val-main").is_dir():
        policies = read(out / "val-main")
        if (out / "val-best").is_dir():
            known = {policy["name"] for policy in policies}
            policies += [policy for policy in read(out / "val-best") if policy["name"] not in known]
        for judge in policies[0]["judges"]:
            draw_panels(policies, judge, out / f"curves-{judge}.png")
    for name in TITLES:
        if (out / f"val-{name}").is_dir():
            draw_sensitivity(read(out / f"val-{name}"), name, out / f"sensitivity-{name}.png")
    if (out / "val-large").is_dir():
        draw_strengths(read(out / "val-large"), out / "sensitivity-beta.png")


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])

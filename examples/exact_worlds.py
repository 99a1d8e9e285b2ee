"""What guidance does in worlds small enough to enumerate: nothing is sampled or trained, so nothing is luck.

    python examples/exact_worlds.py

Writes to `examples/exact_worlds/` (or `--output`): `table.md` (how far each way to reward prefixes is from the optimum
of KL-regularised RLHF, and how much reward it gets for its KL, over many random worlds), `curves.png` (the same for all
strengths), `two_fates.png` (two reward models that no loss on full sequences can tell apart) and `counterexample.png`
(a choice that the mean reward gets wrong). Under a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # A script on a server has no window.

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rgtg_logits import exact
from rgtg_logits.exact import Table, World

OUTPUT = Path(__file__).with_suffix("")
KINDS: dict[str, dict[str, Any]] = {
    "Texts of 4 tokens": {"vocab": 3, "horizon": 4},
    "Texts that end, of 1 to 4 tokens": {"vocab": 3, "horizon": 4, "eos": 0},
}
SHOWN = (0.3, 1.0, 3.0)
"""Strengths in the table, in nats per unit of reward; the spread of the rewards is 1."""
BUDGETS = (0.1, 0.3, 1.0)
"""KL to the base policy, in nats per text, at which rewards are compared."""


def full_bt(world: World, seed: int) -> Table:
    """Rewards that are right on finished texts, and anything on others: a draw of the same spread."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    table = []
    for i, means in enumerate(exact.value(world)):
        finished = (world.lengths()[:: world.vocab ** (world.horizon - i)] <= i).view(means.shape)
        drawn = torch.randn(means.shape, generator=generator, dtype=torch.float64)
        table.append(torch.where(finished, means, drawn))
    return tuple(table)


METHODS: dict[str, tuple[str, Callable[[World, int], Table] | None]] = {
    "soft value": ("log E[exp(β r)] / β; also an exact DPO pair", None),
    "expected reward": ("CD, VAS: regression on the final reward", lambda world, _: exact.value(world)),
    "partial BT": ("PARGS: pairs of prefixes", lambda world, _: exact.partial_bt(world, tie_finished=True)),
    "best completion": ("FaRMA: the largest reward ahead", lambda world, _: exact.best_value(world)),
    "log π_r": ("GenARM: log-probabilities, pairs of finished texts", lambda world, _: exact.arm(world)),
    "full BT": ("ARGS: pairs of finished texts; other prefixes at random", full_bt),
}
"""What prefixes are rewarded with, its source, and the rewards; None where they depend on the strength."""

# From the Okabe-Ito palette, which stays apart for colour-blind readers; line and marker differ as well.
STYLES = {
    "soft value": {"color": "#000000", "linestyle": "-", "marker": ""},
    "expected reward": {"color": "#56B4E9", "linestyle": "--", "marker": "^"},
    "partial BT": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "best completion": {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    "log π_r": {"color": "#CC79A7", "linestyle": "--", "marker": "v"},
    "full BT": {"color": "#D55E00", "linestyle": ":", "marker": "s"},
}


def measure(worlds: Sequence[World], betas: Sequence[float]) -> dict[str, Tensor]:
    """For each method: by world and strength, KL from the optimum, gain in reward over the base, and KL to the base.

    The first strength is 0, where all are the base.
    """
    found = {name: torch.zeros(len(worlds), len(betas), 3, dtype=torch.float64) for name in METHODS}
    for w, world in enumerate(worlds):
        base, start = exact.sequence_log_probs(world.policy), exact.value(world)[0]
        tables = {name: rewards(world, w) for name, (_, rewards) in METHODS.items() if rewards is not None}
        for b, beta in enumerate(betas[1:], start=1):
            best = exact.optimal_sequences(world, beta)
            for name in METHODS:
                rewards = tables[name] if name in tables else exact.soft_value(world, beta)
                policy = exact.sequence_log_probs(exact.guided(world, rewards, beta))
                gain = exact.expected_reward(world, policy) - start
                found[name][w, b] = torch.stack([exact.kl(best, policy), gain, exact.kl(policy, base)])
    return found


def at_budget(points: Tensor, budget: float) -> Tensor:
    """The gain of every world at a KL to the base, between two strengths on a line; the last if it gets no further.

    Args:
        points: By world and strength (growing from 0), what `measure` finds.
        budget: In nats per text.
    """
    gains = []
    for world in points:
        gain, spent = world[:, 1].tolist(), world[:, 2].tolist()
        after = next((i for i, kl in enumerate(spent) if kl >= budget), None)
        if after is None:
            gains.append(gain[-1])
        else:
            share = (budget - spent[after - 1]) / (spent[after] - spent[after - 1])
            gains.append(gain[after - 1] + share * (gain[after] - gain[after - 1]))
    return torch.tensor(gains, dtype=torch.float64)


def tables(found: dict[str, Tensor], betas: Sequence[float]) -> list[str]:
    """Markdown of what was measured: means over the worlds, with the standard error of the mean."""
    columns = [betas.index(beta) for beta in SHOWN]
    strengths = [f"β = {beta:g}" for beta in SHOWN]
    distance = {name: [_mean(points[:, b, 0]) for b in columns] for name, points in found.items()}
    gains = {
        name: [f"{_mean(points[:, b, 1])} (KL {float(points[:, b, 2].mean()):.3f})" for b in columns]
        for name, points in found.items()
    }
    equal = {name: [_mean(at_budget(points, budget)) for budget in BUDGETS] for name, points in found.items()}
    return [
        *_markdown("KL from the optimum, in nats per text", strengths, distance),
        *_markdown("Gain in expected reward over the base, and KL to the base in nats per text", strengths, gains),
        *_markdown(
            "Gain at equal KL to the base in nats per text, β chosen for it in each world (100 if that has less)",
            [f"KL {kl:g}" for kl in BUDGETS],
            equal,
        ),
    ]


def _markdown(caption: str, columns: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    head = [f"| prefixes are rewarded with | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    return [f"{caption}:", "", *head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]


def _mean(values: Tensor) -> str:
    # Rounding can leave −0, which adding 0 turns into 0.
    mean, error = (round(float(x), 4) + 0.0 for x in (values.mean(), values.std() / math.sqrt(len(values))))
    return f"{mean:.4f} ± {error:.4f}"


def draw_curves(results: dict[str, dict[str, Tensor]], betas: Sequence[float], worlds: int, path: Path) -> None:
    """Distance from the optimum by strength, and reward by KL to the base, both as means over the worlds."""
    figure, panels = plt.subplots(2, len(results), figsize=(10, 8), layout="constrained")
    for (kind, found), (far, gain) in zip(results.items(), panels.T, strict=True):
        for name, points in found.items():
            mean, style = points.mean(0).T, {**STYLES[name], "markevery": 4, "markersize": 5, "label": name}
            if name != "soft value":
                far.loglog(betas[1:], mean[0, 1:], **style)
            gain.plot(mean[2], mean[1], **style)
        far.set(title=kind, xlabel="guidance strength β (nats per unit of reward)", xlim=(0.05, 20), ylim=(1e-6, 100))
        far.set_ylabel("KL from the optimum (nats per text)")
        far.text(0.97, 0.03, "soft value: 0", transform=far.transAxes, ha="right")
        gain.set(xlabel="KL to the base policy (nats per text)", xlim=(0, 2.5), ylim=(0, None))
        gain.set_ylabel("gain in reward over the base")
        far.legend(fontsize=8), gain.legend(fontsize=8)
    figure.suptitle(f"Means over {worlds} random worlds; rewards have standard deviation 1", fontsize=11)
    _save(figure, path)


def two_fates(worlds: Sequence[World], betas: Sequence[float]) -> tuple[list[tuple[Table, Table]], Tensor]:
    """Two reward models of each world with one loss on full sequences, and by strength the gain of guidance by each.

    One calls good prefixes good, the other calls them bad, with five times the weight; of finished texts, both say the
    same.
    """
    models, gains = [], torch.zeros(len(worlds), len(betas), 3, dtype=torch.float64)
    for w, world in enumerate(worlds):
        means = exact.value(world)
        models.append((means, (*(-5 * entry for entry in means[:-1]), world.reward)))
        for b, beta in enumerate(betas[1:], start=1):
            policies = [exact.guided(world, rewards, beta) for rewards in (*models[w], exact.soft_value(world, beta))]
            logs = [exact.sequence_log_probs(policy) for policy in policies]
            gains[w, b] = torch.stack([exact.expected_reward(world, log) for log in logs]) - means[0]
    return models, gains


def draw_two_fates(worlds: Sequence[World], betas: Sequence[float], path: Path) -> list[float]:
    """Draws what two reward models say of the prefixes of the first world, and what becomes of guidance by them.

    Returns:
        The loss of both on full sequences of the first world, in nats for each pair, and the mean gains at β = 1.
    """
    models, gains = two_fates(worlds, betas)
    wins = exact.win_weights(worlds[0])
    loss = [float(exact.bradley_terry_loss(wins, model[-1].flatten())) for model in models[0]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for i, (marker, color) in enumerate(zip("sDo", ("#D55E00", "#CC79A7", "#009E73"), strict=True), start=1):
        left.scatter(
            models[0][0][i].flatten(), models[0][1][i].flatten(), marker=marker, color=color, label=f"length {i}", s=18
        )
    full = models[0][0][-1].flatten()
    left.scatter(full, full, marker=".", color="#000000", s=14, label=f"length {worlds[0].horizon}: finished")
    left.set(xlabel="reward of a prefix by model A", ylabel="reward of the same prefix by model B")
    left.set_title(f"One world. Loss on full sequences: A {loss[0]:.6f}, B {loss[1]:.6f}", fontsize=10)
    left.legend(fontsize=8)
    mean, error = gains.mean(0).T, gains.std(0).T / math.sqrt(len(worlds))
    for line, spread, color, dashes, name in zip(
        mean, error, ("#0072B2", "#D55E00", "#000000"), ("-", "--", ":"), ("model A", "model B", "optimum"), strict=True
    ):
        right.semilogx(betas[1:], line[1:], color=color, linestyle=dashes, label=name)
        right.fill_between(betas[1:], (line - spread)[1:], (line + spread)[1:], color=color, alpha=0.15, linewidth=0)
    right.axhline(0, color="#888888", linewidth=0.8)
    right.set(xlabel="guidance strength β (nats per unit of reward)", ylabel="gain in reward over the base")
    right.set_title(f"Mean over {len(worlds)} worlds, ± standard error", fontsize=10)
    right.legend(fontsize=8)
    _save(figure, path)
    return [*loss, *mean[:2, betas.index(1.0)].tolist()]


def counterexample() -> World:
    """Behind prefix a, a reward of 3 with probability 0.1 and else −3; behind b, a reward of 0."""
    steps = ([0.5, 0.5], [[0.1, 0.9], [0.1, 0.9]])
    policy = tuple(torch.tensor(step, dtype=torch.float64).log().log_softmax(-1) for step in steps)
    return World(policy, torch.tensor([[3.0, -3.0], [0.0, 0.0]], dtype=torch.float64))


def draw_counterexample(path: Path) -> dict[str, float]:
    """Draws how often guidance chooses prefix a; returns by how much its reward is above that of b, at β = 1."""
    world, betas = counterexample(), torch.linspace(0.02, 3, 150).tolist()
    tables = {name: rewards(world, 0) for name, (_, rewards) in METHODS.items() if rewards and name != "full BT"}
    figure, panel = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name in ("soft value", *tables):
        first = [
            exact.guided(world, tables.get(name) or exact.soft_value(world, beta), beta)[0].exp()[0] for beta in betas
        ]
        panel.plot(betas, first, label=name, **{**STYLES[name], "markevery": 15, "markersize": 5})
    panel.axhline(0.5, color="#888888", linewidth=0.8)
    panel.set(xlabel="guidance strength β (nats per unit of reward)", ylabel="probability of prefix a", ylim=(0, 1))
    panel.set_title("Behind a: 3 or −3, with probability 0.1 and 0.9. Behind b: 0.", fontsize=10)
    panel.legend(fontsize=8)
    _save(figure, path)
    tables = {"soft value": exact.soft_value(world, 1.0), **tables}
    return {name: float(rewards[1][0] - rewards[1][1]) for name, rewards in tables.items()}


def _save(figure: Any, path: Path) -> None:
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.5)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    parser.add_argument("--worlds", type=int, default=100, help="random worlds of each kind")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    betas = sorted({0.0, *SHOWN, *(10 ** (i / 10) for i in range(-20, 21))})
    report, results = [HEAD.format(worlds=options.worlds)], {}
    report += [f"- **{name}**: {source}" for name, (source, _) in METHODS.items()] + [""]
    worlds = {kind: [World.random(**size, seed=seed) for seed in range(options.worlds)] for kind, size in KINDS.items()}
    for kind in KINDS:
        results[kind] = measure(worlds[kind], betas)
        report += [f"## {kind}", "", *tables(results[kind], betas)]
    draw_curves(results, betas, options.worlds, options.output / "curves.png")
    same = draw_two_fates(worlds[next(iter(KINDS))], betas, options.output / "two_fates.png")
    report.append(FATES.format(*same))
    above = draw_counterexample(options.output / "counterexample.png")
    report += [COUNTEREXAMPLE, "| prefixes are rewarded with | a − b |\n|---|---|"]
    report += [f"| {name} | {value:+.2f} |" for name, value in above.items()]
    (options.output / "table.md").write_text("\n".join(report) + "\n", encoding="utf8")


HEAD = """# Guidance in worlds that can be enumerated

Made by `python examples/exact_worlds.py`, which draws {worlds} worlds of each kind with fixed seeds: 3 tokens, logits
of the base policy and rewards of finished texts independent and standard normal. Nothing is sampled or trained: each
method is given the rewards of prefixes that its objective has with endless pairs or texts of the base policy and a
table for a model. Means over the worlds ± standard error. The optimum is that of KL-regularised RLHF,
π_ref exp(β r) / Z.

![KL from the optimum by strength, and gain in reward by KL to the base](curves.png)

At equal KL the expected reward and partial BT are alike, and near the best that can be had as long as the KL is small;
from about one and a half nats on, they fall behind those that look at the best completions. At equal β they differ in
unit: log-odds of winning are smaller than rewards. More reward at equal β says little: the best completion has it, and
pays for it with KL. log π_r favours prefixes that can go on in many ways, which costs much where texts end. Full BT has
unfinished prefixes at random here, and gains what it does because finished texts are guided right.
"""
FATES = """## Two reward models, one loss, two fates

Of finished texts both models say the same, so their Bradley-Terry losses on full sequences are equal:
{0!r} and {1!r} nats in the world shown. Of unfinished prefixes, A says the expected reward,
and B minus five times as much. At β = 1, guidance by A changes the reward by {2:+.3f} from that of the base, and
guidance by B by {3:+.3f} (means over all worlds of the first kind).

![What both models say of prefixes, and the gain by strength](two_fates.png)
"""
COUNTEREXAMPLE = """## A choice that the mean reward gets wrong

Behind prefix a, the reward is 3 with probability 0.1 and else −3; behind prefix b, it is 0. The optimum at β = 1
prefers a, because a policy that goes on to choose well gets more from it.

![How often guidance chooses a](counterexample.png)

By how much the reward of a is above that of b (the soft value for β = 1):
"""


if __name__ == "__main__":
    main()

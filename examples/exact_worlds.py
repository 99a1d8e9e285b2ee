"""What guidance does in worlds small enough to enumerate: nothing is sampled or trained, so nothing is luck.

    python examples/exact_worlds.py

Writes to `examples/results/exact_worlds/` (or `--output`): `table.md` (how far each way to reward prefixes is from the
optimum of KL-regularised RLHF, and how much reward it gets for its KL, over many random worlds), `curves.png` (the same
for all strengths), `two_fates.png` (two reward models that no loss on full sequences can tell apart) and
`counterexample.png` (a choice that the mean reward gets wrong). Under a minute on one core.
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

OUTPUT = Path(__file__).parent / "results" / "exact_worlds"
KINDS: dict[str, dict[str, Any]] = {
    "Texts of 4 tokens": {"vocab": 3, "horizon": 4},
    "Texts that end, of 1 to 4 tokens": {"vocab": 3, "horizon": 4, "eos": 0},
}
SHOWN = (0.3, 1.0, 3.0)
"""Strengths in the table, in nats per unit of reward; the spread of the rewards is 1."""
BETAS = sorted({0.0, *SHOWN, *(10 ** (i / 16) for i in range(-24, 33))})
BUDGETS = (0.1, 0.3, 1.0, 2.0)
"""KL to the base policy, in nats per text, at which rewards are compared."""


def full_bt(world: World, seed: int) -> Table:
    """Rewards that are right on finished texts, and anything on others: a draw of the same spread."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    means = exact.value(world)
    return right_when_finished(world, [torch.randn(m.shape, generator=generator, dtype=torch.float64) for m in means])


def right_when_finished(world: World, rewards: Sequence[Tensor]) -> Table:
    """The rewards with those of finished texts, shorter ones included, set right: no loss on such texts sees others."""
    table = []
    for i, (means, others) in enumerate(zip(exact.value(world), rewards, strict=True)):
        finished = (world.lengths()[:: world.vocab ** (world.horizon - i)] <= i).view(means.shape)
        table.append(torch.where(finished, means, others))
    return tuple(table)


METHODS: dict[str, tuple[str, Callable[[World, int], Table] | None]] = {
    "soft value": ("log E[exp(β r)] / β; also an exact DPO pair", None),
    "expected reward": ("CD, VAS: regression on the final reward", lambda world, _: exact.value(world)),
    "cumulative": ("RAD: the same, long texts counting less", lambda world, _: exact.cumulative(world)),
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
    "cumulative": {"color": "#E69F00", "linestyle": ":", "marker": "P"},
    "partial BT": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "best completion": {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    "log π_r": {"color": "#CC79A7", "linestyle": "--", "marker": "v"},
    "full BT": {"color": "#D55E00", "linestyle": ":", "marker": "s"},
}


def measure(worlds: Sequence[World]) -> dict[str, Tensor]:
    """For each method: by world and strength, KL from the optimum, gain in reward over the base, and KL to the base.

    The first strength is 0, where all are the base.
    """
    found = {name: torch.zeros(len(worlds), len(BETAS), 3, dtype=torch.float64) for name in METHODS}
    for w, world in enumerate(worlds):
        base, start = exact.sequence_log_probs(world.policy), exact.value(world)[0]
        tables = {name: rewards(world, w) for name, (_, rewards) in METHODS.items() if rewards is not None}
        for b, beta in enumerate(BETAS[1:], start=1):
            best = exact.optimal_log_probs(world, beta)
            for name in METHODS:
                rewards = tables[name] if name in tables else exact.soft_value(world, beta)
                policy = exact.sequence_log_probs(exact.guided_policy(world, rewards, beta))
                gain = exact.expected_reward(world, policy) - start
                found[name][w, b] = torch.stack(
                    [exact.kl_divergence(best, policy), gain, exact.kl_divergence(policy, base)]
                )
    return found


def at_budget(points: Tensor, budget: float) -> Tensor:
    """The gain of every world at a KL to the base; the last if it gets no further.

    Between two strengths it lies on a line over the root of the KL, to which a small gain is proportional.

    Args:
        points: By world and strength (growing from 0), what `measure` finds.
        budget: In nats per text.
    """
    gains = []
    for world in points:
        gain, spent = world[:, 1].tolist(), world[:, 2].clamp(min=0).sqrt().tolist()
        after = next((i for i, root in enumerate(spent) if root >= math.sqrt(budget)), None)
        if after is None:
            gains.append(gain[-1])
        else:
            share = (math.sqrt(budget) - spent[after - 1]) / (spent[after] - spent[after - 1])
            gains.append(gain[after - 1] + share * (gain[after] - gain[after - 1]))
    return torch.tensor(gains, dtype=torch.float64)


def tables(found: dict[str, Tensor]) -> list[str]:
    """Markdown of what was measured: means over the worlds, with the standard error of the mean."""
    columns = [BETAS.index(beta) for beta in SHOWN]
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


def draw_curves(results: dict[str, dict[str, Tensor]], worlds: int, path: Path) -> None:
    """Distance from the optimum by strength, and reward by KL to the base, both as means over the worlds."""
    figure, panels = plt.subplots(2, len(results), figsize=(10, 8.6), sharey="row", layout="constrained")
    for (kind, found), (far, gain) in zip(results.items(), panels.T, strict=True):
        for i, (name, points) in enumerate(found.items()):
            # Where two methods are one, as these are in texts of equal length, their markers take turns.
            mean, style = points.mean(0).T, {**STYLES[name], "markevery": (i, 7), "markersize": 5, "label": name}
            if name != "soft value":
                far.loglog(BETAS[1:], mean[0, 1:], **style)
            gain.plot(mean[2], mean[1], **style)
        far.set(title=kind, xlabel="guidance strength β (nats per unit of reward)", xlim=(0.05, 20), ylim=(1e-6, 100))
        far.text(0.97, 0.03, "soft value: 0 at every strength", transform=far.transAxes, ha="right", fontsize=9)
        gain.set(xlabel="KL to the base policy (nats per text)", xlim=(0, 2.5), ylim=(0, 2.1))
    panels[0, 0].set_ylabel("KL from the optimum (nats per text)")
    panels[1, 0].set_ylabel("gain in reward over the base")
    handles, names = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
    figure.suptitle(f"Means over {worlds} random worlds; rewards have standard deviation 1", fontsize=11)
    _save(figure, path)


def two_models(world: World) -> tuple[Table, Table]:
    """Two reward models with one loss on finished texts, because of those they say the same.

    One calls good prefixes good, the other calls them bad, with five times the weight.
    """
    means = exact.value(world)
    return means, right_when_finished(world, [-5 * entry for entry in means])


def gains_of_both(worlds: Sequence[World]) -> Tensor:
    """By world and strength: the gain over the base of guidance by the one and the other model, and of the optimum."""
    gains = torch.zeros(len(worlds), len(BETAS), 3, dtype=torch.float64)
    for w, world in enumerate(worlds):
        models, start = two_models(world), exact.value(world)[0]
        for b, beta in enumerate(BETAS[1:], start=1):
            policies = [
                exact.guided_policy(world, rewards, beta) for rewards in (*models, exact.soft_value(world, beta))
            ]
            logs = [exact.sequence_log_probs(policy) for policy in policies]
            gains[w, b] = torch.stack([exact.expected_reward(world, log) for log in logs]) - start
    return gains


def draw_two_fates(worlds: dict[str, Sequence[World]], path: Path) -> list[float]:
    """Draws what two reward models say of the prefixes of the first world, and what becomes of guidance by them.

    Returns:
        The loss of both on full sequences of the first world, in nats for each pair, and for each kind of worlds the
        mean gains at β = 1.
    """
    shown = next(iter(worlds.values()))[0]
    models, wins = two_models(shown), exact.win_weights(shown)
    loss = [float(exact.bradley_terry_loss(wins, model[-1].flatten())) for model in models]
    figure, panels = plt.subplots(1, 1 + len(worlds), figsize=(13, 4.4), width_ratios=[1.1, 1, 1], layout="constrained")
    lengths = [("s", 60), ("D", 34), ("o", 16), (".", 16)]
    for i, (marker, size) in enumerate(lengths, start=1):
        color, name = ("#000000", "finished texts") if i == shown.horizon else ("#D55E00", f"prefixes of length {i}")
        face = {"facecolors": "none"} if i < 3 else {}
        panels[0].scatter(*(m[i].flatten() for m in models), marker=marker, s=size, edgecolors=color, label=name,
                          **(face or {"facecolors": color}))  # fmt: skip
    panels[0].set(xlabel="reward by model A", ylabel="reward by model B")
    panels[0].set_title(f"What two models say in one world\nloss on full sequences: A {loss[0]:.6f}, B {loss[1]:.6f}",
                        fontsize=10)  # fmt: skip
    panels[0].legend(fontsize=8)
    panels[1].sharey(panels[2])
    at_one = []
    for panel, (kind, some) in zip(panels[1:], worlds.items(), strict=True):
        gains = gains_of_both(some)
        _draw_gains(panel, gains)
        panel.set_title(f"{kind}\nmean over {len(some)} worlds, ± standard error", fontsize=10)
        at_one += gains.mean(0)[BETAS.index(1.0), :2].tolist()
    panels[1].set_ylabel("gain in reward over the base")
    panels[1].legend(fontsize=8, loc="upper left")
    _save(figure, path)
    return [*loss, *at_one]


def _draw_gains(panel: Any, gains: Tensor) -> None:
    mean, error = gains.mean(0).T, gains.std(0).T / math.sqrt(len(gains))
    looks = {"optimum": ("#000000", ":"), "guided by model A": ("#0072B2", "-"), "guided by model B": ("#D55E00", "--")}
    for i, (name, (color, dashes)) in zip((2, 0, 1), looks.items(), strict=True):
        low, high = (mean[i] - error[i])[1:], (mean[i] + error[i])[1:]
        panel.semilogx(BETAS[1:], mean[i, 1:], color=color, linestyle=dashes, label=name)
        panel.fill_between(BETAS[1:], low, high, color=color, alpha=0.15, linewidth=0)
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.set(xlabel="guidance strength β (nats per unit of reward)")


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
    for i, name in enumerate(("soft value", *tables)):
        first = [
            exact.guided_policy(world, tables.get(name) or exact.soft_value(world, beta), beta)[0].exp()[0]
            for beta in betas
        ]
        panel.plot(betas, first, label=name, **{**STYLES[name], "markevery": (5 * i, 20), "markersize": 5})
    panel.axhline(0.5, color="#888888", linewidth=0.8)
    panel.text(3, 0.51, "base policy", ha="right", fontsize=8, color="#666666")
    panel.set(xlabel="guidance strength β (nats per unit of reward)", ylabel="probability of prefix a")
    panel.set_ylim(-0.02, 1.02)
    panel.set_title("Behind a: 3 with probability 0.1, else −3. Behind b: 0.", fontsize=10)
    panel.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.7))
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
    report, results = [HEAD.format(worlds=options.worlds)], {}
    report += [f"- **{name}**: {source}" for name, (source, _) in METHODS.items()] + [""]
    worlds = {kind: [World.random(**size, seed=seed) for seed in range(options.worlds)] for kind, size in KINDS.items()}
    for kind in KINDS:
        results[kind] = measure(worlds[kind])
        report += [f"## {kind}", "", *tables(results[kind])]
    draw_curves(results, options.worlds, options.output / "curves.png")
    same = draw_two_fates(worlds, options.output / "two_fates.png")
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

Of texts of equal length, RAD's cumulative error has the same optimum as the plain one; where texts end, another.
At equal KL the expected reward and partial BT are alike, and near the best that can be had as long as the KL is small;
from about one nat on, they fall behind the best completion. At equal β they differ in unit: log-odds of winning are
smaller than rewards. More reward at equal β says little: the best completion has it, and pays for it with KL. log π_r
favours prefixes that can go on in many ways, which costs much where texts end. Full BT has unfinished prefixes at
random here, and gains what it does because finished texts are guided right.
"""
FATES = """## Two reward models, one loss, two fates

Of finished texts both models say the same, so their Bradley-Terry losses on full sequences are equal:
{0!r} and {1!r} nats in the world shown. Of unfinished prefixes, A says the expected reward,
and B minus five times as much. At β = 1, guidance by A changes the reward by {2:+.3f} from that of the base, and
guidance by B by {3:+.3f} (means over all worlds with texts of 4 tokens); where texts end, by {4:+.3f} and {5:+.3f}.
With a large β B gains too, because tokens that finish a text are the ones that the loss has seen.

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

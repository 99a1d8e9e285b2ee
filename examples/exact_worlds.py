"""Guidance in worlds small enough to enumerate: nothing is sampled or trained, so results are exact.

    python examples/exact_worlds.py

Writes to `examples/results/exact_worlds/` (or `--output`): `table.md` (KL divergence of each method from the optimum of
KL-regularised RLHF, and its reward at equal KL, over many random worlds), `curves.png` (the same for all strengths),
`two_fates.png` (two reward models that no loss on full sequences can distinguish) and `counterexample.png` (a choice
that the mean reward gets wrong). Under a minute on one core.
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
    """Rewards that are right on finished texts, and random with the same spread on others."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    means = exact.value(world)
    return right_when_finished(world, [torch.randn(m.shape, generator=generator, dtype=torch.float64) for m in means])


def right_when_finished(world: World, rewards: Sequence[Tensor]) -> Table:
    """The rewards with the right ones on finished texts of any length; no loss on such texts depends on the others."""
    table = []
    for length, (means, others) in enumerate(zip(exact.value(world), rewards, strict=True)):
        one_per_prefix = world.lengths()[:: world.vocab ** (world.horizon - length)]
        is_finished = (one_per_prefix <= length).view(means.shape)
        table.append(torch.where(is_finished, means, others))
    return tuple(table)


METHODS: dict[str, tuple[str, Callable[[World, int], Table] | None]] = {
    "soft value": ("log E[exp(β r)] / β; also an exact DPO pair", None),
    "expected reward": ("CD, VAS: regression on the final reward", lambda world, _: exact.value(world)),
    "cumulative": ("RAD: the same, with less weight for long texts", lambda world, _: exact.cumulative(world)),
    "partial BT": ("PARGS: pairs of prefixes", lambda world, _: exact.partial_bt(world, tie_finished=True)),
    "best completion": ("FaRMA: the largest reward of any completion", lambda world, _: exact.best_value(world)),
    "log π_r": ("GenARM: log-probabilities, pairs of finished texts", lambda world, _: exact.arm(world)),
    "full BT": ("ARGS: pairs of finished texts; other prefixes at random", full_bt),
}
"""Description and prefix rewards of each method; None where the rewards depend on the strength."""

# The Okabe-Ito palette can be told apart by colour-blind readers; line and marker differ as well.
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

    The first strength is 0, where every policy is the base policy.
    """
    results = {name: torch.zeros(len(worlds), len(BETAS), 3, dtype=torch.float64) for name in METHODS}
    for w, world in enumerate(worlds):
        tables = prefix_rewards(world, w)
        for b, beta in enumerate(BETAS[1:], start=1):
            tables["soft value"] = exact.soft_value(world, beta)
            for name in METHODS:
                results[name][w, b] = compare(world, tables[name], beta)
    return results


def prefix_rewards(world: World, seed: int) -> dict[str, Table]:
    """Prefix rewards of the methods whose rewards do not depend on the strength."""
    return {name: rewards(world, seed) for name, (_, rewards) in METHODS.items() if rewards is not None}


def compare(world: World, rewards: Table, beta: float) -> Tensor:
    """KL of a guided policy from the optimum, its gain in expected reward over the base policy, and its KL to that."""
    policy = exact.sequence_log_probs(exact.guided_policy(world, rewards, beta))
    distance = exact.kl_divergence(exact.optimal_log_probs(world, beta), policy)
    gain = exact.expected_reward(world, policy) - exact.value(world)[0]
    spent = exact.kl_divergence(policy, exact.sequence_log_probs(world.policy))
    return torch.stack([distance, gain, spent])


def gains_at_budget(points: Tensor, budget: float) -> Tensor:
    """The gain of every world at a KL to the base; that of the largest strength if its KL is less.

    Interpolated linearly over the root of the KL, to which a small gain is proportional, at the first strength that
    reaches it (`numpy.interp` would not do, because the KL need not grow with the strength).

    Args:
        points: By world and strength (growing from 0), results of `measure`.
        budget: KL in nats per text.
    """
    target = math.sqrt(budget)
    gains = []
    for world in points:
        gain = world[:, 1].tolist()
        root_kl = world[:, 2].clamp(min=0).sqrt().tolist()
        reached = [i for i, root in enumerate(root_kl) if root >= target]
        if not reached:
            gains.append(gain[-1])
            continue
        after = reached[0]
        before = after - 1
        share = (target - root_kl[before]) / (root_kl[after] - root_kl[before])
        gains.append(gain[before] + share * (gain[after] - gain[before]))
    return torch.tensor(gains, dtype=torch.float64)


def markdown_tables(results: dict[str, Tensor]) -> list[str]:
    """Lines of Markdown with means over the worlds and the standard error of the mean."""
    columns = [BETAS.index(beta) for beta in SHOWN]
    strengths = [f"β = {beta:g}" for beta in SHOWN]
    distance = {name: [_mean(points[:, b, 0]) for b in columns] for name, points in results.items()}
    gains = {
        name: [f"{_mean(points[:, b, 1])} (KL {float(points[:, b, 2].mean()):.3f})" for b in columns]
        for name, points in results.items()
    }
    equal = {name: [_mean(gains_at_budget(points, budget)) for budget in BUDGETS] for name, points in results.items()}
    return [
        *_markdown("KL from the optimum, in nats per text", strengths, distance),
        *_markdown("Gain in expected reward over the base, and KL to the base in nats per text", strengths, gains),
        *_markdown(
            "Gain at equal KL to the base in nats per text, with β chosen in each world (100 if even its KL is less)",
            [f"KL {kl:g}" for kl in BUDGETS],
            equal,
        ),
    ]


def _markdown(caption: str, columns: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    head = [f"| prefix reward | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    return [f"{caption}:", "", *head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]


def _mean(values: Tensor) -> str:
    error = values.std() / math.sqrt(len(values))
    # Rounding can leave −0, which adding 0 turns into 0.
    mean = round(float(values.mean()), 4) + 0.0
    return f"{mean:.4f} ± {float(error):.4f}"


def draw_curves(results: dict[str, dict[str, Tensor]], worlds: int, path: Path) -> None:
    """Distance from the optimum by strength, and reward by KL to the base, both as means over the worlds."""
    figure, panels = plt.subplots(2, len(results), figsize=(10, 8.6), sharey="row", layout="constrained")
    for (kind, by_method), (upper, lower) in zip(results.items(), panels.T, strict=True):
        for i, (name, points) in enumerate(by_method.items()):
            distance, gain, spent = points.mean(0).T
            # Markers take turns, because two methods can have the same curve, as for texts of equal length.
            style = {**STYLES[name], "markevery": (i, 7), "markersize": 5, "label": name}
            if name != "soft value":
                upper.loglog(BETAS[1:], distance[1:], **style)
            lower.plot(spent, gain, **style)
        upper.set(title=kind, xlabel="guidance strength β (nats per unit of reward)", xlim=(0.05, 20), ylim=(1e-6, 100))
        upper.text(0.97, 0.03, "soft value: 0 at every strength", transform=upper.transAxes, ha="right", fontsize=9)
        lower.set(xlabel="KL to the base policy (nats per text)", xlim=(0, 2.5), ylim=(0, 2.1))
    panels[0, 0].set_ylabel("KL from the optimum (nats per text)")
    panels[1, 0].set_ylabel("gain in reward over the base")
    handles, names = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
    figure.suptitle(f"Means over {worlds} random worlds; rewards have standard deviation 1", fontsize=11)
    _save(figure, path)


def two_models(world: World) -> tuple[Table, Table]:
    """Two reward models with the same loss on finished texts, because they give these the same rewards.

    One gives good prefixes high rewards, the other low ones of five times the size.
    """
    means = exact.value(world)
    return means, right_when_finished(world, [-5 * entry for entry in means])


def gains_of_both(worlds: Sequence[World]) -> Tensor:
    """By world and strength: gains over the base policy of guidance by each of the two models, and of the optimum."""
    gains = torch.zeros(len(worlds), len(BETAS), 3, dtype=torch.float64)
    for w, world in enumerate(worlds):
        models = two_models(world)
        base_reward = exact.value(world)[0]
        for b, beta in enumerate(BETAS[1:], start=1):
            policies = [
                exact.guided_policy(world, rewards, beta) for rewards in (*models, exact.soft_value(world, beta))
            ]
            log_probs = [exact.sequence_log_probs(policy) for policy in policies]
            gains[w, b] = torch.stack([exact.expected_reward(world, entry) for entry in log_probs]) - base_reward
    return gains


def draw_two_fates(worlds: dict[str, Sequence[World]], path: Path) -> list[float]:
    """Draws the rewards of two reward models in the first world, and the gain of guidance by them in all worlds.

    Returns:
        The loss of both on full sequences of the first world, in nats for each pair, and for each kind of worlds the
        mean gains at β = 1.
    """
    figure, panels = plt.subplots(1, 1 + len(worlds), figsize=(13, 4.4), width_ratios=[1.1, 1, 1], layout="constrained")
    shown = next(iter(worlds.values()))[0]
    losses = _draw_rewards(panels[0], shown)
    panels[1].sharey(panels[2])
    gains_at_one = []
    for panel, (kind, same_kind) in zip(panels[1:], worlds.items(), strict=True):
        gains = gains_of_both(same_kind)
        _draw_gains(panel, gains)
        panel.set_title(f"{kind}\nmean over {len(same_kind)} worlds, ± standard error", fontsize=10)
        gains_at_one += gains.mean(0)[BETAS.index(1.0), :2].tolist()
    panels[1].set_ylabel("gain in reward over the base")
    panels[1].legend(fontsize=8, loc="upper left")
    _save(figure, path)
    return [*losses, *gains_at_one]


def _draw_rewards(panel: Any, world: World) -> list[float]:
    """Draws the rewards of both models for every prefix; returns their Bradley-Terry losses on full sequences."""
    models = two_models(world)
    wins = exact.win_weights(world)
    losses = [float(exact.bradley_terry_loss(wins, model[-1].flatten())) for model in models]
    markers = [("s", 60), ("D", 34), ("o", 16), (".", 16)]
    for length, (marker, size) in enumerate(markers, start=1):
        is_full = length == world.horizon
        color = "#000000" if is_full else "#D55E00"
        label = "finished texts" if is_full else f"prefixes of length {length}"
        faces = "none" if length < 3 else color
        x, y = (model[length].flatten() for model in models)
        panel.scatter(x, y, marker=marker, s=size, edgecolors=color, facecolors=faces, label=label)
    panel.set(xlabel="reward by model A", ylabel="reward by model B")
    panel.set_title(
        f"Rewards of two models in one world\nloss on full sequences: A {losses[0]:.6f}, B {losses[1]:.6f}", fontsize=10
    )
    panel.legend(fontsize=8)
    return losses


def _draw_gains(panel: Any, gains: Tensor) -> None:
    means = gains.mean(0).T
    errors = gains.std(0).T / math.sqrt(len(gains))
    curves = [
        (2, "optimum", "#000000", ":"),
        (0, "guided by model A", "#0072B2", "-"),
        (1, "guided by model B", "#D55E00", "--"),
    ]
    for i, label, color, linestyle in curves:
        mean, error = means[i, 1:], errors[i, 1:]
        panel.semilogx(BETAS[1:], mean, color=color, linestyle=linestyle, label=label)
        panel.fill_between(BETAS[1:], mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.set(xlabel="guidance strength β (nats per unit of reward)")


def counterexample() -> World:
    """After prefix a, a reward of 3 with probability 0.1 and otherwise −3; after b, a reward of 0."""
    steps = ([0.5, 0.5], [[0.1, 0.9], [0.1, 0.9]])
    policy = tuple(torch.tensor(step, dtype=torch.float64).log().log_softmax(-1) for step in steps)
    return World(policy, torch.tensor([[3.0, -3.0], [0.0, 0.0]], dtype=torch.float64))


def draw_counterexample(path: Path) -> dict[str, float]:
    """Draws the probability that guidance chooses prefix a; returns how far its reward is above that of b at β = 1."""
    world = counterexample()
    betas = torch.linspace(0.02, 3, 150).tolist()
    tables = prefix_rewards(world, 0)
    # Its prefixes are random.
    del tables["full BT"]
    figure, panel = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for i, name in enumerate(("soft value", *tables)):
        probabilities = []
        for beta in betas:
            rewards = exact.soft_value(world, beta) if name == "soft value" else tables[name]
            probabilities.append(exact.guided_policy(world, rewards, beta)[0].exp()[0])
        panel.plot(betas, probabilities, label=name, **{**STYLES[name], "markevery": (5 * i, 20), "markersize": 5})
    panel.axhline(0.5, color="#888888", linewidth=0.8)
    panel.text(3, 0.51, "base policy", ha="right", fontsize=8, color="#666666")
    panel.set(xlabel="guidance strength β (nats per unit of reward)", ylabel="probability of prefix a")
    panel.set_ylim(-0.02, 1.02)
    panel.set_title("After a: 3 with probability 0.1, otherwise −3. After b: 0.", fontsize=10)
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
    """Writes the report and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    parser.add_argument("--worlds", type=int, default=100, help="random worlds of each kind")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    worlds = {kind: [World.random(**size, seed=seed) for seed in range(options.worlds)] for kind, size in KINDS.items()}
    results = {kind: measure(same_kind) for kind, same_kind in worlds.items()}
    draw_curves(results, options.worlds, options.output / "curves.png")
    losses_and_gains = draw_two_fates(worlds, options.output / "two_fates.png")
    differences = draw_counterexample(options.output / "counterexample.png")

    report = [HEAD.format(worlds=options.worlds)]
    report += [f"- **{name}**: {source}" for name, (source, _) in METHODS.items()] + [""]
    for kind, by_method in results.items():
        report += [f"## {kind}", "", *markdown_tables(by_method)]
    report.append(FATES.format(*losses_and_gains))
    report += [COUNTEREXAMPLE, "| prefix reward | a − b |\n|---|---|"]
    report += [f"| {name} | {difference:+.2f} |" for name, difference in differences.items()]
    (options.output / "table.md").write_text("\n".join(report) + "\n", encoding="utf8")


HEAD = """# Guidance in worlds that can be enumerated

Made by `python examples/exact_worlds.py`, which draws {worlds} worlds of each kind with fixed seeds: 3 tokens; logits
of the base policy and rewards of finished texts are independent and standard normal. Nothing is sampled or trained:
each method gets the prefix rewards that minimise its objective on unlimited pairs or texts of the base policy, with a
table as the model. Means over the worlds ± standard error. The optimum is that of KL-regularised RLHF,
π_ref exp(β r) / Z.

![KL from the optimum by strength, and gain in reward by KL to the base](curves.png)

For texts of equal length, RAD's cumulative error has the same optimum as the plain squared error; for texts that end
early it has another one. At equal KL, the expected reward and partial BT are close to each other, and close to the
optimum as long as the KL is small; from about one nat on, they fall behind the best completion. At equal β they differ
in unit: log-odds of winning are smaller than rewards. More reward at equal β means little: at β = 1 the best completion
has more of it than the optimum, and more KL. log π_r favours prefixes with many continuations, which costs much where
texts end early. Full BT has random rewards on unfinished prefixes here; it gains because finished texts are guided
correctly.
"""
FATES = """## Two reward models with the same loss

Both models give finished texts the same rewards, so their Bradley-Terry losses on full sequences are equal:
{0!r} and {1!r} nats in the world shown. The reward of an unfinished prefix is the expected
reward in model A, and minus five times as much in model B. At β = 1, guidance by A changes the mean reward by {2:+.3f}
from that of the base, and guidance by B by {3:+.3f} (means over all worlds with texts of 4 tokens); where texts end
early, by {4:+.3f} and {5:+.3f}. With a large β, B gains too, because the loss does determine the rewards of the tokens
that finish a text.

![Rewards of prefixes in both models, and the gain by strength](two_fates.png)
"""
COUNTEREXAMPLE = """## A choice that the mean reward gets wrong

After prefix a, the reward is 3 with probability 0.1 and otherwise −3; after prefix b, it is 0. The optimum at β = 1
prefers a, because a policy that then chooses well gets more reward.

![Probability that guidance chooses a](counterexample.png)

Reward of a minus reward of b (the soft value for β = 1):
"""


if __name__ == "__main__":
    main()

"""Means, intervals, and the comparison at equal KL: from one record per policy to tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

RESAMPLES = 2000
GRID_POINTS = 6


def summarise(records: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """One line per policy: means over prompts, with bootstrap intervals over prompts for both rewards and the KL."""
    weights = resamples(len(records[0]["gold"]), seed)
    return [_line(record, weights) for record in records]


def resamples(prompts: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap resample (rows); the same for all policies, hence paired."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)


def _line(record: dict[str, Any], weights: np.ndarray) -> dict[str, Any]:
    ones, tokens = np.ones(len(record["gold"])), np.array(record["tokens"])
    ratios = {
        "gold": (record["gold"], ones),
        "judge": (record["judge"], ones),
        # Per token: all nats over all tokens, so that a short text weighs no more than its length.
        "kl_per_token": (record["kl"], tokens),
        "nll_per_token": (record["nll"], tokens),
        "distinct_2": (record["distinct_2"], ones),
    }
    line: dict[str, Any] = {"method": record["method"], "beta": record["beta"], "prompts": len(ones)}
    for name, (above, below) in ratios.items():
        line[name] = float(np.sum(above) / np.sum(below))
        line[f"{name}_interval"] = interval(_ratio(above, below, weights))
    line["tokens_per_prompt"] = float(tokens.mean())
    line["ms_per_token"] = 1000 * record["seconds"] / float(tokens.sum())
    line["processor_ms_per_token"] = 1000 * record["processor_seconds"] / float(tokens.sum())
    return line


def interval(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval of bootstrap values."""
    return np.quantile(values, [0.025, 0.975]).tolist()


def _ratio(above: Sequence[float], below: Sequence[float] | np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights @ np.array(above)) / (weights @ np.array(below))


def at_same_beta(records: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Both rewards of PARGS minus those of ARGS at each strength, prompt by prompt."""
    weights = resamples(len(records[0]["gold"]), seed)
    found = {(record["method"], record["beta"]): record for record in records}
    lines = []
    for (method, beta), record in found.items():
        name, mode = method.split()
        if name == "PARGS" and (f"ARGS {mode}", beta) in found:
            line: dict[str, Any] = {"mode": mode, "beta": beta}
            for reward in ("gold", "judge"):
                gaps = np.array(record[reward]) - np.array(found[f"ARGS {mode}", beta][reward])
                line[reward] = float(gaps.mean())
                line[f"{reward}_interval"] = interval(_ratio(gaps, np.ones(len(gaps)), weights))
            lines.append(line)
    return lines


def at_equal_kl(records: Sequence[dict[str, Any]], reward: str, seed: int) -> dict[str, Any]:
    """The reward of PARGS minus that of ARGS where both have the same KL to the base model, sampling.

    Each method is a curve through its strengths, from beta = 0 on, which both share; between strengths the reward is
    interpolated linearly in the KL. Prompts are resampled for both curves together. Greedy policies are left out: more
    guidance can lower their KL, because repetition is probable, so their reward is no function of it.

    Args:
        records: What every policy did, prompt by prompt.
        reward: "gold" or "judge".
        seed: Of the bootstrap.
    """
    weights = resamples(len(records[0]["gold"]), seed)
    every = np.vstack([np.ones(weights.shape[1]), weights])  # Row 0 is the sample itself.
    curves = {}
    for method in ("PARGS", "ARGS"):
        of_method = [r for r in records if r["method"] in ("base sampling", f"{method} sampling")]
        of_method.sort(key=lambda record: record["beta"])
        kl = np.stack([_ratio(r["kl"], r["tokens"], every) for r in of_method], 1)
        curves[method] = kl, np.stack([_ratio(r[reward], np.ones(len(r[reward])), every) for r in of_method], 1)
    # Only where both curves exist, in the sample and in nearly every resample.
    low = max(kl[:, 0].max() for kl, _ in curves.values())
    high = min(np.quantile(kl.max(1), 0.005) for kl, _ in curves.values())
    grid = np.linspace(low, high, GRID_POINTS + 1)[1:]
    values = {
        name: np.stack([_interpolate(grid, *row) for row in zip(*curve, strict=True)]) for name, curve in curves.items()
    }
    difference = values["PARGS"] - values["ARGS"]
    return {
        "reward": reward,
        "kl_per_token": grid.tolist(),
        "pargs": values["PARGS"][0].tolist(),
        "args": values["ARGS"][0].tolist(),
        "difference": difference[0].tolist(),
        "difference_interval": [interval(column) for column in difference[1:].T],
    }


def _interpolate(grid: np.ndarray, kl: np.ndarray, reward: np.ndarray) -> np.ndarray:
    order = np.argsort(kl)
    return np.interp(grid, kl[order], reward[order])


COLUMNS = ("Policy", "beta", "Gold reward", "Judge reward", "KL / token", "NLL / token", "distinct-2", "ms / token")


def policy_rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The lines of `summarise` as text, in the order of `COLUMNS`."""
    return [
        [
            line["method"],
            f"{line['beta']:g}",
            _with_interval(line, "gold"),
            _with_interval(line, "judge"),
            f"{line['kl_per_token']:.3f}",
            f"{line['nll_per_token']:.2f}",
            f"{line['distinct_2']:.2f}",
            f"{line['ms_per_token']:.2f} ({line['processor_ms_per_token']:.2f})",
        ]
        for line in lines
    ]


def accuracy_rows(accuracy: dict[str, Any]) -> list[list[str]]:
    """Prefix accuracies as text: one row per model, one column per percentage."""
    names = {"partial_bt": "partial BT", "full_bt": "full BT", "difference": "difference"}
    return [
        [
            title,
            *(
                f"{m:+.3f} ± {e:.3f}" if name == "difference" else f"{m:.3f} ± {e:.3f}"
                for m, e in _columns(accuracy[name])
            ),
        ]
        for name, title in names.items()
    ]


def equal_kl_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """The comparison at equal KL as text."""
    columns = ("kl_per_token", "pargs", "args", "difference", "difference_interval")
    return [
        [f"{kl:.3f}", f"{pargs:.2f}", f"{args:.2f}", f"{gap:+.2f} [{low:+.2f}, {high:+.2f}]"]
        for kl, pargs, args, gap, (low, high) in zip(*(comparison[name] for name in columns), strict=True)
    ]


def _columns(accuracy: dict[str, list[float]]) -> zip:
    return zip(accuracy["mean"], accuracy["standard_error"], strict=True)


def _with_interval(line: dict[str, Any], name: str) -> str:
    low, high = line[f"{name}_interval"]
    return f"{line[name]:.2f} [{low:.2f}, {high:.2f}]"


def markdown(results: dict[str, Any]) -> str:
    """All tables of a run as Markdown."""
    parts = []
    for title, note, columns, rows in tables(results):
        parts += [f"## {title}", "", note, "", _line_of(columns), _line_of(["---"] * len(columns))]
        parts += [_line_of(row) for row in rows] + [""]
    return "\n".join(parts)


def console(results: dict[str, Any]) -> list[Table]:
    """All tables of a run for the terminal."""
    found = []
    for title, note, columns, rows in tables(results):
        table = Table(*columns, title=title, caption=note)
        for row in rows:
            table.add_row(*row)
        found.append(table)
    return found


def tables(results: dict[str, Any]) -> list[tuple[str, str, Sequence[str], list[list[str]]]]:
    """Title, note, column names and rows of each table."""
    settings, accuracy, count = results["settings"], results["prefix_accuracy"], results["policies"][0]["prompts"]
    found = [
        (
            "Prefix accuracy",
            f"Share of {accuracy['pairs']} held-out pairs whose chosen prefix has the higher reward, ± standard error. "
            f"The gold reward itself agrees with {accuracy['gold']['mean'][0]:.3f} of the drawn labels.",
            ["Model", *(f"{percent} %" for percent in accuracy["percents"])],
            accuracy_rows(accuracy),
        ),
        (
            "Policies",
            f"{count} held-out prompts, {settings['new_tokens']} new tokens, top-{settings['top_k']}; rewards are "
            "log-odds in nats with 95 % bootstrap intervals over prompts; KL to and NLL under the base model in nats; "
            "time per generated token in a batch, of which in the processor in brackets.",
            COLUMNS,
            policy_rows(results["policies"]),
        ),
    ]
    found.append(
        (
            "At the same beta",
            "PARGS minus ARGS, with 95 % paired bootstrap intervals over prompts.",
            ["Mode", "beta", "Gold reward", "Judge reward"],
            [
                [line["mode"], f"{line['beta']:g}", _with_interval(line, "gold"), _with_interval(line, "judge")]
                for line in results["same_beta"]
            ],
        )
    )
    found += [
        (
            f"At equal KL: {comparison['reward']} reward, sampling",
            "PARGS minus ARGS by interpolation in the KL, with 95 % paired bootstrap intervals over prompts.",
            ["KL / token (nats)", "PARGS", "ARGS", "Difference"],
            equal_kl_rows(comparison),
        )
        for comparison in results["equal_kl"]
    ]
    return found


def _line_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

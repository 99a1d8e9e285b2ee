"""Prints the figures of `run.sh` beside their targets, as Markdown: `python table.py FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGETS = (
    ("first token", "over_floor", "first_ms", ("candidates*", "scorers*"), ("guided",), 1.10, "× floor"),
    ("vocabulary, further token", "over_floor", "further_ms", ("scorers*",), ("vocabulary",), 1.10, "× floor"),
    (
        "top_p = 0.9, shipped models, further token",
        "over_floor",
        "further_ms",
        ("shipped*",),
        ("top_p",),
        1.35,
        "× floor",
    ),
    ("growth with the prompt", "prompt", "ratio_over_floor", ("candidates*",), ("guided",), 1.15, "× the floor's"),
    ("50 candidates, further token", "candidates", "ratio", ("candidates*",), ("guided",), 3.0, "× 5 candidates"),
    ("another tokenizer, further token", "retokenizing", "ratio", ("scorers*",), ("retokenizing",), 3.0, "× the same"),
)
"""Claims: name, derived figure and its ratio, files, methods, the most that it should be, and the unit."""


def main(folder: Path) -> None:
    """Prints the table of targets, then a table of ratios by method and size."""
    print("| | target | worst | where | all |\n|---|---|---|---|---|")
    for claim, name, figure, files, methods, target, unit in TARGETS:
        values = [
            (item["figures"][figure], _size(item))
            for item in _derived(folder, files)
            if item["name"] == name and item["method"] in methods and figure in item["figures"]
        ]
        if values:
            worst, where = max(values)
            every = ", ".join(f"{value:.2f}" for value, _ in sorted(values))
            print(f"| {claim} | {target:.2f} {unit} | {worst:.2f} | {where} | {every} |")
    print("\n| file | method | k | prompt, batch | first, × floor | further, × floor | read | outside |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        for row in _rows(path):
            print(f"| {path.stem} | {row} |")


def _derived(folder: Path, files: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for pattern in files:
        for path in sorted(folder.glob(f"{pattern}.json")):
            yield from json.loads(path.read_text()).get("derived", [])


def _rows(path: Path) -> Iterator[str]:
    """Cells of each method at each size, as ratios to the floor."""
    report = json.loads(path.read_text())
    key = ("method", "top_k", "prompt_length", "batch_size")
    if not report.get("derived"):
        # Figures of training have other names.
        return
    medians = {tuple(item[name] for name in key): item["medians"] for item in report["measurements"]}
    for item in report["derived"]:
        if item["name"] == "over_floor":
            figures = medians[tuple(item[name] for name in key)]
            ratios = item["figures"]
            read = f"{figures.get('read_tokens', 0):.3g}"
            share = f"{figures['bookkeeping_share']:.1%}" if "bookkeeping_share" in figures else ""
            yield " | ".join((
                item["method"], str(item["top_k"] or ""), f"{item['prompt_length']}, {item['batch_size']}",
                f"{ratios['first_ms']:.2f}", f"{ratios['further_ms']:.2f}", read, share,
            ))  # fmt: skip


def _size(item: dict[str, Any]) -> str:
    parts = {"prompt": item["prompt_length"], "batch": item["batch_size"], "k": item["top_k"]}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

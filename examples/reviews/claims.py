"""The verdict of the evaluations on each claim, as one Markdown page.

    python examples/reviews/claims.py --output_dir runs/reviews > runs/reviews/claims.md
    python examples/reviews/claims.py --pairs_of METHODS.yaml     # the comparisons for `rgtg evaluate --compare`

Claim (a) is read from prefix_accuracy.md, the others from the comparisons at equal divergence of the evaluations. A
difference is called "above" or "below" if the 95 % intervals of all judges lie on that side of 0, and "undecided"
otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

CLAIMS = {
    "(b) PARGS beats ARGS": [("PARGS", "ARGS"), ("PARGS, vocabulary", "ARGS, vocabulary")],
    "(c) PARGS reaches what fine-tuning reaches": [("PARGS", "DPO"), ("PARGS", "RL")],
    "(d) soft value beats PARGS and CD": [
        ("soft value", "PARGS"),
        ("soft value", "CD"),
        ("soft value, TD", "PARGS"),
        ("soft value, TD", "CD"),
        ("soft value, TD", "CD, TD"),
        ("soft value, TD, of pairs", "PARGS"),
        ("soft value of pairs, vocab.", "PARGS, vocabulary"),
        ("soft value, TD, vocabulary", "PARGS, vocabulary"),
        ("soft value, TD, vocabulary", "CD, vocabulary"),
    ],
    "(c, d) what else reaches what": [
        ("soft value, TD", "DPO"),
        ("soft value, TD", "RL"),
        ("soft value, TD, vocabulary", "DPO"),
        ("soft value, TD, vocabulary", "RL"),
        ("soft value of pairs, vocab.", "DPO"),
        ("soft value of pairs, vocab.", "RL"),
        ("guided answers twice, vocab.", "DPO"),
        ("guided answers twice, vocab.", "RL"),
        ("guided answers twice, vocab.", "soft value of pairs, vocab."),
        ("guided answers thrice, vocab.", "DPO"),
        ("guided answers thrice, vocab.", "DPO pair"),
        ("guided answers thrice, vocab.", "RL"),
        ("guided answers thrice, vocab.", "best of n"),
        ("guided answers thrice, vocab.", "guided answers twice, vocab."),
        ("PARGS, vocabulary", "DPO"),
        ("PARGS, vocabulary", "RL"),
        ("DPO pair", "DPO"),
        ("DPO pair", "RL"),
        ("PARGS", "best of n"),
        ("PARGS", "GenARM"),
        ("PARGS", "FaRMA"),
        ("PARGS", "RAD"),
        ("PARGS", "CD"),
        ("soft value", "RAD"),
        ("soft value, TD", "soft value"),
        ("CD, TD", "CD"),
        ("PARGS, vocabulary", "best of n"),
    ],
    "(e) vocabulary heads lose little": [
        ("PARGS, vocabulary", "PARGS"),
        ("CD, vocabulary", "CD"),
        ("soft value, TD, vocabulary", "soft value, TD"),
    ],
}
COLUMNS = ("first", "second", "judge", "KL, nats", "first − second, mean over the KL", "verdict")


@dataclass
class Arguments:
    """The folder of the run, the subfolder of its evaluations, and a list of methods."""

    output_dir: str = "runs/reviews"
    evaluations: str = "evaluation"
    pairs_of: str | None = None


def pairs_of(methods: str) -> Iterator[str]:
    """The comparisons that the claims need, of the methods in a file."""
    listed = yaml.safe_load(Path(methods).read_text(encoding="utf-8"))
    curves = {method.get("family", method["name"]) for method in listed}
    for pairs in CLAIMS.values():
        for first, second in pairs:
            if first in curves and second in curves:
                yield f"{first}={second}"


def comparisons(folder: Path) -> Iterator[dict[str, Any]]:
    """All comparisons of all evaluations, with the name of the evaluation."""
    for path in sorted(folder.glob("val-*/results.json")):
        for comparison in json.loads(path.read_text(encoding="utf-8"))["comparisons"]:
            yield {**comparison, "evaluation": path.parent.name.removeprefix("val-")}


def verdict(intervals: Sequence[Sequence[float]]) -> str:
    """Sign of a difference, from an estimate (value, low, high) by each judge."""
    if all(low > 0 for _, low, _ in intervals):
        return "above"
    if all(high < 0 for _, _, high in intervals):
        return "below"
    return "undecided"


def section(title: str, pairs: Sequence[tuple[str, str]], compared: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A claim with every comparison that supports or refutes it."""
    yield f"## {title}"
    yield ""
    yield "| " + " | ".join(("candidates", *COLUMNS)) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for first, second in pairs:
        for evaluation in sorted({comparison["evaluation"] for comparison in compared}):
            by_judge = [
                c for c in compared if (c["first"], c["second"], c["evaluation"]) == (first, second, evaluation)
            ]
            yield from lines(by_judge)
    yield ""


def lines(by_judge: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a table: one comparison as each judge sees it."""
    agreed = verdict([comparison["overall"] for comparison in by_judge])
    for comparison in by_judge:
        value, low, high = comparison["overall"]
        cells = (
            comparison["evaluation"],
            comparison["first"],
            comparison["second"],
            comparison["judge"],
            f"{comparison['kl'][0]:.0f} to {comparison['kl'][-1]:.0f}",
            f"{value:+.2f} [{low:+.2f}, {high:+.2f}]",
            agreed,
        )
        yield "| " + " | ".join(cells) + " |"


def main(args: Arguments) -> None:
    """Prints the page, or the pairs."""
    if args.pairs_of is not None:
        print("\n".join(pairs_of(args.pairs_of)))
        return
    out = Path(args.output_dir)
    accuracy = out / "prefix_accuracy.md"
    print("# The claims, one by one\n\n## (a) A partial reward model beats a full one at every prefix\n")
    print(accuracy.read_text(encoding="utf-8") if accuracy.exists() else "Not measured.\n")
    compared = list(comparisons(out / args.evaluations))
    for title, pairs in CLAIMS.items():
        print("\n".join(section(title, pairs, compared)))


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])

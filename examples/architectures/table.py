"""Tables of the rows, and counts of each outcome, as markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sweep import Row

MARKS = ("<!-- counts -->", "<!-- end of counts -->")
OUTCOMES = {
    "tree_attention": "exact, candidates share the prefix: `tree_attention`",
    "masked_tree_attention": "the same by a mask: `masked_tree_attention`",
    "expand": "exact, each candidate on its own copy of the cache: `expand`",
    "expand_model_cache": "the same, on a cache that only the model can make: `expand_model_cache`",
    "recompute": "exact, without a cache: `recompute`",
    "refused": "refused with an error that says why",
    "not built": "not built",
    "**unclear error**": "**refused with an error that does not say why**",
    "**says nothing**": "**too insensitive to say anything**",
    "**inexact**": "**accepted and inexact**",
}
HEADER = "| model type | class | outcome | worst error | in spreads | spread | of it by the prefix |"


def markdown(title: str, rows: Iterable[Row]) -> str:
    """One section: a heading and a table."""
    lines = [f"## {title}", "", HEADER, "|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = ("", "", "", "")
        if row.error is not None and row.spread and row.prefix is not None:
            numbers = (f"{row.error:.0e}", f"{row.error / row.spread:.0e}", f"{row.spread:.2f}", f"{row.prefix:.0%}")
        lines.append(f"| {row.name} | {row.model} | {row.outcome} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def counts(tables: Iterable[Path]) -> str:
    """A table of the number of rows of each outcome in each section of each table."""
    columns: dict[str, Counter[str]] = {}
    for path in sorted(tables, reverse=True):
        for section in path.read_text(encoding="utf8").split("\n## ")[1:]:
            title = f"{path.stem.removeprefix('transformers-')}: {section.splitlines()[0].lower()}"
            cells = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
            columns[title] = Counter(cell[2].split(":")[0] for cell in cells)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for outcome, meaning in OUTCOMES.items():
        numbers = [column[outcome] for column in columns.values()]
        if any(numbers):
            lines.append(f"| {meaning} | {' | '.join(map(str, numbers))} |")
    lines.append(f"| all | {' | '.join(str(column.total()) for column in columns.values())} |")
    return "\n".join(lines)


def update_counts(readme: Path) -> None:
    """Writes the counts of the tables beside a README into it, between the marks."""
    start, end = MARKS
    table = counts(readme.parent.glob("transformers-*.md"))
    text = readme.read_text(encoding="utf8")
    readme.write_text(re.sub(f"{start}.*{end}", lambda _: f"{start}\n{table}\n{end}", text, flags=re.S), "utf8")

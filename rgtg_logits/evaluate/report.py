"""What came of an evaluation, for people: tables for the console and for Markdown, and one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import accumulate
from math import floor, isfinite, log10
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

from jinja2 import Environment, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rgtg_logits.evaluate.figures import Picture, pictures
from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, JudgeResult
from rgtg_logits.files import write_atomically, write_json

_ABSENT = "–"
_ROOM = 60
"""Columns of a terminal of 80 that are left beside the names of policies."""
# A browser drops these or takes them for line breaks.
_CONTROLS: dict[int, str] = {**{code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}, 0x7F: "␡"}


@dataclass(frozen=True)
class _Cell:
    """A number in a table.

    Attributes:
        text: As it is shown.
        interval: Its interval as it is shown; empty without one.
        value: What rows are sorted by; None if there is no number.
        clear: Whether the interval leaves out the value that says "no difference".
    """

    text: str
    interval: str = ""
    value: float | None = None
    clear: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class _Column:
    """One quantity of every policy.

    Attributes:
        group: Columns of one group stand under one head.
        heading: What it is called there.
        cells: One for each policy.
        title: What it is called alone.
        console: What a terminal calls it; empty if it is not among the few that fit.
        interval: Whether the terminal shows intervals of it.
    """

    group: str
    heading: str
    cells: tuple[_Cell, ...]
    title: str = ""
    console: str = ""
    interval: bool = False

    @property
    def shown(self) -> list[str]:
        """What a terminal shows: the lines of the head, and the cells."""
        return [*self.console.split("\n"), *(str(cell) if self.interval else cell.text for cell in self.cells)]


def console_tables(results: EvaluationResults) -> list[Table]:
    """Tables for a terminal: the policies, and the comparisons if there are any."""
    return [console_table(results), *([_console_comparisons(results)] if results.comparisons else [])]


def console_table(results: EvaluationResults) -> Table:
    """One line for each policy, with what fits a terminal, such as the intervals of the first judge's differences."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Titles are told apart by their ends, so that words may be broken but not cut.
    longest = max(len(_line(policy.title)) for policy in results.policies)
    table.add_column("policy", overflow="fold", min_width=min(longest, 12))
    shown = _fitting([column for column in _columns(results) if column.console])
    for column in shown:
        table.add_column(Text(column.console), justify="right", no_wrap=True)
    rows = zip(*(column.shown[-len(results.policies) :] for column in shown), strict=True)
    for policy, cells in zip(results.policies, rows, strict=True):
        table.add_row(Text(_line(policy.title)), *map(Text, cells))
    return table


def _fitting(columns: list[_Column]) -> list[_Column]:
    """The first of the columns, as many as fit beside the policies: the last ones matter least."""
    widths = [max(len(line) for line in column.shown) + 1 for column in columns]
    return [column for column, end in zip(columns, accumulate(widths), strict=True) if end <= _ROOM]


def write_report(results: EvaluationResults, folder: Path) -> None:
    """Writes results.json, table.md, the figures as PNG and report.html, which needs none of the others.

    Each file appears whole or not at all. In the JSON, null stands for a number that is not finite.

    Raises:
        InvalidArgumentError: If matplotlib is missing; results.json and table.md are written all the same.
    """
    write_json(folder / "results.json", _finite(results.to_dict()), allow_nan=False)
    write_atomically(folder / "table.md", _markdown(results))
    drawn = pictures(results)
    for picture in drawn:
        write_atomically(folder / f"{picture.name}.png", partial(_write, picture.png))
    write_atomically(folder / "report.html", _page(results, drawn))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _columns(results: EvaluationResults) -> list[_Column]:
    policies = results.policies
    found: list[_Column] = []
    for judge in dict.fromkeys(judge for policy in policies for judge in policy.judges):
        found += _judged(judge, [policy.judges.get(judge) for policy in policies], first=not found)
    kl, texts, cost = "KL to the base, nats", "texts", "cost"
    perplexity = _cells([policy.perplexity for policy in policies])
    distinct = [_plain([policy.distinct[n] for policy in policies], 3) for n in range(3)]
    return [
        *found,
        _Column(kl, "KL of an answer", _cells([policy.kl for policy in policies]), console="KL"),
        _Column(kl, "of which the cut to candidates", _cells([policy.cut for policy in policies])),
        _Column(kl, "KL per token", _cells([policy.kl_per_token for policy in policies])),
        _Column(kl, "log-ratio (check)", _cells([policy.log_ratio for policy in policies])),
        _Column(texts, "perplexity under the base", perplexity, console="perplexity"),
        _Column(texts, "distinct-1", distinct[0]),
        _Column(texts, "distinct-2", distinct[1], console="distinct-2"),
        _Column(texts, "distinct-3", distinct[2]),
        _Column(texts, "self-BLEU", _plain([policy.self_bleu for policy in policies], 1)),
        _Column(texts, "length", _plain([policy.length for policy in policies], 1)),
        _Column(texts, "ended", _shares([policy.ended for policy in policies])),
        _Column(cost, "RM forwards per token", _plain([policy.guide_forwards for policy in policies], 2)),
        _Column(cost, "RM tokens per token", _plain([policy.guide_tokens for policy in policies], 1)),
        _Column(cost, "ms per token", _plain([policy.ms_per_token for policy in policies], 2), console="ms/token"),
        _Column(cost, "answers", _plain([policy.answers for policy in policies], 0)),
    ]


def _judged(judge: str, said: Sequence[JudgeResult | None], *, first: bool) -> list[_Column]:
    def column(name: str, heading: str, console: str = "", **look: Any) -> _Column:
        cells = _cells([None if result is None else getattr(result, name) for result in said], **look)
        # A judge may be called like one of the other groups.
        return _Column(f"judged by {judge}", heading, cells, f"{heading} ({judge})", console, name == "difference")

    return [
        column("reward", "reward", f"{judge}\nreward"),
        column("difference", "difference", f"{judge}\ndifference" if first else "", nothing=0.0, sign="+"),
        column("win_rate", "win rate", nothing=0.5),
    ]


def _cells(estimates: Sequence[Estimate | None], nothing: float | None = None, sign: str = "") -> tuple[_Cell, ...]:
    """A column of estimates with as many decimals as their intervals deserve."""
    decimals = _decimals([estimate for estimate in estimates if estimate is not None])

    def number(value: float) -> str:
        # What rounds to zero has no sign.
        return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}" if isfinite(value) else _ABSENT

    cells = []
    for estimate in estimates:
        if estimate is None or not isfinite(estimate.value):
            cells.append(_Cell(_ABSENT))
            continue
        value, low, high = estimate
        known = isfinite(low) and isfinite(high)
        clear = known and nothing is not None and (low > nothing or high < nothing)
        interval = f"[{number(low)}, {number(high)}]" if known else ""
        cells.append(_Cell(number(value), interval, value, clear))
    return tuple(cells)


def _decimals(estimates: Sequence[Estimate]) -> int:
    """So many that half an interval, as wide as most are, has two digits."""
    widths = [(estimate.high - estimate.low) / 2 for estimate in estimates if isfinite(estimate.high - estimate.low)]
    widths = [width for width in widths if width > 0]
    return min(max(1 - floor(log10(median(widths))), 0), 6) if widths else 3


def _plain(values: Sequence[float | None], decimals: int) -> tuple[_Cell, ...]:
    return tuple(
        _Cell(_ABSENT) if value is None or not isfinite(value) else _Cell(f"{value:.{decimals}f}", value=value)
        for value in values
    )


def _shares(values: Sequence[float]) -> tuple[_Cell, ...]:
    return tuple(_Cell(f"{value:.1%}", value=value) if isfinite(value) else _Cell(_ABSENT) for value in values)


_COMPARED = ("judge", "first", "second", "KL, nats")


def _compared(results: EvaluationResults) -> list[tuple[tuple[str, ...], _Cell]]:
    """Each comparison: what is compared and where, and the mean difference."""
    cells = _cells([item.overall for item in results.comparisons], nothing=0.0, sign="+")
    texts = [
        (item.judge, item.first, item.second, f"{min(item.kl):.3g} to {max(item.kl):.3g}" if item.kl else _ABSENT)
        for item in results.comparisons
    ]
    return list(zip(texts, cells, strict=True))


def _console_comparisons(results: EvaluationResults) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _COMPARED:
        table.add_column(name, overflow="fold")
    table.add_column("first − second, at equal KL", justify="right", no_wrap=True)
    for texts, cell in _compared(results):
        table.add_row(*(Text(_line(text)) for text in texts), Text(str(cell)))
    return table


def _markdown(results: EvaluationResults) -> str:
    """The tables as GitHub reads them, headed by what they are of."""
    columns = _columns(results)
    rows = [
        [policy.title, *(str(column.cells[index]) for column in columns)]
        for index, policy in enumerate(results.policies)
    ]
    parts = [
        f"{results.prompts} prompts; in brackets 95 % intervals of a bootstrap over the prompts; differences and win "
        f"rates are to {_escaped(results.baseline)}.",
        _markdown_table(["policy", *(column.title or column.heading for column in columns)], rows, texts=1),
    ]
    if results.comparisons:
        compared = [[*texts, str(cell)] for texts, cell in _compared(results)]
        parts += [
            "At equal divergence from the base model:",
            _markdown_table([*_COMPARED, "first − second"], compared, texts=len(_COMPARED)),
        ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A table whose first columns are texts and whose others are numbers."""
    marks = ["---" if index < texts else "---:" for index in range(len(heads))]
    lines = [[*map(_escaped, heads)], marks, *([*map(_escaped, row[:texts]), *row[texts:]] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_<>|&#~$\[\]!])", r"\\\1", _line(text))


def _line(text: str) -> str:
    return " ".join(text.split()).translate(_CONTROLS)


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _page(results: EvaluationResults, drawn: Sequence[Picture]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shown=_shown, signed=_signed, png=_data_uri, digest=_digest, told=_told, reward=_reward)
    source = (files("rgtg_logits") / "templates" / "evaluation.html.jinja").read_text(encoding="utf-8")
    columns = _columns(results)
    said = (answer[2] for sample in results.samples for answer in sample.answers)
    return environment.from_string(source).render(
        results=results,
        columns=columns,
        groups=Counter(column.group for column in columns),
        comparisons=list(zip(results.comparisons, _compared(results), map(_details, results.comparisons), strict=True)),
        pictures=drawn,
        judges=list(dict.fromkeys(judge for rewards in said for judge in rewards)),
    )


def _details(item: EqualKL) -> list[tuple[float, float, float, _Cell]]:
    """A comparison at each divergence: the divergence, both rewards, and the difference."""
    cells = _cells(item.difference, nothing=0.0, sign="+")
    return list(zip(item.kl, item.first_reward, item.second_reward, cells, strict=True))


def _shown(text: str) -> str:
    """A text with its control characters to be seen; line breaks and tabs act as such."""
    return text.translate(_CONTROLS)


def _signed(text: str) -> str:
    """Numbers with the sign that screens and screen readers take for minus."""
    return text.replace("-", "\N{MINUS SIGN}")


def _reward(value: float | None) -> str:
    return _ABSENT if value is None or not isfinite(value) else _signed(f"{value:.3f}")


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _digest(script: str) -> str:
    """What a content security policy knows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _told(value: Any) -> str:
    """A setting in words; what is not set is left out of mappings."""
    if isinstance(value, Mapping):
        return "; ".join(_named(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_told, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value is not False and value not in (None, "", (), []):
            yield f"{name}: {_told(value)}"

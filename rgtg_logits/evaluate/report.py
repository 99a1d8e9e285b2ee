"""The report of an evaluation: tables for the console and for Markdown, and one self-contained HTML page.

A table is one `DataFrame`, whatever it is rendered to. The levels of its index are texts, its columns are `Cell`s.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import floor, isfinite, log10
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rgtg_logits.evaluate.figures import Picture, pictures
from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, JudgeResult
from rgtg_logits.files import write_atomically, write_json

_UNKNOWN = "–"
_CONSOLE_WIDTH = 60
"""Columns of a console of 80 that are left beside the names of policies."""
_CONSOLE_LABELS = {
    "reward": "reward",
    "difference": "difference",
    "KL of an answer": "KL",
    "perplexity under the base": "perplexity",
    "distinct-2": "distinct-2",
    "ms per token": "ms/token",
}
"""Columns that the console shows, as far as they fit, and their labels there."""
# A browser drops these or takes them for line breaks.
_CONTROLS: dict[int, str] = {**{code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}, 0x7F: "␡"}


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        text: The formatted number.
        interval: The formatted interval; empty without one.
        value: The number, by which rows are sorted; None if it is not known.
        clear: Whether the interval leaves out the value that means "no difference".
    """

    text: str
    interval: str = ""
    value: float | None = None
    clear: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


def policy_table(results: EvaluationResults) -> pd.DataFrame:
    """A row for each policy; the columns are pairs of a group and a heading."""
    policies = results.policies
    columns: dict[tuple[str, str], list[Cell]] = {}
    for judge in dict.fromkeys(judge for policy in policies for judge in policy.judges):
        columns |= _judge_columns(judge, [policy.judges.get(judge) for policy in policies])
    columns |= {
        ("KL to the base, nats", "KL of an answer"): _estimates([policy.kl for policy in policies]),
        ("KL to the base, nats", "of which truncation"): _estimates([policy.cut for policy in policies]),
        ("KL to the base, nats", "KL per token"): _estimates([policy.kl_per_token for policy in policies]),
        ("KL to the base, nats", "log-ratio (check)"): _estimates([policy.log_ratio for policy in policies]),
        ("texts", "perplexity under the base"): _estimates([policy.perplexity for policy in policies]),
        ("texts", "distinct-1"): _numbers([policy.distinct[0] for policy in policies], ".3f"),
        ("texts", "distinct-2"): _numbers([policy.distinct[1] for policy in policies], ".3f"),
        ("texts", "distinct-3"): _numbers([policy.distinct[2] for policy in policies], ".3f"),
        ("texts", "self-BLEU"): _numbers([policy.self_bleu for policy in policies], ".1f"),
        ("texts", "length"): _numbers([policy.length for policy in policies], ".1f"),
        ("texts", "ended"): _numbers([policy.ended for policy in policies], ".1%"),
        ("cost", "RM forwards per token"): _numbers([policy.guide_forwards for policy in policies], ".2f"),
        ("cost", "RM tokens per token"): _numbers([policy.guide_tokens for policy in policies], ".1f"),
        ("cost", "ms per token"): _numbers([policy.ms_per_token for policy in policies], ".2f"),
        ("cost", "answers"): _numbers([policy.answers for policy in policies], ".0f"),
    }
    return pd.DataFrame(columns, index=pd.Index([policy.title for policy in policies], name="policy"))


def comparison_table(comparisons: Sequence[EqualKL]) -> pd.DataFrame:
    """A row for each comparison, with the mean difference over the divergences."""
    rows = [
        (item.judge, item.first, item.second, f"{min(item.kl):.3g} to {max(item.kl):.3g}" if item.kl else _UNKNOWN)
        for item in comparisons
    ]
    differences = _estimates([item.overall for item in comparisons], no_difference=0.0, sign="+")
    return pd.DataFrame({"first − second": differences}, index=_comparison_index(rows))


def comparison_details(comparisons: Sequence[EqualKL]) -> pd.DataFrame:
    """A row for each comparison and divergence, with both rewards and their difference."""
    rows = [(item.judge, item.first, item.second, f"{kl:.3g}") for item in comparisons for kl in item.kl]
    differences: list[Cell] = []
    for item in comparisons:
        differences += _estimates(item.difference, no_difference=0.0, sign="+")
    columns = {
        "reward of the first": _numbers([reward for item in comparisons for reward in item.first_reward], ".3f"),
        "reward of the second": _numbers([reward for item in comparisons for reward in item.second_reward], ".3f"),
        "first − second": differences,
    }
    return pd.DataFrame(columns, index=_comparison_index(rows))


def _comparison_index(rows: Sequence[tuple[str, ...]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(rows, names=["judge", "first", "second", "KL, nats"])


def _judge_columns(judge: str, results: Sequence[JudgeResult | None]) -> dict[tuple[str, str], list[Cell]]:
    # Not the bare name, because a judge may be called like one of the other groups.
    group = f"judged by {judge}"
    known = [JudgeResult(reward=_MISSING) if result is None else result for result in results]
    return {
        (group, "reward"): _estimates([result.reward for result in known]),
        (group, "difference"): _estimates([result.difference for result in known], no_difference=0.0, sign="+"),
        (group, "win rate"): _estimates([result.win_rate for result in known], no_difference=0.5),
    }


_MISSING = Estimate(float("nan"), float("nan"), float("nan"))


def _estimates(estimates: Sequence[Estimate | None], no_difference: float | None = None, sign: str = "") -> list[Cell]:
    """Cells of estimates, with as many decimals as their intervals justify."""
    decimals = _decimals([estimate for estimate in estimates if estimate is not None])
    return [_estimate_cell(estimate or _MISSING, decimals, no_difference, sign) for estimate in estimates]


def _estimate_cell(estimate: Estimate, decimals: int, no_difference: float | None, sign: str) -> Cell:
    value, low, high = estimate
    if not isfinite(value):
        return Cell(_UNKNOWN)
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    texts = [f"{round(number, decimals) + 0.0:{sign}.{decimals}f}" for number in estimate]
    if not (isfinite(low) and isfinite(high)):
        return Cell(texts[0], value=value)
    clear = no_difference is not None and not low <= no_difference <= high
    return Cell(texts[0], f"[{texts[1]}, {texts[2]}]", value, clear)


def _decimals(estimates: Sequence[Estimate]) -> int:
    """Decimals that show two digits of half the median width of the intervals."""
    widths = [(estimate.high - estimate.low) / 2 for estimate in estimates]
    widths = [width for width in widths if isfinite(width) and width > 0]
    if not widths:
        return 3
    return min(max(1 - floor(log10(median(widths))), 0), 6)


def _numbers(values: Sequence[float | None], form: str) -> list[Cell]:
    """Cells of numbers without an interval."""
    cells = []
    for value in values:
        is_known = value is not None and isfinite(value)
        cells.append(Cell(f"{value:{form}}", value=value) if is_known else Cell(_UNKNOWN))
    return cells


def console_tables(results: EvaluationResults) -> list[Table]:
    """Tables for the console: the policies, and the comparisons if there are any."""
    tables = [console_table(results)]
    if results.comparisons:
        compared = comparison_table(results.comparisons).map(str)
        tables.append(_rich_table(compared.set_axis(["first − second, at equal KL"], axis=1)))
    return tables


def console_table(results: EvaluationResults) -> Table:
    """A row for each policy with the columns that fit, such as the differences by the first judge with intervals."""
    frame = policy_table(results)
    has_difference = False
    shown: dict[str, list[str]] = {}
    width = 0
    for group, heading in frame.columns:
        if heading not in _CONSOLE_LABELS or (heading == "difference" and has_difference):
            continue
        has_difference = has_difference or heading == "difference"
        judge = group.removeprefix("judged by ")
        label = _CONSOLE_LABELS[heading] if judge == group else f"{judge}\n{_CONSOLE_LABELS[heading]}"
        cells = [str(cell) if heading == "difference" else cell.text for cell in frame[group, heading]]
        width += 1 + max(len(line) for line in [*label.split("\n"), *cells])
        # The last columns matter least.
        if width > _CONSOLE_WIDTH:
            break
        shown[label] = cells
    return _rich_table(pd.DataFrame(shown, index=frame.index))


def _rich_table(frame: pd.DataFrame) -> Table:
    """A table for the console, from a frame of texts."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    texts = frame.index.to_frame(index=False).map(_line)
    for name in texts.columns:
        # Words may be broken but not cut, because the ends of names often make the difference.
        table.add_column(name, overflow="fold", min_width=min(int(texts[name].str.len().max()), 12))
    for name in frame.columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in pd.concat([texts, frame.reset_index(drop=True)], axis=1).to_numpy():
        table.add_row(*(Text(text) for text in row))
    return table


def write_report(results: EvaluationResults, folder: Path) -> None:
    """Writes results.json, table.md, the figures as PNG and report.html, which needs none of the other files.

    Each file appears whole or not at all. In the JSON, null stands for a number that is not finite.

    Raises:
        InvalidArgumentError: If matplotlib is missing; results.json and table.md are written nevertheless.
    """
    write_json(folder / "results.json", _finite(results.to_dict()), allow_nan=False)
    write_atomically(folder / "table.md", _markdown(results))
    drawn = pictures(results)
    for picture in drawn:
        write_atomically(folder / f"{picture.name}.png", partial(_write, picture.png))
    write_atomically(folder / "report.html", _page(results, drawn))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _markdown(results: EvaluationResults) -> str:
    """The tables in GitHub's Markdown, with a sentence about each."""
    policies = policy_table(results)
    policies.columns = pd.Index([_title(group, heading) for group, heading in policies.columns])
    parts = [
        f"{results.prompts} prompts; in brackets 95 % intervals of a bootstrap over the prompts; differences and win "
        f"rates are to {_escaped(results.baseline)}.",
        _markdown_table(policies),
    ]
    if results.comparisons:
        parts += ["At equal divergence from the base model:", _markdown_table(comparison_table(results.comparisons))]
    return "\n\n".join(parts) + "\n"


def _title(group: str, heading: str) -> str:
    """The heading of a column without its group."""
    judge = group.removeprefix("judged by ")
    return heading if judge == group else f"{heading} ({judge})"


def _markdown_table(frame: pd.DataFrame) -> str:
    texts = frame.index.to_frame(index=False).map(_escaped)
    table = pd.concat([texts, frame.map(str).reset_index(drop=True)], axis=1)
    table.columns = pd.Index([_escaped(name) for name in table.columns])
    alignment = ["left"] * len(texts.columns) + ["right"] * len(frame.columns)
    return str(table.to_markdown(index=False, tablefmt="pipe", colalign=alignment, disable_numparse=True))


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_<>|&#~$\[\]!])", r"\\\1", _line(text))


def _line(text: str) -> str:
    """A text on one line, with visible control characters."""
    return _visible(" ".join(text.split()))


def _visible(text: str) -> str:
    """A text with visible control characters, except line breaks and tabs."""
    return text.translate(_CONTROLS)


def _finite(value: Any) -> Any:
    """A JSON value with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _page(results: EvaluationResults, drawn: Sequence[Picture]) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=PackageLoader("rgtg_logits"),
    )  # fmt: skip
    environment.filters.update(
        visible=_visible, signed=_signed, png=_data_uri, digest=_script_digest, describe=_describe, reward=_reward,
        rows=_rows,
    )  # fmt: skip
    policies = policy_table(results)
    rewards = [answer[2] for sample in results.samples for answer in sample.answers]
    return environment.get_template("evaluation.html.jinja").render(
        results=results,
        policies=policies,
        groups=Counter(group for group, _ in policies.columns),
        comparisons=comparison_table(results.comparisons) if results.comparisons else None,
        details=comparison_details(results.comparisons) if results.comparisons else None,
        pictures=drawn,
        judges=list(dict.fromkeys(judge for each in rewards for judge in each)),
    )


def _rows(frame: pd.DataFrame) -> Iterator[tuple[Any, Any]]:
    """The rows of a table: the texts of its index, and its cells."""
    return zip(frame.index, frame.to_numpy(), strict=True)


def _signed(text: str) -> str:
    """Numbers with a minus sign instead of a hyphen, for screen readers."""
    return text.replace("-", "\N{MINUS SIGN}")


def _reward(value: float | None) -> str:
    return _UNKNOWN if value is None or not isfinite(value) else _signed(f"{value:.3f}")


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _script_digest(script: str) -> str:
    """The hash of an inline script, by which the content security policy permits it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _describe(value: Any) -> str:
    """The value of a setting in words, without what is not set in mappings."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_describe(each)}" for name, each in value.items() if _is_set(each))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_describe, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_set(value: Any) -> bool:
    return value is not False and value not in (None, "", (), [])

"""The report of `rgtg pairs`: a table for the console, and facts about the rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.box import SIMPLE_HEAD
from rich.progress import ProgressColumn, Task
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class PairReport:
    """Counts and figures of a run.

    Attributes:
        settings: Settings of the run; of local paths only the last part.
        versions: From package to version.
        prompts: Prompts that were answered.
        prompts_left_out: Prompts that were not answered, by reason.
        answers: Answers that were sampled.
        truncated: Share of the answers that were cut at the longest length, from 0 to 1.
        mean_reward: Mean over the answers with a finite reward; None if there are none.
        reward_deviation: Standard deviation over the same answers.
        rows: Rows written.
        left_out: Rows not made, by reason.
        ties: Pairs of answers with equal rewards, left out or not.
        base_revision: The base model's commit on the Hub, if it came from there.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    prompts: int
    prompts_left_out: Mapping[str, int]
    answers: int
    truncated: float
    mean_reward: float | None
    reward_deviation: float | None
    rows: int
    left_out: Mapping[str, int]
    ties: int
    base_revision: str | None = None

    def facts(self) -> dict[str, Any]:
        """All attributes that are not None, as JSON values."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def write(self, file: BinaryIO) -> None:
        """Writes the facts as JSON."""
        file.write((json.dumps(self.facts(), indent=1, allow_nan=False) + "\n").encode())

    def table(self) -> Table:
        """A table for the console, with one line for each figure."""
        row_format = self.settings["format"]
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        table.add_column(Text(str(self.settings["output"])), justify="right")
        rows: dict[str, object] = {
            "prompts": self.prompts,
            **{f"  left out: {reason}": count for reason, count in self.prompts_left_out.items()},
            "answers": self.answers,
            "  cut at max_new_tokens": f"{self.truncated:.1%}",
            "  mean reward": _figure(self.mean_reward),
            "  standard deviation": _figure(self.reward_deviation),
            row_format: self.rows,
            **{f"  left out: {reason}": count for reason, count in self.left_out.items()},
        }
        if row_format == "pairs" and self.ties and self.settings["label"] == "bt":
            rows["  ties, drawn by a fair coin"] = self.ties
        for name, value in rows.items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
        return table


class RateColumn(ProgressColumn):
    """Answers per second, as a column of a progress bar."""

    def render(self, task: Task) -> Text:
        """The rate; empty before the first batch is done."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} per second")


def facts_path(output: Path) -> Path:
    """The path of the JSON file with the facts about the rows of an output file.

    Its suffix is not .json, because `datasets` reads all json files of a folder as rows.
    """
    return output.with_suffix(".facts")


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"

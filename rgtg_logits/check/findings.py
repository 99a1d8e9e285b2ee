"""Findings about a pair of models: one line each, as a table and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rgtg_logits.files import write_json

STYLES = {"ok": "green", "note": "yellow", "fail": "bold red"}
"""The colour of each status."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: Group of checks, such as "tokens".
        name: Name of the check.
        status: "ok", "note" (it works, but is worth knowing) or "fail" (something is not exact, or would fail).
        value: The result in words.
        advice: The remedy, if there is one.
        figures: The numbers behind it, in the units that `value` names; None instead of a number that is not finite.
    """

    topic: str
    name: str
    status: str
    value: str
    advice: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckReport:
    """All findings about a pair of models.

    Attributes:
        settings: The models and the settings of the check.
        machine: The device, and the versions of torch and transformers.
        findings: The findings, in the order of the report.
    """

    settings: Mapping[str, Any]
    machine: Mapping[str, str]
    findings: Sequence[Finding]

    @property
    def failed(self) -> list[Finding]:
        """Findings of something that is not exact, or would fail."""
        return [finding for finding in self.findings if finding.status == "fail"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON; the file appears whole or not at all, and missing folders are made."""
        write_json(path, {"passed": not self.failed, **asdict(self)}, allow_nan=False)

    def table(self) -> Group:
        """The findings by topic, each with its advice, and one line that sums up."""
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("", "", "check", "found"):
            table.add_column(column, no_wrap=column == "", overflow="fold")
        topic = None
        for finding in self.findings:
            if topic not in (None, finding.topic):
                table.add_section()
            # Text and not str, because rich would take a token such as [PAD] for markup.
            value = Text(finding.value)
            if finding.advice:
                value.append(f"\n→ {finding.advice}", style="dim")
            heading = Text(finding.topic if finding.topic != topic else "", style="bold")
            topic = finding.topic
            table.add_row(heading, Text(finding.status, style=STYLES[finding.status]), Text(finding.name), value)
        return Group(table, self.summary())

    def summary(self) -> Text:
        """The line that sums up."""
        count = len(self.findings)
        notes = sum(finding.status == "note" for finding in self.findings)
        if not self.failed:
            return Text(f"Nothing failed: {count} checks, {notes} with a note.", style=STYLES["ok"])
        names = ", ".join(f"{finding.topic}: {finding.name}" for finding in self.failed)
        return Text(f"{len(self.failed)} of {count} checks failed: {names}.", style=STYLES["fail"])

import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

EXAMPLE = Path(__file__).parents[1] / "examples" / "exact_worlds.py"
FIGURES = ("curves.png", "two_fates.png", "counterexample.png")


def rows(table: Path) -> list[list[str]]:
    """The cells of every row of every table."""
    return [line.strip("| ").split(" | ") for line in table.read_text(encoding="utf8").splitlines() if line[:2] == "| "]


def test_it_writes_the_tables_and_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--output", str(tmp_path), "--worlds", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")

    for figure in FIGURES:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    written, committed = rows(tmp_path / "table.md"), rows(EXAMPLE.with_suffix("") / "table.md")
    # Other numbers, but the same tables; and the counterexample is the same whatever the number of worlds.
    assert [row[0] for row in written] == [row[0] for row in committed]
    assert written[-5:] == committed[-5:]
    assert written[1][1:] == ["0.0000 ± 0.0000"] * 3


def test_the_committed_tables_say_what_the_text_around_them_says():
    folder = EXAMPLE.with_suffix("")
    assert all((folder / figure).exists() for figure in FIGURES)
    found = rows(folder / "table.md")
    means = {
        (table, row[0]): [float(re.split(" ", cell)[0]) for cell in row[1:]]
        for table, start in enumerate(range(0, 42, 7)) for row in found[start + 1 : start + 7]
    }  # fmt: skip
    names = [row[0] for row in found[1:7]]
    for kind in (0, 3):
        for budget in range(3):
            assert all(means[kind + 2, "soft value"][budget] >= means[kind + 2, name][budget] for name in names)
        small = [means[kind + 2, name][0] for name in ("soft value", "expected reward", "partial BT")]
        assert min(small) > 0.95 * max(small)
        assert means[kind + 1, "best completion"][1] > means[kind + 1, "soft value"][1]
    assert means[5, "log π_r"][0] < 0.5 * means[5, "soft value"][0]

import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE, RESULTS = EXAMPLES / "exact_worlds.py", EXAMPLES / "results" / "exact_worlds"
FIGURES = ("curves.png", "two_fates.png", "counterexample.png")
METHODS = 7


def rows(table: Path) -> list[list[str]]:
    """The cells of every row of every table."""
    return [line.strip("| ").split(" | ") for line in table.read_text(encoding="utf8").splitlines() if line[:2] == "| "]


def means(path: Path) -> dict[tuple[int, str], list[float]]:
    """The means in each of the six tables over many worlds, by number of the table and method."""
    every_row = rows(path)
    result = {}
    for number in range(6):
        # A table has a header and one row for each method.
        header = number * (METHODS + 1)
        for name, *cells in every_row[header + 1 : header + 1 + METHODS]:
            result[number, name] = [float(cell.split()[0]) for cell in cells]
    return result


def test_it_writes_the_tables_and_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--output", str(tmp_path), "--worlds", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")

    for figure in FIGURES:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    written, committed = rows(tmp_path / "table.md"), rows(RESULTS / "table.md")
    # The tables are the same but for their numbers, and the counterexample does not depend on the number of worlds.
    assert [row[0] for row in written] == [row[0] for row in committed]
    assert written[-METHODS + 1 :] == committed[-METHODS + 1 :]
    assert written[1][1:] == ["0.0000 ± 0.0000"] * 3


def test_the_committed_tables_confirm_the_text_around_them():
    assert all((RESULTS / figure).exists() for figure in FIGURES)
    table = means(RESULTS / "table.md")
    names = [name for number, name in table if number == 0]
    assert len(names) == METHODS
    for kind in (0, 3):
        at_equal_kl = {name: table[kind + 2, name] for name in names}
        for budget in range(4):
            assert all(at_equal_kl["soft value"][budget] >= at_equal_kl[name][budget] for name in names)
        small = [at_equal_kl[name][0] for name in ("soft value", "expected reward", "partial BT")]
        assert min(small) > 0.95 * max(small)
        assert table[kind + 1, "best completion"][1] > table[kind + 1, "soft value"][1]
        for name in ("expected reward", "partial BT"):
            assert at_equal_kl[name][1] > at_equal_kl["best completion"][1]
            assert at_equal_kl[name][3] < at_equal_kl["best completion"][3]
    assert table[5, "log π_r"][0] < 0.5 * table[5, "soft value"][0]
    assert all(table[i, "cumulative"] == table[i, "expected reward"] for i in range(3))
    assert all(table[i, "cumulative"] != table[i, "expected reward"] for i in range(3, 6))


def test_the_readme_beside_them_quotes_them():
    table, readme = ((RESULTS / name).read_text(encoding="utf8") for name in ("table.md", "README.md"))
    quoted = re.findall(r"[+-]?\d+\.\d\d+", readme)
    assert len(quoted) > 20
    for number in quoted:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", table), number
    assert all(f"]({figure})" in readme for figure in FIGURES)

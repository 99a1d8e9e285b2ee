"""The tables of architectures equal the output of the command, and hold nothing that is accepted and inexact."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "architectures"
RELEASE = ".".join(version("transformers").split(".")[:2])
TABLE = EXAMPLE / f"transformers-{RELEASE}.md"
ROUNDING = 1e-4
PARTS = 7
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not there")


def sweep(output: Path, *types: str) -> str:
    command = [sys.executable, str(EXAMPLE / "run.py"), "--output", str(output), *types]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output.read_text(encoding="utf8")


def rows(table: str) -> dict[str, list[str]]:
    """The other cells of each row by section and model type."""
    results = {}
    for section in table.split("\n## ")[1:]:
        for line in section.splitlines()[4:]:
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            results[section.splitlines()[0], name] = cells
    return results


def outcome(row: list[str]) -> str:
    return row[1].split(":")[0]


def test_three_types_through_the_command(tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- counts -->\nold\n<!-- end of counts -->\nafter\n")
    results = rows(sweep(tmp_path / "transformers-0.0.md", "llama", "bloom", "bert"))
    assert {name: outcome(row) for (_, name), row in results.items()} == {
        "bert": "refused",
        "bloom": "expand",
        "llama": "tree_attention",
    }
    for (_, name), (_, _, error, in_spreads, spread, prefix) in results.items():
        if name != "bert":
            assert float(error) > 0 and float(in_spreads) < ROUNDING and float(spread) > 0.5 and int(prefix[:-1]) > 10
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    assert "| refused with an error that says why | 1 |" in readme and "| all | 3 |" in readme


def test_weights_laid_out_beforehand(tmp_path):
    results = rows(sweep(tmp_path / "table.md", "--prepack", "falcon", "gpt2", "llama"))
    assert {name: outcome(row) for (_, name), row in results.items()} == {
        "falcon": "refused",  # Its linear layers are a class of its own.
        "gpt2": "tree_attention",
        "llama": "tree_attention",
    }


def test_an_unknown_type_is_an_error(tmp_path):
    command = [sys.executable, str(EXAMPLE / "run.py"), "lama"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "lama" in done.stderr


@pytest.fixture
def table(monkeypatch):
    # The modules of an example import each other by name, as in any script's folder.
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield __import__("table")
    for name in {path.stem for path in EXAMPLE.glob("*.py")} & set(sys.modules):
        del sys.modules[name]


def test_the_counts_in_the_readme_are_those_of_the_tables(table):
    paths = list(EXAMPLE.glob("transformers-*.md"))
    assert len(paths) == 2
    assert table.counts(paths) in (EXAMPLE / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("path", EXAMPLE.glob("transformers-*.md"), ids=lambda path: path.stem)
def test_each_is_exact_or_refused_for_a_reason(path):
    results = rows(path.read_text(encoding="utf8"))
    assert not [name for (_, name), row in results.items() if "**" in row[1]]
    exact = [row for row in results.values() if row[3] and "**" not in row[1]]
    assert len(exact) > 80 and all(float(row[3]) <= ROUNDING for row in exact)


needs_table = pytest.mark.skipif(not TABLE.exists(), reason=f"no table was made with transformers {RELEASE}")


@needs_table
def test_the_table_has_every_architecture(table):
    sections = __import__("run")._sections([])
    assert rows(TABLE.read_text(encoding="utf8")).keys() == {
        (section, name) for section, names in sections.items() for name in names
    }
    assert sum(map(len, sections.values())) > 150


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
@needs_table
def test_the_table_is_what_the_sweep_gives(tmp_path, part):
    kept = rows(TABLE.read_text(encoding="utf8"))
    names = sorted({name for _, name in kept})[part::PARTS]
    kept = {key: row for key, row in kept.items() if key[1] in names}
    made = rows(sweep(tmp_path / "table.md", *names))
    assert kept.keys() == made.keys()
    changed = {
        name: (kept[name][1], made[name][1])
        for name in made
        # What is not built needs a package, which may be there or not.
        if outcome(kept[name]) != outcome(made[name]) and "not built" not in (outcome(kept[name]), outcome(made[name]))
    }
    assert changed == {}
    errors = {name: float(row[3]) for name, row in made.items() if row[3] and "**" not in row[1]}
    assert errors and max(errors.values()) <= ROUNDING

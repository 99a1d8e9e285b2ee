"""The report of an evaluation: its numbers are those of the results, texts are escaped, the page is self-contained."""

import base64
import hashlib
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO, StringIO

import pytest
from evaluations import JUDGES, NASTY, policy, synthetic
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.evaluate.figures import _curves, pictures
from rgtg_logits.evaluate.report import console_table, console_tables, write_report
from rgtg_logits.evaluate.results import Estimate, JudgeResult

imread = pytest.importorskip("matplotlib.image").imread

RESULTS = synthetic()
NAN = float("nan")
PNG = b"\x89PNG\r\n\x1a\n"
# Control characters are shown by signs of their own.
SHOWN = NASTY.replace("\x00", "␀").replace("\x1b", "␛")
LINE = " ".join(SHOWN.split())


class Page(HTMLParser):
    """The tags, the rows of the big table as (heading, cells), the texts, the script; fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.rows, self.texts, self.script = [], [], [], [], ""
        self.in_table = False
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in {"meta", "img", "source"}:
            self.open.append(tag)
        if tag == "table":
            self.in_table = "sortable" in attributes.get("class", "")
        elif self.in_table and tag == "tr":
            self.rows.append(["", []])
        elif self.in_table and tag == "td":
            self.rows[-1][1].append(["", attributes])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script += data
            return
        self.texts.append(data)
        if self.in_table and "td" in self.open:
            self.rows[-1][1][-1][0] += data
        elif self.in_table and "tr" in self.open and self.open[-1] == "th":
            self.rows[-1][0] += data

    @property
    def text(self):
        return "".join(self.texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new"
    write_report(RESULTS, path)
    return path


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def small(**changes):
    """Few policies and one judge, because drawing takes its time."""
    policies = [
        policy("base", 0.0, 0.0, baseline=True), policy("A", 3.0, 1.0, beta=1.0), policy("A", 1.0, 0.5, beta=0.5)
    ]  # fmt: skip
    judged = [replace(item, judges={JUDGES[0]: item.judges[JUDGES[0]]}) for item in policies]
    return replace(RESULTS, **{"policies": tuple(judged), "comparisons": (), "samples": (), **changes})


def expected(item):
    """The quantities of a policy in the order of the columns, each a number, an estimate or None."""
    for judge in JUDGES:
        said = item.judges[judge]
        yield from (said.reward, said.difference, said.win_rate)
    yield from (
        item.kl,
        item.cut,
        item.kl_per_token,
        item.log_ratio,
        item.perplexity,
        *item.distinct,
        item.self_bleu,
        item.length,
    )
    yield from (item.ended, item.guide_forwards, item.guide_tokens, item.ms_per_token, item.answers)


def numbers(text):
    """Numbers as written, each with half of what its last digit stands for."""
    for sign, digits, decimals, percent in re.findall(r"([+−-]?)(\d+)(?:\.(\d+))?(%?)", text):
        factor = (-1 if sign in ("−", "-") and sign else 1) * (0.01 if percent else 1)
        yield factor * float(f"{digits}.{decimals or 0}"), abs(factor) * 0.5 * 10.0 ** -len(decimals)


def assert_says(text, value):
    found = list(numbers(text))
    values = [] if value is None else list(value) if isinstance(value, Estimate) else [value]
    assert len(found) == len(values), text
    for (written, error), number in zip(found, values, strict=True):
        assert written == pytest.approx(number, abs=error * (1 + 1e-6))
    assert values or text.strip() == "–"


def test_every_number_of_the_page_is_that_of_the_results(page):
    rows = page.rows[2:]
    assert len(rows) == len(RESULTS.policies)
    for (title, cells), item in zip(rows, RESULTS.policies, strict=True):
        assert title == item.title.replace("\x00", "␀").replace("\x1b", "␛")
        for (text, attributes), value in zip(cells, expected(item), strict=True):
            assert_says(text, value)
            number = value.value if isinstance(value, Estimate) else value
            assert attributes.get("data-value") == (None if number is None else str(number))


def test_bold_differences_are_those_whose_interval_leaves_out_none(page):
    for (_, cells), item in zip(page.rows[2:], RESULTS.policies, strict=True):
        for place, judge in enumerate(JUDGES):
            said = item.judges[judge]
            for offset, none, value in ((1, 0.0, said.difference), (2, 0.5, said.win_rate)):
                clear = value is not None and not value.low <= none <= value.high
                assert (cells[3 * place + offset][1].get("class") == "clear") == clear


def test_comparisons_and_samples_are_on_the_page(page):
    for item in RESULTS.comparisons:
        assert f"{item.overall.value:+.2f}".replace("-", "−") in page.text
        for first, second in zip(item.first_reward, item.second_reward, strict=True):
            assert f"{first:.3f}" in page.texts
            assert f"{second:.3f}" in page.texts
    for sample in RESULTS.samples:
        assert sample.prompt.replace(NASTY, SHOWN) in page.texts
        for _, answer, rewards in sample.answers:
            assert answer.replace(NASTY, SHOWN) in page.texts
            assert all(f"{reward:.3f}".replace("-", "−") in page.texts for reward in rewards.values())


def test_page_is_escaped_and_needs_nothing_else(folder, page):
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    for tag, attributes in page.tags:
        assert tag not in {"b", "link", "iframe", "object", "form", "base"}
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "\x00" not in html
    policy_of_page = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy_of_page.split("; ") == [
        "default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", f"script-src 'sha256-{digest}'"
    ]  # fmt: skip


def test_page_can_be_read_without_a_mouse_and_without_pictures(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 5
    assert all(image["alt"] for image in images)
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert targets | labels <= set(identities)
    for _, attributes in page.tags:
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]


def test_files_are_whole_and_hold_the_pictures_of_the_page(folder, page):
    names = {"reward_against_kl-judge", "reward_against_kl-second-judge", "cost", "texts", "comparisons"}
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "table.md", "report.html", *(f"{name}.png" for name in names)
    }  # fmt: skip
    shown = {attributes["src"] for tag, attributes in page.tags if tag == "img"}
    for name in names:
        content = (folder / f"{name}.png").read_bytes()
        assert content.startswith(PNG)
        assert f"data:image/png;base64,{base64.b64encode(content).decode()}" in shown


def test_json_holds_the_results(folder):
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(RESULTS.to_dict()))


def test_markdown_is_a_table_with_the_same_numbers(folder):
    tokens = MarkdownIt("commonmark").enable("table").parse((folder / "table.md").read_text(encoding="utf-8"))
    rows = []
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            parts = tokens[place + 1].children
            assert all(part.type in ("text", "text_special") for part in parts), "a text became more than text"
            rows[-1].append("".join(part.content for part in parts))
    policies, comparisons = rows[1 : len(RESULTS.policies) + 1], rows[len(RESULTS.policies) + 2 :]
    for row, item in zip(policies, RESULTS.policies, strict=True):
        assert row[0] == item.title.replace(NASTY, LINE)
        for text, value in zip(row[1:], expected(item), strict=True):
            assert_says(text, value)
    for row, item in zip(comparisons, RESULTS.comparisons, strict=True):
        assert row[:3] == [item.judge, item.first, item.second]
        assert_says(row[4], item.overall)


def test_equal_results_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_report(small(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "comparisons.png" not in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_what_is_not_known_is_a_dash(tmp_path):
    nothing = Estimate(NAN, NAN, NAN)
    broken = replace(
        policy("B", 2.0, 1.0), judges={JUDGES[0]: JudgeResult(reward=nothing, difference=nothing)},
        kl=Estimate(math.inf, NAN, NAN), perplexity=Estimate(3.0, NAN, NAN), self_bleu=None, ended=NAN,
    )  # fmt: skip
    lost = replace(RESULTS.comparisons[0], kl=(), first_reward=(), second_reward=(), difference=(), overall=nothing)
    sample = replace(RESULTS.samples[0], answers=(("B", "text", {JUDGES[0]: NAN}),))
    results = small(policies=(*small().policies, broken), comparisons=(lost,), samples=(sample,))
    write_report(results, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"\bnan\b|\binf\b", page.text + (tmp_path / "table.md").read_text(), re.IGNORECASE)
    cells = page.rows[-1][1]
    assert [cell[0] for cell in cells[:4]] == ["–"] * 4
    assert cells[7][0] == "3.00", "a value without an interval is shown alone"
    assert json.loads((tmp_path / "results.json").read_text())["policies"][-1]["kl"] == [None, None, None]


def test_an_evaluation_of_the_baseline_alone_has_a_report(tmp_path):
    write_report(small(policies=small().policies[:1]), tmp_path)
    assert len(Page((tmp_path / "report.html").read_text(encoding="utf-8")).rows) == 3


def test_pictures_have_a_transparent_ground():
    drawn = pictures(small())
    assert [picture.name for picture in drawn] == [f"reward_against_kl-{JUDGES[0]}", "cost", "texts"]
    for picture in drawn:
        pixels = imread(BytesIO(picture.png))
        assert pixels[0, 0, 3] == 0


def test_curves_run_by_divergence_and_can_be_told_apart():
    names = [f"method {number}" for number in range(40)]
    policies = [policy(name, kl, 1.0, beta=beta) for name in names for beta, kl in ((1.0, 5.0), (2.0, 1.0), (4.0, 9.0))]
    curves = _curves(small(policies=(*policies, policy(names[0], 3.0, 1.0, greedy=True)), baseline="none"))
    assert [curve.label for curve in curves] == [*names, f"{names[0]}, greedy"]
    assert all([item.kl.value for item in curve.policies] == [1.0, 5.0, 9.0] for curve in curves[:-1])
    assert len({(curve.color, curve.marker) for curve in curves}) == len(curves)


def test_without_matplotlib_the_tables_are_written_and_an_old_page_stays(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidArgumentError, match=r'Expected matplotlib.*pip install "rgtg_logits\[evaluate\]"'):
        write_report(small(), tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json", "table.md"]


def test_console_tables_fit_and_show_names_as_they_are():
    tables = console_tables(RESULTS)
    assert len(tables) == 2
    assert len(console_tables(small())) == 1
    output = StringIO()
    Console(file=output, width=110, color_system=None).print(*tables)
    lines = output.getvalue().splitlines()
    assert all(cell_len(line) <= 110 for line in lines)
    assert "…" not in output.getvalue(), "a number was cut"
    assert "\x1b" not in output.getvalue()
    table = console_table(RESULTS)
    titles = [cell.plain for cell in table.columns[0].cells]
    assert titles == [item.title.replace(NASTY, LINE) for item in RESULTS.policies]
    for cell, item in zip(table.columns[2].cells, RESULTS.policies, strict=True):
        assert_says(cell.plain, item.judges[JUDGES[0]].difference)

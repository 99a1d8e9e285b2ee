"""`rgtg data`: what a training would read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rgtg_logits.cli.app import app
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train import DataSettings, show_data

PKU = {"prompt": "Why?", "response_0": "No.", "response_1": "So.", "better_response_id": 1, "safer_response_id": 0}


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = [PKU, PKU | {"better_response_id": None}, PKU | {"response_0": ""}, PKU]
    (tmp_path / "pku.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pku.jsonl")


def test_rows_as_they_are_read(file: str) -> None:
    report = show_data(DataSettings(data=file, rows=1))
    assert (report.format, report.objective) == ("pku_saferlhf", "partial_bt")
    assert report.counts == {"kept": 2, "tied": 1, "one_sided": 1}
    assert report.rows == [{"prompt": "[user] Why?", "chosen": "[assistant] So.", "rejected": "[assistant] No."}]


def test_rows_as_the_model_sees_them(file: str, base: str) -> None:
    report = show_data(DataSettings(data=file, model=base, dataset_format="pku_saferlhf_safer"))
    assert (report.counts["kept"], report.counts["one_sided"]) == (3, 1)
    end = "<|endoftext|>"
    assert report.rows == [{"chosen": f"Why?\n\nNo.{end}", "rejected": f"Why?\n\nSo.{end}"}] * 3
    labels = Path(file).with_name("labels.jsonl")
    labels.write_text('{"prompt": "Why?", "completion": " So.", "label": true, "topic": "rain"}\n')
    report = show_data(DataSettings(data=str(labels), model=base))
    assert report.objective == "value" and report.unread == ("topic",)
    assert report.rows == [{"before the answer": "Why?", "answer": f" So.{end}", "reward": "1.0"}]


def test_the_command(file: str) -> None:
    run = CliRunner().invoke(app, ["data", file, "--rows", "1"])
    assert run.exit_code == 0, run.output
    assert "Format: pku_saferlhf (PKU-SafeRLHF, the better answer (help))" in run.output
    assert "Rows: 2 kept, 1 tied, 1 one_sided" in run.output
    columns = ["--columns", "chosen=response_1", "--columns", "rejected=response_0"]
    run = CliRunner().invoke(app, ["data", file, *columns])
    assert "Format: preference" in run.output and "chosen: 'So.'" in run.output


def test_data_that_cannot_be_read(file: str) -> None:
    with pytest.raises(InvalidArgumentError, match="objective to be one of partial_bt"):
        show_data(DataSettings(data=file, objective="dpo"))
    with pytest.raises(InvalidArgumentError, match="to have the split 'test', but it has 'train'"):
        show_data(DataSettings(data=file, split="test"))
    with pytest.raises(InvalidArgumentError, match="the columns 'completion' or 'text'"):
        show_data(DataSettings(data=file, objective="value"))
    none = Path(file).with_name("none.jsonl")
    none.write_text(json.dumps(PKU | {"better_response_id": None}) + "\n")
    with pytest.raises(InvalidArgumentError, match=r"none is left \(.*1 tied"):
        show_data(DataSettings(data=str(none)))

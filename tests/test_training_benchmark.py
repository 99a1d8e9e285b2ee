from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rgtg_logits import cli
from rgtg_logits.benchmark import (
    TRAINING_METHODS,
    TrainingBenchmarkReport,
    TrainingBenchmarkSettings,
)
from rgtg_logits.benchmark.training import TrainingMeasurement, _TrainingWorkload
from rgtg_logits.errors import InvalidArgumentError

TINY = {"layers": 1, "width": 64, "prompt_lengths": (6,), "answer_length": 5, "batch_sizes": (2,), "steps": 2}


def test_every_method_is_measured_in_every_round(tmp_path: Path) -> None:
    arguments = (
        "benchmark --train --layers 1 --width 64 --prompt-length 6 --prompt-length 8 --answer-length 5 --batch-size 2 "
        "--rounds 2 --output"
    )
    pytest.importorskip("trl")
    result = CliRunner().invoke(cli.app, [*arguments.split(), str(tmp_path / "cost.json")])
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "cost.json").read_text())
    found = [
        (item["prompt_length"], item["method"], [len(steps) for steps in item["seconds"]])
        for item in saved["measurements"]
    ]
    assert found == [(length, method, [4, 4]) for length in (6, 8) for method in TRAINING_METHODS]
    assert all(set(item["ratios"]) == {"over_trl", "over_row_per_prefix"} for item in saved["measurements"])
    assert all(method in result.output for method in TRAINING_METHODS) and "…" not in result.output
    assert saved["settings"]["rounds"] == 2 and saved["machine"]["trl"]


def test_ratios_are_of_the_same_size() -> None:
    items = [
        TrainingMeasurement("partial_bt", 6, 2, 2.0, [[0.5, 0.1, 9.0], [1.0], [5.0]]),
        TrainingMeasurement("trl", 6, 2, 2.0, [[0.25], [0.5], [0.1]]),
        TrainingMeasurement("row_per_prefix", 6, 2, 0.4, [[1.0], [2.0], [2.0]]),
        TrainingMeasurement("trl", 12, 2, 2.0, [[1e-9]] * 3),
    ]
    report = TrainingBenchmarkReport(TrainingBenchmarkSettings(), {}, items)
    assert items[0].pairs_per_second == 2
    assert report.ratios(items[0]) == {"over_trl": 0.5, "over_row_per_prefix": pytest.approx(10)}
    assert report.ratios(items[3]) == {"over_trl": 1.0}
    console = Console(record=True, width=80)
    console.print(report.table())
    assert "…" not in console.export_text()


def test_a_row_per_prefix_is_a_part_of_a_pair(tmp_path: Path) -> None:
    workload = _TrainingWorkload(TrainingBenchmarkSettings(**TINY), 6, 2, str(tmp_path))
    assert (
        workload.measurement("row_per_prefix").pairs_per_step == 2 / 5
        and workload.measurement("partial_bt").pairs_per_step == 2
    )
    pairs, rows = workload._pairs(), workload._prefixes()
    assert len(pairs) == len(rows) == 6
    for pair, row in zip(pairs, rows, strict=True):
        length = len(row["chosen_ids"])
        assert 7 <= length <= 11 and row == {name: pair[name][:length] for name in pair}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("partial_bt", "theirs")}, "Expected methods among partial_bt, .* but got theirs"),
        ({"methods": ()}, "but got none"),
        ({"rounds": 0}, "rounds is too small"),
        ({"width": 32}, "width is too small"),
    ],
)
def test_nothing_to_measure(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        TrainingBenchmarkSettings(**{**TINY, **changes})


def test_old_names() -> None:
    with pytest.warns(FutureWarning, match="The method 'ours' is called 'partial_bt' now"):
        assert TrainingBenchmarkSettings(methods=("ours", "trl")).methods == ("partial_bt", "trl")
    with pytest.warns(FutureWarning, match="--way is now called --method"):
        CliRunner().invoke(cli.app, ["benchmark", "--train", "--rounds", "0", "--way", "trl"])

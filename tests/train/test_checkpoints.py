"""Trainings that are killed, resumed, and end in the weights of one that was not."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_pairs
from interrupted import POINTS, WEIGHTS, killed, make_trainer
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint

from rgtg_logits.errors import CheckpointError
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.train.checkpoints import FILE_LIST, STAGING, find_problem, last_checkpoint, rotate

ROWS = make_pairs(12, seed=0).to_list()


def run(base: str, folder: Path, **changes: Any) -> None:
    """The command that is run again and again."""
    trainer = make_trainer(base, folder, ROWS, **changes)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()


@pytest.fixture(scope="module")
def straight(base: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "rm"
    run(base, folder)
    return (folder / WEIGHTS).read_bytes()


FAST = ("a later step", "the optimizer of a checkpoint", "the moves of the final save")


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=[] if point in FAST else pytest.mark.slow) for point in POINTS]
)
def test_killed_and_resumed(base: str, straight: bytes, tmp_path: Path, point: str) -> None:
    folder = tmp_path / "rm"
    newest = POINTS[point][1]
    assert killed(base, folder, ROWS, point)

    found = get_last_checkpoint(folder)
    assert found == (None if newest is None else str(folder / newest))
    assert found is None or find_problem(Path(found)) is None
    assert not (folder / "config.json").exists()
    run(base, folder)
    assert (folder / WEIGHTS).read_bytes() == straight
    assert RewardModel.from_pretrained(folder).config.objective == "partial_bt"
    assert not list(folder.glob(f"{STAGING}*"))


def test_a_model_is_replaced_as_a_whole(base: str, straight: bytes, tmp_path: Path) -> None:
    """Killed while it replaces an earlier model, which had shards and an adapter: nothing takes the mixture for one."""
    folder = tmp_path / "rm"
    make_trainer(base, folder, ROWS).save_model()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"):
        (folder / name).write_text("old")
    (folder / "adapter_config.json").write_text("{}")

    assert killed(base, folder, ROWS, "the moves of the final save")
    assert not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists()

    run(base, folder)
    assert (folder / WEIGHTS).read_bytes() == straight
    assert not list(folder.glob("model-*")) and not list(folder.glob("adapter*"))


def test_nothing_to_resume_from(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(base, tmp_path / "rm", ROWS, max_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint="true")
    assert f"There is no checkpoint in {tmp_path / 'rm'} to resume from yet" in caplog.text
    assert trainer.state.global_step == 1


@pytest.fixture
def checkpoints(base: str, tmp_path: Path) -> Path:
    """A folder with the checkpoints 1 and 2."""
    make_trainer(base, tmp_path / "rm", ROWS, max_steps=2, save_steps=1).train()
    return tmp_path / "rm"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: truncate(folder / WEIGHTS), r"model.safetensors has \d+ bytes instead of \d+"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "there is no trainer_state.json"),
        (lambda folder: truncate(folder / "trainer_state.json"), "trainer_state.json is not complete"),
        (shutil.rmtree, "there is no trainer_state.json"),
    ],
)
def test_an_incomplete_checkpoint(base: str, checkpoints: Path, damage: Callable[[Path], None], message: str) -> None:
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-2"
    damage(checkpoints / "checkpoint-2")

    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-1"
    with pytest.raises(CheckpointError, match=f"Expected a complete checkpoint to resume from, but in .* {message}"):
        make_trainer(base, checkpoints, ROWS).train(resume_from_checkpoint=str(checkpoints / "checkpoint-2"))


def test_checkpoints_of_others_are_taken(checkpoints: Path) -> None:
    (checkpoints / "checkpoint-2" / FILE_LIST).unlink()
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-2"


def test_a_checkpoint_is_written_again(base: str, straight: bytes, tmp_path: Path) -> None:
    run(base, tmp_path / "rm")
    trainer = make_trainer(base, tmp_path / "rm", ROWS)
    trainer.train(resume_from_checkpoint=str(tmp_path / "rm" / "checkpoint-2"))
    assert find_problem(tmp_path / "rm" / "checkpoint-4") is None
    trainer.save_model()
    assert (tmp_path / "rm" / WEIGHTS).read_bytes() == straight


@pytest.mark.parametrize("changes", [{"shared_prompt": True}, {"train_sampling_strategy": "group_by_length"}])
def test_an_adapter_is_resumed(base: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With dropout, whose draws go on where they were, and a head among the weights."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    folder = tmp_path / "rm"
    make_trainer(base, folder, ROWS, lora, **changes).train()
    ends = []
    for step in (5, 4, 2):
        trainer = make_trainer(base, folder, ROWS, lora, **changes)
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        trainer.save_model(str(tmp_path / f"from-{step}"))
        ends.append((tmp_path / f"from-{step}" / "adapter_model.safetensors").read_bytes())
    assert ends[0] == ends[1] == ends[2] == (folder / "checkpoint-5" / "adapter_model.safetensors").read_bytes()
    assert RewardModel.from_pretrained(tmp_path / "from-5").config.objective == "partial_bt"


def test_the_best_and_the_newest_stay(base: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        base, tmp_path / "rm", ROWS, max_steps=6, save_steps=1, eval_strategy="steps", eval_steps=1, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="eval_prefix_accuracy_50", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "rm" and find_problem(best) is None
    kept = {path.name for path in (tmp_path / "rm").glob("checkpoint-*")}
    assert kept == {best.name, "checkpoint-6"} or (best.name == "checkpoint-6" and len(kept) == 2)
    for name in kept:
        noted = json.loads((tmp_path / "rm" / name / "trainer_state.json").read_text())["best_model_checkpoint"]
        assert STAGING not in noted


def test_rotation(tmp_path: Path) -> None:
    for step in (10, 2, 4, 30):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, (1000 + step, 1000 + step))
    rotate(tmp_path, None, None)
    rotate(tmp_path, 4, None)
    assert len(list(tmp_path.iterdir())) == 4
    rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-30"}
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-30"}


@pytest.mark.slow
def test_the_command_is_killed_at_any_moment(base: str, tmp_path: Path) -> None:
    """The same command line, killed at random moments and run again until it ends by itself."""
    data = tmp_path / "pairs.jsonl"
    make_pairs(12, seed=0).to_json(str(data))
    options = (
        "--max_steps 40 --save_steps 3 --per_device_train_batch_size 4 --learning_rate 1e-2 --report_to none "
        "--disable_tqdm true --gradient_checkpointing false --save_total_limit 3 --resume_from_checkpoint"
    )

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rgtg_logits.train.launch", "--model_name_or_path", base]
        return subprocess.Popen(
            [*command, "--dataset_name", str(data), "--output_dir", str(folder), *options.split()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    begun = time.monotonic()
    assert start(tmp_path / "straight").wait() == 0
    duration = time.monotonic() - begun
    draw = random.Random(0)
    kills = 0
    while True:
        process = start(tmp_path / "killed")
        try:
            # Later and later, so that there is progress whatever the machine does besides.
            assert process.wait(duration * draw.uniform(0.5, 0.8 + 0.1 * kills)) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills > 0
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "straight" / WEIGHTS).read_bytes()

"""Training in several processes, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import make_pairs
from safetensors.torch import load_file

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.train.launch import launch_training as launch
from rgtg_logits.train.launch import without
from rgtg_logits.train.run import train

QUICK = [
    "--max_steps", "3", "--learning_rate", "0.5", "--optim", "sgd", "--lr_scheduler_type", "constant", "--report_to",
    "none", "--save_strategy", "no", "--gradient_checkpointing", "false", "--disable_tqdm", "true",
]  # fmt: skip


def write_pairs(folder: Path) -> Path:
    """Three batches of 8 pairs; answers differ in length, so that processes have unequal shares of the prefixes."""
    data = folder / "reviews"
    data.mkdir()
    make_pairs(24, seed=0).to_json(str(data / "train.jsonl"))
    make_pairs(7, seed=1).to_json(str(data / "test.jsonl"))
    return data


def arguments(base: str, data: Path, folder: Path, *more: str) -> list[str]:
    return ["--model_name_or_path", base, "--dataset_name", str(data), "--output_dir", str(folder), *QUICK, *more]


def test_one_process_without_arguments_for_several(base: str, tmp_path: Path) -> None:
    launch(arguments(base, write_pairs(tmp_path), tmp_path / "rm"))
    assert RewardModel.from_pretrained(tmp_path / "rm").config.objective == "partial_bt"


def test_a_process_that_was_launched_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file holds for accelerate is not its business any more."""
    calls = []
    monkeypatch.setattr("rgtg_logits.train.launch.train", lambda argv, **options: calls.append((argv, options)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    launch(["--config", "config.yaml"])
    assert calls == [(["--config", "config.yaml"], {"allow_unknown": True})]


def test_a_file_may_hold_what_is_for_accelerate(base: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("num_processes: 2\nlearning_rate: 0.002\n")
    more = ["--config", str(file)]
    train(arguments(base, write_pairs(tmp_path), tmp_path / "rm", *more), allow_unknown=True)
    assert (tmp_path / "rm" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="Unknown arguments from config file"):
        train(arguments(base, tmp_path, tmp_path / "rm", *more))


def test_what_is_left_of_the_arguments() -> None:
    given = ["--a", "2", "--num_processes", "2", "--cpu", "--b", "2"]
    assert without(given, ["--num_processes", "2", "--cpu"]) == ["--a", "2", "--b", "2"]
    assert without(given, []) == given


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--colour", "red"], "arguments of training or of `accelerate launch`, but got --colour"),
        (["--num_processes", "2", "--colour"], "but got --colour"),
        (["--accelerate_config", "zero9"], "a file or one of .*fsdp2, multi_gpu.*, but got 'zero9'"),
        (["--num_processes", "2", "--accelerate_config"], "a file or one of .*, but got ''"),
    ],
)
def test_arguments_that_nobody_knows(base: str, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        launch(arguments(base, tmp_path, tmp_path / "rm", *more))


def test_the_files_for_accelerate_are_read() -> None:
    folder = Path(__file__).parents[2] / "examples" / "accelerate"
    kinds = {file.stem: load_config_from_file(str(file)).distributed_type for file in folder.glob("*.yaml")}
    assert kinds == {"multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert all(f"({name}.yaml)" in (folder / "README.md").read_text() for name in kinds)


def run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(base: str, tmp_path: Path) -> None:
    """The same global batch of 8 pairs: one process, two through our command, two through torchrun, resumed too."""
    data = write_pairs(tmp_path)
    ours = [sys.executable, "-m", "rgtg_logits.train.launch"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", ours[-1]]
    cpu = ["--use_cpu", "true"]
    batch = "--per_device_train_batch_size"
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint"]
    run([*ours, *arguments(base, data, tmp_path / "one", batch, "8")])
    run([*ours, *arguments(base, data, tmp_path / "two", batch, "4", "--cpu", "--num_processes", "2")])
    run([*torchrun, *arguments(base, data, tmp_path / "run", batch, "2", *cpu, "--gradient_accumulation_steps", "2")])
    resumed = [*torchrun, *arguments(base, data, tmp_path / "resumed", batch, "4", *cpu), *saving]
    run([*resumed, "--max_steps", "2"])
    run(resumed)

    one = load_file(tmp_path / "one" / "model.safetensors")
    start = load_file(Path(base) / "model.safetensors")
    assert any((one[name] - start[name]).abs().max() > 1e-3 for name in one if name in start)
    for folder in ("two", "run", "resumed"):
        other = load_file(tmp_path / folder / "model.safetensors")
        assert other.keys() == one.keys()
        worst = max(float((other[name] - one[name]).abs().max()) for name in one)
        assert worst < 1e-5, (folder, worst)
    files = {path.name for path in (tmp_path / "resumed" / "checkpoint-3").iterdir()}
    listed = json.loads((tmp_path / "resumed" / "checkpoint-3" / "files.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} < set(listed) and set(listed) | {"files.json"} == files
    cards = [(tmp_path / folder / "README.md").read_text() for folder in ("one", "two")]
    rows = [[line for line in card.splitlines() if "7 pairs, after step 3" in line] for card in cards]
    assert rows[0] == rows[1] != []


@pytest.mark.slow
def test_weights_in_parts_give_the_same_gradients(base: str, tmp_path: Path) -> None:
    """FSDP 2 as torch has it, because accelerate has none on a CPU."""
    script = Path(__file__).with_name("sharded.py")
    run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), base, str(tmp_path)])

"""The stand-alone script, as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_pairs

from rgtg_logits.reward_model.model import RewardModel

SCRIPT = Path(__file__).parents[2] / "examples" / "train_partial_rm.py"


def test_it_says_what_it_needs() -> None:
    header = re.search(r"^# /// script\n(?:#.*\n)+?# ///$", SCRIPT.read_text(), re.MULTILINE)
    assert header is not None and '"rgtg_logits[train]"' in header.group()


@pytest.mark.slow
def test_it_trains_and_can_be_run_again(base: str, tmp_path: Path) -> None:
    data = tmp_path / "reviews"
    data.mkdir()
    make_pairs(8, seed=0).to_json(str(data / "train.jsonl"))
    make_pairs(4, seed=1).to_json(str(data / "test.jsonl"))
    options = (
        "--max_steps 2 --save_steps 1 --per_device_train_batch_size 2 --report_to none --eval_strategy steps "
        "--eval_steps 1 --use_peft --lora_r 2 --lora_target_modules q_proj v_proj --resume_from_checkpoint"
    )
    command = [sys.executable, SCRIPT, "--model_name_or_path", base, "--dataset_name", data]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--output_dir", tmp_path / "rm", *options.split()], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert RewardModel.from_pretrained(tmp_path / "rm").config.objective == "partial_bt"
    assert "4 pairs, after step 2" in re.sub(r"\s+", " ", (tmp_path / "rm" / "README.md").read_text())

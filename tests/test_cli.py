"""The command as a user runs it: in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rgtg_logits import RewardModel
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

COMMAND = Path(sys.executable).with_name("rgtg")


def rgtg(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_help_names_every_command():
    result = rgtg("--help")
    assert result.returncode == 0
    commands = ("demo", "train", "pairs", "push", "check", "card", "benchmark")
    assert all(name in result.stdout for name in commands)


def test_a_mistake_ends_in_one_message():
    result = rgtg("demo", "--base", "/no/[such]/folder", "--reward-model", "/no/[such]/folder")
    assert result.returncode == 2
    assert "CheckpointError: Expected" in result.stderr and "Traceback" not in result.stderr
    assert "[such]" in result.stderr


def test_benchmark_prints_a_table_and_writes_json(tmp_path):
    size = ("--layers", 1, "--width", 64, "--prompt-length", 8, "--top-k", 3, "--new-tokens", 3, "--rounds", 1)
    result = rgtg("benchmark", *size, "--output", tmp_path / "cost.json")
    assert result.returncode == 0, result.stderr
    assert "replicated" in result.stdout
    assert len(json.loads((tmp_path / "cost.json").read_text())["measurements"]) == 5


def test_check_ends_with_its_status(tmp_path):
    tiny_base_model(vocab_size=300).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    short = tiny_reward_model(vocab_size=300, max_position_embeddings=40)
    RewardModel(short, tiny_tokenizer()).save_pretrained(tmp_path / "rm")
    arguments = ("check", tmp_path / "base", tmp_path / "rm", "--prompt", "the film was good", "--max-new-tokens")
    fits, too_long = rgtg(*arguments, 8), rgtg(*arguments, 80)
    assert (fits.returncode, too_long.returncode) == (0, 1), fits.stderr + too_long.stderr
    assert "Nothing failed" in fits.stdout and "failed: context: prompt + new." in too_long.stdout


def test_card_is_made_again_from_its_facts_and_checked(tmp_path):
    (tmp_path / "facts.json").write_text('{"card": "reward model", "model_id": "org/rm", "objective": "arm"}')
    assert rgtg("card", tmp_path).returncode == 0
    fresh = rgtg("card", "--check", tmp_path)
    assert (fresh.returncode, fresh.stdout) == (0, "")
    (tmp_path / "facts.json").write_text('{"card": "reward model", "model_id": "org/other", "objective": "arm"}')
    stale = rgtg("card", "--check", tmp_path)
    assert stale.returncode == 1 and "-# org/rm" in stale.stdout and "+# org/other" in stale.stdout
    assert "# org/rm\n" in (tmp_path / "README.md").read_text()
    (tmp_path / "facts.json").write_text('{"card": "reward model", "model": "org/rm"}')
    wrong = rgtg("card", tmp_path)
    assert wrong.returncode == 2 and "but got 'model'" in " ".join(wrong.stderr.split())


def test_train_has_the_arguments_of_trl():
    pytest.importorskip("trl")
    result = rgtg("train", "--help")
    assert result.returncode == 0, result.stderr
    assert "--objective" in result.stdout and "--model_name_or_path" in result.stdout

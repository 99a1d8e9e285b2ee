from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from conftest import make_pairs
from datasets import DatasetDict

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.train.run import load_training_data, train

QUICK = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no"]


def write_jsonl(file: Path, count: int) -> Path:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in make_pairs(count, seed=count))
    return file


def test_train_from_a_folder_and_a_yaml_file(base: str, tmp_path: Path) -> None:
    data = tmp_path / "reviews"
    data.mkdir()
    write_jsonl(data / "train.jsonl", 6)
    write_jsonl(data / "test.jsonl", 3)
    config = tmp_path / "config.yaml"
    config.write_text(f"model_name_or_path: {base}\nobjective: full_bt\nlearning_rate: 0.002\n")
    out = tmp_path / "rm"

    train(["--config", str(config), "--dataset_name", str(data), "--output_dir", str(out), *QUICK])

    assert RewardModel.from_pretrained(out).config.objective == "full_bt"
    card = (out / "README.md").read_text()
    assert "`learning_rate` | 0.002" in card
    assert "3 pairs, after step 1" in card
    assert "Data: `reviews`" in card
    assert str(tmp_path) not in card


def test_train_an_adapter_from_a_file(base: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "pairs.jsonl.gz", 6)
    out = tmp_path / "rm"

    adapter = ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
    train(["--model_name_or_path", base, "--dataset_name", str(file), "--output_dir", str(out), *QUICK, *adapter])

    assert "score" in json.loads((out / "adapter_config.json").read_text())["modules_to_save"]
    assert "This card holds no evaluation on held-out data" in (out / "README.md").read_text()


def test_data_on_disk(tmp_path: Path) -> None:
    pairs = make_pairs(4, seed=0)
    pairs.to_parquet(str(tmp_path / "pairs.parquet"))
    DatasetDict({"train": pairs, "test": pairs}).save_to_disk(str(tmp_path / "saved"))

    assert load_training_data(str(tmp_path / "pairs.parquet"))["train"][0] == pairs[0]
    assert set(load_training_data(str(tmp_path / "saved"))) == {"train", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected --dataset_name, but it was not given"),
        (["--dataset_name", "{data}"], "Expected --model_name_or_path, but it was not given"),
        (
            ["--dataset_name", "{data}", "--model_name_or_path", "{base}", "--eval_strategy", "epoch"],
            "to have the split 'test', but it has 'train'",
        ),
        (
            ["--dataset_name", "{text}", "--model_name_or_path", "{base}"],
            r"ends in one of .json, .jsonl, .csv, .parquet .* but got 'pairs.txt'",
        ),
    ],
)
def test_messages(base: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "pairs.txt").write_text("good")
    places = {"data": write_jsonl(tmp_path / "pairs.jsonl", 4), "base": base, "text": tmp_path / "pairs.txt"}
    with pytest.raises(InvalidArgumentError, match=message):
        train([argument.format(**places) for argument in arguments] + ["--output_dir", str(tmp_path / "rm"), *QUICK])

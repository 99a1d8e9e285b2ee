"""A training ends in a model on disk whatever fails afterwards, and in no model if it went wrong."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_answers, make_pairs
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainerCallback

from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer
from rgtg_logits.train.run import train

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no"]


def write(folder: Path, rows: int = 40, held_out: int = 0, make=make_pairs) -> str:
    folder.mkdir(exist_ok=True)
    make(rows, seed=0).to_json(str(folder / "train.jsonl"))
    if held_out:
        make(held_out, seed=1).to_json(str(folder / "test.jsonl"))
    return str(folder)


def run(base: str, data: str, out: Path, *options: str) -> None:
    train(["--model_name_or_path", base, "--dataset_name", data, "--output_dir", str(out), *QUICK, *options])


def test_the_model_is_saved_before_it_is_evaluated(base: str, tmp_path: Path, monkeypatch) -> None:
    def fail(*args, **options):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(PartialRewardTrainer, "evaluation_loop", fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        run(base, write(tmp_path / "data", held_out=3), tmp_path / "rm")
    assert RewardModel.from_pretrained(tmp_path / "rm").config.objective == "partial_bt"
    assert "This card holds no evaluation" in (tmp_path / "rm" / "README.md").read_text()


@pytest.mark.parametrize("adapter", [False, True])
def test_what_is_measured_afterwards_is_in_the_config(base: str, tmp_path: Path, adapter: bool) -> None:
    options = ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj"] if adapter else []
    run(base, write(tmp_path / "data", held_out=3), tmp_path / "rm", *options)
    rm = RewardModel.from_pretrained(tmp_path / "rm")
    assert rm.config.reward_std is not None and rm.config.suggested_beta == pytest.approx(1 / rm.config.reward_std)


@pytest.mark.skipif(
    not hasattr(PartialRewardConfig, "train_sampling_strategy"), reason="transformers 4.57 has another argument"
)
@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
@pytest.mark.parametrize("objective", ["partial_bt", "value"])
def test_evaluation_beside_grouped_batches(base: str, make_config, strategy: str, objective: str) -> None:
    make = make_pairs if objective == "partial_bt" else make_answers
    rows = make(7, seed=1)
    losses = []
    for name in ("random", strategy):
        config = make_config(objective=objective, train_sampling_strategy=name, learning_rate=0.0)
        trainer = PartialRewardTrainer(base, config, train_dataset=make(8, seed=0), eval_dataset=rows)
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# Numbers that are not finite


def diverging(base: str, make_config, **changes) -> PartialRewardTrainer:
    options = {"learning_rate": 1e30, "max_steps": 6, "lr_scheduler_type": "constant", **changes}
    return PartialRewardTrainer(base, make_config(**options), train_dataset=make_pairs(12, seed=0))


def test_a_loss_that_is_not_finite(base: str, make_config, tmp_path: Path) -> None:
    good = PartialRewardTrainer(base, make_config(), train_dataset=make_pairs(4, seed=0))
    good.save_model()
    before = (tmp_path / "reward-model" / "model.safetensors").read_bytes()
    trainer = diverging(base, make_config, save_strategy="steps", save_steps=1)
    message = r"Expected finite (loss|gradients|weights), .* in step \d+, .*learning rate of 1e\+30 is too high"
    with pytest.raises(NonFiniteRewardError, match=message):
        trainer.train()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteRewardError, match="Expected finite weights"):
        trainer.save_model()
    assert (tmp_path / "reward-model" / "model.safetensors").read_bytes() == before
    for checkpoint in (tmp_path / "reward-model").glob("checkpoint-*/model.safetensors"):
        assert all(weights.isfinite().all() for weights in load_file(checkpoint).values())


def test_gradients_that_are_not_finite(base: str, make_config) -> None:
    class Break(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **options):
            if state.global_step == 1:
                next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)

    trainer = diverging(base, make_config, learning_rate=1e-3, max_grad_norm=0)
    trainer.callback_handler.callbacks.insert(0, Break())
    with pytest.raises(NonFiniteRewardError, match=r"Expected finite gradients, .* in step 2,"):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_nothing_is_pushed(base: str, make_config) -> None:
    pytest.importorskip("transformers", minversion="5")  # 4.57 has no callback of a push.
    trainer = diverging(base, make_config)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteRewardError, match="Expected finite weights"):
        trainer.push_to_hub()


# One sentence each


def test_half_precision_weights(base: str, make_config, tmp_path: Path) -> None:
    message = r"weights in float32 or bfloat16 to train, but got float16.* --fp16 or --bf16"
    with pytest.raises(InvalidArgumentError, match=message):
        run(base, write(tmp_path / "data"), tmp_path / "rm", "--dtype", "float16")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float16)
    with pytest.raises(InvalidArgumentError, match=message):
        PartialRewardTrainer(model, make_config(), train_dataset=make_pairs(4, seed=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without an accelerator")
@pytest.mark.parametrize(
    ("name", "message"), [("bf16", r"computes in bfloat16.*--use_cpu"), ("fp16", "an accelerator")]
)
def test_mixed_precision_without_an_accelerator(make_config, name: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make_config(**{name: True})


def test_a_base_with_another_head(base: str, make_config, tmp_path: Path, tokenizer) -> None:
    config = AutoConfig.from_pretrained(base, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(InvalidArgumentError, match=r"one label, but its head is of another shape \(3 labels"):
        PartialRewardTrainer(str(tmp_path / "three"), make_config(), train_dataset=make_pairs(4, seed=0))


def test_streams_without_an_end(base: str, make_config) -> None:
    stream = make_pairs(4, seed=0).to_iterable_dataset()
    with pytest.raises(InvalidArgumentError, match=r"Expected max_steps, because streamed data"):
        PartialRewardTrainer(base, make_config(max_steps=-1), train_dataset=stream)


def test_target_modules_that_are_not_there(base: str, make_config) -> None:
    lora = LoraConfig(r=2, target_modules=["nothing"])
    with pytest.raises(InvalidArgumentError, match=r"layers of the model \(.*q_proj.*\), but got .*nothing"):
        PartialRewardTrainer(base, make_config(), train_dataset=make_pairs(4, seed=0), peft_config=lora)


# The end


def test_rows_are_held_out_by_default(base: str, tmp_path: Path, capsys, caplog) -> None:
    out = tmp_path / "rm"
    data = write(tmp_path / "data")
    run(base, data, out)
    said = capsys.readouterr().out
    assert f"The reward model is in {out}\n" in said
    assert "on eval (2 rows, 2 of 40 rows that were held out (--dataset_test_split none trains on all)): " in said
    assert f"rgtg check {base} {out}\n" in said and f"rgtg push {out} NAME" in said
    assert "2 pairs, after step 2" in (out / "README.md").read_text()
    run(base, data, out, "--dataset_test_split", "none", "--save_strategy", "steps", "--save_steps", "1")
    assert "Prefix accuracy: no evaluation, as was asked for" in capsys.readouterr().out
    run(base, data, out, "--resume_from_checkpoint", "--max_steps", "3")
    assert f"The training is resumed from {out / 'checkpoint-2'}." in caplog.text


def test_other_names_of_splits(base: str, tmp_path: Path, capsys) -> None:
    rows = make_answers(40, seed=0)
    DatasetDict({"train": rows, "validation": rows.select(range(3))}).save_to_disk(str(tmp_path / "data"))
    run(base, str(tmp_path / "data"), tmp_path / "rm", "--objective", "value")
    assert "Correlation of prefixes with the reward on eval (3 rows, the split 'validation')" in capsys.readouterr().out


def test_rows_that_belong_together_are_held_out_together(base: str, tmp_path: Path, capsys) -> None:
    grades = {"correctness": 1, "coherence": 1}
    rows = [
        {"prompt": f"film {index}", "response": text, "helpfulness": grade, **grades}
        for index in range(20) for text, grade in (("good", 3), ("bad", 1))
    ]  # fmt: skip
    Dataset.from_list(rows).to_json(str(tmp_path / "data.jsonl"))
    run(base, str(tmp_path / "data.jsonl"), tmp_path / "rm")
    assert "on eval (1 rows, 2 of 40 rows" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_have_the_permissions_of_the_umask(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", held_out=3)
    code = "import os, sys; os.umask(0o027); from rgtg_logits.train.run import train; train(sys.argv[1:])"
    arguments = ["--model_name_or_path", base, "--dataset_name", data, "--output_dir", str(tmp_path / "rm"), *QUICK]
    subprocess.run(
        [sys.executable, "-c", code, *arguments, "--save_strategy", "steps"], check=True, capture_output=True
    )
    modes = {str(file): stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "rm").rglob("*") if file.is_file()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o640} == {}
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["rgtg"]["reward_std"] > 0

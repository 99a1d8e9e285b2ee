"""What `Trainer` and TRL offer works with this trainer as with theirs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import make_pairs
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, EarlyStoppingCallback

from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.testing import tiny_base_model
from rgtg_logits.train import PartialRewardTrainer

PROMPTS, ANSWERS = ["the film was", "the film was"], [" good", " bad and the end was bad"]


def weights(trainer: PartialRewardTrainer) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in trainer.model.parameters() if p.requires_grad])


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("half", [False, True])
def test_qlora_trains_and_saves_the_head(pairs: Dataset, make_config, tmp_path: Path, tokenizer, half: bool) -> None:
    # Blocks of 64 numbers are quantised together.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_key_value_heads": 4}
    wide = tiny_base_model(vocab_size=len(tokenizer), **sizes)
    wide.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = PartialRewardTrainer(
        str(tmp_path / "wide"),
        make_config(learning_rate=1e-2, gradient_checkpointing=True, bf16=half, use_cpu=True),
        train_dataset=pairs,
        quantization_config=four_bits,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    before = trainer._reader.head.weight.detach().clone()
    assert trainer.model.is_loaded_in_4bit and trainer._reader.head.weight.dtype == torch.float32
    trainer.train()
    trainer.save_model()

    assert not torch.equal(trainer._reader.head.weight, before)
    loaded = RewardModel.from_pretrained(tmp_path / "reward-model", quantization_config=four_bits)
    assert loaded.config.objective == "partial_bt"
    expected = RewardModel(trainer.model, trainer.processing_class).score(PROMPTS, ANSWERS)
    assert expected[0] != expected[1]
    # The adapter is trained in bfloat16 (TRL, after the QLoRA paper) and loaded in float32.
    torch.testing.assert_close(loaded.score(PROMPTS, ANSWERS), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_changes_nothing(base: str, pairs: Dataset, make_config, adapter: bool) -> None:
    ends = []
    for checkpointing in (False, True):
        lora = LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None
        config = make_config(gradient_checkpointing=checkpointing, optim="sgd", learning_rate=0.5)
        trainer = PartialRewardTrainer(base, config, train_dataset=pairs, peft_config=lora)
        start = weights(trainer)
        trainer.train()
        assert not torch.equal(weights(trainer), start)
        ends.append(weights(trainer))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)


def test_half_precision(base: str, pairs: Dataset, make_config) -> None:
    losses = []
    for half in (False, True):
        config = make_config(bf16=half, use_cpu=True, max_steps=3)
        trainer = PartialRewardTrainer(base, config, train_dataset=pairs, eval_dataset=pairs)
        losses.append(trainer.train().training_loss)
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_batches_grouped_by_length(base: str, make_config) -> None:
    rows = [{"chosen_ids": [5] * (2 + index % 40), "rejected_ids": [6] * (40 - index % 37)} for index in range(64)]
    widths = {}
    for strategy in ("random", "group_by_length"):
        config = make_config(train_sampling_strategy=strategy, per_device_train_batch_size=4)
        trainer = PartialRewardTrainer(base, config, train_dataset=Dataset.from_list(rows))
        widths[strategy] = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()]
        trainer.train()
    longest = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    assert list(trainer.train_dataset["length"]) == longest
    assert len(widths["random"]) == len(widths["group_by_length"]) == 16
    assert sum(widths["group_by_length"]) < sum(widths["random"]) - 16


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard(base: str, pairs: Dataset, make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    config = make_config(report_to="tensorboard", logging_steps=1, eval_strategy="steps", eval_steps=1)
    PartialRewardTrainer(base, config, train_dataset=pairs, eval_dataset=make_pairs(4, seed=1)).train()

    log = EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2]
    assert {f"eval/prefix_accuracy_{cut}" for cut in (10, 25, 50, 75, 100)} <= set(log.Tags()["scalars"])


def test_early_stopping_keeps_the_best(base: str, make_config, tmp_path: Path) -> None:
    """On pairs that contradict those of the training, accuracy falls: the first evaluation is the best."""
    pairs = make_pairs(24, seed=0)
    turned = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    config = make_config(
        max_steps=40, learning_rate=1e-2, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_prefix_accuracy_50", greater_is_better=True,
        per_device_train_batch_size=8, save_total_limit=2,
    )  # fmt: skip

    def make() -> PartialRewardTrainer:
        stopping = EarlyStoppingCallback(early_stopping_patience=3)
        return PartialRewardTrainer(base, config, train_dataset=pairs, eval_dataset=turned, callbacks=[stopping])

    trainer = make()
    trainer.train()

    measured = {
        entry["step"]: entry["eval_prefix_accuracy_50"]
        for entry in trainer.state.log_history
        if "eval_prefix_accuracy_50" in entry
    }
    best = max(measured.values())
    assert trainer.state.global_step < 40
    assert trainer.state.best_metric == best == measured[trainer.state.best_global_step] > min(measured.values())
    assert trainer.evaluate()["eval_prefix_accuracy_50"] == best
    state = tmp_path / "reward-model" / f"checkpoint-{trainer.state.best_global_step}" / "trainer_state.json"
    assert json.loads(state.read_text())["best_model_checkpoint"] == str(state.parent)

    # Run again, it does not go on: it had stopped.
    again = make()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == trainer.state.global_step
    assert torch.equal(weights(again), weights(trainer))

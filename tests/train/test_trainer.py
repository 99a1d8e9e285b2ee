from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_pairs
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rgtg_logits.errors import CheckpointError, InvalidArgumentError, RewardModelError
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.train import (
    PairRewards,
    PartialRewardConfig,
    PartialRewardTrainer,
    pair_lengths,
    partial_bt,
    prefix_accuracy,
)
from rgtg_logits.train.preprocessing import RowCounts

PROMPTS, ANSWERS = ["the film was", "the film was"], [" good", " bad and the end was bad"]


def weights(trainer: RewardTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_train_evaluate_save_reload(base: str, pairs: Dataset, make_config, tmp_path: Path) -> None:
    held_out = make_pairs(7, seed=1)
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs, eval_dataset=held_out)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(dataset_name="org/pairs")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = RewardModel.from_pretrained(tmp_path / "reward-model")
    assert loaded.config.objective == "partial_bt"
    trained = RewardModel(trainer.model, loaded.tokenizer)
    torch.testing.assert_close(loaded.score(PROMPTS, ANSWERS), trained.score(PROMPTS, ANSWERS), rtol=0, atol=1e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward-model").eval()
    assert plain.config.num_labels == 1
    batch = loaded.tokenizer([p + a + "<|endoftext|>" for p, a in zip(PROMPTS, ANSWERS, strict=True)], padding=True)
    pooled = plain(torch.tensor(batch["input_ids"]), attention_mask=torch.tensor(batch["attention_mask"])).logits[:, 0]
    torch.testing.assert_close(pooled, trained.score(PROMPTS, ANSWERS), rtol=0, atol=1e-5)

    card = ModelCard.load(tmp_path / "reward-model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.datasets == "org/pairs"
    assert card.data.license is None
    assert card.data.base_model is None  # a local folder says nothing to a reader
    assert str(tmp_path) not in card.content
    assert "Rows trained on: 12 pairs" in card.content
    assert "7 pairs, after step 2" in card.content
    for cut in (10, 25, 50, 75, 100):
        assert f"{metrics[f'eval_prefix_accuracy_{cut}']:.3f}" in card.content


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_evaluation_is_exact_over_the_set(base: str, pairs: Dataset, make_config, batch_size: int) -> None:
    config = make_config(per_device_eval_batch_size=batch_size)
    trainer = PartialRewardTrainer(base, config, train_dataset=pairs, eval_dataset=make_pairs(7, seed=1))
    batch = DataCollatorForPreference(pad_token_id=0)(list(trainer.eval_dataset))
    chosen, rejected = RewardModel(trainer.model).score_tokens(batch["input_ids"], batch["attention_mask"]).chunk(2)
    rewards = PairRewards(chosen, rejected, pair_lengths(batch["input_ids"], batch["attention_mask"]))

    metrics = trainer.evaluate()

    for cut, accuracy in prefix_accuracy(rewards).items():
        assert metrics[f"eval_prefix_accuracy_{cut}"] == pytest.approx(accuracy)
    assert metrics["eval_loss"] == pytest.approx(partial_bt(rewards).item(), rel=1e-5)


def test_several_evaluation_sets_keep_their_own_figures(base: str, pairs: Dataset, make_config) -> None:
    sets = {"easy": make_pairs(3, seed=1), "hard": make_pairs(4, seed=2)}
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs, eval_dataset=sets)

    metrics = trainer.evaluate()

    assert {"eval_easy_prefix_accuracy_100", "eval_hard_prefix_accuracy_10"} <= set(metrics)
    assert [(item.name, item.pairs) for item in trainer.card_facts().evaluations] == [
        ("eval_easy", 3),
        ("eval_hard", 4),
    ]


def test_full_bt_is_the_loss_of_trl(base: str, make_config, tmp_path: Path) -> None:
    pairs = make_pairs(12, seed=0).map(lambda _row, index: {"margin": index / 10}, with_indices=True)
    ours = PartialRewardTrainer(base, make_config(objective="full_bt"), train_dataset=pairs)
    options = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2, "report_to": "none"}
    theirs = RewardTrainer(
        base,
        RewardConfig(
            str(tmp_path / "trl"), per_device_train_batch_size=4, learning_rate=1e-3, save_strategy="no", **options
        ),
        train_dataset=pairs,
    )
    inputs = next(iter(ours.get_train_dataloader()))
    torch.testing.assert_close(
        ours.compute_loss(ours.model, dict(inputs)), theirs.compute_loss(theirs.model, dict(inputs)), rtol=0, atol=1e-6
    )

    ours.train()
    theirs.train()

    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-6)
    assert ours.model.config.rgtg["objective"] == "full_bt"


def test_gradient_accumulation_changes_nothing(base: str, pairs: Dataset, make_config) -> None:
    results = []
    for size, steps in ((6, 1), (2, 3)):
        config = make_config(
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd", learning_rate=0.5
        )
        trainer = PartialRewardTrainer(base, config, train_dataset=pairs)
        start = weights(trainer)
        trainer.train()
        assert not torch.equal(weights(trainer), start)
        results.append(weights(trainer))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_resumed_training_ends_in_the_same_weights(base: str, pairs: Dataset, make_config, tmp_path: Path) -> None:
    config = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight = PartialRewardTrainer(base, make_config(**config), train_dataset=pairs)
    straight.train()
    assert (tmp_path / "reward-model" / "checkpoint-2" / "config.json").exists()
    resumed = PartialRewardTrainer(base, make_config(**config), train_dataset=pairs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "reward-model" / "checkpoint-2"))

    assert torch.equal(weights(resumed), weights(straight))
    stored = json.loads((tmp_path / "reward-model" / "checkpoint-2" / "config.json").read_text())
    assert stored["rgtg"] == {
        "version": 1,
        "kind": "causal",
        "objective": "partial_bt",
        "unit": "log-odds of Bradley-Terry",
    }


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_lora_trains_and_saves_the_head(
    base: str, pairs: Dataset, make_config, tmp_path: Path, task_type: str | None
) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type=task_type)
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs, peft_config=lora)
    before = trainer._reader.head.weight.detach().clone()
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()

    assert lora.task_type == task_type  # the user's object is left alone
    assert not torch.equal(trainer._reader.head.weight, before)
    folder = tmp_path / "reward-model"
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = trainer.processing_class
    expected = RewardModel(trainer.model, tokenizer).score([PROMPTS[1]], [ANSWERS[1]])
    text = torch.tensor([tokenizer(PROMPTS[1] + ANSWERS[1] + tokenizer.eos_token)["input_ids"]])
    torch.testing.assert_close(loaded(text).logits[:, 0], expected, rtol=0, atol=1e-6)
    assert json.loads((folder / "rgtg.json").read_text())["objective"] == "partial_bt"
    ours = RewardModel.from_pretrained(folder)
    assert ours.config.objective == "partial_bt"
    torch.testing.assert_close(ours.score([PROMPTS[1]], [ANSWERS[1]]), expected, rtol=0, atol=1e-6)
    ours.save_pretrained(tmp_path / "again")
    assert RewardModel.from_pretrained(tmp_path / "again").config == ours.config
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="has pickled weights"):
        RewardModel.from_pretrained(folder)
    assert "`target_modules` | q_proj" in (folder / "README.md").read_text()


def test_pad_token_that_ends_texts(base: str, pairs: Dataset, make_config, tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    config = make_config(objective="full_bt")
    trainer = PartialRewardTrainer(base, config, train_dataset=pairs, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    rewards = RewardModel(trainer.model).score_tokens(batch["input_ids"], batch["attention_mask"])
    ends = rewards.gather(1, batch["attention_mask"].sum(1, keepdim=True) - 1)[:, 0].chunk(2)

    _, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)

    torch.testing.assert_close(outputs.logits[:, 0], torch.cat(ends), rtol=0, atol=1e-6)
    assert trainer.card_facts().pad_is_eos


def test_rows_without_a_pair_are_left_out_and_counted(base: str, pairs: Dataset, make_config, caplog) -> None:
    rows = [
        *pairs,
        {"prompt": "the film was", "chosen": "", "rejected": None},
        {"prompt": None, "chosen": " good", "rejected": " bad"},
        {"prompt": "the film was", "chosen": " good", "rejected": " bad", "margin": float("nan")},
        {"prompt": "the film was", "chosen": "", "rejected": " bad"},
        {"prompt": "the film was", "chosen": " good", "rejected": None},
        {"prompt": "the film was", "chosen": " good", "rejected": " good"},
        {"prompt": "the film was", "chosen": " good" * 30, "rejected": " bad" * 60},
        {"prompt": "the film was" * 20, "chosen": " good", "rejected": " bad"},
    ]
    rows = [{"margin": 0.0, **row} for row in rows]
    with caplog.at_level(logging.WARNING):
        trainer = PartialRewardTrainer(
            base,
            make_config(max_length=40),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
        )
    trainer.train()

    assert trainer.row_counts["train"] == RowCounts(kept=14, cut=2, empty=1, one_sided=2, identical=1, unusable=2)
    assert trainer.row_counts["eval"] == RowCounts(kept=12, empty=1, one_sided=2, identical=1, too_long=2, unusable=2)
    assert max(len(ids) for ids in trainer.train_dataset["rejected_ids"]) == 40
    assert (
        "14 rows kept (2 cut at max_length), 6 left out: 1 empty, 2 one sided, 1 identical, 0 too long, 2 unusable"
        in caplog.text
    )


def test_conversations(base: str, make_config, tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"film {index}"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
        for index in range(4)
    ]
    trainer = PartialRewardTrainer(
        base, make_config(), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()

    assert trainer.train_dataset["chosen_ids"][0][-1] == tokenizer.eos_token_id


def test_streamed_data(base: str, pairs: Dataset, make_config) -> None:
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs.to_iterable_dataset())
    trainer.train()

    assert trainer.state.global_step == 2
    assert trainer.card_facts().data is None


def test_no_pair_is_left(base: str, make_config) -> None:
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "b"}])
    with pytest.raises(InvalidArgumentError, match="Expected the train data to hold pairs of two different"):
        PartialRewardTrainer(base, make_config(), train_dataset=rows)


def test_a_tokenizer_without_an_end(base: str, pairs: Dataset, make_config, tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InvalidArgumentError, match="Expected a tokenizer with an end-of-text token"):
        PartialRewardTrainer(base, make_config(), train_dataset=pairs, processing_class=tokenizer)


def test_a_head_that_reads_one_token_only(pairs: Dataset, make_config, tokenizer) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes))
    trainer = PartialRewardTrainer(encoder, make_config(), train_dataset=pairs, processing_class=tokenizer)
    with pytest.raises(RewardModelError, match=r"reward head once, to every token .* was applied 1 times"):
        trainer.train()


def test_a_frozen_head_is_told(base: str, pairs: Dataset, make_config, tokenizer, caplog) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with caplog.at_level(logging.WARNING):
        PartialRewardTrainer(adapted, make_config(), train_dataset=pairs, processing_class=tokenizer)
    assert "The reward head is frozen" in caplog.text


def test_unknown_objective(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"one of 'partial_bt', 'full_bt', .*'arm', but got 'bt'\. Choose"):
        PartialRewardConfig(str(tmp_path), objective="bt")


def test_arguments_of_trl_are_refused(base: str, pairs: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match="PartialRewardConfig, which names the objective, but got RewardConfig"
    ):
        PartialRewardTrainer(base, RewardConfig(str(tmp_path), use_cpu=True, bf16=False), train_dataset=pairs)

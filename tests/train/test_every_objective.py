"""Every objective with every kind of checkpoint: trained, saved, loaded, and against a twin that reads one prefix."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import make_answers, make_pairs
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import log_softmax, softplus
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GraniteConfig,
    GraniteForCausalLM,
)

from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model.model import RewardModel, RewardModelConfig
from rgtg_logits.testing import tiny_base_model
from rgtg_logits.train import PartialRewardTrainer

WAYS = [(name, kind) for name, objective in OBJECTIVES.items() for kind in objective.kinds]
LABELLED = ["value", "soft_value", "cumulative"]
PROMPTS, ANSWERS = ["the film was", "the film was"], [" good", " bad and the end was bad"]
NUMBERS = {"soft_value_beta": 0.7, "soft_value_clip": 0.5, "arm_beta": 0.3, "farma_weight": 0.6}


def make_data(objective: str, count: int, seed: int = 0) -> Dataset:
    if OBJECTIVES[objective].data == "labels":
        return make_answers(count, seed=seed)
    return make_pairs(count, seed=seed).map(lambda _row, index: {"margin": index / 10}, with_indices=True)


def weights(trainer: PartialRewardTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(("objective", "kind"), WAYS)
def test_train_save_reload(base: str, make_config, tmp_path: Path, objective: str, kind: str) -> None:
    data = make_data(objective, 6)
    config = make_config(
        objective=objective, kind=kind, max_steps=15, learning_rate=5e-3, per_device_train_batch_size=6
    )
    trainer = PartialRewardTrainer(base, config, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()

    assert metrics["eval_loss"] < 0.8 * before
    loaded = RewardModel.from_pretrained(tmp_path / "reward-model")
    trained = RewardModel(trainer.model, loaded.tokenizer)
    scores = loaded.score(PROMPTS, ANSWERS)
    torch.testing.assert_close(scores, trained.score(PROMPTS, ANSWERS), rtol=0, atol=1e-6)
    stated = loaded.config
    assert (stated.kind, stated.objective, stated.unit) == (kind, objective, OBJECTIVES[objective].unit)
    assert (stated.reward_mean, stated.reward_std) == (metrics["eval_reward_mean"], metrics["eval_reward_std"])
    assert stated.suggested_beta == (1.0 if objective in ("soft_value", "arm") else 1.0 / stated.reward_std)

    auto = AutoModelForSequenceClassification if kind == "causal" else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "reward-model").eval()
    ids = [*loaded.tokenizer(PROMPTS[1] + ANSWERS[1])["input_ids"], loaded.tokenizer.eos_token_id]
    torch.testing.assert_close(reward(plain, kind, ids, 0), scores[1], rtol=0, atol=1e-4)


# The twin: every reward from a forward of its own


def reward(model, kind: str, ids: list[int], start: int) -> torch.Tensor:
    """The reward of a text, from the model's own forward over that text or its beginnings."""
    if kind == "causal":
        return model(torch.tensor([ids])).logits[0, 0]
    if kind == "vocabulary":
        return model(torch.tensor([ids[:-1]])).logits[0, -1, ids[-1]]
    steps = [
        log_softmax(model(torch.tensor([ids[:end]])).logits[0, -1], -1)[ids[end]]
        for end in range(max(start, 1), len(ids))
    ]
    return sum(steps)


def pair_parts(objective: str, model, kind: str, row, start: int) -> list[torch.Tensor]:
    good, bad = list(row["chosen_ids"]), list(row["rejected_ids"])
    ends = range(start + 1, max(len(good), len(bad)) + 1) if objective == "partial_bt" else [len(good) + len(bad)]
    scale = NUMBERS["arm_beta"] if objective == "arm" else 1.0
    parts = [
        softplus(
            row["margin"] - scale * (reward(model, kind, good[:end], start) - reward(model, kind, bad[:end], start))
        )
        for end in ends
    ]
    if objective == "farma":
        squares = [
            (reward(model, kind, text[:end], start) - model(torch.tensor([text[:end]])).logits[0, -1].max().detach())
            ** 2
            for text in (good, bad)
            for end in range(start + 1, len(text))
        ]
        parts[0] = parts[0] + NUMBERS["farma_weight"] * sum(squares) / len(squares)
    return parts


def label_parts(objective: str, model, kind: str, row) -> list[torch.Tensor]:
    ids = row["input_ids"]
    ends = range(row["start"] + 1, len(ids) + 1)
    rewards = [reward(model, kind, ids[:end], 0) for end in ends]
    if objective == "value":
        return [(each - row["reward"]) ** 2 / 2 for each in rewards]
    if objective == "cumulative":
        squares = [step * (each - row["reward"]) ** 2 for step, each in enumerate(rewards, start=1)]
        return [sum(squares) / (len(squares) * (len(squares) + 1) / 2)]
    parts, clip = [], NUMBERS["soft_value_clip"]
    for each in rewards:
        d = NUMBERS["soft_value_beta"] * row["reward"] - each
        # Behind the clip, the tangent of the exponential.
        parts.append((torch.exp(d) if d <= clip else math.exp(clip) * (1 + d - clip)) - d - 1)
    return parts


def gradients(model, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("objective", "kind"), WAYS)
def test_the_loss_is_that_of_one_forward_per_prefix(base: str, make_config, objective: str, kind: str) -> None:
    config = make_config(objective=objective, kind=kind, disable_dropout=True, **NUMBERS)
    trainer = PartialRewardTrainer(base, config, train_dataset=make_data(objective, 3))
    model = trainer.model.eval()
    rows = list(trainer.train_dataset)
    if OBJECTIVES[objective].data == "labels":
        parts = [label_parts(objective, model, kind, row) for row in rows]
    else:
        common = [
            next(i for i, (a, b) in enumerate(zip(row["chosen_ids"], row["rejected_ids"], strict=False)) if a != b)
            for row in rows
        ]
        parts = [pair_parts(objective, model, kind, row, start) for row, start in zip(rows, common, strict=True)]
    expected = torch.stack([part for row in parts for part in row]).mean()

    batch = trainer.data_collator(rows)
    expected_gradients = gradients(model, expected)
    loss = trainer.compute_loss(model, dict(batch))

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(model, loss), expected_gradients, rtol=1e-4, atol=1e-5)
    assert int(trainer._get_num_items_in_batch([batch], torch.device("cpu"))) == sum(map(len, parts))


@pytest.mark.parametrize(("objective", "kind"), WAYS)
def test_gradient_accumulation_changes_nothing(base: str, make_config, objective: str, kind: str) -> None:
    data, results = make_data(objective, 12), []
    for size, steps in ((6, 1), (2, 3)):
        config = make_config(
            objective=objective, kind=kind, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            optim="sgd", learning_rate=0.05,
        )  # fmt: skip
        trainer = PartialRewardTrainer(base, config, train_dataset=data)
        start = weights(trainer)
        trainer.train()
        assert not torch.equal(weights(trainer), start)
        results.append(weights(trainer))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("objective", "kind"), [("value", "vocabulary"), ("arm", "log_ratio")])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_checkpointed_activations_change_nothing(base: str, make_config, objective: str, kind: str) -> None:
    results = []
    for checkpointing in (False, True):
        config = make_config(objective=objective, kind=kind, gradient_checkpointing=checkpointing)
        trainer = PartialRewardTrainer(base, config, train_dataset=make_data(objective, 6))
        trainer.train()
        results.append(weights(trainer))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("objective", "kind"), WAYS)
def test_half_precision(base: str, make_config, objective: str, kind: str) -> None:
    """Rewards are read in float32 from a model in bfloat16, and differ by its rounding only."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = make_config(objective=objective, kind=kind, model_init_kwargs={"dtype": dtype})
        trainer = PartialRewardTrainer(base, config, train_dataset=make_data(objective, 4))
        batch = trainer.data_collator(list(trainer.train_dataset))
        losses.append(trainer.compute_loss(trainer.model.eval(), batch))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("objective", "kind"), [("value", "causal"), ("value", "vocabulary"), ("arm", "log_ratio")])
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "SEQ_CLS"])
def test_adapters_get_the_task_type_of_the_kind(
    base: str, make_config, tmp_path: Path, objective: str, kind: str, task_type: str | None
) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task_type)
    config = make_config(objective=objective, kind=kind, learning_rate=1e-2)
    trainer = PartialRewardTrainer(base, config, train_dataset=make_data(objective, 6), peft_config=lora)
    before = weights(trainer)
    trainer.train()
    trainer.save_model()

    assert lora.task_type == task_type  # the user's object is left alone
    assert not torch.equal(weights(trainer), before)
    folder = tmp_path / "reward-model"
    wanted = "SEQ_CLS" if kind == "causal" else "CAUSAL_LM"
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == wanted
    loaded = RewardModel.from_pretrained(folder)
    assert (loaded.kind, loaded.config.objective) == (kind, objective)
    expected = RewardModel(trainer.model, loaded.tokenizer).score(PROMPTS, ANSWERS)
    torch.testing.assert_close(loaded.score(PROMPTS, ANSWERS), expected, rtol=0, atol=1e-6)


def test_an_architecture_without_a_sequence_classifier(make_config, tokenizer, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    name = str(tmp_path / "granite")
    GraniteForCausalLM(
        GraniteConfig(vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=None, **sizes)
    ).save_pretrained(name)
    tokenizer.save_pretrained(name)
    data = make_pairs(6, seed=0)
    trainer = PartialRewardTrainer(name, make_config(), train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()

    loaded = RewardModel.from_pretrained(tmp_path / "reward-model")
    assert type(loaded.model).__name__ == "GraniteForSequenceClassification"
    expected = RewardModel(trainer.model, loaded.tokenizer).score(PROMPTS, ANSWERS)
    torch.testing.assert_close(loaded.score(PROMPTS, ANSWERS), expected, rtol=0, atol=1e-6)
    assert trainer.model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(("objective", "kind"), [("value", "vocabulary"), ("partial_bt", "vocabulary")])
def test_a_first_token_has_no_logit(base: str, make_config, objective: str, kind: str) -> None:
    """Texts without a prompt: the first token is behind nothing, and no part of the loss."""
    ids = [[5, 6, 7], [8, 9]]
    rows = (
        [{"input_ids": row, "reward": 1.0} for row in ids]
        if objective == "value"
        else [{"chosen_ids": ids[0], "rejected_ids": ids[1]}]
    )
    config = make_config(objective=objective, kind=kind)
    trainer = PartialRewardTrainer(base, config, train_dataset=Dataset.from_list(rows))
    batch = trainer.data_collator(list(trainer.train_dataset))

    assert int(trainer._get_num_items_in_batch([batch], torch.device("cpu"))) == (3 if objective == "value" else 2)
    assert trainer.compute_loss(trainer.model.eval(), batch).isfinite()


def test_best_next_tokens_are_those_that_there_are(make_config, tokenizer) -> None:
    """A language model may have logits of tokens that no tokenizer makes, and those are never the best."""
    model = tiny_base_model(vocab_size=len(tokenizer) + 5)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] *= 1000
    config = make_config(objective="farma")
    trainer = PartialRewardTrainer(model, config, train_dataset=make_pairs(3, seed=0), processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    start = torch.zeros(6, dtype=torch.long)
    prefixes, _ = trainer._reader.read(model, batch["input_ids"], batch["attention_mask"], start)

    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(prefixes.max_next, logits[..., : len(tokenizer)].amax(-1))
    assert float(logits.max()) > float(prefixes.max_next.max())


def test_what_was_measured_is_told_only_of_the_same_weights(base: str, make_config, tmp_path: Path) -> None:
    data = make_answers(6, seed=0)
    config = make_config(objective="soft_value", soft_value_beta=2.0, save_strategy="steps", save_steps=2)
    trainer = PartialRewardTrainer(base, config, train_dataset=data, eval_dataset=data)
    trainer.evaluate()
    trainer.train()  # saves a checkpoint after it has changed the weights
    stored = json.loads((tmp_path / "reward-model" / "checkpoint-2" / "config.json").read_text())["rgtg"]
    assert stored == {
        "version": 1, "kind": "causal", "objective": "soft_value", "unit": "nats", "beta": 2.0,
    }  # fmt: skip
    metrics = trainer.evaluate()
    assert RewardModelConfig.from_dict(trainer.model.config.rgtg).reward_std == metrics["eval_reward_std"]


def test_labels_are_logged_as_pairs_are(base: str, make_config) -> None:
    config = make_config(objective="value", logging_steps=1, gradient_accumulation_steps=2)
    trainer = PartialRewardTrainer(base, config, train_dataset=make_answers(12, seed=0))
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"loss", "num_tokens", "min_reward", "mean_reward", "max_reward", "correlation"} <= set(logged)
    assert logged["min_reward"] < logged["mean_reward"] < logged["max_reward"]


@pytest.mark.parametrize("objective", LABELLED)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_of_labels_is_exact_over_the_set(base: str, make_config, objective: str, batch_size: int) -> None:
    data = make_answers(7, seed=1)
    config = make_config(objective=objective, per_device_eval_batch_size=batch_size)
    trainer = PartialRewardTrainer(base, config, train_dataset=data, eval_dataset=data)
    rows = list(trainer.eval_dataset)
    trained = RewardModel(trainer.model)
    scores = [trained.score_tokens(torch.tensor([row["input_ids"]]))[0, row["start"] :].double() for row in rows]
    labels = torch.tensor([row["reward"] for row in rows], dtype=torch.double)

    metrics = trainer.evaluate()

    for percent in (10, 25, 50, 75, 100):
        cut = torch.stack([score[math.ceil(len(score) * percent / 100) - 1] for score in scores])
        expected = torch.corrcoef(torch.stack([cut, labels]))[0, 1]
        assert metrics[f"eval_prefix_correlation_{percent}"] == pytest.approx(float(expected), abs=1e-6)
    everything = torch.cat(scores)
    assert metrics["eval_reward_mean"] == pytest.approx(float(everything.mean()), abs=1e-6)
    assert metrics["eval_reward_std"] == pytest.approx(float(everything.std(unbiased=False)), abs=1e-6)
    batch = trainer.data_collator(rows)
    assert metrics["eval_loss"] == pytest.approx(float(trainer.compute_loss(trainer.model, batch)), rel=1e-5)


def test_nothing_varies(base: str, make_config) -> None:
    data = make_answers(4, seed=0).map(lambda _: {"reward": 2.0})
    trainer = PartialRewardTrainer(base, make_config(objective="value"), train_dataset=data, eval_dataset=data)
    assert trainer.evaluate()["eval_prefix_correlation_100"] == 0.0

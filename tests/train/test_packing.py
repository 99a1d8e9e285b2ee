"""Pairs in shared rows give the losses and gradients of padded rows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from conftest import make_pairs, random_batch
from datasets import Dataset
from transformers import PreTrainedModel
from trl.trainer.reward_trainer import DataCollatorForPreference

from rgtg_logits.testing import VOCAB_SIZE, tiny_reward_model
from rgtg_logits.train import PairRewards, PartialRewardTrainer, pair_lengths, partial_bt
from rgtg_logits.train.packing import SharedPromptReader, pack, unpack


def make_batch(pairs: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    chosen, rejected = random_batch(pairs, VOCAB_SIZE, torch.Generator().manual_seed(seed))
    rows = [{"chosen_ids": c, "rejected_ids": r} for c, r in zip(chosen, rejected, strict=True)]
    # One answer that is the beginning of the other, and a pair with nothing in common.
    rows += [{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6]}, {"chosen_ids": [9], "rejected_ids": [8, 7, 1]}]
    return DataCollatorForPreference(pad_token_id=0)(rows)


def reader(model: PreTrainedModel) -> Any:
    """What a trainer hands over: the reward of each token; it keeps the shapes it was asked for."""
    shapes = []

    def read(**inputs: Any) -> torch.Tensor:
        shapes.append(tuple(inputs["input_ids"].shape))
        states = model.base_model(**inputs, use_cache=False).last_hidden_state
        return model.score(states)[..., 0]

    read.shapes = shapes
    return read


def loss_and_gradients(model: PreTrainedModel, shared: SharedPromptReader | None) -> tuple[torch.Tensor, ...]:
    batch, read = make_batch(), reader(model)
    model.zero_grad()
    rewards = read(**batch) if shared is None else shared.rewards(read, **batch)
    loss = partial_bt(PairRewards(*rewards.chunk(2), pair_lengths(**batch)))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_token_is_where_it_was() -> None:
    batch = make_batch()
    lengths = pair_lengths(**batch)
    pairs = pack(batch["input_ids"], lengths)
    text = batch["attention_mask"].bool()
    assert torch.equal(unpack(pairs.input_ids.double(), pairs.gather_index)[text], batch["input_ids"].double()[text])
    positions = torch.arange(text.shape[1]).expand_as(text)
    assert torch.equal(unpack(pairs.position_ids.double(), pairs.gather_index)[text], positions.double()[text])
    assert pairs.input_ids.shape[1] == int((lengths.chosen + lengths.rejected - lengths.start).max())
    # A token sees its own text up to itself: as many tokens as its position says, and itself.
    seen = unpack(pairs.mask.sum(2).double(), pairs.gather_index)
    assert torch.equal(seen[text], positions.double()[text] + 1)


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [(name, kind) for name in ("llama", "gpt2", "qwen3", "mistral") for kind in ("sdpa", "eager")]
    + [("gemma2", "eager")],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_padded_rows(model_type: str, attention: str, dtype: torch.dtype) -> None:
    # All but GPT-2 compute norms and rotations in float32 whatever their type.
    tolerance = 1e-9 if (model_type, dtype) == ("gpt2", torch.float64) else 2e-6
    changes = {"sliding_window": 64} if model_type in ("mistral", "gemma2") else {}
    model = tiny_reward_model(model_type, attn_implementation=attention, **changes).to(dtype)
    shared = SharedPromptReader(model)

    packed, padded = loss_and_gradients(model, shared), loss_and_gradients(model, None)

    assert shared._verified
    torch.testing.assert_close(packed[0], padded[0], rtol=tolerance, atol=tolerance)
    scale = padded[1].abs().max().item()
    torch.testing.assert_close(packed[1] / scale, padded[1] / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model_type", ["mistral", "gemma2"])
def test_texts_longer_than_a_window_are_padded(model_type: str) -> None:
    model = tiny_reward_model(model_type)
    batch, read, shared = make_batch(), reader(model), SharedPromptReader(model)
    assert batch["input_ids"].shape[1] > model.config.sliding_window
    rewards = shared.rewards(read, **batch)
    assert read.shapes == [tuple(batch["input_ids"].shape)]
    assert torch.equal(rewards, reader(model)(**batch))
    short = {name: tensor[:, :8] for name, tensor in batch.items()}
    shared.rewards(read, **short)
    assert len(read.shapes) == 4 and read.shapes[-1][0] == len(batch["input_ids"]) // 2


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bloom", "it takes no positions"),
        ("gpt_neo", "its rewards differ by|it does not take such a mask"),
        ("jamba", "its rewards differ by|it does not take such a mask"),
    ],
)
def test_models_that_cannot_are_told_once(model_type: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_reward_model(model_type)
    batch, read = make_batch(), reader(model)
    with caplog.at_level(logging.WARNING):
        shared = SharedPromptReader(model)
        first, second = shared.rewards(read, **batch), shared.rewards(read, **batch)
    messages = [record.getMessage() for record in caplog.records if "behind one prompt" in record.getMessage()]
    assert len(messages) == 1 and any(part in messages[0] for part in reason.split("|"))
    assert torch.equal(first, second) and torch.equal(first, reader(model)(**batch))


def test_attention_without_a_mask() -> None:
    model = tiny_reward_model()
    model.config._attn_implementation = "flash_attention_2"
    read, batch = reader(model), make_batch()
    shared = SharedPromptReader(model)
    model.config._attn_implementation = "sdpa"
    shared.rewards(read, **batch)
    assert read.shapes == [tuple(batch["input_ids"].shape)]


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}])
def test_training_ends_in_the_same_weights(base: str, make_config, changes: dict[str, Any]) -> None:
    pairs = make_pairs(12, seed=0).map(lambda _row, index: {"margin": index / 10}, with_indices=True)
    ends = []
    for shared in (False, True):
        config = make_config(shared_prompt=shared, optim="sgd", learning_rate=0.5, **changes)
        trainer = PartialRewardTrainer(base, config, train_dataset=pairs, eval_dataset=make_pairs(7, seed=1))
        trainer.train()
        assert shared == (trainer._reader.shared_prompts is not None and bool(trainer._reader.shared_prompts._verified))
        ends.append((torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), trainer.evaluate()))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=2e-6)
    names = [name for name in ends[0][1] if "prefix_accuracy" in name or "reward" in name or name == "eval_loss"]
    assert len(names) == 11
    for name in names:
        assert ends[0][1][name] == pytest.approx(ends[1][1][name], abs=1e-5), name


def test_the_first_batch_is_read_in_half_precision(base: str, pairs: Dataset, make_config) -> None:
    trainer = PartialRewardTrainer(base, make_config(shared_prompt=True, bf16=True, use_cpu=True), train_dataset=pairs)
    trainer.train()
    assert trainer._reader.shared_prompts is not None and trainer._reader.shared_prompts._verified

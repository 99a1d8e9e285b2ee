"""The loss from one forward is the loss of a data set with one row per prefix pair, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_batch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from rgtg_logits.reward_model import RewardModel
from rgtg_logits.testing import VOCAB_SIZE, tiny_reward_model
from rgtg_logits.train import full_bt, partial_bt
from rgtg_logits.train.data import pair_lengths


def common_prefix(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def brute_force(model: PreTrainedModel, chosen, rejected, margins) -> torch.Tensor:
    """Every prefix pair as two sequences of their own, through the model's own pooled logit."""
    losses = []
    for left, right, margin in zip(chosen, rejected, margins, strict=True):
        for end in range(common_prefix(left, right), max(len(left), len(right))):
            better, worse = (model(torch.tensor([row[: end + 1]])).logits[0, 0] for row in (left, right))
            losses.append(-logsigmoid(better - worse - margin))
    return torch.stack(losses).mean()


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def token_rewards(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    reader = RewardModel(model)
    return reader.head(reader.hidden_states(ids, mask, None)[0]).squeeze(-1)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("with_margin", [False, True])
def test_partial_bt_equals_one_row_per_prefix(model_type: str, with_margin: bool) -> None:
    model = tiny_reward_model(model_type).double()
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = random_batch(5, VOCAB_SIZE, generator)
    margins = torch.rand(5, generator=generator, dtype=torch.double) if with_margin else torch.zeros(5)
    expected = brute_force(model, chosen, rejected, margins)
    expected_gradients = gradients(model, expected)

    ids, mask = padded(chosen + rejected)
    rewards = token_rewards(model, ids, mask).chunk(2)
    loss = partial_bt(*rewards, *pair_lengths(ids, mask), margin=margins if with_margin else None)

    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients(model, loss), expected_gradients, rtol=0, atol=1e-6)


def test_lengths_and_common_prefix_are_read_from_the_tokens() -> None:
    chosen, rejected = random_batch(20, 4, torch.Generator().manual_seed(0))
    ids, mask = padded(chosen + rejected)

    lengths = pair_lengths(ids, mask)

    assert lengths.chosen.tolist() == [len(row) for row in chosen]
    assert lengths.rejected.tolist() == [len(row) for row in rejected]
    assert lengths.start.tolist() == [common_prefix(a, b) for a, b in zip(chosen, rejected, strict=True)]


def test_the_shorter_answer_keeps_its_last_reward() -> None:
    chosen = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    rejected = torch.tensor([[9.0, 0.5, 777.0, 777.0]])  # 777 is what the model says of padding

    loss = partial_bt(chosen, rejected, torch.tensor([4]), torch.tensor([2]), torch.tensor([1]))

    expected = sum(math.log1p(math.exp(-difference)) for difference in (0.5, 1.5, 2.5)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_long_pair_weighs_more_than_a_short_one() -> None:
    chosen = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    rejected = torch.zeros(2, 3)

    loss = partial_bt(chosen, rejected, torch.tensor([3, 1]), torch.tensor([3, 1]), torch.tensor([0, 0]))

    expected = (3 * math.log1p(math.exp(-1)) + math.log1p(math.exp(-5))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_full_bt_reads_the_finished_answers_only() -> None:
    chosen = torch.tensor([[0.0, 0.0, 2.0, 777.0]], requires_grad=True)
    rejected = torch.tensor([[0.0, 0.5, 777.0, 777.0]])

    loss = full_bt(
        chosen, rejected, torch.tensor([3]), torch.tensor([2]), torch.tensor([1]), margin=torch.tensor([0.5])
    )
    loss.backward()

    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert chosen.grad is not None
    assert chosen.grad.nonzero().tolist() == [[0, 2]]

"""The loss from one forward is the loss of a data set with one row per prefix pair, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_batch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.testing import VOCAB_SIZE, tiny_reward_model
from rgtg_logits.train import PairLengths, PairRewards, full_bt, losses, pair_lengths, partial_bt
from rgtg_logits.train.objectives import LOSSES, LabelBatch, LossSettings, PairBatch, PrefixRewards


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
    rewards = PairRewards(*token_rewards(model, ids, mask).chunk(2), pair_lengths(ids, mask))
    loss = partial_bt(rewards, margin=margins if with_margin else None)

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

    lengths = PairLengths(torch.tensor([4]), torch.tensor([2]), torch.tensor([1]))
    loss = partial_bt(PairRewards(chosen, rejected, lengths))

    expected = sum(math.log1p(math.exp(-difference)) for difference in (0.5, 1.5, 2.5)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_long_pair_weighs_more_than_a_short_one() -> None:
    chosen = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    rejected = torch.zeros(2, 3)

    lengths = PairLengths(torch.tensor([3, 1]), torch.tensor([3, 1]), torch.tensor([0, 0]))
    loss = partial_bt(PairRewards(chosen, rejected, lengths))

    expected = (3 * math.log1p(math.exp(-1)) + math.log1p(math.exp(-5))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_full_bt_reads_the_finished_answers_only() -> None:
    chosen = torch.tensor([[0.0, 0.0, 2.0, 777.0]], requires_grad=True)
    rejected = torch.tensor([[0.0, 0.5, 777.0, 777.0]])

    lengths = PairLengths(torch.tensor([3]), torch.tensor([2]), torch.tensor([1]))
    loss = full_bt(PairRewards(chosen, rejected, lengths), margin=torch.tensor([0.5]))
    loss.backward()

    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert chosen.grad is not None
    assert chosen.grad.nonzero().tolist() == [[0, 2]]


ANSWERS = LabelBatch(torch.tensor([3, 4]), torch.tensor([1, 2]), torch.tensor([3.0, -1.0]))
"""Two answers of two tokens each; what the model says of prompts and padding is 777."""
REWARDS = torch.tensor([[777.0, 1.0, 2.0, 777.0], [777.0, 777.0, 0.0, -1.5]])


def terms(name: str, **settings: float):
    return LOSSES[name].terms(PrefixRewards(REWARDS), ANSWERS, LossSettings(**settings))


def test_value_is_half_the_squared_error_of_every_prefix_of_the_answer() -> None:
    found = terms("value")

    assert found.losses.tolist() == [[0.0, 2.0, 0.5, 0.0], [0.0, 0.0, 0.5, 0.125]]
    assert found.mask.tolist() == [[False, True, True, False], [False, False, True, True]]
    assert LOSSES["value"].count(ANSWERS).tolist() == [2, 2]


def test_cumulative_weighs_the_tokens_of_the_answer_by_their_place() -> None:
    found = terms("cumulative")

    expected = torch.tensor([[(1 * 4.0 + 2 * 1.0) / 3], [(1 * 1.0 + 2 * 0.25) / 3]])
    torch.testing.assert_close(found.losses, expected, rtol=0, atol=1e-6)
    nothing = losses.cumulative_loss(REWARDS, ANSWERS.rewards, torch.zeros(2, 4, dtype=torch.bool))
    assert nothing.tolist() == [[0.0], [0.0]]


def test_soft_value_is_the_linex_loss_of_every_prefix_of_the_answer() -> None:
    found = terms("soft_value", beta=0.5)

    differences = [[1.5 - 1.0, 1.5 - 2.0], [-0.5 - 0.0, -0.5 + 1.5]]
    expected = [[math.exp(d) - d - 1 for d in row] for row in differences]
    zero = 0.0
    wanted = torch.tensor([[zero, *expected[0], zero], [zero, zero, *expected[1]]])
    torch.testing.assert_close(found.losses, wanted, rtol=0, atol=1e-6)


def test_the_clip_of_soft_value_goes_on_as_a_line_without_a_jump_or_a_bend() -> None:
    clip, step = 2.0, 1e-6

    def at(difference: float) -> tuple[float, float]:
        rewards = torch.tensor([[-difference]], dtype=torch.double, requires_grad=True)
        loss = losses.soft_value_loss(
            rewards, torch.zeros(1).double(), torch.ones(1, 1, dtype=torch.bool), clip=clip
        ).sum()
        loss.backward()
        assert rewards.grad is not None
        return loss.item(), -rewards.grad.item()

    (before, slope_before), (after, slope_after) = at(clip - step), at(clip + step)
    assert after - before == pytest.approx(2 * step * (math.exp(clip) - 1), rel=1e-4)
    assert slope_before == pytest.approx(slope_after, abs=1e-5)
    for far in (3.0, 500.0):
        value, slope = at(far)
        assert slope == pytest.approx(math.exp(clip) - 1)
        assert value == pytest.approx(math.exp(clip) * (1 + far - clip) - far - 1)
    assert at(0.0) == (0.0, 0.0)
    assert at(1.0)[1] == pytest.approx(math.e - 1)
    assert at(-500.0)[1] == pytest.approx(-1.0)


def test_the_lambda_return_mixes_the_next_reward_with_the_next_return_up_to_the_end() -> None:
    rewards = torch.tensor([[9.0, 1.0, 2.0, 4.0, 777.0], [9.0, 9.0, 3.0, 777.0, 777.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, False, False]])
    targets = torch.tensor([8.0, 5.0])
    hard = losses.lambda_returns(rewards, targets, mask, td_lambda=0.75, soft=False)
    # Of the first answer, the last two prefixes are followed by nothing, and by its end.
    assert hard[mask].tolist() == [0.25 * 2 + 0.75 * 8, 8.0, 8.0, 5.0]
    assert not hard.requires_grad
    soft = losses.lambda_returns(rewards, targets, mask, td_lambda=0.75, soft=True)
    expected = [math.log(0.25 * math.exp(2) + 0.75 * math.exp(8)), 8.0, 8.0, 5.0]
    assert soft[mask].tolist() == pytest.approx(expected)
    next_ones = losses.lambda_returns(rewards, targets, mask, td_lambda=0.0, soft=True)
    assert next_ones[mask].tolist() == [2.0, 8.0, 8.0, 5.0]
    for soft in (True, False):
        whole = losses.lambda_returns(rewards, targets, mask, td_lambda=1.0, soft=soft)
        assert whole[mask].tolist() == [8.0, 8.0, 8.0, 5.0]


@pytest.mark.parametrize("name", ["value", "soft_value"])
def test_td_lambda_changes_what_an_objective_is_fitted_to(name: str) -> None:
    answers = ANSWERS._replace(lengths=torch.tensor([4, 4]), start=torch.tensor([1, 1]))
    rewards = torch.tensor([[777.0, 1.0, 2.0, 0.5], [777.0, 0.0, 0.0, -1.5]])
    function, options = LOSSES[name].terms, LossSettings(td_lambda=0.5, beta=2.0)
    found = function(PrefixRewards(rewards), answers, options)
    mask = found.mask
    targets = answers.rewards * (2.0 if name == "soft_value" else 1.0)
    returns = losses.lambda_returns(rewards, targets, mask, td_lambda=0.5, soft=name == "soft_value")
    d = (returns - rewards)[mask]
    assert not torch.equal(returns[mask], targets[:, None].expand_as(returns)[mask])
    bounded = d.clamp(max=5.0)
    wanted = 0.5 * d**2 if name == "value" else bounded.exp() * (1 + d - bounded) - d - 1
    torch.testing.assert_close(found.losses[mask], wanted)


PAIR = PairBatch(torch.tensor([3]), torch.tensor([4]), torch.tensor([1]))
"""A chosen answer of two tokens and a rejected one of three, behind one token that they share."""


def test_farma_is_bradley_terry_at_the_end_and_the_best_next_reward_before_it() -> None:
    rewards = torch.tensor([[9.0, 1.0, 2.0, 777.0], [9.0, 0.5, 0.0, 1.0]], requires_grad=True)
    best = torch.tensor([[777.0, 4.0, 777.0, 777.0], [777.0, 1.5, -1.0, 777.0]], requires_grad=True)
    pair = PAIR._replace(margin=torch.tensor([0.25]))

    loss = LOSSES["farma"].terms(PrefixRewards(rewards, best), pair, LossSettings(farma_weight=0.5)).losses
    loss.sum().backward()

    constraint = ((1.0 - 4.0) ** 2 + (0.5 - 1.5) ** 2 + (0.0 + 1.0) ** 2) / 3
    assert loss.tolist() == [[pytest.approx(math.log1p(math.exp(-0.75)) + 0.5 * constraint)]]
    assert best.grad is None
    assert rewards.grad is not None
    # The shared beginning and padding are not trained.
    assert rewards.grad.nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [1, 3]]
    assert rewards.grad[0, 1].item() == pytest.approx(0.5 * 2 * (1.0 - 4.0) / 3)


def test_farma_of_answers_of_one_token_is_bradley_terry() -> None:
    pair = PairBatch(torch.tensor([2]), torch.tensor([2]), torch.tensor([1]))
    prefixes = PrefixRewards(torch.tensor([[9.0, 1.0], [9.0, -1.0]]), torch.full((2, 2), 777.0))

    assert LOSSES["farma"].terms(prefixes, pair, LossSettings()).losses.item() == pytest.approx(
        math.log1p(math.exp(-2))
    )


def test_arm_compares_the_summed_log_probabilities_of_finished_answers() -> None:
    summed = torch.tensor([[-9.0, -1.0, -3.0, 777.0], [-9.0, -1.0, -2.0, -3.5]], requires_grad=True)
    pair = PAIR._replace(margin=torch.tensor([0.5]))

    loss = LOSSES["arm"].terms(PrefixRewards(summed), pair, LossSettings(arm_beta=2.0)).losses
    loss.sum().backward()

    assert loss.tolist() == [[pytest.approx(math.log1p(math.exp(-(2.0 * 0.5 - 0.5))))]]
    assert summed.grad is not None
    assert summed.grad.nonzero().tolist() == [[0, 2], [1, 3]]

"""Prefix accuracy of pairs whose rewards are known."""

from __future__ import annotations

import pytest
import torch

from rgtg_logits.prefix_accuracy import PairLengths, PairRewards, prefix_accuracy, prefix_wins, standard_error


def test_prefix_accuracy_by_hand() -> None:
    # Pair 1: a prompt of 2 tokens, then 10 against 4 tokens. Pair 2: no prompt, 1 against 2 tokens.
    chosen = torch.zeros(2, 12)
    rejected = torch.zeros(2, 12)
    chosen[0, 2:] = torch.tensor([1.0, 0, -1, 0, 3, 0, 0, 5, 0, 2])
    rejected[0, 2:6] = torch.tensor([0.0, 4, 1, 2])
    chosen[1, 0] = 1.0
    rejected[1, :2] = torch.tensor([2.0, 1.0])
    lengths = PairLengths(torch.tensor([12, 1]), torch.tensor([6, 2]), torch.tensor([2, 0]))

    # 10 %: tokens 1 and 1 (1 > 0); 25 %: 3 and 1 (-1 < 0); 50 %: 5 and 2 (3 < 4); 75 %: 8 and 3 (5 > 1); all (2 = 2).
    rewards = PairRewards(chosen, rejected, lengths)
    assert prefix_wins(rewards)[0].tolist() == [1.0, 0.0, 0.0, 1.0, 0.5]
    # The one token of the chosen answer against tokens 1, 1, 1, 2 and 2.
    assert prefix_wins(rewards)[1].tolist() == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert prefix_accuracy(rewards) == {10: 0.5, 25: 0.0, 50: 0.0, 75: 0.75, 100: 0.5}


@pytest.mark.parametrize(
    ("answer", "percent", "token"), [(30, 10, 3), (31, 10, 4), (1, 10, 1), (7, 100, 7), (3, 50, 2)]
)
def test_a_cut_rounds_up(answer: int, percent: int, token: int) -> None:
    rewards = torch.arange(1.0, answer + 1)[None]
    other = torch.full_like(rewards, float(token))
    lengths = PairLengths(torch.tensor([answer]), torch.tensor([answer]), torch.tensor([0]))

    assert prefix_accuracy(PairRewards(rewards, other, lengths), [percent]) == {percent: 0.5}


def test_an_answer_that_begins_the_other_one_is_read_at_its_end() -> None:
    chosen = torch.tensor([[0.0, 1.0, 2.0]])
    rejected = torch.tensor([[0.0, 1.5, 777.0]])
    lengths = PairLengths(torch.tensor([3]), torch.tensor([2]), torch.tensor([2]))

    assert prefix_accuracy(PairRewards(chosen, rejected, lengths), [100]) == {100: 1.0}


def test_the_standard_error_of_an_accuracy() -> None:
    assert standard_error(0.5, 100) == 0.05
    assert standard_error(1.0, 7) == 0.0

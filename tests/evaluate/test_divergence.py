"""The divergence meter by itself: the session of the base model, sums over unfinished rows."""

import math

import pytest
import torch

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.evaluate.divergence import BaseModelSession, DivergenceMeter
from rgtg_logits.instruments import Stopwatch
from rgtg_logits.sampling import InverseTransformProcessor
from rgtg_logits.testing import EOS, PAD, TINY, VOCAB_SIZE, tiny_base_model

RAGGED = [[7, 3, 9, 11, 4, 20, 31, 17, 23, 9], [5, 8], [2, 13, 40, 41]]
POLICY = RewardModelConfig(kind="log_ratio")


@pytest.mark.parametrize("model_type", TINY)
@torch.no_grad()
def test_the_base_model_session_equals_a_full_forward(model_type):
    model = tiny_base_model(model_type)
    width = max(map(len, RAGGED))
    rows = torch.tensor([[PAD] * (width - len(row)) + row for row in RAGGED])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in RAGGED])
    session = BaseModelSession(RewardModel(model, config=POLICY))
    session.start(mask)
    # Twelve tokens, so that windows of eight slide; the second row finishes behind the third, and is padded.
    new = torch.randint(2, VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(0))
    new[1, 3], new[1, 4:] = EOS, PAD
    for step in range(13):
        got = session.next_logits(torch.cat([rows, new[:, :step]], dim=1))
        for row, prompt in enumerate(RAGGED):
            if row == 1 and step > 4:
                continue
            wanted = model(torch.tensor([[*prompt, *new[row, :step].tolist()]])).logits[0, -1]
            assert torch.allclose(got[row], wanted, atol=2e-5), (row, step)


def measured(steps, base, numbers):
    """What a meter says of score tables (steps of batch × vocabulary); token 3 ends a row."""
    draw = InverseTransformProcessor(torch.tensor(numbers, dtype=torch.float64), 1)
    meter = DivergenceMeter(draw, rows=len(numbers), eos_token_ids=[3], stopwatch=Stopwatch(torch.device("cpu")))
    rows = torch.zeros(len(numbers), 1, dtype=torch.long)
    for scores, of_base in zip(steps, base, strict=True):
        assert meter.first(rows, of_base) is of_base
        rows = torch.cat([rows, meter.last(rows, scores).argmax(-1, keepdim=True)], dim=1)
    return meter, rows[:, 1:]


def test_sums_are_over_unfinished_rows():
    even, infinite = torch.zeros(2, 4), float("-inf")
    policy = torch.tensor([[0.0, 0.0, infinite, infinite], [infinite, infinite, 0.0, 0.0]])
    meter, new = measured([policy, policy], [even, even], [[0.2, 0.7], [0.9, 0.2]])
    assert new.tolist() == [[0, 1], [3, 2]]
    log2 = math.log(2)
    for got, each in ((meter.kl, 1), (meter.log_ratio, 1), (meter.nll, 2)):
        assert got.tolist() == pytest.approx([2 * each * log2, each * log2])
    assert meter.cut.tolist() == pytest.approx([2 * log2, log2])


def test_a_policy_that_is_the_base_model_has_no_divergence():
    scores = torch.randn(2, 4)
    meter, _ = measured([scores + 5.0], [scores], [[0.5], [0.1]])
    assert meter.kl.abs().max() < 1e-6 and meter.log_ratio.abs().max() < 1e-6 and (meter.nll > 0).all()
    assert meter.cut.abs().max() < 1e-6


def test_what_the_base_model_never_says_is_infinitely_far():
    base = torch.tensor([[0.0, float("-inf"), float("-inf"), 0.0]])
    meter, _ = measured([torch.zeros(1, 4)], [base], [[0.3]])
    assert meter.kl.tolist() == [torch.inf] and meter.nll.tolist() == [torch.inf]
    same, _ = measured([base], [base], [[0.3]])
    assert same.kl.tolist() == [0.0]


def test_rare_tokens_are_measured_in_double_precision():
    """Where float32 has no digits left: a policy that is nearly certain."""
    base, policy = torch.zeros(1, 4), torch.tensor([[0.0, -40.0, -40.0, -40.0]])
    wide = policy.double().log_softmax(-1)
    wanted = float((wide.exp() * (wide + math.log(4))).sum())
    meter, _ = measured([policy], [base], [[0.5]])
    assert meter.kl.tolist() == pytest.approx([wanted], rel=1e-14)

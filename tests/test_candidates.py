import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg_logits.candidates import CandidateRule
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.guidance import guide, scatter_to_vocabulary, truncate

INF = float("inf")


def kept(candidates, row=0):
    """The ids of a row that may be drawn."""
    return candidates.ids[row][candidates.scores[row] > -INF].tolist()


def test_top_k_keeps_the_best_in_order():
    candidates = CandidateRule(top_k=3).select(torch.tensor([[0.0, 5.0, 1.0, 3.0]]))
    assert candidates.ids.tolist() == [[1, 3, 2]]
    assert candidates.scores.tolist() == [[5.0, 3.0, 1.0]]


def test_top_k_larger_than_the_vocabulary_keeps_all():
    candidates = CandidateRule(top_k=50).select(torch.tensor([[0.0, 5.0, 1.0], [2.0, 2.0, 2.0]]))
    assert candidates.ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert candidates.scores.tolist() == [[0.0, 5.0, 1.0], [2.0, 2.0, 2.0]]
    # Where one is left out, the others come first.
    assert kept(CandidateRule(top_k=50).select(torch.tensor([[0.0, -INF, 1.0]]))) == [2, 0]


def test_tokens_cut_by_others_stay_out_and_their_slots_repeat_the_best():
    candidates = CandidateRule(top_k=3).select(torch.tensor([[-INF, 5.0, -INF, 3.0, -INF]]))
    assert kept(candidates) == [1, 3]
    assert candidates.ids.tolist() == [[1, 3, 1]]


def test_top_p_keeps_the_token_that_crosses_the_share():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(CandidateRule(top_k=4, top_p=0.6).select(scores)) == [0, 1]
    assert kept(CandidateRule(top_k=4, top_p=0.01).select(scores)) == [0]
    assert kept(CandidateRule(top_k=4, top_p=1.0).select(scores)) == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_best():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(CandidateRule(top_k=4, min_p=0.31).select(scores)) == [0, 1]
    assert kept(CandidateRule(top_k=4, min_p=0.0).select(scores)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "Expected top_k to be a whole number of candidates, 1 or more, but got 0"),
        ({"top_p": 0.0}, r"Expected top_p to be a share of probability in \(0, 1\], but got 0.0"),
        ({"top_p": 1.5}, r"but got 1.5. Leave it out"),
        ({"top_p": float("nan")}, "but got nan"),
        ({"min_p": -0.1}, r"Expected min_p to be a fraction .* in \[0, 1\], but got -0.1"),
        ({"min_p": 1.1}, "but got 1.1"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        CandidateRule(**arguments)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0, 20), st.floats(-1e4, 1e4))
def test_the_formula(seed, k, beta, offset):
    """Equals the formula over the whole vocabulary in double precision; constants per row cancel."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 12, generator=generator) * 3
    scores[torch.rand(3, 12, generator=generator) < 0.3] = -INF
    scores[:, 0] = 1.0
    candidates = CandidateRule(top_k=k).select(scores)
    rewards = torch.randn(3, candidates.ids.shape[1], generator=generator)
    output = scatter_to_vocabulary(candidates, guide(candidates, rewards + offset, beta), like=scores)
    for row in range(3):
        ids = kept(candidates, row)
        expected = scores[row, ids].double() + beta * (rewards[row, : len(ids)] + offset).double()
        assert torch.allclose(
            output[row, ids].double(), expected.log_softmax(-1), atol=2e-2 * max(1, abs(offset) / 1e3)
        )
        assert (output[row] > -INF).nonzero()[:, 0].tolist() == sorted(ids)
        assert float(output[row].exp().sum()) == pytest.approx(1, abs=1e-5)


def test_beta_zero_is_the_truncated_base_distribution():
    candidates = CandidateRule(top_k=3).select(torch.randn(2, 9))
    assert torch.equal(guide(candidates, torch.randn(2, 3), 0.0), truncate(candidates))


def test_a_large_common_reward_costs_no_digits():
    candidates = CandidateRule(top_k=2).select(torch.zeros(1, 2))
    near, far = torch.tensor([[0.5, 0.0]]), torch.tensor([[4096.5, 4096.0]])
    assert torch.equal(guide(candidates, near, 10.0), guide(candidates, far, 10.0))


def test_a_row_without_any_token_stays_without():
    candidates = CandidateRule(top_k=2).select(torch.full((1, 4), -INF))
    assert (
        scatter_to_vocabulary(candidates, guide(candidates, torch.zeros(1, 2), 1.0), like=torch.zeros(1, 4)) == -INF
    ).all()

"""The tail of the distribution, kept: the policy of `rest="keep"`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Recorder, Rewards, padded

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, Scorer, Trace
from rgtg_logits.candidates import CandidateRule
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.guidance import guide_with_tail
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model

BETA, TOP_K, NEW = 0.7, 5, 6
PROMPTS = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41]]
INF = float("inf")


def expected(scores, rewards, beta):
    """The formula for one row, in double precision; `rewards` by candidate."""
    ids = list(rewards)
    base = scores.double().log_softmax(-1)
    given = torch.tensor([rewards[token] for token in ids], dtype=torch.float64)
    total = torch.full_like(base, float((base[ids].softmax(-1) * given).sum()))
    total[ids] = given
    return (base + beta * total).log_softmax(-1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 14), st.floats(0, 20))
def test_the_formula(seed, k, beta):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 12, generator=generator) * 3
    scores[torch.rand(3, 12, generator=generator) < 0.3] = -INF
    scores[:, 0] = 1.0
    before = scores.clone()
    candidates = CandidateRule(top_k=k).select(scores)
    rewards = torch.randn(3, candidates.ids.shape[1], generator=generator)
    output = guide_with_tail(candidates, rewards, beta, scores)
    assert torch.equal(scores, before)
    for row in range(3):
        slots = (candidates.scores[row] > -INF).nonzero()[:, 0].tolist()
        by_token = {int(candidates.ids[row, slot]): float(rewards[row, slot]) for slot in slots}
        assert len(by_token) == len(slots)
        torch.testing.assert_close(output[row].double(), expected(scores[row], by_token, beta), atol=2e-5, rtol=1e-5)
        # The best token is a candidate whatever beta is.
        assert int(output[row].argmax()) in by_token


def test_it_is_the_best_policy_that_treats_the_tail_alike():
    torch.manual_seed(0)
    base, beta = torch.randn(9, dtype=torch.float64).log_softmax(-1), 1.7
    candidates = CandidateRule(top_k=3).select(base[None])
    rewards = torch.randn(1, 3)
    mean = float((base[candidates.ids[0]].softmax(-1) * rewards[0].double()).sum())
    true = torch.full((9,), mean, dtype=torch.float64).scatter(0, candidates.ids[0], rewards[0].double())

    def objective(policy):
        return float((policy.exp() * (true - (policy - base) / beta)).sum())

    best = guide_with_tail(candidates, rewards, beta, base[None])[0]
    tail = torch.ones(9, dtype=torch.bool).scatter(0, candidates.ids[0], False)
    for _ in range(200):
        change = 0.3 * torch.randn(9, dtype=torch.float64)
        change[tail] = change[tail][0]
        assert objective((best + change).log_softmax(-1)) < objective(best)


@pytest.mark.parametrize(
    "mode",
    [{}, {"do_sample": True, "top_k": 0}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "sampling", "beams", "several"],
)
def test_every_call_of_generate(mode):
    torch.manual_seed(0)
    base, model = tiny_base_model(), tiny_reward_model()
    recorder = Recorder(PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K, rest="keep"))
    inputs = padded(PROMPTS, PAD)
    base.generate(**inputs, max_new_tokens=NEW, logits_processor=[recorder], pad_token_id=PAD, eos_token_id=EOS, **mode)
    rewards, width, compared = Rewards(model), inputs["input_ids"].shape[1], 0
    for rows, scores, output in recorder.calls:
        for row, row_scores, row_output in zip(rows.tolist(), scores, output, strict=True):
            if EOS in row[width:] or PAD in row[width:]:
                continue
            text = [token for token in row if token != PAD]
            best = row_scores.topk(TOP_K).indices.tolist()
            by_token = {token: rewards[(*text, token)] for token in best}
            torch.testing.assert_close(row_output.double(), expected(row_scores, by_token, BETA), atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared >= len(PROMPTS) * NEW / 2


class Silent(Scorer):
    """A scorer that must not be called."""

    pad_token_id = PAD

    def score(self, rows, attention_mask, candidates):
        raise AssertionError("the scorer was called")

    def observe(self, rows, attention_mask):
        pass


@pytest.mark.parametrize("options", [{"beta": 0.0, "top_k": 3}, {"beta": 2.0, "top_k": 1}])
def test_without_a_choice_it_is_the_base_model(options):
    scores = torch.randn(2, 50)
    processor = PartialRewardLogitsProcessor(Silent(), rest="keep", **options)
    assert torch.equal(processor(torch.tensor([[5, 6], [7, 8]]), scores), scores.log_softmax(-1))


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_a_row_without_any_token_stays_without(beta):
    scores = torch.randn(2, 61)
    scores[0] = -INF
    scores[1, :40] = -INF
    processor = PartialRewardLogitsProcessor(tiny_reward_model(), beta=beta, top_k=4, rest="keep")
    output = processor(torch.tensor([[5, 6], [7, 8]]), scores)
    assert torch.equal(output == -INF, scores == -INF)
    assert float(output[1].exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_trace_records_the_tail():
    trace, scores = Trace(), torch.randn(2, 61)
    processor = PartialRewardLogitsProcessor(
        RewardModel(tiny_reward_model()), beta=4.0, top_k=4, rest="keep", trace=trace
    )
    guided = processor(torch.tensor([[5, 6], [7, 8]]), scores).double()
    base = scores.double().log_softmax(-1)
    step = trace.steps[0]
    torch.testing.assert_close(step.divergence(), (guided.exp() * (guided - base)).sum(-1), atol=1e-5, rtol=1e-4)
    outside = [next(token for token in range(61) if token not in row) for row in step.candidates.tolist()]
    change = (guided - base)[torch.arange(2), outside]
    torch.testing.assert_close(step.tail_change(), change, atol=1e-5, rtol=1e-4)


def test_an_unknown_treatment_of_the_tail():
    with pytest.raises(InvalidArgumentError, match="Expected rest to be one of drop, keep, but got 'cut'"):
        PartialRewardLogitsProcessor(Silent(), rest="cut")

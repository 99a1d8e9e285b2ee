"""The engine-neutral step: any sequences and scores to guided log-probabilities, log Z and KL, against brute force."""

import numpy as np
import pytest
import torch
from oracle import Rewards

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, RewardModel, Scorer, guided_step
from rgtg_logits.errors import InvalidArgumentError, PaddingError
from rgtg_logits.testing import PAD, VOCAB_SIZE, check_scorer, tiny_reward_model

PREFIXES = [[7, 3, 9, 11, 4, 20, 31], [5], [PAD, PAD, 13], [2, 13, 40, 41], [5]]
"""The pad token is text here, because nothing is padded."""
FORMS = {
    "lists": list,
    "tuples": tuple,
    "arrays": np.array,
    "small integers": lambda prefix: np.array(prefix, dtype=np.int32),
    "tensors": torch.tensor,
}


@pytest.fixture(scope="module")
def model():
    return tiny_reward_model()


@pytest.fixture(scope="module")
def rewards(model):
    return Rewards(model)


def brute_force(rewards, prefix, scores, beta, top_k, rest):
    """The policy, log Z and KL of one row: sums over the vocabulary in double precision."""
    base = scores.double().log_softmax(-1)
    ids = base.topk(min(top_k, int((base > -torch.inf).sum()))).indices.tolist()
    given = torch.tensor([rewards[(*prefix, token)] for token in ids], dtype=torch.float64)
    weights = torch.zeros_like(base)
    if rest == "keep":
        mean = float((base[ids].exp() * given).sum() / base[ids].exp().sum())
        weights = base.exp() * np.exp(beta * mean)
    weights[ids] = base[ids].exp() * (beta * given).exp()
    policy = weights / weights.sum()
    drawn = policy > 0
    kl = (policy[drawn] * (policy[drawn].log() - base[drawn])).sum()
    return policy.log(), weights.sum().log(), kl


@pytest.mark.parametrize("form", FORMS)
def test_it_equals_brute_force(model, rewards, form):
    scores = torch.randn(5, VOCAB_SIZE) * 2
    scores[3, 7:] = -torch.inf
    settings = {"beta": [0.0, 1.5, 0.7, 3.0, 1.0], "top_k": [4, 9, 1, 8, 61], "rest": ["drop", "keep"] * 2 + ["keep"]}
    prefixes = [FORMS[form](prefix) for prefix in PREFIXES]
    step = guided_step(CausalScorer(RewardModel(model)), prefixes, scores, **settings)
    for row, prefix in enumerate(PREFIXES):
        own = [values[row] for values in settings.values()]
        log_probs, log_z, kl = brute_force(rewards, prefix, scores[row], *own)
        torch.testing.assert_close(step.log_probs[row].double(), log_probs, atol=1e-5, rtol=1e-5)
        assert float(step.log_normalizer[row]) == pytest.approx(float(log_z), abs=1e-5)
        assert float(step.kl[row]) == pytest.approx(float(kl), abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("rest", ["drop", "keep"])
def test_log_z_without_a_choice(model, rewards, beta, rest):
    """A single candidate's reward changes no probability, but weighs a particle."""
    scores = torch.randn(1, VOCAB_SIZE)
    step = guided_step(CausalScorer(RewardModel(model)), [[7, 3]], scores, beta=beta, top_k=1, rest=rest)
    log_probs, log_z, kl = brute_force(rewards, [7, 3], scores[0], beta, 1, rest)
    torch.testing.assert_close(step.log_probs[0].double(), log_probs, atol=1e-5, rtol=1e-5)
    assert float(step.log_normalizer) == pytest.approx(float(log_z), abs=1e-5)
    assert float(step.kl) == pytest.approx(float(kl), abs=1e-5)


def test_weights_of_particles_are_unbiased(model, rewards):
    """The products of Z along all texts, weighted by their probability, are the optimum's normaliser."""
    tokens, depth, beta = [4, 9], 2, 1.3
    scorer = CausalScorer(RewardModel(model))

    def scores(prefix):
        row = torch.full((VOCAB_SIZE,), -torch.inf)
        row[tokens] = torch.tensor([0.3, 0.1]) * len(prefix)
        return row

    total, expected = 0.0, 0.0
    texts = [((7,), 0.0, 0.0, 0.0)]
    for _ in range(depth):
        step = guided_step(scorer, [text for text, *_ in texts], torch.stack([scores(t) for t, *_ in texts]), beta=beta)
        texts = [
            (
                (*text, token),
                drawn + float(step.log_probs[row, token]),
                weight + float(step.log_normalizer[row]),
                base + float(scores(text).log_softmax(-1)[token]),
            )
            for row, (text, drawn, weight, base) in enumerate(texts)
            for token in tokens
        ]
    for text, drawn, weight, base in texts:
        total += np.exp(drawn + weight)
        expected += np.exp(base + beta * sum(rewards[text[: end + 1]] for end in range(1, len(text))))
    assert total == pytest.approx(expected, rel=1e-5)


def test_sequences_come_and_go(model, rewards):
    """Sequences join, leave, end and change places between steps; nothing is told to anybody."""
    scorer, live = CausalScorer(RewardModel(model)), [[7, 3, 9]]
    for number in range(8):
        scores = torch.randn(len(live), VOCAB_SIZE)
        step = guided_step(scorer, live, scores, beta=2.0, top_k=5)
        for row, prefix in enumerate(live):
            expected = brute_force(rewards, prefix, scores[row], 2.0, 5, "drop")[0]
            torch.testing.assert_close(step.log_probs[row].double(), expected, atol=1e-5, rtol=1e-5)
        live = [[*prefix, int(token)] for prefix, token in zip(live, step.log_probs.argmax(-1), strict=True)]
        live = [[number, number + 2], *live[::-1]] if number % 3 else live[1:] or [[number + 1] * 4]


def test_the_processor_is_a_client(model):
    """Padded rows and sequences enter the same code."""
    rows, scores = torch.tensor([[7, 3, 9], [PAD, 5, 8]]), torch.randn(2, VOCAB_SIZE)
    processor = PartialRewardLogitsProcessor(model, beta=2.0, top_k=7, min_p=0.02)
    step = guided_step(processor.scorer, [[7, 3, 9], [5, 8]], scores, beta=2.0, top_k=7, min_p=0.02)
    torch.testing.assert_close(processor(rows, scores), step.log_probs, atol=1e-5, rtol=1e-5)


class Recording(Scorer):
    """Records what it is asked."""

    def __init__(self):
        self.asked = []

    def score(self, rows, attention_mask, candidates):
        prefixes = [row[mask.bool()].tolist() for row, mask in zip(rows, attention_mask, strict=True)]
        assert all(attention_mask[:, -1])
        self.asked.append(prefixes)
        return candidates / 10


def test_any_scorer_takes_sequences():
    scorer = Recording()
    guided_step(scorer, PREFIXES, torch.randn(5, VOCAB_SIZE), beta=[1.0, 0.0, 1.0, 1.0, 0.0])
    assert scorer.asked == [[PREFIXES[0], *PREFIXES[2:4]]]


class Reversed(Scorer):
    """Reads sequences in another order than padded rows."""

    vocab_size = VOCAB_SIZE

    def score(self, rows, attention_mask, candidates):
        return candidates / 10 * attention_mask.sum(-1, keepdim=True)

    def score_sequences(self, prefixes, candidates):
        return super().score_sequences(prefixes[::-1], candidates)


def test_sequences_that_give_something_else_break_a_law():
    with pytest.raises(AssertionError, match="Broken law: sequences give the same as padded rows"):
        check_scorer(Reversed())


def test_no_sequences():
    step = guided_step(Recording(), [], torch.empty(0, VOCAB_SIZE))
    assert step.log_probs.shape == (0, VOCAB_SIZE) and step.kl.shape == step.log_normalizer.shape == (0,)


def test_a_row_without_any_token():
    scores = torch.randn(2, VOCAB_SIZE)
    scores[0] = -torch.inf
    for rest in ("drop", "keep"):
        step = guided_step(Recording(), [[5], [6]], scores, rest=rest)
        assert (step.log_probs[0] == -torch.inf).all() and float(step.kl[0]) == 0
        assert float(step.log_normalizer[0]) == -torch.inf and step.log_normalizer[1].isfinite()


@pytest.mark.parametrize(
    ("prefixes", "scores", "error", "message"),
    [
        ([[5], []], torch.zeros(2, 9), PaddingError, "at least one token in every prefix.* one is empty"),
        ([[5]], torch.zeros(2, 9), InvalidArgumentError, "got 1 prefixes and 2 rows"),
        ([[5]], torch.zeros(9), InvalidArgumentError, r"shape \[rows, vocab\], but got \[9\]"),
        ([[5]], torch.zeros(1, 9).long(), InvalidArgumentError, r"shape \[rows, vocab\]"),
        ([[5]], [[0.0] * 9], InvalidArgumentError, "but got list"),
        ([torch.ones(2)], torch.zeros(1, 9), InvalidArgumentError, r"of token ids, but got \[2\]"),
        ([torch.ones(1, 2).long()], torch.zeros(1, 9), InvalidArgumentError, r"but got \[1, 2\]"),
        (["text"], torch.zeros(1, 9), InvalidArgumentError, "of token ids, but got str"),
        ([5], torch.zeros(1, 9), InvalidArgumentError, "of token ids, but got int"),
    ],
)
def test_what_does_not_fit(prefixes, scores, error, message):
    with pytest.raises(error, match=message):
        guided_step(Recording(), prefixes, scores)

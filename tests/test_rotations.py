"""Rotary embeddings that depend on the length: each text is read as a fresh model reads it, alone."""

import copy

import pytest
import torch

from rgtg_logits import CausalScorer, ReferenceScorer, RewardModel, RewardModelConfig
from rgtg_logits.errors import ContextLengthError
from rgtg_logits.scorers import make_scorer
from rgtg_logits.testing import PAD, VOCAB_SIZE, check_scorer, tiny_reward_model, tiny_vocabulary_model

DYNAMIC = {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
OPTIONS = {"on_overflow": "error", "max_tokens_per_forward": None, "compile": False}


def text(length, seed=0):
    return torch.randint(2, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def fresh_reward(model, row):
    """The model's own output for one text, by a copy that has read nothing."""
    with torch.no_grad():
        return float(copy.deepcopy(model)(torch.tensor([row])).logits[0, 0])


def expected(model, row, candidates):
    rewards = torch.tensor([fresh_reward(model, [*row, token]) for token in candidates])
    return rewards - rewards[0]


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return ids, (torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])).long()


@pytest.mark.parametrize("prepack", [False, True])
def test_texts_of_all_lengths_in_any_order(prepack):
    model = tiny_reward_model(**DYNAMIC)
    right = copy.deepcopy(model)
    scorer = make_scorer(RewardModel(model), prepack=prepack, **OPTIONS)
    candidates = [10, 20, 30]
    for lengths in ([10], [40, 10], [10, 20], [60], [20], [15, 16], [17], [5, 50, 25], [20]):
        rows = [text(length, seed=length) for length in lengths]
        found = scorer.score(*padded(rows), torch.tensor([candidates] * len(rows)))
        for row, rewards in zip(rows, found, strict=True):
            torch.testing.assert_close(rewards - rewards[0], expected(right, row, candidates), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [10, 16, 17, 40])
def test_whole_texts(length):
    model = tiny_reward_model(**DYNAMIC)
    right = copy.deepcopy(model)
    reward_model = RewardModel(model)
    rows = [text(50), text(length, seed=1), text(8, seed=2)]
    found = reward_model.score_rows(rows)
    torch.testing.assert_close(found, torch.tensor([fresh_reward(right, row) for row in rows]), atol=1e-4, rtol=1e-4)


def test_the_users_model_keeps_what_it_has_read():
    model = tiny_reward_model(**DYNAMIC)
    with torch.no_grad():
        model(torch.tensor([text(60)]))
    rotary = model.model.rotary_emb
    length, angles = int(rotary.max_seq_len_cached), rotary.inv_freq.clone()
    scorer = CausalScorer(RewardModel(model))
    for row in (text(10), text(30)):
        scorer.score(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long), torch.tensor([[5, 6]]))
    assert int(rotary.max_seq_len_cached) == length == 60 and torch.equal(rotary.inv_freq, angles)


@pytest.mark.parametrize("kind", ["causal", "vocabulary", "log_ratio"])
def test_the_laws(kind):
    model = tiny_reward_model(**DYNAMIC) if kind == "causal" else tiny_vocabulary_model(**DYNAMIC)
    reward_model = RewardModel(model, config=RewardModelConfig(kind=kind))
    scorer = make_scorer(reward_model, prepack=False, **OPTIONS)
    reference = None if kind == "log_ratio" else ReferenceScorer(reward_model)
    check_scorer(scorer, reference, rounds=1, lengths=(10, 24))


def test_the_context_is_the_extended_one():
    reward_model = RewardModel(tiny_reward_model(**DYNAMIC))
    assert reward_model.max_length == 64 and reward_model.uniform_length == 16
    scorer = CausalScorer(reward_model)
    row = torch.tensor([text(64)])
    with pytest.raises(ContextLengthError, match="at most 64 tokens"):
        scorer.score(row, torch.ones_like(row), torch.tensor([[5, 6]]))
    linear = {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    plain = RewardModel(tiny_reward_model(**linear))
    assert plain.max_length == 16 and plain.uniform_length is None

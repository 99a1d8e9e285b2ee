"""The scoring engine: token trees, ragged rows, bounded memory, equal rows, overflow, compiled steps."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from transformers import CompileConfig

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, ReferenceScorer, RewardModel
from rgtg_logits.errors import ContextLengthError, InvalidArgumentError
from rgtg_logits.padding import PADDING, infer_attention_mask
from rgtg_logits.scorers.engine.request import ScoreRequest
from rgtg_logits.scorers.engine.scoring_engine import ScoringEngine
from rgtg_logits.scorers.engine.step_layout import PREFILL_CHUNK
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.truncation import num_dropped_tokens, truncate_left
from rgtg_logits.testing import PAD, TINY, VOCAB_SIZE, check_scorer, tiny_base_model, tiny_reward_model

TOKENS = st.integers(2, VOCAB_SIZE - 1)
CONTINUATIONS = st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=4), min_size=3, max_size=3)


@given(st.lists(CONTINUATIONS, min_size=1, max_size=3))
def test_a_token_tree_holds_the_continuations_that_it_was_built_from(continuations):
    token_tree = TokenTree.from_continuations(continuations)
    tokens, lengths = token_tree.continuations()
    assert token_tree.max_depth == max(len(one) for row in continuations for one in row)
    ancestor_mask, depths = token_tree.ancestor_mask(), token_tree.depths()
    for row, expected in enumerate(continuations):
        distinct = {tuple(one[: end + 1]) for one in expected for end in range(len(one))}
        assert len(distinct) <= token_tree.tokens.shape[1]
        for slot, one in enumerate(expected):
            assert tokens[row, slot, : int(lengths[row, slot])].tolist() == one
            end = int(token_tree.ends[row, slot])
            ancestors = ancestor_mask[row, end].nonzero()[:, 0]
            assert token_tree.tokens[row, ancestors].tolist() == one
            assert depths[row, ancestors].tolist() == list(range(len(one)))


@pytest.fixture(scope="module", params=TINY)
def engine(request):
    return ScoringEngine(RewardModel(tiny_reward_model(request.param)), trees=True)


def engine_rewards(engine, padded_ids, continuations):
    token_tree = TokenTree.from_continuations(continuations)
    finished = torch.zeros(len(padded_ids), dtype=torch.bool)
    return engine.score(
        ScoreRequest(padded_ids, token_tree, token_tree.ends, finished, lambda s, _: engine.reward_model.rewards(s))
    )


def expected_rewards(engine, padded_ids, continuations):
    """Rewards of each continuation behind its row's text, without cache, batch and padding."""
    rewards = [
        [
            engine.reward_model.score_tokens(torch.tensor([[t for t in row if t != PADDING] + one]))[0, -1]
            for one in row_continuations
        ]
        for row, row_continuations in zip(padded_ids.tolist(), continuations, strict=True)
    ]
    return torch.tensor(rewards)


def test_trees_keep_a_cheap_strategy(engine):
    model_type = engine.reward_model.text_config.model_type
    with_tree_attention = {"llama", "gpt2", "qwen3", "mistral", "gemma2"}
    assert engine.strategy.startswith("tree_attention") == (model_type in with_tree_attention)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_trees_behind_rows_that_grow_and_shrink(engine, data):
    rows = torch.tensor(data.draw(st.lists(st.lists(TOKENS, min_size=6, max_size=6), min_size=2, max_size=2)))
    rows[1, : data.draw(st.integers(0, 3))] = PADDING
    for _ in range(3):
        new = torch.tensor(data.draw(st.lists(st.lists(TOKENS, min_size=3, max_size=3), min_size=2, max_size=2)))
        for row in range(2):
            new[row, : data.draw(st.integers(0, 2))] = PADDING
        rows = torch.cat([rows[:, : rows.shape[1] - data.draw(st.integers(0, 3))], new], dim=1)
        continuations = data.draw(st.lists(CONTINUATIONS, min_size=2, max_size=2))
        assert torch.allclose(
            engine_rewards(engine, rows, continuations), expected_rewards(engine, rows, continuations), atol=1e-4
        )


def test_a_row_without_any_token_yet(engine):
    padded_ids, continuations = torch.tensor([[PADDING, PADDING], [7, 8]]), [[[5], [6, 9]], [[5], [9]]]
    assert torch.allclose(
        engine_rewards(engine, padded_ids, continuations),
        expected_rewards(engine, padded_ids, continuations),
        atol=1e-4,
    )
    none = torch.empty(2, 0, dtype=torch.long)
    assert torch.allclose(
        engine_rewards(engine, none, continuations), expected_rewards(engine, none, continuations), atol=1e-4
    )


# Bounded memory


def forwards(reward_model, act):
    """Tokens that the model reads in each forward while `act` runs."""
    sizes = []
    hook = reward_model.backbone.register_forward_pre_hook(
        lambda _, args, __: sizes.append(args[0].numel()), with_kwargs=True
    )
    try:
        act()
    finally:
        hook.remove()
    return sizes


@pytest.mark.parametrize("strategy", ["auto", "expand", "expand_model_cache", "recompute"])
@pytest.mark.parametrize("limit", [1, 7, 30])
def test_a_bound_on_the_tokens_of_a_forward_changes_nothing(strategy, limit):
    reward_model = RewardModel(tiny_reward_model())
    bounded = CausalScorer(reward_model, strategy=strategy, max_tokens_per_forward=limit)
    check_scorer(bounded, ReferenceScorer(reward_model), rounds=2)


def test_a_bound_on_the_tokens_of_a_forward_is_kept():
    reward_model = RewardModel(tiny_reward_model())
    rows, candidates = torch.randint(2, VOCAB_SIZE, (4, 20)), torch.randint(2, VOCAB_SIZE, (4, 9))
    for limit in (4, 10, 40):
        scorer = CausalScorer(reward_model, max_tokens_per_forward=limit)
        assert (
            max(forwards(reward_model, lambda s=scorer: s.score(rows, infer_attention_mask(rows, PAD), candidates)))
            <= limit
        )


def test_a_bound_keeps_the_sampled_token():
    """Also in chunks, the sampled candidate is not read again."""
    reward_model, read = RewardModel(tiny_reward_model()), []
    scorer = CausalScorer(reward_model, max_tokens_per_forward=2)
    rows, candidates = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8, 9]])
    scorer.score(rows, torch.ones_like(rows), candidates)
    hook = reward_model.backbone.register_forward_pre_hook(
        lambda _, args, __: read.append(args[0].numel()), with_kwargs=True
    )
    drawn = torch.cat([rows, candidates[:, :1]], dim=1)
    scorer.score(drawn, torch.ones_like(drawn), candidates)
    hook.remove()
    assert sum(read) == 3


@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_a_bound_that_is_none(value):
    with pytest.raises(InvalidArgumentError, match=f"Expected max_tokens_per_forward to be 1 or more, .* got {value}"):
        CausalScorer(RewardModel(tiny_reward_model()), max_tokens_per_forward=value)


# Equal rows


def test_equal_rows_are_computed_once():
    reward_model = RewardModel(tiny_reward_model())
    scorer, reference = CausalScorer(reward_model), ReferenceScorer(reward_model)
    rows = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]]).repeat_interleave(3, dim=0)
    candidates = torch.tensor([[7, 8, 9], [5, 6, 7]]).repeat_interleave(3, dim=0)
    mask = torch.ones_like(rows)
    assert forwards(reward_model, lambda: scorer.score(rows, mask, candidates)) == [2 * (4 + 3)]
    # The rows part: each is computed, and what is new of it is its three candidates.
    parted = torch.cat([rows, candidates.gather(1, torch.tensor([[0], [1], [2], [2], [1], [0]]))], dim=1)
    mask = torch.ones_like(parted)
    assert forwards(reward_model, lambda: scorer.score(parted, mask, candidates)) == [6 * 3]
    expected = reference.score(parted, mask, candidates)
    assert torch.allclose(scorer.score(parted, mask, candidates), expected, atol=1e-4)


def test_equal_rows_with_other_candidates_are_not_equal():
    reward_model = RewardModel(tiny_reward_model())
    rows, candidates = torch.tensor([[3, 4, 5]] * 2), torch.tensor([[7, 8], [8, 9]])
    rewards, expected = (
        one(reward_model).score(rows, torch.ones_like(rows), candidates) for one in (CausalScorer, ReferenceScorer)
    )
    assert torch.allclose(rewards, expected, atol=1e-4)


def test_the_first_step_of_beams_reads_one_row_per_prompt():
    model = tiny_reward_model()
    processor = PartialRewardLogitsProcessor(model, top_k=5)
    ids = torch.randint(2, VOCAB_SIZE, (2, 10))
    base, arguments = tiny_base_model(), {"num_beams": 4, "max_new_tokens": 4, "logits_processor": [processor]}
    with torch.no_grad():
        read = forwards(
            RewardModel(model), lambda: base.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
        )
    assert read[0] == 2 * (10 + 5)
    assert max(read[1:]) <= 8 * 5


# Texts longer than the context


@given(st.integers(1, 300), st.integers(1, 100))
def test_how_much_is_num_dropped_tokens(length, limit):
    drop = num_dropped_tokens(length, limit)
    assert drop >= 0
    assert length - drop <= limit
    assert drop == 0 or length - drop > limit - max(1, limit // 4)
    assert drop <= num_dropped_tokens(length + 1, limit)


def test_truncation_keeps_the_start_token():
    row = np.arange(1, 11)
    assert truncate_left(row[:9], 8, bos_token_id=1).tolist() == [1, 4, 5, 6, 7, 8, 9]
    assert truncate_left(row, 8, bos_token_id=1).tolist() == [1, 4, 5, 6, 7, 8, 9, 10]
    assert truncate_left(row[:2], 8, bos_token_id=1).tolist() == [1, 2]
    assert truncate_left(row, 8, bos_token_id=None).tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("strategy", ["auto", "expand", "expand_model_cache", "recompute"])
def test_truncation_is_exact_for_what_it_keeps(strategy):
    model = tiny_reward_model("gpt2", max_position_embeddings=24, n_positions=24, bos_token_id=5)
    reward_model = RewardModel(model)
    scorer = CausalScorer(reward_model, strategy=strategy, on_overflow="truncate_left")
    rows = torch.randint(6, VOCAB_SIZE, (2, 18))
    rows[0, 0], rows[1, :3] = 5, PAD
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(14):
            candidates = torch.randint(6, VOCAB_SIZE, (2, 3))
            rewards = scorer.score(rows, infer_attention_mask(rows, PAD), candidates)
            for row in range(2):
                text = [token for token in rows[row].tolist() if token != PAD]
                drop = num_dropped_tokens(len(text), 23)
                kept = [5, *text[1 + drop :]] if text[0] == 5 else text[drop:]
                for slot in range(3):
                    expected = reward_model.score_tokens(torch.tensor([[*kept, int(candidates[row, slot])]]))[0, -1]
                    assert abs(float(rewards[row, slot] - expected)) < 1e-4
            rows = torch.cat([rows, candidates[:, :1]], dim=1)
    assert sum("longer than the 24 tokens" in str(warning.message) for warning in caught) == 1


def test_truncation_rebuilds_the_cache_once_in_a_quarter_of_the_context():
    reward_model = RewardModel(tiny_reward_model(max_position_embeddings=64))
    scorer, read = CausalScorer(reward_model, on_overflow="truncate_left"), []
    rows = torch.randint(2, VOCAB_SIZE, (1, 60))
    hook = reward_model.backbone.register_forward_pre_hook(
        lambda _, args, __: read.append(args[0].numel()), with_kwargs=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(40):
            scorer.score(rows, torch.ones_like(rows), torch.tensor([[2, 3]]))
            rows = torch.cat([rows, torch.tensor([[2]])], dim=1)
    hook.remove()
    assert sum(tokens > 10 for tokens in read) == 1 + 3


def test_overflow_is_an_error_by_default():
    scorer = CausalScorer(RewardModel(tiny_reward_model(max_position_embeddings=24)))
    rows = torch.randint(2, VOCAB_SIZE, (1, 24))
    with pytest.raises(ContextLengthError, match=r"at most 24 tokens, .* have 25. .* on_overflow='truncate_left'"):
        scorer.score(rows, torch.ones_like(rows), torch.tensor([[2, 3]]))


def test_an_unknown_treatment_of_overflow():
    with pytest.raises(
        InvalidArgumentError, match="Expected on_overflow to be one of error, truncate_left, but got 'x'"
    ):
        CausalScorer(RewardModel(tiny_reward_model()), on_overflow="x")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize("strategy", ["tree_attention", "masked_tree_attention"])
def test_a_long_prompt_is_read_once(model_type, strategy):
    limit = {"n_positions": 2048} if model_type == "gpt2" else {"max_position_embeddings": 2048}
    reward_model = RewardModel(tiny_reward_model(model_type, **limit))
    scorer, reference = CausalScorer(reward_model, strategy=strategy), ReferenceScorer(reward_model)
    rows = torch.randint(2, VOCAB_SIZE, (2, 2 * PREFILL_CHUNK + 30))
    rows[1, : PREFILL_CHUNK + 7] = PAD
    candidates = torch.randint(2, VOCAB_SIZE, (2, 4))

    def score(prefixes):
        return scorer.score(prefixes, infer_attention_mask(prefixes, PAD), candidates)

    results = []
    assert sum(forwards(reward_model, lambda: results.append(score(rows)))) == 3 * PREFILL_CHUNK + 53 + 8
    longer = torch.cat([rows, candidates[:, :1]], dim=1)
    assert sum(forwards(reward_model, lambda: results.append(score(longer)))) == 8
    for prefixes, result in zip((rows, longer), results, strict=True):
        expected = reference.score(prefixes, infer_attention_mask(prefixes, PAD), candidates)
        assert torch.allclose(result, expected, atol=1e-4)


# Compiled steps


@pytest.fixture
def graphs():
    """The number of graphs compiled so far."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_compiled_step_is_exact_and_compiled_once(graphs, model_type):
    reward_model = RewardModel(tiny_reward_model(model_type))
    # The compiler proper is tested more slowly below, on the same graph.
    scorer = CausalScorer(
        reward_model, compile=CompileConfig(backend="eager", mode=None, dynamic=False, fullgraph=True)
    )
    reference, rows = ReferenceScorer(reward_model), torch.randint(2, VOCAB_SIZE, (2, 5))
    rows[1, :2] = PAD
    for step in range(20):
        candidates = torch.randint(2, VOCAB_SIZE, (2, 4))
        rewards, expected = (
            one.score(rows, infer_attention_mask(rows, PAD), candidates) for one in (scorer, reference)
        )
        assert torch.allclose(rewards, expected, atol=1e-4)
        assert graphs() == 1
        rows = torch.cat([rows, candidates[:, step % 4, None]], dim=1)
    check_scorer(scorer, reference, rounds=2)


def test_a_compiled_step_is_compiled_again_when_its_cache_doubles(graphs):
    reward_model = RewardModel(tiny_reward_model(max_position_embeddings=1024))
    scorer = CausalScorer(reward_model, compile=CompileConfig(backend="eager", mode=None, dynamic=False))
    rows, sizes = torch.randint(2, VOCAB_SIZE, (1, 120)), []
    for _ in range(150):
        candidates = torch.randint(2, VOCAB_SIZE, (1, 3))
        scorer.score(rows, torch.ones_like(rows), candidates)
        sizes.append(scorer.cache_bytes())
        rows = torch.cat([rows, candidates[:, :1]], dim=1)
    assert graphs() == len(set(sizes)) == 2


@pytest.mark.slow
def test_the_compiler_proper(graphs):
    reward_model = RewardModel(tiny_reward_model())
    check_scorer(CausalScorer(reward_model, compile=True), ReferenceScorer(reward_model), rounds=2)
    assert graphs() >= 2

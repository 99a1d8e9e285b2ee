from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Phi3Config, Phi3ForSequenceClassification, set_seed

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, ReferenceScorer, RewardModel, Scorer
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.testing import PAD, TINY, VOCAB_SIZE, check_scorer, tiny_reward_model

STRATEGIES = {
    "llama": "tree_attention", "gpt2": "tree_attention", "qwen3": "tree_attention", "mistral": "tree_attention",
    "gemma2": "tree_attention", "bloom": "expand", "gpt_neo": "expand",
}  # fmt: skip
"""The strategy that the probe finds; jamba's depends on the version of transformers."""


@pytest.fixture(scope="module", params=TINY)
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def reward_model(model_type):
    return RewardModel(tiny_reward_model(model_type))


@pytest.fixture(scope="module")
def scorer(reward_model):
    return CausalScorer(reward_model)


def test_the_probe_finds_the_cheapest_exact_strategy(model_type, scorer):
    assert scorer.strategy == STRATEGIES.get(model_type, scorer.strategy)
    assert model_type != "jamba" or scorer.strategy in ("expand_model_cache", "recompute")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_probe_finds_the_same_strategy_in_half_precision(model_type, seed, dtype):
    """Rounding is as large there as the effect of a wrong mask on most states."""
    model = tiny_reward_model(model_type, seed=seed)
    strategies = [CausalScorer(RewardModel(one)).strategy for one in (model, model.to(dtype))]
    assert strategies[0] == strategies[1] == STRATEGIES.get(model_type, strategies[1])


@pytest.mark.parametrize("model_type", ["mistral", "gemma2"])
def test_a_large_window_is_probed_as_a_small_one(model_type):
    reward_model = RewardModel(tiny_reward_model(model_type, sliding_window=16))
    scorer = CausalScorer(reward_model)
    assert scorer.strategy == STRATEGIES[model_type]
    assert reward_model.sliding_window == 16
    rows, candidates = torch.randint(1, VOCAB_SIZE, (2, 30)), torch.randint(1, VOCAB_SIZE, (2, 3))
    for length in (20, 21, 25, 30):
        rewards, expected = (
            score(one, rows[:, :length], candidates) for one in (scorer, ReferenceScorer(reward_model))
        )
        assert torch.allclose(rewards, expected, atol=1e-4)


def test_rows_reach_past_a_window_that_was_fixed_when_the_model_was_built():
    """GPT-Neo's is 256 tokens, and only longer rows show that it does not move with positions."""
    reward_model = RewardModel(tiny_reward_model("gpt_neo", window_size=64, max_position_embeddings=512))
    assert CausalScorer(reward_model).strategy == "expand"


def test_a_window_that_is_too_large_to_probe_leaves_no_cache():
    reward_model = RewardModel(tiny_reward_model("gpt_neo", window_size=2048, max_position_embeddings=4096))
    assert CausalScorer(reward_model).strategy == "recompute"


def test_rotations_that_depend_on_the_length():
    """LongRoPE rotates all tokens differently in texts of more than 24; up to there the cache is valid."""
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=24, rope_scaling=rope,
        pad_token_id=PAD, num_labels=1,
    )  # fmt: skip
    set_seed(0)
    model = Phi3ForSequenceClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reward_model = RewardModel(model)
    scorer, reference = CausalScorer(reward_model), ReferenceScorer(reward_model)
    assert reward_model.uniform_length == 24
    rows = torch.randint(2, VOCAB_SIZE, (2, 20))
    rows[1, :3] = PAD
    for _ in range(10):
        candidates = torch.randint(2, VOCAB_SIZE, (2, 3))
        assert torch.allclose(score(scorer, rows, candidates), score(reference, rows, candidates), atol=1e-4)
        rows = torch.cat([rows, candidates[:, :1]], dim=1)
    check_scorer(scorer, reference, rounds=1, lengths=(18, 30))


def test_the_laws(scorer, reward_model):
    check_scorer(scorer, ReferenceScorer(reward_model))


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "masked_tree_attention"},
        {"strategy": "expand"},
        {"strategy": "expand_model_cache"},
        {"strategy": "recompute"},
        {"speculate": True},
        {"strategy": "masked_tree_attention", "speculate": True},
    ],
)
def test_the_laws_with_every_strategy(options):
    reward_model = RewardModel(tiny_reward_model())
    check_scorer(CausalScorer(reward_model, **options), ReferenceScorer(reward_model), rounds=2)


def test_the_laws_of_the_reference():
    check_scorer(ReferenceScorer(RewardModel(tiny_reward_model())), rounds=1)


class _Forgetful(Scorer):
    """Breaks law 3, by a step counter instead of a memory; it shows in the law that is being checked then."""

    vocab_size = VOCAB_SIZE

    def __init__(self):
        self.step = 0

    def score(self, rows, attention_mask, candidates):
        self.step += 1
        return candidates.float() * (1 if self.step < 7 else 2)


class _Leaky(Scorer):
    """Breaks law 2: the reward depends on the batch."""

    vocab_size = VOCAB_SIZE

    def score(self, rows, attention_mask, candidates):
        return candidates.float() * len(rows)


class _PaddingSensitive(Scorer):
    """Breaks law 4: the reward depends on padding."""

    vocab_size = VOCAB_SIZE

    def score(self, rows, attention_mask, candidates):
        return candidates.float() * rows.shape[1]


@pytest.mark.parametrize(
    ("broken", "law"), [(_Forgetful, ""), (_Leaky, "a row alone"), (_PaddingSensitive, "left padding")]
)
def test_check_scorer_finds_broken_laws(broken, law):
    with pytest.raises(AssertionError, match=f"Broken law: .*{law}"):
        check_scorer(broken())


def test_check_scorer_finds_a_wrong_mask(monkeypatch):
    """Full attention where the model has a sliding window: the mistake that the probe prevents."""
    reward_model = RewardModel(tiny_reward_model("mistral", sliding_window=4))
    monkeypatch.setattr(RewardModel, "sliding_window", None)
    with pytest.raises(AssertionError, match="results equal those without a cache"):
        check_scorer(CausalScorer(reward_model, strategy="masked_tree_attention"), ReferenceScorer(reward_model))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["extend", "draw", "permute", "duplicate", "drop", "rewind", "restart", "again"]),
        st.integers(0, 10_000),
    ),
    min_size=1,
    max_size=10,
)


def changed(rows, candidates, operation, generator):
    """The rows after one operation on them."""
    batch = rows.shape[0]
    if operation == "restart":
        return new_rows(generator)
    if operation == "rewind":
        return rows[:, : max(4, rows.shape[1] - int(torch.randint(1, 4, (), generator=generator)))]
    if operation in ("permute", "duplicate", "drop"):
        size = {"permute": batch, "duplicate": batch + 2, "drop": max(1, batch - 1)}[operation]
        order = (
            torch.randperm(batch, generator=generator)
            if operation == "permute"
            else torch.randint(batch, (size,), generator=generator)
        )
        rows, candidates = rows[order], candidates[order]
    if operation == "again":
        return rows
    drawn = candidates.gather(1, torch.randint(candidates.shape[1], (rows.shape[0], 1), generator=generator))
    if operation == "extend":
        drawn = torch.randint(1, VOCAB_SIZE, (rows.shape[0], 1), generator=generator)
    return torch.cat([rows, drawn.clamp(min=1)], dim=1)


def new_rows(generator):
    rows = torch.randint(1, VOCAB_SIZE, (int(torch.randint(1, 4, (), generator=generator)), 6), generator=generator)
    for row in range(1, rows.shape[0]):
        rows[row, : int(torch.randint(4, (), generator=generator))] = PAD
    return rows


@settings(max_examples=12, deadline=None)
@given(OPERATIONS)
def test_random_histories(scorer, reward_model, operations):
    """Rewards are those of a scorer without memory, whatever was scored before."""
    compare_on_history(scorer, reward_model, operations)


@settings(max_examples=50, deadline=None)
@given(OPERATIONS)
def test_random_histories_when_speculating(speculating, operations):
    compare_on_history(speculating, speculating.reward_model, operations)


@pytest.fixture(scope="module")
def speculating():
    return CausalScorer(RewardModel(tiny_reward_model("gemma2")), speculate=True)


def compare_on_history(scorer, reward_model, operations):
    generator = torch.Generator().manual_seed(len(operations))
    reference, rows = ReferenceScorer(reward_model), new_rows(generator)
    candidates = torch.randint(1, VOCAB_SIZE, (rows.shape[0], 3), generator=generator)
    for operation, seed in operations:
        generator = torch.Generator().manual_seed(seed)
        rows = changed(rows, candidates, operation, generator)
        candidates = torch.randint(1, VOCAB_SIZE, (rows.shape[0], 3), generator=generator)
        mask = infer_attention_mask(rows, PAD)
        assert torch.allclose(scorer.score(rows, mask, candidates), reference.score(rows, mask, candidates), atol=1e-4)


def count_tokens(reward_model, act):
    """Rows × columns that the backbone reads while `act` runs."""
    read = []
    hook = reward_model.backbone.register_forward_pre_hook(
        lambda _module, args, _kwargs: read.append(args[0].numel()), with_kwargs=True
    )
    try:
        act()
    finally:
        hook.remove()
    return read


def score(scorer, rows, candidates):
    return scorer.score(rows, infer_attention_mask(rows, PAD), candidates)


def test_each_step_is_one_forward_over_what_is_new():
    reward_model = RewardModel(tiny_reward_model())
    scorer = CausalScorer(reward_model)
    rows, candidates = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8, 9]])
    assert count_tokens(reward_model, lambda: score(scorer, rows, candidates)) == [4 + 3]
    drawn = torch.cat([rows, candidates[:, 1:2]], dim=1)
    assert count_tokens(reward_model, lambda: score(scorer, drawn, candidates)) == [3]
    other = torch.cat([drawn, torch.tensor([[20]])], dim=1)
    assert count_tokens(reward_model, lambda: score(scorer, other, candidates)) == [1 + 3]
    assert count_tokens(reward_model, lambda: score(scorer, rows, candidates)) == [3]


def test_speculation_is_one_forward_when_right_and_one_more_when_wrong():
    reward_model = RewardModel(tiny_reward_model())
    scorer = CausalScorer(reward_model, speculate=True)
    rows, candidates = torch.tensor([[3, 4, 5, 6], [PAD, 4, 5, 6]]), torch.tensor([[7, 8, 9], [7, 8, 9]])
    score(scorer, rows, candidates)
    drawn = torch.cat([rows, candidates[:, 1:2]], dim=1)
    assert count_tokens(reward_model, lambda: score(scorer, drawn, candidates)) == [2 * 3]
    other = torch.cat([drawn, torch.tensor([[20], [20]])], dim=1)
    assert count_tokens(reward_model, lambda: score(scorer, other, candidates)) == [2 * 3, 2 * (1 + 3)]


LOOKS = ("tolist", "item", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")


def count_looks(monkeypatch, act):
    """The names of the reads of a tensor by the host, each of which waits for an accelerator."""
    looks = []
    with monkeypatch.context() as patch:
        for name in LOOKS:
            read = getattr(torch.Tensor, name)

            def spy(*args, _read=read, _name=name, **kwargs):
                looks.append(_name)
                return _read(*args, **kwargs)

            patch.setattr(torch.Tensor, name, spy)
        act()
    return looks


@pytest.mark.parametrize("batch", [1, 3])
def test_an_ordinary_step_waits_for_the_device_once(monkeypatch, batch):
    model = tiny_reward_model()
    processor = PartialRewardLogitsProcessor(CausalScorer(RewardModel(model), speculate=True), top_k=5)
    rows = torch.randint(2, VOCAB_SIZE, (batch, 6))
    for step in range(4):
        scores = torch.randn(batch, VOCAB_SIZE)
        looks = count_looks(monkeypatch, partial(processor, rows, scores))
        if step > 0:
            # Looks on the CPU are free: padding (in several rows, also which of them go on and have finished),
            # the number of candidates, and in a single row the best score and the sampled token.
            free = ["__bool__", "__int__", "__float__", *["__int__"] * 3]
            if batch > 1:
                free = ["__bool__"] * 5 + ["__int__"]
            assert looks == [*free, "tolist"]
        rows = torch.cat([rows, processor(rows, scores).argmax(-1, keepdim=True)], dim=1)


def test_finished_rows_cost_nothing():
    reward_model = RewardModel(tiny_reward_model())
    scorer = CausalScorer(reward_model)
    rows = torch.tensor([[3, 4, 1, PAD, PAD], [3, 4, 5, 6, 7]])
    candidates = torch.tensor([[7, 8, 9], [7, 8, 9]])
    assert count_tokens(reward_model, lambda: score(scorer, rows, candidates)) == [5 + 3]
    finished = torch.cat([rows, torch.tensor([[PAD], [PAD]]), torch.tensor([[PAD], [PAD]])], dim=1)
    assert count_tokens(reward_model, lambda: score(scorer, finished, candidates)) == []
    assert (score(scorer, finished, candidates) == 0).all()


def test_the_cache_does_not_grow_with_k():
    sizes = []
    for k in (1, 20, 50):
        scorer = CausalScorer(RewardModel(tiny_reward_model()))
        score(scorer, torch.randint(1, VOCAB_SIZE, (2, 40)), torch.randint(1, VOCAB_SIZE, (2, k)))
        sizes.append(scorer.cache_bytes())
    assert sizes[0] == sizes[1] == sizes[2] > 0


def test_an_interrupted_step_leaves_no_trace():
    reward_model = RewardModel(tiny_reward_model())
    scorer, reference = CausalScorer(reward_model), ReferenceScorer(reward_model)
    rows, candidates = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8, 9]])
    score(scorer, rows, candidates)
    longer = torch.cat([rows, candidates[:, :1]], dim=1)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = reward_model.backbone.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        score(scorer, longer, candidates)
    hook.remove()
    assert torch.allclose(score(scorer, longer, candidates), score(reference, longer, candidates), atol=1e-4)


def test_an_unknown_strategy():
    with pytest.raises(
        InvalidArgumentError, match="Expected strategy to be 'auto' or one of tree_attention, .* but got 'magic'"
    ):
        CausalScorer(RewardModel(tiny_reward_model()), strategy="magic")

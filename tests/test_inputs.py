"""Values that users pass in forms of other libraries: numbers, rows and tokenizers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from jaxtyping import config

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers import Scorer, WeightedScorer
from rgtg_logits.testing import VOCAB_SIZE, tiny_reward_model, tiny_tokenizer

ROWS = torch.tensor([[7, 3, 9], [5, 8, 2]])


@pytest.fixture(autouse=True)
def _unchecked():
    """Users run without the type checker of the test run, which would refuse these values first."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


FORMS = [np.float64, np.float32, np.array, torch.tensor]


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_other_libraries(form):
    """They become plain numbers, and guide as these do."""
    count = np.int64 if form in (np.float64, np.float32) else form
    model = tiny_reward_model()
    plain = PartialRewardLogitsProcessor(model, beta=1.5, top_k=5, top_p=0.75, min_p=0.125, pad_token_id=0)
    other = PartialRewardLogitsProcessor(
        model, beta=form(1.5), top_k=count(5), top_p=form(0.75), min_p=form(0.125), pad_token_id=count(0)
    )
    for value in (other.beta, other.rule.top_p, other.rule.min_p):
        assert type(value) is float
    assert (type(other.rule.top_k), type(other.pad_token_id)) == (int, int)
    assert (other.beta, other.rule, other.pad_token_id) == (plain.beta, plain.rule, plain.pad_token_id)
    scores = torch.randn(2, VOCAB_SIZE)
    assert torch.equal(plain(ROWS, scores), other(ROWS, scores))


@pytest.mark.parametrize("name", ["beta", "top_k", "top_p", "min_p", "pad_token_id"])
@pytest.mark.parametrize(
    "value", [True, np.True_, torch.tensor(True), "1", torch.ones(2, 2), torch.ones(0), [], [True], 1j]
)
def test_what_is_no_number(name, value):
    with pytest.raises(InvalidArgumentError, match=f"Expected {name} to be"):
        PartialRewardLogitsProcessor(tiny_reward_model(), **{name: value})


@pytest.mark.parametrize("name", ["top_k", "pad_token_id"])
@pytest.mark.parametrize("value", [5.0, np.float64(5), torch.tensor(5.0)])
def test_counts_and_ids_are_whole(name, value):
    with pytest.raises(InvalidArgumentError, match=f"Expected {name} to be"):
        PartialRewardLogitsProcessor(tiny_reward_model(), **{name: value})


@pytest.mark.parametrize("form", [np.array, torch.tensor, lambda values: np.array(values, dtype=np.float32), tuple])
def test_weights_of_other_libraries(form):
    models = [RewardModel(tiny_reward_model(seed=seed)) for seed in (1, 5)]
    candidates = torch.tensor([[4, 6], [10, 11]])
    step = (ROWS, torch.ones_like(ROWS), candidates)
    first, second = (WeightedScorer([model], [1.0]).score(*step) for model in models)
    mixed = WeightedScorer(models, form([1.0, -0.5])).score(*step)
    assert torch.allclose(mixed, first - 0.5 * second, atol=1e-5)


@pytest.mark.parametrize("weights", [[True], np.array([True]), np.ones((1, 1)), torch.ones(1, 1), 1.0, np.array(1.0)])
def test_what_are_no_weights(weights):
    with pytest.raises(InvalidArgumentError, match="Expected .*weights"):
        WeightedScorer([RewardModel(tiny_reward_model())], weights)


SCORES = torch.zeros(2, VOCAB_SIZE)


@pytest.mark.parametrize(
    "step",
    [
        (ROWS[0], SCORES[0]),
        (ROWS, SCORES[:, None]),
        (ROWS, SCORES[:1]),
        (ROWS.tolist(), SCORES),
        (ROWS.numpy(), SCORES.numpy()),
        (ROWS.float(), SCORES),
        (ROWS, SCORES.long()),
        (ROWS, SCORES[:, :0]),
    ],
)
def test_steps_of_another_form(step):
    processor = PartialRewardLogitsProcessor(tiny_reward_model())
    with pytest.raises(InvalidArgumentError, match=r"shape \[batch, length\] and scores .* \[batch, vocab\], but got"):
        processor(*step)


def test_a_step_of_no_rows():
    processor = PartialRewardLogitsProcessor(tiny_reward_model())
    assert processor(ROWS[:0], SCORES[:0]).shape == (0, VOCAB_SIZE)
    assert processor.for_prompt(ROWS)(ROWS[:0], SCORES[:0]).shape == (0, VOCAB_SIZE)


class Multimodal:
    """As an AutoProcessor of a vision-language model."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, *arguments):
        raise NotImplementedError

    decode = __call__


def test_the_tokenizer_of_a_multimodal_processor():
    tokenizer = tiny_tokenizer(kind="gpt2")
    model = RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)
    scores = torch.randn(2, len(tokenizer))
    plain, inner = (
        PartialRewardLogitsProcessor(model, tokenizer=given) for given in (tokenizer, Multimodal(tokenizer))
    )
    assert inner.tokenizer is tokenizer
    assert torch.equal(
        plain.for_prompt("A film")(ROWS[:1], scores[:1]), inner.for_prompt("A film")(ROWS[:1], scores[:1])
    )
    scorer = WeightedScorer([lambda prompts, responses: [1.0] * len(prompts)], [2], tokenizer=Multimodal(tokenizer))
    assert torch.equal(scorer.score(ROWS, torch.ones_like(ROWS), ROWS), torch.full((2, 3), 2.0))


@pytest.mark.parametrize("value", ["gpt2", 3, Multimodal(None)])
def test_what_is_no_tokenizer(value):
    with pytest.raises(InvalidArgumentError, match=r"Expected tokenizer to be the base model's tokenizer.* but got"):
        PartialRewardLogitsProcessor(tiny_reward_model(), tokenizer=value)
    with pytest.raises(InvalidArgumentError, match=r"Expected tokenizer to be the base model's tokenizer.* but got"):
        WeightedScorer([RewardModel(tiny_reward_model())], [1.0], tokenizer=value)


class ById(Scorer):
    """Rewards that need no model, and no lock."""

    def score(self, rows, attention_mask, candidates):
        return candidates / 10


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda processor: pickle.loads(pickle.dumps(processor))])
def test_copies(copied):
    processor = PartialRewardLogitsProcessor(ById(), pad_token_id=0)
    prompts = processor.for_prompt(ROWS)
    assert prompts._lock is processor._lock
    scores = torch.randn(2, VOCAB_SIZE)
    for original in (processor, prompts):
        twin = copied(original)
        assert twin._lock is not original._lock
        assert torch.equal(twin(ROWS, scores), original(ROWS, scores))


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("prompt", ["", ["", ""], torch.zeros((2, 0), dtype=torch.long)])
def test_prompts_of_no_tokens(prompt, start):
    """The answer alone is judged, or from the decoder's start token on."""
    tokenizer = tiny_tokenizer(kind="gpt2")
    model = tiny_reward_model(vocab_size=len(tokenizer))
    processor = PartialRewardLogitsProcessor(RewardModel(model, tokenizer), beta=0.7, top_k=5, tokenizer=tokenizer)
    starts = torch.full((2, 1), 9)
    scores = torch.randn(2, len(tokenizer))
    guided = processor.for_prompt(prompt, start=start)(starts, scores)
    best, ids = scores.topk(5)
    for row in range(2):
        texts = [[int(token)] if start is None else [9, int(token)] for token in ids[row]]
        with torch.no_grad():
            rewards = torch.stack([model(torch.tensor([text])).logits[0, 0] for text in texts])
        expected = (best[row] + 0.7 * rewards).log_softmax(-1)
        assert torch.allclose(guided[row, ids[row]], expected, atol=1e-5)

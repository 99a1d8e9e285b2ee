"""The instruments by themselves: counts of forwards, clocks, the floor."""

import itertools

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rgtg_logits import RewardModel, RewardModelConfig, instruments
from rgtg_logits.instruments import FloorProcessor, StepClock, Stopwatch, TimedProcessor, count_forwards
from rgtg_logits.testing import VOCAB_SIZE, tiny_base_model, tiny_reward_model, tiny_vocabulary_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (tiny_reward_model, "causal"), (lambda: tiny_reward_model("gpt2"), "causal"),
        (tiny_vocabulary_model, "vocabulary"), (lambda: tiny_vocabulary_model("gemma2"), "log_ratio"),
    ],
)  # fmt: skip
def test_a_forward_counts_once(model, kind):
    reward_model = RewardModel(model(), config=RewardModelConfig(kind=kind))
    with count_forwards([reward_model.backbone]) as count:
        reward_model.score_tokens(torch.tensor([[5, 6, 7], [8, 9, 10]]))
        assert (count.forwards, count.tokens) == (1, 6)
        reward_model.hidden_states(torch.tensor([[5]]), None, None)
    reward_model.score_tokens(torch.tensor([[5, 6, 7]]))
    assert (count.forwards, count.tokens) == (2, 7)


def test_embeddings_count_as_tokens():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=1)).eval()
    with count_forwards([model.transformer]) as count:
        model(inputs_embeds=torch.zeros(2, 3, 8))
    assert (count.forwards, count.tokens) == (1, 6)


def test_an_error_leaves_no_hook():
    model = tiny_base_model()
    with pytest.raises(IndexError), count_forwards([model.model]):
        model(torch.tensor([[VOCAB_SIZE]]))
    assert not model.model._forward_pre_hooks


def test_pauses_do_not_count(monkeypatch):
    times = iter([10.0, 11.0, 13.0, 17.0, 30.0, 31.5])
    monkeypatch.setattr(instruments.time, "perf_counter", lambda: next(times))
    stopwatch = Stopwatch(CPU)
    with stopwatch.counting(), stopwatch.paused():
        pass
    assert stopwatch.seconds == 5.0
    with stopwatch.counting():
        pass
    assert stopwatch.seconds == 6.5


def test_a_forward_that_fails_hides_none_that_follow():
    model = tiny_base_model()
    with count_forwards([model, model.model]) as count:
        with pytest.raises(IndexError):
            model(torch.tensor([[VOCAB_SIZE]]))
        model(torch.tensor([[1, 2, 3]]))
        assert (count.forwards, count.tokens) == (2, 4)
    assert not model._forward_hooks and not model.model._forward_hooks


def test_a_model_that_calls_its_backbone_reads_once():
    """The output layer of a language model is reading, not bookkeeping, and its tokens are not counted twice."""
    model = tiny_base_model()

    def processor(ids, scores):
        return model(input_ids=ids).logits[:, -1] + model.model(ids)[0].mean()

    with torch.no_grad(), count_forwards([model, model.model]) as forwards:
        timed = TimedProcessor(processor, forwards)
        timed(torch.ones(2, 5, dtype=torch.long), torch.zeros(2, VOCAB_SIZE))
    (call,) = timed.calls
    assert call.tokens == 2 * 10 and 0 < call.forward_seconds < call.seconds


def test_bookkeeping_is_the_time_outside_the_reward_models(monkeypatch):
    # Of each call: the clock at its beginning, at the beginning and end of the forward, and at its end.
    times = iter([1.0, 1.5, 2.5, 3.0, 10.0, 11.0, 11.5, 12.0])
    model = tiny_base_model()
    monkeypatch.setattr(instruments.time, "perf_counter", lambda: next(times))
    with torch.no_grad(), count_forwards([model]) as forwards:
        timed = TimedProcessor(lambda ids, scores: model(ids).logits[:, -1], forwards)
        for _ in range(2):
            timed(torch.ones(1, 2, dtype=torch.long), torch.zeros(1, VOCAB_SIZE))
    assert timed.bookkeeping_shares([4.0, 3.0]) == [1.0 / 4.0, 1.5 / 3.0]


def test_no_processor_is_never_timed():
    with count_forwards([]) as forwards:
        timed = TimedProcessor(None, forwards)
        scores = torch.zeros(1, 3)
        assert timed(torch.ones(1, 2, dtype=torch.long), scores) is scores and not timed.calls


def test_steps_lie_between_stamps(monkeypatch):
    times = itertools.chain([5.0, 5.5, 7.5])
    monkeypatch.setattr(instruments.time, "perf_counter", lambda: next(times))
    clock = StepClock(CPU)
    clock.stamp()
    rows = torch.ones(2, 3, dtype=torch.long)
    assert not clock(rows, torch.zeros(2, 3)).any()
    assert not clock(rows, torch.zeros(2, 3)).any()
    assert clock.seconds() == [0.5, 2.0]


@pytest.mark.parametrize("make", [tiny_reward_model, tiny_vocabulary_model])
def test_the_floor_reads_each_token_once(make):
    kind = "causal" if make is tiny_reward_model else "vocabulary"
    reward_model = RewardModel(make(), config=RewardModelConfig(kind=kind))
    floor = FloorProcessor(reward_model)
    scores = torch.zeros(2, VOCAB_SIZE)
    # The base model may have more tokens than the reward model.
    rows = torch.tensor([[3, 4, 5, VOCAB_SIZE + 7], [6, 7, 8, 9]])
    with torch.no_grad(), count_forwards([reward_model.backbone]) as count:
        assert floor(rows[:, :3], scores) is scores and count.tokens == 6
        assert floor(rows, scores) is scores and (count.forwards, count.tokens) == (2, 8)

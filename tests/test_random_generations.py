"""Whole generations at random, one after another and in turns on one object: every call equals the oracle.

Prompts have strengths of their own, and between and inside generations the reward model's weights change.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import pytest
import torch
from changing_model import changing, last_logits, last_rewards
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from oracle import Oracle, Recorder, of_prompt
from random_calls import LONGEST, SAMPLED_BEAMS, Generation, a_generation, generate, pick
from transformers import logging
from turns import Turns

from rgtg_logits import (
    CausalScorer,
    LogRatioScorer,
    PartialRewardLogitsProcessor,
    RewardModel,
    RewardModelConfig,
    VocabularyScorer,
    WeightedScorer,
)
from rgtg_logits.testing import EOS, PAD, TINY, tiny_reward_model, tiny_vocabulary_model


def reward_model(model_type):
    return changing(tiny_reward_model, model_type, last_rewards)


@lru_cache
def probed_strategy(model_type):
    return CausalScorer(RewardModel(reward_model(model_type).model)).strategy


def causal(model_type, *, strategy=None, **options):
    # Jamba's cache can only be made by itself, and on some versions of transformers not at all.
    if strategy is None or (model_type == "jamba" and strategy != "recompute"):
        strategy = probed_strategy(model_type)
    model = reward_model(model_type)
    return CausalScorer(RewardModel(model.model), strategy=strategy, **options), model


def halves(scorer, model):
    """The same reward as a sum of two."""
    return WeightedScorer([scorer, CausalScorer(scorer.reward_model, strategy=scorer.strategy)], [0.5, 0.5]), model


def logits(model_type, *, kind, scorer, **options):
    """Next tokens judged by logits, from which the log-probabilities of a row differ by a constant."""
    model = changing(tiny_vocabulary_model, model_type, last_logits)
    return scorer(RewardModel(model.model, config=RewardModelConfig(kind=kind)), **options), model


SCORERS = {
    "vocabulary": lambda model_type: logits(model_type, kind="vocabulary", scorer=VocabularyScorer),
    "log-ratio": lambda model_type: logits(model_type, kind="log_ratio", scorer=LogRatioScorer, speculate=True),
    "in pieces": lambda model_type: causal(model_type, max_tokens_per_forward=6),
    "sum": lambda model_type: halves(*causal(model_type)),
    "prepacked": lambda model_type: causal(model_type, prepack=True),
    "speculating": lambda model_type: causal(model_type, speculate=True),
    "causal": causal,
    "expand": lambda model_type: causal(model_type, strategy="expand"),
    "expand_model_cache": lambda model_type: causal(model_type, strategy="expand_model_cache"),
    "recompute": lambda model_type: causal(model_type, strategy="recompute"),
}
"""Makers, by name, of a new scorer on the tiny reward model of a type, with that `ChangingModel`."""


@dataclass(frozen=True)
class Example:
    """One object, and the calls of `generate` that it goes through.

    Attributes:
        changes: Calls of the processor, counted over all generations, before which the weights change.
    """

    scorer: str
    model_type: str
    rule: dict[str, float]
    pad: int
    generations: list[Generation]
    turns: list[int]
    changes: list[int]


def an_example(integer):
    """Makes an example of whole numbers; `integer` gives one between two others, both included."""
    texts = [[integer(2, 9) for _ in range(LONGEST)] for _ in range(integer(1, 3))]
    calls = [a_generation(integer, texts) for _ in range(integer(1, 3))]
    rule = {"top_k": integer(2, 8)}
    if any(call.mode == SAMPLED_BEAMS for call in calls):
        # transformers draws two tokens per beam without replacement.
        rule = {"top_k": max(5, rule["top_k"])}
    elif integer(0, 2) == 0:
        rule |= {"top_p": pick(integer, [0.5, 0.9]), "min_p": pick(integer, [0.02, 0.3])}
    return Example(
        scorer=pick(integer, [*SCORERS]),
        model_type=pick(integer, [*TINY]),
        rule=rule,
        pad=pick(integer, [PAD, EOS]),
        generations=calls,
        turns=[integer(0, 5) for _ in range(pick(integer, [0, 30]))] if len(calls) > 1 else [],
        changes=[integer(0, 20) for _ in range(pick(integer, [0, 0, 3]))],
    )


@st.composite
def drawn(draw):
    return an_example(lambda low, high: draw(st.integers(low, high)))


EVEN = st.integers(0, 2**32).map(lambda seed: an_example(Random(seed).randint))
"""Draws that Hypothesis cannot shrink. Its own prefer simple examples, and repeat parts of previous ones."""


def check(example, run):
    """Runs the generations of an example by `run`, compares every call, and returns counts of what was compared."""
    scorer, model = SCORERS[example.scorer](example.model_type)
    shared = PartialRewardLogitsProcessor(scorer, pad_token_id=example.pad, **example.rule)
    changes = Changes(model, example.changes if run is in_turns else [])
    lives = [Life(shared.with_settings(beta=call.beta), changes) for call in example.generations]
    torch.manual_seed(0)
    run(example, lives)
    counts = Counter(examples=1, generations=len(lives), changes=changes.made, worst=0.0)
    for call, life in zip(example.generations, lives, strict=True):
        counts["calls"] += len(life.calls)
        for number, (prompt, beta) in enumerate(zip(call.prompts, call.betas, strict=True)):
            for state, rewards in enumerate(model.rewards):
                oracle = Oracle(rewards, beta=beta, pad=example.pad, eos=EOS, **example.rule)
                calls = of_prompt(life.calls_in(state), number, len(call.prompts))
                tolerance = 1e-4 * max(1, beta)
                rows, worst = oracle.check(calls, [prompt], tolerance=tolerance, length=life.calls[0][0].shape[1])
                counts["rows"] += rows
                counts["worst"] = max(counts["worst"], worst)
    return counts


class Changes:
    """Changes the weights before some calls.

    Attributes:
        made: How many changes there were.
    """

    def __init__(self, model, places):
        self.model, self.places = model, {*places}
        self.made = self.calls = 0
        model.become(0)

    def before_a_call(self):
        if self.calls in self.places:
            self.model.become(1 - self.model.state)
            self.made += 1
        self.calls += 1


class Life(Recorder):
    """Records the calls of one generation, and the model's state at each."""

    def __init__(self, processor, changes):
        super().__init__(processor)
        self.changes = changes
        self.states = []
        self.pause = lambda: None

    def before(self):
        self.pause()
        self.changes.before_a_call()
        self.states.append(self.changes.model.state)

    def calls_in(self, state):
        """The calls while the model was in one state."""
        return [call for call, of_call in zip(self.calls, self.states, strict=True) if of_call == state]


def in_turns(example, lives):
    """Whole calls of `generate`, taking turns before each call of the processor."""

    def task(call, life):
        def live(pause):
            life.pause = pause
            generate(call, life, example.pad)

        return live

    Turns(example.turns).run([task(*pair) for pair in zip(example.generations, lives, strict=True)])


@pytest.fixture(autouse=True)
def _quiet():
    # transformers repeats at every draft that it passes its own processors on.
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(example=EVEN)
def test_random_generations(example):
    assert check(example, in_turns)["calls"] > 0


def in_free_threads(example, lives):
    """Each call of `generate` in a thread of its own, all at once, on weights that stay."""
    with ThreadPoolExecutor(len(lives)) as threads:
        ends = [threads.submit(generate, *pair, example.pad) for pair in zip(example.generations, lives, strict=True)]
    for end in ends:
        end.result()


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(example=EVEN.filter(lambda example: len(example.generations) > 1))
def test_random_generations_in_free_threads(example):
    assert check(example, in_free_threads)["calls"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_thousands_of_random_generations(capsys, part):
    counts = Counter(worst=0.0)

    # Other examples in each part, also in CI, where hypothesis would derive them from the function alone.
    @seed(part)
    @settings(max_examples=200, deadline=None)
    @given(example=EVEN | drawn())
    def run(example):
        one = check(example, in_turns)
        worst = max(counts["worst"], one.pop("worst"))
        counts.update(one)
        counts["worst"] = worst

    run()
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{counts['examples']} examples: {counts['generations']} generations, {counts['calls']} calls, "
            f"{counts['changes']} changes of weights, {counts['rows']} rows compared, "
            f"worst error {counts['worst']:.1e} nats"
        )
    assert counts["examples"] >= 200

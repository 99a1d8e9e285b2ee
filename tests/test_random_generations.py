"""Whole generations at random, one after another and in turns on one object: every call equals the oracle."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import pytest
import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from oracle import Oracle, Recorder, Rewards, padded
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
from rgtg_logits.testing import EOS, PAD, TINY, VOCAB_SIZE, tiny_base_model, tiny_reward_model, tiny_vocabulary_model

LONGEST = 14
"""Tokens of the longest prompt, more than the windows of the models that have one."""
SAMPLED_BEAMS = "beam sampling"


SAMPLING = {"do_sample": True, "top_k": 0}
BATCHED = {
    "greedy": {},
    "sampling": SAMPLING,
    "return sequences": {**SAMPLING, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    SAMPLED_BEAMS: {**SAMPLING, "num_beams": 2},
}
"""Arguments of `generate` by mode."""
ASSISTED = {
    "assisted": {"assistant": 3},
    "assisted sampling": {"assistant": 3, **SAMPLING},
    "self-assisted": {"assistant": 0},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "prompt lookup sampling": {"prompt_lookup_num_tokens": 2, **SAMPLING},
}
"""The same for modes of one row; the draft model by its seed, of which 0 is the base model itself."""
MODES = BATCHED | ASSISTED


@lru_cache
def base_model(seed=0):
    return tiny_base_model(num_hidden_layers=1, seed=seed)


@lru_cache
def reward_model(model_type):
    return tiny_reward_model(model_type)


@lru_cache
def rewards(model_type):
    return Rewards(reward_model(model_type))


@lru_cache
def probed_strategy(model_type):
    return CausalScorer(RewardModel(reward_model(model_type))).strategy


def causal(model_type, *, strategy=None, **options):
    # Jamba's cache can only be made by itself, and on some versions of transformers not at all.
    if strategy is None or (model_type == "jamba" and strategy != "recompute"):
        strategy = probed_strategy(model_type)
    return CausalScorer(RewardModel(reward_model(model_type)), strategy=strategy, **options), rewards(model_type)


def halves(scorer, expected):
    """The same reward as a sum of two."""
    return WeightedScorer([scorer, CausalScorer(scorer.reward_model, strategy=scorer.strategy)], [0.5, 0.5]), expected


@lru_cache
def language_model(model_type):
    return tiny_vocabulary_model(model_type)


def logits(model_type, *, kind, scorer, **options):
    """Next tokens judged by logits, from which the log-probabilities of a row differ by a constant."""
    model = language_model(model_type)
    reward_model = RewardModel(model, config=RewardModelConfig(kind=kind))
    expected = Rewards(lambda tokens: model(tokens[:, :-1]).logits[:, -1].gather(-1, tokens[:, -1:])[:, 0])
    return scorer(reward_model, **options), expected


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
"""Makers, by name, of a new scorer on the tiny reward model of a type, with the `Rewards` that it should give."""


@dataclass(frozen=True)
class Generation:
    """One call of `generate`.

    Attributes:
        ends: Bias added to the score of the end-of-text token.
        allowed: Seed of a grammar that allows a few tokens, others in each row and step; None for all tokens.
    """

    mode: str
    prompts: list[list[int]]
    length: int
    ends: float | None
    allowed: int | None


@dataclass(frozen=True)
class Example:
    """One object, and the calls of `generate` that it goes through."""

    scorer: str
    model_type: str
    beta: float
    rule: dict[str, float]
    pad: int
    generations: list[Generation]
    turns: list[int]


def a_generation(integer, texts):
    """Prompts are the beginnings of a few texts, so that one call continues the text of another."""
    mode = pick(integer, [*BATCHED, *BATCHED, *ASSISTED])
    batch = 1 if mode in ASSISTED else integer(1, 4)
    return Generation(
        mode=mode,
        prompts=[pick(integer, texts)[: integer(1, LONGEST)] for _ in range(batch)],
        length=integer(1, 12),
        ends=pick(integer, [None, None, 2.0, 4.0]),
        # Sampled beams need more tokens than a grammar leaves.
        allowed=None if mode == SAMPLED_BEAMS else pick(integer, [None, None, integer(0, 50)]),
    )


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
        beta=pick(integer, [0.0, 0.3, 1.0, 1.0, 4.0]),
        rule=rule,
        pad=pick(integer, [PAD, EOS]),
        generations=calls,
        turns=[integer(0, 5) for _ in range(pick(integer, [0, 30]))] if len(calls) > 1 else [],
    )


def pick(integer, options):
    return options[integer(0, len(options) - 1)]


@st.composite
def drawn(draw):
    return an_example(lambda low, high: draw(st.integers(low, high)))


EVEN = st.integers(0, 2**32).map(lambda seed: an_example(Random(seed).randint))
"""Draws that Hypothesis cannot shrink. Its own prefer simple examples, and repeat parts of previous ones."""


def generate(call, recorder, pad):
    arguments = dict(MODES[call.mode])
    if "assistant" in arguments:
        arguments["assistant_model"] = base_model(arguments.pop("assistant"))
    if call.ends is not None:
        arguments["sequence_bias"] = {(EOS,): call.ends}
    if call.allowed is not None:
        arguments["prefix_allowed_tokens_fn"] = lambda batch, row: few(call.allowed + 3 * batch + len(row))
    with torch.no_grad():
        base_model().generate(
            **padded(call.prompts, pad),
            max_new_tokens=call.length,
            pad_token_id=pad,
            suppress_tokens=None if pad == EOS else [pad],
            logits_processor=[recorder],
            **arguments,
        )


def few(seed):
    return sorted({2 + (seed * seed + 7 * index) % (VOCAB_SIZE - 2) for index in range(1 + seed % 5)} | {EOS})


def check(example, run):
    """Runs the generations of an example by `run`, compares every call, and returns counts of what was compared."""
    scorer, expected = SCORERS[example.scorer](example.model_type)
    options = {"beta": example.beta, **example.rule}
    processor = PartialRewardLogitsProcessor(scorer, pad_token_id=example.pad, **options)
    recorders = [Recorder(processor) for _ in example.generations]
    torch.manual_seed(0)
    run(example, recorders)
    oracle = Oracle(expected, pad=example.pad, eos=EOS, **options)
    counts = Counter(examples=1, generations=len(recorders))
    for call, recorder in zip(example.generations, recorders, strict=True):
        rows, worst = oracle.check(recorder.calls, call.prompts, tolerance=1e-4 * max(1, example.beta))
        counts.update(calls=len(recorder.calls), rows=rows)
        counts["worst"] = max(counts["worst"], worst)
    return counts


def in_turns(example, recorders):
    """Whole calls of `generate`, taking turns before each call of the processor."""

    def task(call, recorder):
        def live(pause):
            recorder.before = pause
            generate(call, recorder, example.pad)

        return live

    Turns(example.turns).run([task(*pair) for pair in zip(example.generations, recorders, strict=True)])


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


def in_free_threads(example, recorders):
    """Each call of `generate` in a thread of its own, all at once."""
    with ThreadPoolExecutor(len(recorders)) as threads:
        lives = [
            threads.submit(generate, *pair, example.pad) for pair in zip(example.generations, recorders, strict=True)
        ]
    for life in lives:
        life.result()


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
            f"{counts['rows']} rows compared, worst error {counts['worst']:.1e} nats"
        )
    assert counts["examples"] >= 200

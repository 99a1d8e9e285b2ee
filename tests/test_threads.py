"""Two threads on one object, as in a server: each gets the result that it would get alone, or a clear error."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from oracle import Oracle, Recorder, padded

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.errors import RGTGError
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model

BETA, TOP_K, ROUNDS = 0.7, 5, 3
PROMPTS = [[[7, 3, 9, 11, 4, 20, 31], [5, 8]], [[7, 3, 9, 12, 4, 20, 31], [5, 8, 8]]]
"""The prompts of each thread, so alike that the memory of one looks like the rows of the other."""
SCORERS = {
    "tree_attention": {},
    "speculating": {"speculate": True},
    "expand": {"strategy": "expand"},
    "recompute": {"strategy": "recompute"},
}
MODES = {"greedy": {}, "beams": {"num_beams": 2}}


@pytest.fixture(scope="module")
def base():
    return tiny_base_model()


@pytest.fixture(scope="module")
def model():
    """A reward model that lets other threads run in the middle of its forward."""
    model = tiny_reward_model()
    model.base_model.layers[1].register_forward_pre_hook(lambda *_: time.sleep(1e-3))
    return model


def processor(model, scorer):
    return PartialRewardLogitsProcessor(CausalScorer(RewardModel(model), **SCORERS[scorer]), beta=BETA, top_k=TOP_K)


def generate(base, guide, prompts, mode):
    """Returns tokens and calls."""
    recorder = Recorder(guide)
    with torch.no_grad():
        tokens = base.generate(
            **padded(prompts, PAD),
            max_new_tokens=8,
            pad_token_id=PAD,
            suppress_tokens=[PAD],
            logits_processor=[recorder],
            **MODES[mode],
        )
    return tokens, recorder.calls


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scorer", SCORERS)
def test_two_threads_on_one_object(base, model, scorer, mode):
    alone = [generate(base, processor(model, scorer), prompts, mode)[0] for prompts in PROMPTS]
    shared, start = processor(model, scorer), Barrier(len(PROMPTS))

    def live(prompts):
        start.wait()
        return [generate(base, shared, prompts, mode) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        lives = [threads.submit(live, prompts) for prompts in PROMPTS]
    oracle = Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)
    refused = 0
    for life, prompts, expected in zip(lives, PROMPTS, alone, strict=True):
        try:
            results = life.result()
        except RGTGError:
            refused += 1
            continue
        for tokens, calls in results:
            assert torch.equal(tokens, expected)
            assert oracle.check(calls, prompts)[0] >= 8
    assert refused < len(lives), "both threads were refused, so that there is no text"

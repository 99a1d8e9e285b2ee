"""Constraints in front of the processor that leave equal scores: the reward alone decides; prompt lookup's question."""

import pytest
import torch
from oracle import Oracle, Recorder, padded
from transformers import logging

from rgtg_logits import PartialRewardLogitsProcessor
from rgtg_logits.candidates import CandidateRule, is_lookup_probe
from rgtg_logits.testing import EOS, PAD, VOCAB_SIZE, tiny_base_model, tiny_reward_model

TOP_K, BETA = 5, 0.7
PROMPT = [7, 3, 9, 11, 4, 20, 31, 17, 23, 9] * 2


class Allow:
    """A constraint that replaces the scores: those of the tokens that it allows are the same."""

    def __init__(self, number, score):
        self.number, self.score = number, score

    def __call__(self, input_ids, scores):
        replaced = torch.full_like(scores, -torch.inf)
        replaced[:, 2 : 2 + self.number] = self.score
        return replaced


@pytest.fixture(autouse=True)
def _quiet():
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()


def generate(processors, prompts, **arguments):
    with torch.no_grad():
        return tiny_base_model(seed=1).generate(
            **padded(prompts, PAD), max_new_tokens=8, pad_token_id=PAD, suppress_tokens=[PAD, EOS],
            logits_processor=processors, **arguments,
        )  # fmt: skip


MODES = {"greedy": {}, "sampling": {"do_sample": True, "top_k": 0}, "beams": {"num_beams": 2}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, [5, 8]]])
@pytest.mark.parametrize("number", [TOP_K, TOP_K + 1, 40])
@pytest.mark.parametrize("score", [0.0, -1.0, 2.5])
def test_equal_scores_are_guided(mode, prompts, number, score):
    model = tiny_reward_model()
    recorder = Recorder(PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K))
    generate([Allow(number, score), recorder], prompts, **MODES[mode])
    oracle = Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)
    rows = len(recorder.calls[0][0])
    assert oracle.check(recorder.calls, prompts)[0] >= rows * 4
    assert oracle.probes == 0


def test_prompt_lookup_behind_a_constraint_gives_the_same_tokens():
    model = tiny_reward_model()
    processors = [Allow(30, 0.0), PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K)]
    alone = generate(processors, [PROMPT])
    assert torch.equal(generate(processors, [PROMPT], prompt_lookup_num_tokens=3), alone)


@pytest.mark.parametrize("suppressed", [[], [0, 1], list(range(40))])
def test_the_question_of_prompt_lookup_is_answered_without_the_reward_model(suppressed):
    model = tiny_reward_model()
    processor = PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K)
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("the reward model was asked"))
    scores = torch.ones(1, VOCAB_SIZE)
    scores[:, suppressed] = -torch.inf
    output = processor(torch.tensor([PROMPT]), scores)
    assert torch.equal(output > -torch.inf, scores > -torch.inf)


@pytest.mark.parametrize(
    "scores", [torch.zeros(1, 9), torch.ones(2, 9), torch.ones(1, 3), torch.tensor([[1.0] * 8 + [0.5]])]
)
def test_what_is_no_question_of_prompt_lookup(scores):
    assert is_lookup_probe(scores, CandidateRule(top_k=3).select(scores)) is None

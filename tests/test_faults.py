"""After an error or interrupt in the middle of a generation, the next one is as on a new object."""

import pytest
import torch
from oracle import Oracle, Recorder, padded

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.errors import NonFiniteRewardError
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model

BETA, TOP_K = 0.7, 5
PROMPTS = [[7, 3, 9, 11, 4, 20, 31], [5, 8]]
SCORERS = {
    "tree_attention": {"strategy": "tree_attention"},
    "speculating": {"strategy": "tree_attention", "speculate": True},
    "expand": {"strategy": "expand"},
    "expand_model_cache": {"strategy": "expand_model_cache"},
    "recompute": {"strategy": "recompute"},
}
MODES = {"sampling": {"do_sample": True, "top_k": 0}, "beams": {"num_beams": 3}}


class NthTime:
    """Changes a module's output the n-th time that it runs, and never before and after."""

    def __init__(self, module, n, act):
        self.left, self.act = n, act
        self.handle = module.register_forward_hook(self)

    def __call__(self, _module, _args, output):
        self.left -= 1
        return self.act(output) if self.left == 0 else None


def run_out_of_memory(_output):
    raise torch.OutOfMemoryError("out of memory")


def interrupt(_output):
    raise KeyboardInterrupt


def overflow(output):
    """Fills the output of a layer, a tensor or a tuple that starts with one, with NaN."""
    return output * torch.nan if isinstance(output, torch.Tensor) else (output[0] * torch.nan, *output[1:])


FAULTS = {
    "out of memory in the first layer": (run_out_of_memory, 0, torch.OutOfMemoryError),
    "interrupt in the first layer": (interrupt, 0, KeyboardInterrupt),
    "interrupt in the last layer": (interrupt, -1, KeyboardInterrupt),
    "overflow in the first layer": (overflow, 0, NonFiniteRewardError),
}
"""The fault, the layer behind which it happens (some layers' caches then miss the step), and the error raised."""


@pytest.fixture(scope="module")
def base():
    return tiny_base_model()


@pytest.fixture(scope="module")
def model():
    return tiny_reward_model()


@pytest.fixture(scope="module")
def oracle(model):
    return Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)


def processor(model, scorer):
    return PartialRewardLogitsProcessor(CausalScorer(RewardModel(model), **SCORERS[scorer]), beta=BETA, top_k=TOP_K)


def generate(base, recorder, **arguments):
    torch.manual_seed(2)
    with torch.no_grad():
        return base.generate(
            **padded(PROMPTS, PAD),
            max_new_tokens=7,
            pad_token_id=PAD,
            suppress_tokens=[PAD],
            logits_processor=[recorder],
            **arguments,
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scorer", SCORERS)
def test_a_fault_leaves_no_trace(base, model, oracle, scorer, fault, mode):
    act, layer, error = FAULTS[fault]
    new = Recorder(processor(model, scorer))
    expected = generate(base, new, **MODES[mode])
    for n in range(1, 6):
        recorder = Recorder(processor(model, scorer))
        nth = NthTime(model.base_model.layers[layer], n, act)
        try:
            tokens = generate(base, recorder, **MODES[mode])
        except error:
            check_again(oracle, recorder)
        else:
            # An overflow in what was only a speculative step is no fault.
            assert fault.startswith("overflow") and scorer == "speculating" and torch.equal(tokens, expected)
        nth.handle.remove()
        recorder.calls.clear()
        assert torch.equal(generate(base, recorder, **MODES[mode]), expected)
        for (_, _, output), (_, _, other) in zip(recorder.calls, new.calls, strict=True):
            assert torch.allclose(output, other, atol=1e-4)
        assert oracle.check(recorder.calls, PROMPTS)[0] >= len(recorder.calls)


def check_again(oracle, recorder):
    """Repeats the interrupted call, as a user who continues from the text so far."""
    rows, scores = recorder.last_input
    texts = [[token for token in row if token != PAD] for row in rows.tolist()]
    assert oracle.check([(rows, scores, recorder.processor(rows, scores))], texts)[0] == len(texts)


def test_faults_happen_at_different_steps(base, model):
    """Guards the test above, which shows little if all faults fall into the first step."""
    for scorer in SCORERS:
        steps = set()
        for n in range(1, 6):
            recorder = Recorder(processor(model, scorer))
            nth = NthTime(model.base_model.layers[0], n, interrupt)
            with pytest.raises(KeyboardInterrupt):
                generate(base, recorder)
            nth.handle.remove()
            steps.add(len(recorder.calls))
        # A strategy that reads rows of different lengths one by one takes several forwards for a step.
        assert len(steps) >= (2 if scorer == "expand_model_cache" else 3)

"""At every call of a real `generate`, in every mode, the processor equals an oracle without cache and padding."""

import pytest
import torch
from oracle import Oracle, Recorder, padded
from transformers import pipeline

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.testing import EOS, PAD, TINY, VOCAB_SIZE, tiny_base_model, tiny_reward_model, tiny_tokenizer

BETA, TOP_K = 0.7, 5
RAGGED = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41]]
ONE = [[7, 3, 9, 11, 4, 20, 31, 17, 23, 9]]

MODES = {
    "greedy": (ONE, {}),
    "sampling": (ONE, {"do_sample": True}),
    "return_sequences": (RAGGED[:2], {"do_sample": True, "num_return_sequences": 3}),
    "beams": (RAGGED, {"num_beams": 3, "num_return_sequences": 2}),
    "beam_sampling": (RAGGED[:2], {"num_beams": 3, "do_sample": True}),
    "ragged": (RAGGED, {"do_sample": True}),
    "ragged_greedy": (RAGGED, {}),
    "early_finish": (RAGGED, {"do_sample": True, "num_return_sequences": 4, "sequence_bias": {(EOS,): 3.0}}),
    "cut_by_others": (
        RAGGED,
        {"do_sample": True, "suppress_tokens": [PAD, *range(20, VOCAB_SIZE)], "min_new_tokens": 4},
    ),
    "fewer_than_k": (RAGGED, {"do_sample": True, "suppress_tokens": [PAD, *range(4, VOCAB_SIZE)]}),
}
"""Prompts and arguments of `generate` by mode."""


def run(processor, base, prompts, pad=PAD, **arguments):
    recorder = Recorder(processor)
    arguments = {"suppress_tokens": [pad] if pad != EOS else None, **arguments}
    torch.manual_seed(1)
    with torch.no_grad():
        base.generate(
            **padded(prompts, pad),
            max_new_tokens=8,
            top_k=0,
            pad_token_id=pad,
            logits_processor=[recorder],
            **arguments,
        )
    return recorder.calls


@pytest.fixture(scope="module")
def base():
    return tiny_base_model()


@pytest.fixture(scope="module", params=TINY)
def guided(request):
    model = tiny_reward_model(request.param)
    return model, PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K), Oracle(
        model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_call_equals_the_oracle(guided, base, mode):
    # One object serves all modes of an architecture, so prompts and batch sizes change under it.
    _, processor, oracle = guided
    prompts, arguments = MODES[mode]
    calls = run(processor, base, prompts, **arguments)
    compared, _ = oracle.check(calls, prompts)
    assert compared >= 4


def test_rewards_decide(guided, base):
    """Guards the oracle test: with rewards that do not matter it would pass on anything."""
    _, processor, _ = guided
    for _, scores, output in run(processor, base, ONE):
        kept = output[0] > -torch.inf
        assert (output[0][kept] - scores[0][kept].log_softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize("mode", ["beams", "ragged", "early_finish"])
def test_pad_equal_to_eos(base, mode):
    # Texts of GPT-2 may begin with it, so that it has to be said that it pads.
    model = tiny_reward_model("gpt2", pad_token_id=EOS)
    processor = PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K, pad_token_id=EOS)
    prompts, arguments = MODES[mode]
    calls = run(processor, base, prompts, pad=EOS, **arguments)
    compared, _ = Oracle(model, beta=BETA, top_k=TOP_K, pad=EOS, eos=EOS).check(calls, prompts)
    assert compared >= 8


def test_prompts_led_by_the_pad_token_with_a_mask(base):
    prompts = [[EOS, 7, 3, 9], [EOS, EOS, 5], [EOS]]
    model = tiny_reward_model("gpt2", pad_token_id=EOS)
    mask = padded(prompts, EOS)["attention_mask"]
    processor = PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K, attention_mask=mask)
    calls = run(processor, base, prompts, pad=EOS, num_beams=2)
    compared, _ = Oracle(model, beta=BETA, top_k=TOP_K, pad=EOS, eos=EOS).check(calls, prompts)
    assert compared >= 8


@pytest.mark.parametrize("mode", MODES)
def test_speculation_equals_the_oracle(base, mode):
    check_scorer_options(base, mode, speculate=True)


@pytest.mark.parametrize("strategy", ["expand", "expand_model_cache", "recompute"])
@pytest.mark.parametrize("mode", ["beams", "early_finish"])
def test_every_fallback_equals_the_oracle(base, strategy, mode):
    check_scorer_options(base, mode, strategy=strategy)


def check_scorer_options(base, mode, **options):
    model = tiny_reward_model("llama")
    processor = PartialRewardLogitsProcessor(CausalScorer(RewardModel(model), **options), beta=BETA, top_k=TOP_K)
    prompts, arguments = MODES[mode]
    calls = run(processor, base, prompts, **arguments)
    assert Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS).check(calls, prompts)[0] >= 4


def test_eos_is_a_candidate_and_ends_rows(guided, base):
    _, processor, oracle = guided
    calls = run(processor, base, MODES["early_finish"][0], **MODES["early_finish"][1])
    assert any((output[:, EOS] > -torch.inf).any() for _, _, output in calls)
    lasts = torch.stack([rows[:, -1] for rows, _, _ in calls[1:]])
    assert (lasts == EOS).any()
    assert (lasts == PAD).any(), "no row finished before the others, so the mode shows nothing"
    oracle.check(calls, RAGGED)


def test_pipeline_in_batches():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    base = tiny_base_model(vocab_size=size)
    model = tiny_reward_model(vocab_size=size)
    processor = PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K, tokenizer=tokenizer)
    recorder = Recorder(processor)
    texts = ["the film was good", "a", "the cast was"]
    generator = pipeline("text-generation", model=base, tokenizer=tokenizer)
    # The tokenizer's ids are PAD = 0 and EOS = 1, as everywhere in these tests.
    outputs = generator(
        texts, batch_size=3, max_new_tokens=6, do_sample=True, suppress_tokens=[PAD], logits_processor=[recorder]
    )
    assert len(outputs) == 3
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    assert Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS).check(recorder.calls, prompts)[0] >= 6


def test_beta_zero_is_the_truncated_base_distribution_without_a_reward_model_call(base):
    class Uncallable(CausalScorer):
        def score(self, *_):
            raise AssertionError("the reward model was called")

    scorer = Uncallable(RewardModel(tiny_reward_model()))
    for _, scores, output in run(PartialRewardLogitsProcessor(scorer, beta=0, top_k=TOP_K), base, RAGGED):
        best, ids = scores.topk(TOP_K)
        expected = torch.full_like(scores, -torch.inf).scatter(1, ids, best.log_softmax(-1))
        assert torch.equal(output, expected)


def test_assisted_decoding_gives_the_tokens_of_greedy_decoding(base):
    processor = PartialRewardLogitsProcessor(tiny_reward_model(), beta=BETA, top_k=TOP_K)
    plain = {**padded(ONE, PAD), "max_new_tokens": 12, "logits_processor": [processor], "suppress_tokens": [PAD]}
    with torch.no_grad():
        alone = base.generate(**plain)
        assisted = base.generate(**plain, assistant_model=tiny_base_model(seed=3))
        looked_up = base.generate(**plain, prompt_lookup_num_tokens=3)
    assert torch.equal(alone, assisted)
    assert torch.equal(alone, looked_up)

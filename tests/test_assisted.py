"""Assisted decoding: two streams of rows on one object, rolled back whenever a draft is refused."""

from itertools import pairwise

import pytest
import torch
from oracle import Oracle, Recorder, count_reads, padded
from transformers import logging

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.errors import VocabularyError
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model, tiny_tokenizer

BETA, TOP_K = 0.7, 5
NEW = 24
PROMPT = [7, 3, 9, 11, 4, 20, 31, 17, 23, 9] * 2
DRAFTS = {
    "a draft model": lambda base: {"assistant_model": tiny_base_model(seed=3)},
    "the model itself": lambda base: {"assistant_model": base},
    "early exit": lambda base: {"assistant_early_exit": 1},
    "prompt lookup": lambda base: {"prompt_lookup_num_tokens": 3},
}
"""Arguments of `generate` by where drafts come from."""


@pytest.fixture(autouse=True)
def _quiet():
    # transformers repeats at every draft that it passes its own processors on.
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()


@pytest.fixture(scope="module")
def base():
    # Guided by the reward model below, its greedy text repeats itself, so that looking up the prompt helps.
    return tiny_base_model(seed=1)


@pytest.fixture(scope="module")
def reward_model():
    return RewardModel(tiny_reward_model())


@pytest.fixture(scope="module")
def oracle(reward_model):
    return Oracle(reward_model.model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)


def generate(base, recorder, prompt=PROMPT, **arguments):
    with torch.no_grad():
        return base.generate(
            **padded([prompt], PAD),
            pad_token_id=PAD,
            **{"max_new_tokens": NEW, "suppress_tokens": [PAD, EOS], **arguments},
            logits_processor=[recorder],
        )


def guided(reward_model):
    return Recorder(PartialRewardLogitsProcessor(reward_model, beta=BETA, top_k=TOP_K))


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_tokens_are_those_of_greedy_decoding(base, reward_model, oracle, draft):
    alone = generate(base, guided(reward_model))
    recorder = guided(reward_model)
    assert torch.equal(generate(base, recorder, **DRAFTS[draft](base)), alone)
    assert oracle.check(recorder.calls, [PROMPT])[0] >= NEW


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_roll_back_rewinds_the_cache(base, reward_model, draft):
    """The prompt is read once; every other call reads its candidates, and one more token where it was not drawn."""
    recorder, arguments = guided(reward_model), DRAFTS[draft](base)
    _, reads = count_reads(reward_model.backbone, lambda: generate(base, recorder, **arguments))
    assert len(reads) <= len(recorder.calls)
    assert reads[0] == len(PROMPT) + TOP_K
    assert set(reads[1:]) <= {TOP_K, TOP_K + 1}


def test_drafts_are_rolled_back(base, reward_model):
    """Guards the test above: without roll-backs it would show nothing."""
    for draft in set(DRAFTS) - {"prompt lookup"}:
        recorder = guided(reward_model)
        generate(base, recorder, **DRAFTS[draft](base))
        lengths = [rows.shape[1] for rows, _, _ in recorder.calls]
        assert any(later < earlier for earlier, later in pairwise(lengths))


def test_prompt_lookup_accepts_drafts(base, reward_model):
    _, forwards = count_reads(base, lambda: generate(base, guided(reward_model), prompt_lookup_num_tokens=3))
    assert len(forwards) <= NEW * 3 // 4


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_sampling_equals_the_oracle(base, reward_model, oracle, draft, seed):
    recorder = guided(reward_model)
    torch.manual_seed(seed)
    output = generate(base, recorder, **DRAFTS[draft](base), do_sample=True, top_k=0, suppress_tokens=[PAD])
    assert output.shape[1] > len(PROMPT)
    assert oracle.check(recorder.calls, [PROMPT])[0] >= output.shape[1] - len(PROMPT)


@pytest.fixture(scope="module")
def two_tokenizers():
    """The base model's, and one of a draft model, whose ids mean other texts."""
    one, other = (
        tiny_tokenizer(vocab_size=300),
        tiny_tokenizer(["music and film a cast that was a good"], vocab_size=290),
    )
    assert one.get_vocab() != other.get_vocab()
    assert len(other) < len(one)
    return one, other


def with_another_tokenizer(tokenizer, other, recorder, **arguments):
    """Prompt and tokens of a base model with the one tokenizer, assisted by a draft model with the other."""
    base = tiny_base_model(vocab_size=len(tokenizer))
    if arguments.pop("assisted", True):
        draft = tiny_base_model(seed=3, vocab_size=len(other), max_position_embeddings=512)
        arguments |= {"assistant_model": draft, "tokenizer": tokenizer, "assistant_tokenizer": other}
    prompt = tokenizer("the film was good and the")["input_ids"]
    return prompt, generate(base, recorder, prompt, max_new_tokens=10, **arguments)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_draft_model_with_another_tokenizer(two_tokenizers, do_sample):
    """The draft model's `generate` passes ids that mean something else to the reward model, which costs drafts only."""
    tokenizer, other = two_tokenizers
    # Random tokens make a text that is longer in the other tokenizer.
    model = tiny_reward_model(vocab_size=len(tokenizer), max_position_embeddings=512)
    recorder = Recorder(PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K, tokenizer=tokenizer))
    prompt, output = with_another_tokenizer(tokenizer, other, recorder, do_sample=do_sample, top_k=0)
    calls = [call for call in recorder.calls if call[0][0, : len(prompt)].tolist() == prompt]
    oracle = Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)
    assert oracle.check(calls, [prompt])[0] >= output.shape[1] - len(prompt)
    if not do_sample:
        alone = with_another_tokenizer(tokenizer, other, guided(model), assisted=False)[1]
        assert torch.equal(output, alone)


def test_a_draft_model_with_a_larger_vocabulary(two_tokenizers):
    """Ids that the reward model cannot read are an error, and never wrong tokens."""
    other, tokenizer = two_tokenizers
    model = tiny_reward_model(vocab_size=len(tokenizer), max_position_embeddings=512)
    with pytest.raises(VocabularyError, match="Expected token ids below"):
        with_another_tokenizer(tokenizer, other, guided(model))

"""Pipelines, streams and chats of several turns: each call equals the oracle, and a turn reads only what is new."""

from functools import partial
from threading import Thread

import pytest
import torch
from oracle import Oracle, Recorder, count_reads, padded
from transformers import TextIteratorStreamer, TextStreamer, pipeline

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model, tiny_tokenizer

BETA, TOP_K, NEW = 0.7, 5, 8
CHATS = [
    [{"role": "user", "content": "how was the film?"}],
    [{"role": "system", "content": "be kind"}, {"role": "user", "content": "and the cast?"}],
    [
        {"role": "user", "content": "good?"},
        {"role": "assistant", "content": "it was bad"},
        {"role": "user", "content": "the music?"},
    ],
]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def base(tokenizer):
    return tiny_base_model(vocab_size=len(tokenizer), max_position_embeddings=512)


@pytest.fixture(scope="module")
def reward_model(tokenizer):
    return RewardModel(tiny_reward_model(vocab_size=len(tokenizer), max_position_embeddings=512))


@pytest.fixture(scope="module")
def oracle(reward_model):
    return Oracle(reward_model.model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)


@pytest.fixture
def recorder(reward_model, tokenizer):
    return Recorder(PartialRewardLogitsProcessor(reward_model, beta=BETA, top_k=TOP_K, tokenizer=tokenizer))


def ids(tokenizer, chat):
    """The tokens of a chat, or of a text."""
    if not isinstance(chat, str):
        chat = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(chat, add_special_tokens=False)["input_ids"]


def generate(base, recorder, prompt, **arguments):
    torch.manual_seed(1)
    # Without an end, so that the number of tokens is known.
    defaults = {"max_new_tokens": NEW, "top_k": 0, "suppress_tokens": [PAD, EOS], "pad_token_id": PAD}
    with torch.no_grad():
        return base.generate(**padded([prompt], PAD), **defaults, **arguments, logits_processor=[recorder])


@pytest.mark.parametrize("inputs", [CHATS, ["the film was good", "a", "the cast was"]], ids=["chats", "texts"])
@pytest.mark.parametrize("arguments", [{"do_sample": True}, {"num_beams": 2}], ids=str)
def test_a_pipeline_in_batches(tokenizer, base, recorder, oracle, inputs, arguments):
    generator = pipeline("text-generation", model=base, tokenizer=tokenizer)
    arguments = {"max_new_tokens": NEW, "suppress_tokens": [PAD], "logits_processor": [recorder], **arguments}
    assert len(generator(inputs, batch_size=2, **arguments)) == len(inputs)
    prompts = [ids(tokenizer, chat) for chat in inputs]
    # Two calls of generate, the second with what is left.
    second = next(index for index, call in enumerate(recorder.calls) if len(call[0]) != len(recorder.calls[0][0]))
    assert oracle.check(recorder.calls[:second], prompts[:2])[0] >= 2
    assert oracle.check(recorder.calls[second:], prompts[2:])[0] >= 2


@pytest.mark.parametrize("mode", [{}, {"do_sample": True}], ids=str)
def test_the_next_turn_reads_only_what_is_new(tokenizer, base, reward_model, recorder, oracle, mode):
    chat, known = ids(tokenizer, CHATS[0]), 0
    for question in ("and the cast?", "and the music?", "so?"):
        recorder.calls.clear()
        output, reads = count_reads(reward_model.backbone, partial(generate, base, recorder, chat, **mode))
        assert reads == [len(chat) - known + TOP_K] + [TOP_K] * (NEW - 1)
        assert oracle.check(recorder.calls, [chat])[0] == NEW
        # The token drawn last has been read as a candidate.
        known = output.shape[1]
        chat = [*output[0].tolist(), *ids(tokenizer, f"<|endoftext|><user>{question}<assistant>")]


def test_a_turn_that_goes_on_from_the_base_models_cache(tokenizer, base, recorder, oracle):
    first = generate(base, recorder, ids(tokenizer, CHATS[0]), return_dict_in_generate=True)
    chat = [*first.sequences[0].tolist(), *ids(tokenizer, "<|endoftext|><user>and?<assistant>")]
    recorder.calls.clear()
    generate(base, recorder, chat, past_key_values=first.past_key_values)
    assert oracle.check(recorder.calls, [chat])[0] == NEW


def test_streams(tokenizer, base, recorder, oracle, capsys):
    chat = ids(tokenizer, CHATS[0])
    generate(base, recorder, chat, streamer=TextStreamer(tokenizer))
    printed = capsys.readouterr().out
    streamer = TextIteratorStreamer(tokenizer, timeout=60)
    thread = Thread(target=generate, args=(base, recorder, chat), kwargs={"streamer": streamer})
    thread.start()
    assert "".join(streamer).strip() == printed.strip()
    thread.join()
    assert oracle.check(recorder.calls, [chat])[0] == 2 * NEW

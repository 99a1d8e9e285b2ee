"""Thousands of calls of `generate` on one object: right to the end, and memory stays flat."""

import gc
import resource
from random import Random

import pytest
import torch
from oracle import Oracle, Recorder, Rewards, of_prompt
from random_calls import LONGEST, a_generation, generate
from transformers import logging

from rgtg_logits import PartialRewardLogitsProcessor, RetokenizingScorer, RewardModel, WeightedScorer
from rgtg_logits.scorers.text import incremental
from rgtg_logits.testing import EOS, PAD, VOCAB_SIZE, tiny_reward_model, tiny_tokenizer

CALLS = 3000
CHECKED_EVERY = 50
TOP_K = 8


def one_model():
    model = tiny_reward_model()
    return RewardModel(model), Rewards(model)


def several_models(monkeypatch):
    """A model with a window, a recurrent one, and one that reads text in a format; their sum is not compared."""
    # Memories of texts become as large within the first calls as they ever do.
    monkeypatch.setattr(incremental, "_MAX_SEGMENTS", 500)
    base, own = tiny_tokenizer(vocab_size=VOCAB_SIZE), tiny_tokenizer(vocab_size=340)
    reader = RewardModel(tiny_reward_model(vocab_size=len(own) + 8, max_position_embeddings=512), own)
    texts = RetokenizingScorer(reader, base, prompt_format=lambda prompt, answer: f"Ask: {prompt} Answer: {answer}")
    texts._prompts.capacity = 500
    models = [RewardModel(tiny_reward_model(model_type)) for model_type in ("gemma2", "jamba")]
    return WeightedScorer([*models, texts], [0.3, 0.3, 0.3]), None


def held(scorer):
    """What is held: bytes of tensors without the cache's, bytes of the cache, Python objects, kB of the process."""
    gc.collect()
    things = gc.get_objects()
    storages = {}
    for thing in things:
        # Others, such as those of a compiler, have no memory.
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    cache = sum(one.cache_bytes() for one in getattr(scorer, "scorers", [scorer]))
    return sum(storages.values()) - cache, cache, len(things), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(autouse=True)
def _quiet():
    # transformers repeats at every draft that it passes its own processors on.
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()


@pytest.mark.slow
@pytest.mark.parametrize("number_of_models", ["one", "several"])
def test_thousands_of_calls_of_all_ways(number_of_models, capsys, monkeypatch):
    """Each call has its own strength and mode; its texts begin like others or are new."""
    subject, rewards = one_model() if number_of_models == "one" else several_models(monkeypatch)
    random = Random(0)
    processor = PartialRewardLogitsProcessor(subject, top_k=TOP_K, pad_token_id=PAD)
    rows, worst, memory = 0, 0.0, []
    texts = [[random.randint(5, 60) for _ in range(LONGEST)] for _ in range(3)]
    for number in range(CALLS):
        texts[number % 3] = [random.randint(5, 60) for _ in range(LONGEST)]
        call = a_generation(random.randint, texts)
        recorder = Recorder(processor.with_settings(beta=call.beta))
        generate(call, recorder)
        if rewards is not None and number % CHECKED_EVERY == 0:
            for place, (prompt, beta) in enumerate(zip(call.prompts, call.betas, strict=True)):
                oracle = Oracle(rewards, beta=beta, top_k=TOP_K, pad=PAD, eos=EOS)
                one = oracle.check(of_prompt(recorder.calls, place, len(call.prompts)), [prompt], tolerance=1e-3)
                rows, worst = rows + one[0], max(worst, one[1])
            rewards.known.clear()
        recorder.calls.clear()
        if number % (CALLS // 10) == CALLS // 10 - 1:
            memory.append(held(processor.scorer))
    tensors, caches, objects, process = zip(*memory, strict=True)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{CALLS} calls, {rows} rows compared, worst error {worst:.1e} nats; after each tenth {tensors} "
            f"bytes of tensors, {caches} of the cache, {objects} objects, {process} kB at the peak of the process"
        )
    # The least, because what the last call left differs; a row of each call would be 160 kB.
    assert min(tensors[5:]) <= min(tensors[:5]) + 50_000
    assert max(caches[5:]) <= 1.5 * max(caches[:5])
    # One object of each call would be 1,500 more.
    assert max(objects[5:]) <= max(objects[:5]) + 500
    assert process[9] <= process[4] + 4_000

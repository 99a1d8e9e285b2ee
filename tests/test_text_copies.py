"""Scorers that read text can be copied and pickled, for spawned workers; what they remember is left behind."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from rgtg_logits import PartialRewardLogitsProcessor, RetokenizingScorer, RewardModel, WeightedScorer
from rgtg_logits.scorers import Detokenizer, Retokenizer
from rgtg_logits.scorers.text.incremental import IncrementalTokenizer
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

LONG = "the film was good and the plot was bad, but the cast was fine. " * 12
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def joined(prompt, answer):
    return f"Q: {prompt}\nA:{answer}"


def length(prompts, responses):
    return [0.01 * len(response) for response in responses]


def reader():
    return RewardModel(tiny_reward_model(vocab_size=300, max_position_embeddings=4096), other_tokenizer())


def other_tokenizer():
    tokenizer = tiny_tokenizer(["zebra yak quiz"] * 5)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def base_tokenizer():
    tokenizer = tiny_tokenizer(kind="llama3")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def scorers():
    tokenizer = base_tokenizer()
    plain = RetokenizingScorer(reader(), tokenizer)
    yield plain
    yield RetokenizingScorer(reader(), tokenizer, prompt_format=joined)
    yield RetokenizingScorer(reader(), tokenizer, prompt_format="chat")
    yield WeightedScorer([plain, length], [1.0, 0.5], tokenizer=tokenizer)


def rewards(scorer, text=LONG):
    rows = torch.tensor([base_tokenizer()(text)["input_ids"]])
    scores = scorer.score(rows, torch.ones_like(rows), torch.tensor([[10, 20, 30]]))
    return scores - scores[:, :1]


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("number", range(4))
def test_copies_give_the_same_rewards(number, copied):
    scorer = list(scorers())[number]
    right = rewards(scorer)
    twin = copied(scorer)
    torch.testing.assert_close(rewards(twin), right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rewards(twin, "another text"), rewards(scorer, "another text"), atol=1e-4, rtol=1e-4)
    guided = copied(PartialRewardLogitsProcessor(scorer, top_k=5, tokenizer=base_tokenizer()))
    assert guided(torch.tensor([[7, 8]]), torch.randn(1, 300)).isfinite().sum() == 5


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_what_was_remembered_is_left_behind(copied):
    tokenizer = IncrementalTokenizer(other_tokenizer())
    tokens = tokenizer.encode([LONG])
    assert tokenizer._segment.cache_info().currsize > 0
    twin = copied(tokenizer)
    assert twin._segment.cache_info().currsize == 0
    assert twin._segment._function.__self__ is twin and twin.encode([LONG]) == tokens
    for thing in (Detokenizer(base_tokenizer()), Retokenizer(base_tokenizer(), other_tokenizer(), "chat")):
        copied(thing)


def test_a_spawned_worker():
    scorer = RetokenizingScorer(reader(), base_tokenizer(), prompt_format=joined)
    right = rewards(scorer)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(rewards, scorer).result()
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)

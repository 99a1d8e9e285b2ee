"""The parts of `rgtg pairs`: sampling, rows, the journal, settings. None of it needs `datasets`."""

import math
from hashlib import shake_256

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.pairs import PairSettings
from rgtg_logits.pairs.journal import Journal
from rgtg_logits.pairs.rows import RowCounts, ScoredAnswer, answer_pairs, make_rows, win_probability
from rgtg_logits.sampling.prompts import Prompt, encode_prompts
from rgtg_logits.sampling.sampler import InverseTransformProcessor, Sampler, hashed_uniforms
from rgtg_logits.testing import (
    EOS,
    tiny_base_model,
    tiny_tokenizer,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["the film was", "a good plot, a bad cast and"]
CHAT = [{"role": "user", "content": "the film"}]
SIZE = 300


def prompts(values=TEXTS, tokenizer=None, **options):
    return encode_prompts(values, tokenizer or tiny_tokenizer(), **options)


def settings(**changes):
    return PairSettings(**{"base": "b", "prompts": "p.txt", "reward": "r", "output": "o.jsonl", **changes})


def sampler(**options):
    return Sampler(tiny_base_model(vocab_size=SIZE), tiny_tokenizer(), **{"max_new_tokens": 12, **options})


# Drawing


def chi_square(counts, expected):
    """The statistic in standard deviations from its mean, cells with few expected draws taken together."""
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 0
    assert not counts[~kept].any()
    freedom = int(kept.sum()) - 1
    return float((((counts - expected) ** 2 / expected)[kept].sum() - freedom) / math.sqrt(2 * freedom))


def drawn_pairs(count, vocab=8, **options):
    """How often each pair of first tokens is drawn behind one prompt, and the model that draws them."""
    model = tiny_base_model(vocab_size=vocab)
    drawer = Sampler(model, tiny_tokenizer(), max_new_tokens=2, **options)
    rows = drawer.draw_tokens([[3, 4, 2]] * count, [f"0:0:{number}" for number in range(count)])
    table = torch.zeros(vocab, vocab + 1)
    for row in rows:
        table[row[0], row[1] if len(row) > 1 else vocab] += 1
    return table, model


@torch.no_grad()
def probabilities(model, warpers=(), vocab=8):
    """The probability of each pair of first tokens, from the model itself; an end is followed by nothing."""
    warp = LogitsProcessorList(warpers)

    def following(rows):
        return warp(rows, model(rows).logits[:, -1].float()).double().softmax(-1)

    prompt = torch.tensor([[3, 4, 2]])
    first = following(prompt)[0]
    second = following(torch.cat([prompt.repeat(vocab, 1), torch.arange(vocab)[:, None]], dim=1))
    joint = torch.cat([first[:, None] * second, torch.zeros(vocab, 1)], dim=1)
    joint[EOS] = 0
    joint[EOS, vocab] = first[EOS]
    return joint


def test_answers_are_draws_from_the_model():
    count = 6000
    counts, model = drawn_pairs(count)
    assert abs(chi_square(counts.flatten(), count * probabilities(model).flatten())) < 4
    other = probabilities(model, [TemperatureLogitsWarper(1.2)])
    assert chi_square(counts.flatten(), count * other.flatten()) > 10


def test_answers_are_draws_of_what_the_warpers_leave():
    count, options = 4000, {"temperature": 0.7, "top_k": 5, "top_p": 0.8}
    counts, model = drawn_pairs(count, **options)
    expected = probabilities(model, [TemperatureLogitsWarper(0.7), TopKLogitsWarper(5), TopPLogitsWarper(0.8)])
    assert (expected == 0).sum() > 30
    assert abs(chi_square(counts.flatten(), count * expected.flatten())) < 4


def test_numbers_are_those_of_the_hash():
    stream = shake_256(b"0:7:1").digest(64)
    wanted = [(int.from_bytes(stream[start : start + 8], "little") >> 11) / 2**53 for start in range(0, 64, 8)]
    assert hashed_uniforms("0:7:1", 8).tolist() == wanted and hashed_uniforms("0:7:1", 3).tolist() == wanted[:3]
    many = hashed_uniforms("0:0:0", 20_000)
    assert many.min() >= 0 and many.max() < 1 and abs(float(many.mean()) - 0.5) < 0.01


def test_tokens_of_probability_zero_are_never_drawn():
    scores = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).repeat(4, 1)
    numbers = torch.tensor([[0.0], [0.4999], [0.5], [1 - 2**-53]], dtype=torch.float64)
    drawn = InverseTransformProcessor(numbers, 2)(torch.zeros(4, 2, dtype=torch.long), scores)
    assert drawn.argmax(-1).tolist() == [1, 1, 3, 3] and drawn.isfinite().sum(-1).tolist() == [1, 1, 1, 1]


def test_scores_that_are_not_a_number():
    with pytest.raises(InvalidArgumentError, match=r"Expected finite scores .* some are NaN.* with --dtype"):
        InverseTransformProcessor(torch.zeros(1, 1, dtype=torch.float64), 1)(
            torch.zeros(1, 1, dtype=torch.long), torch.full((1, 3), torch.nan)
        )


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_an_answer_does_not_depend_on_the_batch(model_type):
    drawer = Sampler(tiny_base_model(model_type, vocab_size=SIZE), tiny_tokenizer(), max_new_tokens=12, seed=3)
    batch = [prompt for prompt in prompts([*TEXTS, "x"]) for _ in range(3)]
    numbers = [0, 1, 2] * 3
    together = drawer.draw(batch, numbers)
    alone = [drawer.draw([prompt], [number])[0] for prompt, number in zip(batch, numbers, strict=True)]
    backwards = drawer.draw(batch[::-1], numbers[::-1])[::-1]
    assert together == alone == backwards and len(set(together)) > 5
    other_seed = Sampler(tiny_base_model(model_type, vocab_size=SIZE), tiny_tokenizer(), max_new_tokens=12, seed=4)
    assert other_seed.draw(batch, numbers) != together


def test_the_end_is_no_part_of_an_answer():
    model, tokenizer = tiny_base_model(vocab_size=SIZE), tiny_tokenizer()
    # A second token that ends answers, as chat models have one, and penalties that are none of the base's business.
    model.generation_config.eos_token_id = [EOS, 40]
    model.generation_config.repetition_penalty = 50.0
    drawer, batch = Sampler(model, tokenizer, max_new_tokens=60), prompts(TEXTS[:1])
    keys = [f"0:0:{number}" for number in range(40)]
    tokens, answers = drawer.draw_tokens([batch[0].ids] * 40, keys), drawer.draw(batch * 40, range(40))
    assert {row[-1] for row in tokens if len(row) < 60} == {EOS, 40}
    assert any(len(set(row)) < len(row) for row in tokens)
    for row, answer in zip(tokens, answers, strict=True):
        assert answer.truncated == (row[-1] not in (EOS, 40))
        tokens_of_answer = row if answer.truncated else row[:-1]
        assert not {EOS, 40} & set(tokens_of_answer)
        whole = tokenizer.decode(batch[0].ids + tokens_of_answer, skip_special_tokens=True)
        assert (batch[0].text + answer.text).rstrip("\ufffd") == whole.rstrip("\ufffd")


# Prompts


def test_prompts_are_cut_and_prefixed():
    tokenizer = tiny_tokenizer()
    (cut,) = prompts(["the film was good and the end was bad"], prompt_tokens=4, prompt_prefix="<|endoftext|>")
    own = tokenizer("the film was good and the end was bad")["input_ids"][:4]
    assert cut.ids == [EOS, *own] and cut.value == "<|endoftext|>" + cut.text and cut.text == tokenizer.decode(own)
    (short,) = prompts(["film"], prompt_tokens=40)
    assert short.value == "film"


def test_messages_are_rendered():
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    (prompt,) = prompts([CHAT], tokenizer)
    rendered = "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt.ids) == rendered and prompt.text == "user\nthe film\nassistant\n"
    assert prompts([[]], tokenizer)[0].ids == []


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (None, {}, r"a base model with a chat template.* --prompt_column"),
        (CHATML, {"prompt_tokens": 3}, r"Expected texts, because prompt_tokens=3 .* Leave both out"),
        ("{{ raise_exception('no users') }}", {}, r"says of row 0: no users. Leave such rows out"),
    ],
)
def test_messages_that_cannot_be_rendered(template, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        prompts([CHAT], tiny_tokenizer(chat_template=template), **options)


# Rows


def judged(*rewards, text="answer"):
    return [ScoredAnswer(f"{text} {index}", False, reward) for index, reward in enumerate(rewards)]


def rows_of(answers, count=1, **changes):
    counts = RowCounts()
    batch = [Prompt(index, f"prompt {index}", f"prompt {index}", [2]) for index in range(count)]
    return list(make_rows(batch, answers, settings(**changes), counts)), counts


@pytest.mark.parametrize(("difference", "scale"), [(0.0, 1.0), (1.0, 1.0), (-2.0, 0.5), (3.0, 1.0)])
def test_bradley_terry_draws(difference, scale):
    count = 4000
    rows, counts = rows_of(judged(difference, 0.0) * count, count, scale=scale)
    share = sum(row["chosen"] == "answer 0" for row in rows) / count
    wanted = 1 / (1 + math.exp(-scale * difference))
    assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / count)
    assert (counts.rows, counts.ties) == (count, count * (difference == 0))
    assert all(row["chosen_reward"] == (difference if row["chosen"] == "answer 0" else 0.0) for row in rows)


def test_win_probabilities_at_the_ends():
    assert win_probability(-1e4) == 0 and win_probability(1e4) == 1 and win_probability(0.0) == 0.5


def test_the_better_one_wins_and_ties_are_left_out():
    rows, counts = rows_of([*judged(1.0, 2.0), *judged(3.0, 2.0), *judged(1.0, 1.0)], 3, label="argmax")
    assert [(row["chosen"], row["chosen_reward"], row["rejected_reward"]) for row in rows] == [
        ("answer 1", 2.0, 1.0), ("answer 0", 3.0, 2.0),
    ]  # fmt: skip
    assert counts.left_out == {"tie": 1} and counts.ties == 1 and counts.rows == 2


def test_what_is_left_out():
    bad = [("", 1.0), ("a", math.nan), ("a", math.inf), ("a", None)]
    answers = [
        each for text, reward in bad for each in (ScoredAnswer(text, False, reward), ScoredAnswer("b", False, 0.0))
    ]
    answers += [ScoredAnswer("same", False, 1.0)] * 2
    reasons = {"empty answer": 1, "reward not finite": 2, "too long for the reward": 1}
    assert rows_of(answers, 5)[1].left_out == {**reasons, "identical answers": 1}
    rows, counts = rows_of(answers, 10, format="labels")
    assert counts.left_out == reasons and [row["completion"] for row in rows] == ["b"] * 4 + ["same"] * 2


def test_which_answers_are_compared():
    assert answer_pairs(4, 2) == [(0, 1), (2, 3)]
    assert answer_pairs(5, 99) == [(0, 1), (2, 3), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 4), (3, 4)]
    rows, _ = rows_of(judged(3.0, 2.0, 1.0), samples=3, pairs_per_prompt=3, label="argmax")
    assert {(row["chosen"][-1], row["rejected"][-1]) for row in rows} == {("0", "1"), ("0", "2"), ("1", "2")}


def test_columns_are_those_that_trainers_take():
    answers = [ScoredAnswer("a", True, 1.5), ScoredAnswer("b", False, 0.5)]
    (row,), _ = rows_of(answers, label="argmax")
    assert row == {
        "prompt": "prompt 0", "chosen": "a", "rejected": "b", "chosen_reward": 1.5, "rejected_reward": 0.5,
        "chosen_truncated": True, "rejected_truncated": False,
    }  # fmt: skip
    first, _ = rows_of(answers, 2, format="labels")[0]
    assert first == {"prompt": "prompt 0", "completion": "a", "reward": 1.5, "truncated": True}


# Journal


def test_a_journal_goes_on(tmp_path):
    path = tmp_path / "new" / "journal"
    journal = Journal(path, {"seed": 0, "reward": None})
    journal.append([{"text": "ä\n"}, {"reward": math.nan}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Journal(path, {"reward": None, "seed": 0})
        kept = whole[first:cut].count(b"\n")
        assert len(again) == kept
        again.append([{"text": "c"}])
        texts = [record.get("text") for record in again.records()]
        assert texts == [*["ä\n", None][:kept], "c"]
    journal.remove()
    assert not path.exists()


def test_journals_that_are_refused(tmp_path):
    path = tmp_path / "journal"
    Journal(path, {"seed": 0, "top_k": 0}).append([{"text": "a"}])
    with pytest.raises(InvalidArgumentError, match=r"but seed was 0 and is 1. Use those settings to resume"):
        Journal(path, {"seed": 1, "top_k": 0})
    with path.open("ab") as file:
        file.write(b'{"answer": 0, "text": "b"}\n')
    with pytest.raises(InvalidArgumentError, match=r"line 3 is not that of answer 1, as if two runs had written"):
        Journal(path, {"seed": 0, "top_k": 0})
    path.write_bytes(b'{"seed": 0, "top_k": 0}\nnot json\n')
    with pytest.raises(InvalidArgumentError, match=r"line 2 is not JSON. Delete it to start anew"):
        Journal(path, {"seed": 0, "top_k": 0})
    path.write_bytes(b"not json\n")
    with pytest.raises(InvalidArgumentError, match=r"its first line is not JSON"):
        Journal(path, {"seed": 0, "top_k": 0})


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "pairs.txt"}, r"output to be a file that ends in .jsonl or .parquet, but got 'pairs.txt'"),
        ({"format": "triples"}, r"format to be one of pairs, labels, but got 'triples'"),
        ({"samples": 1}, r"samples to be 2 or more for pairs, but got 1"),
        ({"samples": 0, "format": "labels"}, r"samples to be 1 or more for labels"),
        ({"samples": 3, "pairs_per_prompt": 4}, r"between 1 and 3, the number of pairs of 3 answers, but got 4"),
        ({"label": "best"}, r"label to be one of bt, argmax"),
        ({"scale": math.inf}, r"scale to be a finite factor above 0"),
        ({"temperature": 0.0}, r"temperature to be a finite number above 0"),
        ({"top_p": 0.0}, r"top_p to be a probability above 0"),
        ({"top_k": -1}, r"top_k to be a number of tokens"),
        ({"max_new_tokens": 0}, r"max_new_tokens to be 1 token or more"),
        ({"batch_size": 0}, r"batch_size to be 1 or more"),
        ({"prompt_tokens": 0}, r"prompt_tokens to be 1 token or more"),
        ({"limit": 0}, r"limit to be 1 row or more"),
        ({"dtype": "int8"}, r"dtype to be one of auto, float32"),
    ],
)  # fmt: skip
def test_settings_out_of_range(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        settings(**changes)


def test_public_settings_hold_no_local_paths(tmp_path):
    (tmp_path / "base").mkdir()
    public = settings(base=str(tmp_path / "base"), reward="org/rm", output="made/o.jsonl", samples=4).public()
    assert (public["base"], public["reward"], public["output"], public["pairs_per_prompt"]) == (
        "base",
        "org/rm",
        "o.jsonl",
        2,
    )
    assert not {"label_name", "split", "prompt_prefix"} & set(public)
    assert not {"label", "scale", "pairs_per_prompt"} & set(settings(format="labels").public())

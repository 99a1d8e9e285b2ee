"""Prefix accuracy of `rgtg check`, and the files it reads pairs from."""

import sys

import pytest
import torch

from rgtg_logits import RewardModel
from rgtg_logits.check import ModelPair
from rgtg_logits.check.pairs import measure_prefix_accuracy, read_pairs
from rgtg_logits.check.run import _prefix_accuracy
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.prefix_accuracy import PERCENTS, PairRewards, pair_lengths, prefix_wins
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

ROWS = [
    {"prompt": "the film ", "chosen": "was good and the music was good", "rejected": "was bad"},
    {"prompt": "the cast ", "chosen": "a", "rejected": "and the end was bad, bad, bad"},
    {"prompt": "", "chosen": "good", "rejected": "good and good"},
]


def reward_model(tokenizer=None, **changes):
    return RewardModel(tiny_reward_model(vocab_size=300, **changes), tokenizer or tiny_tokenizer())


def tokenizer_with(**changes):
    tokenizer = tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_prefix_accuracy_is_that_of_the_trainer():
    reader = reward_model()
    rows = [*ROWS, {"chosen": "", "rejected": "bad"}, {"chosen": "same", "rejected": "same"}]
    found = measure_prefix_accuracy(reader, rows)
    wins = []
    for row in ROWS:
        texts = [row["prompt"] + row[column] + "<|endoftext|>" for column in ("chosen", "rejected")]
        batch = reader.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        rewards = reader.score_tokens(batch["input_ids"], batch["attention_mask"])
        lengths = pair_lengths(batch["input_ids"], batch["attention_mask"])
        wins.append(prefix_wins(PairRewards(rewards[:1], rewards[1:], lengths)))
    assert list(found.accuracy.values()) == pytest.approx(torch.cat(wins).mean(0).tolist())
    assert 0 < sum(found.accuracy.values()) < len(PERCENTS)
    assert (found.pairs, found.cut, found.left_out) == (3, 0, 2)


def test_pairs_longer_than_the_context():
    found = measure_prefix_accuracy(reward_model(max_position_embeddings=8), ROWS)
    assert (found.pairs, found.cut) == (3, 2)


def test_prefix_accuracy_of_a_reward_that_sees_nothing():
    models = ModelPair(tiny_base_model(vocab_size=300), tiny_tokenizer(), reward_model())
    torch.nn.init.zeros_(models.reward_model.head.weight)
    finding = _prefix_accuracy(models, ROWS)
    assert finding.status == "note" and finding.value.startswith("0.50 / 0.50") and "guessing" in finding.advice


def test_pairs_of_messages():
    tokenizer = tokenizer_with(chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    turns = {name: [{"role": "assistant", "content": ROWS[0][name]}] for name in ("chosen", "rejected")}
    turns["prompt"] = [{"role": "user", "content": "the film "}]
    texts = {name: f"user: the film \nassistant: {ROWS[0][name]}\n" for name in ("chosen", "rejected")}
    reader, plain = reward_model(tokenizer=tokenizer), reward_model(tokenizer=tokenizer_with(eos_token=None))
    assert measure_prefix_accuracy(reader, [turns]).accuracy == measure_prefix_accuracy(plain, [texts]).accuracy
    with pytest.raises(InvalidArgumentError, match=r"got a prompt of type list .* for a tokenizer without one"):
        measure_prefix_accuracy(reward_model(), [turns])


def test_no_usable_pair():
    with pytest.raises(InvalidArgumentError, match="all 1 are empty or the same"):
        measure_prefix_accuracy(reward_model(), [{"chosen": "a", "rejected": "a"}])


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_files_of_pairs(tmp_path, suffix):
    datasets = pytest.importorskip("datasets")
    data, path = datasets.Dataset.from_list(ROWS), tmp_path / f"pairs.{suffix}"
    getattr(data, f"to_{suffix.removesuffix('l')}")(path)
    assert [row["chosen"] for row in read_pairs(str(path), 2)] == [row["chosen"] for row in ROWS[:2]]


def test_pairs_that_cannot_be_read(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(InvalidArgumentError, match=r"nothing.json' does not exist. Check --pairs"):
        read_pairs(str(tmp_path / "nothing.json"), 2)
    (tmp_path / "odd.jsonl").write_text('{"good": "a", "bad": "b"}\n')
    with pytest.raises(InvalidArgumentError, match=r"the columns chosen and rejected .* but got 'good', 'bad'. Rename"):
        read_pairs(str(tmp_path / "odd.jsonl"), 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"but reading it failed: .* Check --pairs"):
        read_pairs(str(tmp_path / "empty"), 2)


def test_pairs_without_the_package_that_reads_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidArgumentError, match="Expected the package datasets, .* Run: pip install datasets"):
        read_pairs("pairs.json", 2)

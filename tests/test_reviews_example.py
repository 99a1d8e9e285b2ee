from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rgtg_logits import RewardModel
from rgtg_logits.card import CardFacts
from rgtg_logits.card.files import card_differences, read_facts, write_card
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

pytest.importorskip("sklearn")
pytest.importorskip("trl")

EXAMPLE = Path(__file__).parents[1] / "examples" / "reviews"
COMMON = ["the", "film", "has", "a", "plot", "and", "an", "actor", "with", "music", "in", "every", "scene", "of", "it."]
WORDS = {0: ["dull", "weak", "awful", "boring"], 1: ["great", "warm", "lovely", "brilliant"]}


@pytest.fixture
def example(monkeypatch):
    # The modules of an example import each other by name, as in any script's folder.
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = {path.stem for path in EXAMPLE.glob("*.py")}
    for name in names & set(sys.modules):
        del sys.modules[name]
    yield __import__
    for name in names & set(sys.modules):
        del sys.modules[name]


def reviews(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = rng.randrange(2)
        text = " ".join(rng.choice(WORDS[label] if rng.random() < 0.3 else COMMON) for _ in range(40))
        rows.append({"text": f"{text}.<br />", "rating": 9 if label else 2, "label": label, "id": str(number)})
    return rows


@pytest.fixture
def inputs(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    splits = {"train": reviews(120, 0), "val": reviews(40, 1)}
    for split, rows in splits.items():
        with gzip.open(data / f"{split}.jsonl.gz", "wt") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    tokenizer = tiny_tokenizer([row["text"] for row in splits["train"]], vocab_size=400)
    tokenizer.save_pretrained(model)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    tiny_base_model(vocab_size=len(tokenizer), num_hidden_layers=3, **ids).save_pretrained(model)
    return {"data": str(data), "model": str(model), "output_dir": str(tmp_path / "out")}


def make_data(example, inputs) -> Path:
    sampling, data = example("sample_answers"), example("make_data")
    size = {"prompts": 16, "held_out_prompts": 6, "first_held_out": 4, "new_tokens": 8, "prompts_per_file": 4}
    sampling.main(sampling.Arguments(**inputs, **size))
    data.main(data.Arguments(**inputs, pairs=[4, 32, 64], plain_pairs=[8]))
    return Path(inputs["output_dir"])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_become_nested_data_of_the_tokens_that_were_sampled(example, inputs, monkeypatch):
    out = make_data(example, inputs)
    assert not (out / "data" / "gold-pairs-64").exists()  # Only 32 pairs were sampled.
    small, large = (rows(out / "data" / f"gold-pairs-{size}" / "train.jsonl") for size in (4, 32))
    assert (len(large), large[:4]) == (32, small)
    labels = rows(out / "data" / "gold-labels-32" / "train.jsonl")
    sampled = [row for path in sorted((out / "answers").glob("train-*")) for row in rows(path)]
    assert [row["input_ids"] for row in labels] == [r["prompt"] + a for r in sampled for a in r["answers"]]
    assert {len(row["prompt"]) for row in sampled} == {13} == {row["start"] for row in labels}
    for pair, both in zip(large, zip(labels[::2], labels[1::2], strict=True), strict=True):
        assert sorted([pair["chosen_reward"], pair["rejected_reward"]]) == sorted(row["reward"] for row in both)
    make = example("make_data")
    make.close_pairs(out / "data", "gold-pairs-32", 0)
    for pair, closed in zip(large, rows(out / "data" / "closed-pairs-32" / "train.jsonl"), strict=True):
        for key in ("chosen_ids", "rejected_ids"):
            assert closed[key][: len(pair[key])] == pair[key] and closed[key][-1] == 0
            assert len(closed[key]) - len(pair[key]) == (pair[key][-1] != 0)

    held_out = [row["prompt"] for path in (out / "answers").glob("held_out-*") for row in rows(path)]
    assert len(held_out) == 6

    monkeypatch.setenv("RGTG_REVIEWS", str(out))
    judges = example("judges")
    good, bad = judges.gold(["<|endoftext|>the film", "the film"], [" is great warm", " is dull weak"])
    assert good > 0 > bad
    assert judges.judge(["the film"], [" is great warm"])[0] > 0
    assert judges.gold(["the film"], [" is great warm"]) == [good]

    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.json*")}
    (out / "answers" / "train-00004.jsonl").unlink()
    make_data(example, inputs)
    changed = {path.name for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {"train-00004.jsonl"}
    again = [row for path in sorted((out / "answers").glob("train-*")) for row in rows(path)]
    assert again == sampled


def test_a_stored_sentiment_model_gives_the_same_log_odds(example):
    from datasets import Dataset

    sentiment = example("sentiment")
    model = sentiment.SentimentModel.fit(Dataset.from_list(reviews(80, 2)))
    stored = sentiment.SentimentModel.from_dict(json.loads(json.dumps(model.to_dict())))
    texts = [row["text"] for row in reviews(20, 3)]
    assert np.allclose(model.log_odds(texts), stored.log_odds(texts))
    assert model.accuracy(Dataset.from_list(reviews(40, 4))) > 0.9


def test_plain_style_counts_words_of_sentences(example):
    plain = example("judges").plain
    prompts = ["x"] * 4
    assert plain(prompts, ["One two. Three four five six!", "one two three four five", "", "Well... yes."]) == [
        pytest.approx(-3 / 5), -1.0, 0.0, pytest.approx(-1 / 5),
    ]  # fmt: skip


def test_reading_ease_is_flesch_s_formula(example):
    ease = example("judges").reading_ease
    easy, hard, none = ease(["x"] * 3, ["The cat sat. We like the film.", "Incomprehensible cinematography", "..."])
    assert easy == pytest.approx((206.835 - 1.015 * 7 / 2 - 84.6 * 7 / 7) / 10)
    assert hard == pytest.approx((206.835 - 1.015 * 2 - 84.6 * 12 / 2) / 10)
    assert none == 0.0


def test_the_prompt_of_a_dpo_pair_is_what_both_answers_share(example):
    split = example("train_dpo").split_prompt
    assert split({"chosen_ids": [1, 2, 3, 4], "rejected_ids": [1, 2, 5]}) == {
        "prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5],
    }  # fmt: skip
    # An answer may be the beginning of the other one.
    assert split({"chosen_ids": [1, 2], "rejected_ids": [1, 2, 5]}) == {
        "prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2, 5],
    }  # fmt: skip


@pytest.mark.slow
def test_every_model_is_trained_from_the_same_data(example, inputs):
    out = make_data(example, inputs)
    for kind in ("pairs", "labels"):
        (out / "data" / f"gold-{kind}-32").rename(out / "data" / f"gold-{kind}-8000")
    cut = example("cut_layers")
    cut.main(cut.Arguments(model=inputs["model"], output_dir=inputs["output_dir"], layers=[2]))
    names = ["full_bt", "partial_bt_layers_2"]
    command = ["bash", str(EXAMPLE / "train_reward_models.sh"), inputs["model"], str(out), *names]
    more = {"RGTG_MORE": "--max_steps 1 --use_cpu true", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, check=False, env={**os.environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [RewardModel.from_pretrained(out / "reward_models" / name) for name in names]
    assert [model.config.objective for model in found] == ["full_bt", "partial_bt"]
    assert [model.model.config.num_hidden_layers for model in found] == [3, 2]

    relabel = example("relabel")
    relabel.main(relabel.Arguments(output_dir=str(out), batch_size=5))
    gold, full = (rows(out / "data" / f"{name}-labels-8000" / "train.jsonl") for name in ("gold", "full_bt"))
    assert [row["input_ids"] for row in full] == [row["input_ids"] for row in gold]
    alone = found[0].score_tokens(torch.tensor([full[7]["input_ids"]]), torch.ones(1, len(full[7]["input_ids"])).long())
    assert full[7]["reward"] == pytest.approx(alone[0, -1].item(), abs=1e-5)

    accuracy = example("prefix_accuracy")
    accuracy.main(accuracy.Arguments(output_dir=str(out), reward_models=names))
    assert "| full_bt - partial_bt_layers_2 |" in (out / "prefix_accuracy.md").read_text()

    guided = example("sample_guided")
    small = {"guide": "full_bt", "betas": [1.0, 2.0], "first": 2, "prompts": 3, "candidates": 5, "new_tokens": 8}
    guided.main(guided.Arguments(**inputs, **small, name="guided", add=["full_bt-labels-8000"], batch_size=2))
    own, whole, added = (
        rows(out / "data" / name / "train.jsonl") for name in ("guided-answers", "guided-labels", "full_bt-labels-8000")
    )
    assert whole == added + own and len(own) == 6
    assert [row["input_ids"][: row["start"]] for row in own[:3]] == [
        row["input_ids"][: row["start"]] for row in own[3:]
    ]
    texts = [torch.tensor([row["input_ids"]]) for row in own]
    assert [row["reward"] for row in own] == pytest.approx(
        [float(found[0].score_tokens(ids)[0, -1]) for ids in texts], abs=1e-5
    )

    dpo, rl, judge = example("train_dpo"), example("train_rl"), example("train_judge")
    dpo.main(dpo.Arguments(model=inputs["model"], output_dir=str(out), betas=[0.1], batch_size=8))
    short = {"steps": 2, "save_steps": 1, "answers_per_step": 8, "answers_per_prompt": 4, "batch_size": 8}
    rl.main(rl.Arguments(**inputs, **short, prompts=16, new_tokens=8))
    judge.main(judge.Arguments(**inputs, longest=30, shortest=5, max_reviews=40))
    assert {path.name for path in (out / "policies").iterdir()} == {"dpo-0.1", "rl-1", "rl-2", "rl.tsv"}
    assert set(json.loads((out / "neural_judge.json").read_text())) == {"accuracy_30", "accuracy_76"}

    (out / "prompts").mkdir()
    texts = [json.dumps({"prompt": f"<|endoftext|>{row['text'][:30]}"}) + "\n" for row in reviews(3, 2)]
    (out / "prompts" / "val.jsonl").write_text("".join(texts))
    command = ["bash", str(EXAMPLE / "evaluate.sh"), inputs["model"], inputs["data"], str(out), "greedy"]
    done = subprocess.run(
        command, check=False, env={**os.environ, **more, "RGTG_MORE": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "evaluation" / "val-greedy" / "results.json").read_text())
    assert [policy["name"] for policy in found["policies"]] == ["base", "ARGS greedy"]
    assert set(found["policies"][0]["judges"]) == {"gold", "judge"}

    from rgtg_logits.sampling.judges import load_reward
    from rgtg_logits.sampling.prompts import Prompt

    reward = load_reward(str(out / "neural_judge"), label_name="positive")
    tokens = [3, 4]
    assert len(reward([Prompt(0, "the film", "the film", tokens)], [" is great"])) == 1


def test_spread_and_agreement_are_free_of_the_noise_of_rollouts(example):
    """Normal rewards of one variance: S - beta · m is a constant there, and both differ as the means do."""
    values, draw = example("candidate_values"), np.random.default_rng(0)
    shares, rollouts = np.array([0.4, 0.3, 0.2, 0.1]), 64
    means = draw.normal(size=(200, 4))
    steps = [
        {"shares": shares.tolist(), "rewards": (mean[:, None] + draw.normal(size=(4, rollouts))).tolist()}
        for mean in means
    ]
    centred = means - (means @ shares)[:, None]
    expected = np.sqrt(np.mean(centred**2 @ shares))
    both = [values.halves(step, 0.5) for step in steps]
    assert values.spread(both, "m") == pytest.approx(0.5 * expected, rel=0.02)
    assert values.spread(both, "S") == pytest.approx(0.5 * expected, rel=0.02)
    assert abs(values.spread(both, "difference")) < 0.02 * expected
    assert values.agreement(list(means), steps, 0.5, "m") == pytest.approx(1, abs=0.02)
    assert values.agreement(list(draw.normal(size=(200, 4))), steps, 0.5, "S") == pytest.approx(0, abs=0.15)


def test_what_is_published_is_what_was_measured(example, tmp_path):
    publish, run = example("publish"), tmp_path / "run"
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(vocab_size=len(tokenizer))
    source = run / "reward_models" / "partial_bt"
    model.config.rgtg = {"version": 1, "kind": "causal", "objective": "partial_bt"}
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    write_card(source, CardFacts(model_id="partial_bt", objective="partial_bt", steps=3))
    figures = {"mean": [0.5, 0.7], "standard_error": [0.01, 0.02]}
    accuracy = {"pairs": 9, "percents": [10, 100], "accuracy": {"partial_bt": figures, "full_bt": figures}}
    points = [("PARGS", 2.0), ("ARGS", 2.0), ("base", 0.0)]
    policies = [
        {"name": name, "beta": beta, "kl": [3.0, 2.0, 4.0], "judges": {"gold": {"reward": [beta, -1.0, 9.0]}}}
        for name, beta in points
    ]
    cut = {"policies": policies, "prompts": 4, "settings": {"top_k": 10, "max_new_tokens": 8}}
    files = {"prefix_accuracy": {**accuracy, "gold": figures}, "gold": {"accuracy": 0.9}}
    for name, values in {**files, "evaluation/val-cut/results": cut}.items():
        (run / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
        (run / f"{name}.json").write_text(json.dumps(values))

    publish.main(publish.Arguments(run=str(run), output_dir=str(tmp_path / "cards"), reward_name="rm"))
    folder = tmp_path / "cards" / "rm"
    shipped = RewardModel.from_pretrained(folder)
    assert (shipped.dtype, shipped.config.objective) == (torch.bfloat16, "partial_bt")
    for name, weights in shipped.model.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name].bfloat16()), name
    facts = read_facts(folder)
    assert (facts.steps, facts.model_id, facts.example.prompt) == (3, "rm", publish.EXAMPLE[0])
    assert [(point.beta, point.reward, point.kl) for point in facts.guidance.points] == [(0, 0, 3), (2, 2, 3)]
    assert [item.prefix_accuracy for item in facts.evaluations] == [{10: 0.5, 100: 0.7}] * 2
    assert card_differences(folder) == ""

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

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("trl")

EXAMPLE = Path(__file__).parents[1] / "examples" / "imdb_sentiment"


@pytest.fixture
def example(monkeypatch):
    # The modules of an example import each other by name, as in any script's folder.
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = {path.stem for path in EXAMPLE.glob("*.py")}
    yield __import__
    for name in names & set(sys.modules):
        del sys.modules[name]


def reviews(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    words = {0: ["dull", "weak", "awful", "boring"], 1: ["great", "warm", "lovely", "brilliant"]}
    common = [
        "the",
        "film",
        "has",
        "a",
        "plot",
        "and",
        "an",
        "actor",
        "with",
        "music",
        "in",
        "every",
        "scene",
        "of",
        "it",
    ]
    rows = []
    for number in range(count):
        label = rng.randrange(2)
        text = " ".join(rng.choice(words[label] if rng.random() < 0.3 else common) for _ in range(40))
        rows.append({"text": f"{text}.<br />", "rating": 9 if label else 2, "label": label, "id": str(number)})
    return rows


@pytest.fixture
def inputs(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    splits = {"train": reviews(200, 0), "val": reviews(60, 1)}
    for split, rows in splits.items():
        with gzip.open(data / f"{split}.jsonl.gz", "wt") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    tokenizer = tiny_tokenizer([row["text"] for row in splits["train"]], vocab_size=400)
    tokenizer.save_pretrained(model)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    tiny_base_model(vocab_size=len(tokenizer), **ids).save_pretrained(model)
    return data, model


def run(data: Path, model: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLE / "run.py"), "--data", str(data), "--model", str(model), "--smoke"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out.parent / "cache")}
    return subprocess.run(
        [*command, "--output_dir", str(out), *more], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
def test_runs_from_data_to_figure_and_resumes(inputs, tmp_path):
    out = tmp_path / "out"
    first = run(*inputs, out)
    assert first.returncode == 0, first.stderr
    results = json.loads((out / "results.json").read_text())
    methods = {(line["method"], line["beta"]) for line in results["policies"]}
    assert methods >= {("base sampling", 0.0), ("PARGS sampling", 4.0), ("ARGS greedy", 1.0), ("PARGS greedy", 1.0)}
    for line in results["policies"]:
        assert np.isfinite([line["gold"], line["judge"], line["kl_per_token"], line["nll_per_token"]]).all()
        # The KL of a draw is not negative; the base cut to its top-k has lost some probability, so more than 0.
        assert line["kl_per_token"] > 0
    assert {len(results["prefix_accuracy"][name]["mean"]) for name in ("partial_bt", "full_bt")} == {5}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "| PARGS sampling | 4 |" in (out / "table.md").read_text()
    for objective in ("partial_bt", "full_bt"):
        reward_model = RewardModel.from_pretrained(out / "reward_models" / objective)
        assert (reward_model.config.objective, reward_model.dtype) == (objective, torch.bfloat16)

    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.json*") if path.name != "results.json"}
    (out / "policies" / "args-greedy-1.json").unlink()
    (out / "results.json").unlink()
    again = run(*inputs, out)
    assert again.returncode == 0, again.stderr
    changed = {path.name for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {"args-greedy-1.json"}
    repeated = json.loads((out / "results.json").read_text())
    assert [line["gold"] for line in repeated["policies"]] == [line["gold"] for line in results["policies"]]

    other = run(*inputs, out, "--seed", "1")
    assert other.returncode != 0
    assert "seed (was 0, is 1)" in other.stderr


@pytest.mark.parametrize("greedy", [False, True])
def test_meter_measures_the_kl_by_definition(example, greedy):
    decoding = example("decoding")
    base, tokenizer = tiny_base_model(pad_token_id=0, eos_token_id=1), tiny_tokenizer()
    reward_model = RewardModel(tiny_reward_model())
    processor = PartialRewardLogitsProcessor(reward_model, beta=2.0, top_k=5)
    policy = decoding.Policy("partial_bt", 2.0, greedy)
    prompts = [[1, 5, 9], [1, 7, 30]]
    found = decoding.decode(base, tokenizer, policy, prompts, processor=processor, new_tokens=12, batch_size=2)
    for prompt, ids, kl, nll in zip(prompts, found["ids"], found["kl"], found["nll"], strict=True):
        expected = expected_nll = 0.0
        for step, token in enumerate(ids):
            prefix = torch.tensor([[*prompt, *ids[:step]]])
            scores = base(prefix).logits[:, -1].detach()
            reference = scores.double().log_softmax(-1)
            policy_log = processor(prefix, scores).double().log_softmax(-1)
            inside = policy_log.isfinite()
            kl_now = (policy_log.exp()[inside] * (policy_log - reference)[inside]).sum()
            expected += -reference[0, token] if greedy else kl_now
            expected_nll -= reference[0, token]
        assert kl == pytest.approx(float(expected), abs=1e-3)
        assert nll == pytest.approx(float(expected_nll), abs=1e-3)


def test_a_continuation_ends_with_its_first_end_token(example):
    pairs = example("pairs")
    assert pairs.up_to_end([5, 1, 0, 0], 1) == [5, 1]
    assert pairs.up_to_end([5, 6], 1) == [5, 6]


def test_closing_adds_an_end_where_there_is_none(example):
    pair = {"chosen_ids": [3, 4], "rejected_ids": [3, 1], "prompt": "x"}
    assert example("pairs").close([pair], 1) == [{"chosen_ids": [3, 4, 1], "rejected_ids": [3, 1], "prompt": "x"}]


def test_repetition_lowers_distinct(example):
    distinct = example("decoding").distinct
    assert distinct([1, 2, 3, 4]) == 1
    assert distinct([1, 2, 1, 2, 1]) == 0.5
    assert distinct([1]) == 1


def test_equal_kl_compares_where_both_curves_are(example):
    rng = np.random.default_rng(0)
    luck = rng.normal(size=50)

    def record(method: str, beta: float, kl: float, reward: float) -> dict:
        rewards = (reward + luck).tolist()
        return {
            "method": method, "beta": beta, "kl": [kl * 10] * 50, "tokens": [10] * 50, "gold": rewards, "judge": rewards
        }  # fmt: skip

    records = [record("base sampling", 0.0, 0.1, 0.0), record("PARGS sampling", 1.0, 0.5, 2.0)]
    records += [record("ARGS sampling", 1.0, 0.9, 2.0)]
    found = example("report").at_equal_kl(records, "gold", 0)
    assert max(found["kl_per_token"]) == pytest.approx(0.5)
    assert found["pargs"][-1] - found["args"][-1] == pytest.approx(1.0)
    # Resampling the same prompts for both curves leaves no doubt about a difference that is the same for all.
    assert found["difference_interval"][-1] == pytest.approx([1.0, 1.0])


def test_a_stored_sentiment_model_gives_the_same_log_odds(example):
    from datasets import Dataset

    sentiment = example("sentiment")
    rows = reviews(80, 2)
    model = sentiment.SentimentModel.fit(Dataset.from_list(rows))
    stored = sentiment.SentimentModel.from_dict(json.loads(json.dumps(model.to_dict())))
    texts = [row["text"] for row in reviews(20, 3)]
    assert np.allclose(model.log_odds(texts), stored.log_odds(texts))
    assert model.accuracy(Dataset.from_list(reviews(40, 4))) > 0.9


def test_the_label_of_a_pair_follows_the_gold_reward(example):
    pairs, tokenizer = example("pairs"), tiny_tokenizer()

    class Gold:
        def log_odds(self, texts):
            return np.array([30.0 if "good" in text else -30.0 for text in texts])

    prompt, good, bad = (tokenizer(text)["input_ids"] for text in ("<|endoftext|>the film", " good", " bad"))
    row, other = pairs.compare(Gold(), tokenizer, [prompt], [[bad, good, good, bad]], seed=0)
    assert row["chosen"] == other["chosen"] == " good"
    assert row["chosen_ids"] == [*prompt, *good]
    assert row["prompt"] == "<|endoftext|>the film"

"""The shipped models are as they would be pushed."""

import json
import re
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rgtg_logits import RewardModel
from rgtg_logits.card.files import card_differences, read_facts

CARDS = Path(__file__).parent.parent / "model_cards"
BASE, REWARD = CARDS / "tiny-imdb-base", CARDS / "tiny-imdb-partial-rm"
TEXT = "<|endoftext|>The acting in this movie is great"

pytestmark = pytest.mark.skipif(not REWARD.exists(), reason="an installed package has no shipped models")


def test_they_are_small_safe_and_complete():
    files = [path for path in CARDS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png"}
    for folder in (BASE, REWARD):
        assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}


def test_the_base_model_loads_plainly_and_speaks():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto"), AutoTokenizer.from_pretrained(BASE)
    assert model.dtype == torch.bfloat16 and tokenizer.padding_side == "left"
    inputs = tokenizer(["<|endoftext|>The", TEXT], return_tensors="pt", padding=True)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2


def test_the_reward_model_loads_plainly_and_through_the_library():
    plain = AutoModelForSequenceClassification.from_pretrained(REWARD, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        reward_model = RewardModel.from_pretrained(REWARD, dtype=torch.float32)
    assert plain.config.rgtg["objective"] == reward_model.config.objective == "partial_bt"
    ids = reward_model.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert float(plain(ids).logits) == pytest.approx(float(reward_model.score_tokens(ids)[0, -1]), abs=1e-5)
    praise, blame = reward_model.score(
        ["<|endoftext|>This film is "] * 2, ["a masterpiece, I loved it.", "the worst, a bore."]
    )
    assert praise > blame


def test_the_cards_say_what_the_facts_say(monkeypatch):
    assert card_differences(REWARD) == ""
    monkeypatch.syspath_prepend(str(CARDS.parent / "examples" / "reviews"))
    render = runpy.run_path(str(CARDS.parent / "examples" / "reviews" / "base_card.py"))["render"]
    assert render(json.loads((BASE / "facts.json").read_text())) == (BASE / "README.md").read_text(encoding="utf-8")
    for folder in (BASE, REWARD):
        ModelCard.load(folder / "README.md")


def test_the_usage_examples_print_what_the_card_says(monkeypatch, capsys):
    text = (REWARD / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "python", "text", "python"]
    monkeypatch.chdir(CARDS)  # There the ids of the card are the names of folders.
    names = {}
    for language, code in blocks:
        if language == "python":
            exec(code, names)
        else:
            assert capsys.readouterr().out == code
    assert type(names["model"]).__name__ == "LlamaForSequenceClassification"
    facts = read_facts(REWARD)
    assert names["scores"].tolist() == pytest.approx(facts.example.scores, abs=1e-4)


def test_the_figures_are_those_of_the_experiment():
    results, facts = CARDS.parent / "examples" / "results" / "reviews", read_facts(REWARD)
    found = json.loads((results / "prefix_accuracy.json").read_text())
    for item, key in zip(facts.evaluations, ("partial_bt", "full_bt"), strict=True):
        assert list(item.prefix_accuracy.values()) == found["accuracy"][key]["mean"]
        assert list(item.standard_error.values()) == found["accuracy"][key]["standard_error"]
        assert (list(item.prefix_accuracy), item.pairs) == (found["percents"], found["pairs"])
    policies = json.loads((results / "cut" / "results.json").read_text())["policies"]
    measured = {p["beta"]: (p["judges"]["gold"]["reward"][0], p["kl"][0]) for p in policies if p["name"] != "ARGS"}
    assert {point.beta: (point.reward, point.kl) for point in facts.guidance.points} == measured

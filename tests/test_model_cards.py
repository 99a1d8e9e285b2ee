"""The shipped models are as they would be pushed."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rgtg_logits import RewardModel
from rgtg_logits.card import BaseCardFacts, CardFacts, Evaluation, render_card

CARDS = Path(__file__).parent.parent / "model_cards"
BASE, REWARD = CARDS / "tiny-imdb-base", CARDS / "tiny-imdb-partial-rm"
TEXT = "<|endoftext|>The acting in this movie is great"

pytestmark = pytest.mark.skipif(not REWARD.exists(), reason="an installed package has no shipped models")


def test_they_are_small_safe_and_complete():
    files = [path for path in CARDS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
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
        ours = RewardModel.from_pretrained(REWARD, dtype=torch.float32)
    assert plain.config.rgtg["objective"] == ours.config.objective == "partial_bt"
    ids = ours.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert float(plain(ids).logits) == pytest.approx(float(ours.score_tokens(ids)[0, -1]), abs=1e-5)
    praise, blame = ours.score(["<|endoftext|>This film is "] * 2, ["a masterpiece, I loved it.", "the worst, a bore."])
    assert praise > blame


def test_the_cards_say_what_the_facts_say():
    base = json.loads((BASE / "facts.json").read_text())
    reward = json.loads((REWARD / "facts.json").read_text())
    reward["evaluations"] = tuple(
        Evaluation(**{**item, "prefix_accuracy": {int(key): value for key, value in item["prefix_accuracy"].items()}})
        for item in reward["evaluations"]
    )
    assert render_card(BaseCardFacts(**base)) == (BASE / "README.md").read_text()
    assert render_card(CardFacts(**reward)) == (REWARD / "README.md").read_text()

"""What the card of a training says, and that it was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_pairs
from datasets import Dataset, DatasetInfo
from huggingface_hub import ModelCard

from rgtg_logits.card import DataFacts, Evaluation
from rgtg_logits.card_files import check_folder, read_facts, write_card
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.testing import tiny_reward_model
from rgtg_logits.train import PartialRewardTrainer
from rgtg_logits.train.data import REASONS, PairCounts
from rgtg_logits.train.facts import (
    data_facts,
    hardware,
    objective_settings,
    reward_distribution,
    scored_example,
    training_seconds,
    with_errors,
)
from rgtg_logits.train.objectives import Weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_card_of_a_training_holds_what_was_measured(base: str, pairs: Dataset, make_config, tmp_path: Path) -> None:
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs, eval_dataset=make_pairs(7, seed=1))
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card(dataset_name="org/pairs", tags="films", license="mit")

    folder = tmp_path / "reward-model"
    facts = read_facts(folder)
    assert facts == replace(trainer.card_facts(dataset_name="org/pairs", license="mit"), tags=facts.tags)
    (evaluation,) = facts.evaluations
    for cut, value in evaluation.prefix_accuracy.items():
        assert value == metrics[f"eval_prefix_accuracy_{cut}"]
        assert evaluation.standard_error[cut] == pytest.approx(math.sqrt(value * (1 - value) / 7))
    assert (evaluation.pairs, evaluation.step, evaluation.loss) == (7, 2, metrics["eval_loss"])
    assert (facts.kind, facts.objective, facts.processes, facts.steps) == ("causal", "partial_bt", 1, 2)
    assert facts.data == DataFacts(
        name="org/pairs", on_hub=True, rows=12, cut=0, left_out={reason.replace("_", " "): 0 for reason in REASONS}
    )
    (runtime,) = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    assert facts.training_seconds == runtime > 0
    assert facts.hardware == hardware(torch.device("cpu")) and facts.hardware.startswith("CPU (")
    assert facts.example is None and facts.guidance is None
    assert facts.rewards.mean == metrics["eval_reward_mean"] and facts.rewards.source == "eval"
    assert facts.suggested_beta == pytest.approx(1 / metrics["eval_reward_std"], rel=0.05)
    assert "standard deviation" in facts.beta_source

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit" and "films" in card.data.tags
    assert "![Prefix accuracy by position" in card.content and (folder / "prefix_accuracy.png").stat().st_size > 5000
    assert f"- Hardware: {facts.hardware}\n" in card.content
    assert "```text" not in card.content and "None" not in card.content
    assert check_folder(folder) == ""


def test_a_person_can_add_facts_to_the_card_of_a_training(base: str, pairs: Dataset, make_config, tmp_path) -> None:
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs)
    trainer.create_model_card()
    file = tmp_path / "reward-model" / "facts.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "language": ["en"], "notes": ["Prefers short films."]}))

    assert "+Prefers short films." in check_folder(file.parent)
    write_card(file.parent, read_facts(file.parent))
    assert check_folder(file.parent) == ""
    assert ModelCard.load(file.parent / "README.md").data.language == ["en"]


def test_a_model_that_diverged_gets_a_card_all_the_same(base: str, pairs: Dataset, make_config, tmp_path) -> None:
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs, eval_dataset=make_pairs(3, seed=1))
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    trainer.evaluate()
    trainer.create_model_card()

    text = (tmp_path / "reward-model" / "README.md").read_text()
    assert "- On `eval` its scores or its loss were not finite.\n" in text
    assert "This card holds no evaluation on held-out data" in text and "| accuracy |" not in text


def stored(folder: Path, pairs: Dataset, info: DatasetInfo) -> Dataset:
    """The pairs as `datasets` keeps what it downloaded."""
    folder.mkdir(parents=True)
    pairs.save_to_disk(str(folder / "all"))
    (shard,) = (folder / "all").glob("*.arrow")
    shard.rename(folder / "pairs-train.arrow")
    return Dataset.from_file(str(folder / "pairs-train.arrow"), info=info, split="train")


@pytest.mark.parametrize("configuration", ["default", "films"])
def test_a_data_set_of_the_hub_is_known_by_its_folder(tmp_path: Path, pairs: Dataset, configuration: str) -> None:
    info = DatasetInfo(config_name=configuration)
    loaded = stored(tmp_path / "Org___film_pairs" / configuration / "0.0.0" / COMMIT, pairs, info)
    used = loaded.map(lambda row: {"length": len(row["chosen"])}).filter(lambda row: row["length"] > 3)

    known = DataFacts(
        name="Org/FilmPairs",
        on_hub=True,
        configuration=None if configuration == "default" else configuration,
        split="train",
        revision=COMMIT,
    )
    assert data_facts(loaded, "Org/FilmPairs") == data_facts(used, "Org/FilmPairs") == known
    # Of another data set, nothing of this is true.
    assert data_facts(loaded, "org/other-pairs") == DataFacts(name="org/other-pairs", on_hub=True)
    assert data_facts(loaded, str(tmp_path)) == DataFacts(name=tmp_path.name)


def test_data_of_which_little_is_known(tmp_path: Path, pairs: Dataset) -> None:
    counts = PairCounts(kept=3, cut=1, empty=2, identical=0, too_long=4)
    assert data_facts(pairs) is None
    assert data_facts(pairs.to_iterable_dataset(), "org/pairs") == DataFacts(name="org/pairs", on_hub=True)
    assert data_facts(pairs, counts=counts) == DataFacts(
        rows=3, cut=1, left_out={"empty": 2, "one sided": 0, "identical": 0, "too long": 4, "unusable": 0}
    )
    # A folder that is not named after a commit was not loaded from the Hub as it is there.
    converted = stored(tmp_path / "org___pairs" / "default" / "0.0.0" / ("f" * 64), pairs, DatasetInfo())
    assert data_facts(converted, "org/pairs") == DataFacts(name="org/pairs", on_hub=True)


def test_standard_errors_are_those_of_many_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    wins = (torch.rand(4000, 50, generator=generator) < 0.7).double().mean(1)
    found = with_errors(Evaluation(name="e", pairs=50, prefix_accuracy={100: 0.7}))
    assert found.standard_error[100] == pytest.approx(float(wins.std()), rel=0.05)

    noise = torch.randn(4000, 2, 200, generator=generator, dtype=torch.double)
    first, second = noise[:, 0], 0.6 * noise[:, 0] + 0.8 * noise[:, 1]
    correlations = torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(first, second, strict=True)])
    found = with_errors(Evaluation(name="e", texts=200, correlation={100: 0.6}))
    assert found.standard_error[100] == pytest.approx(float(correlations.std()), rel=0.05)

    measured = Evaluation(name="e", pairs=50, prefix_accuracy={100: 0.7}, standard_error={100: 0.5}, loss=0.25)
    assert with_errors(measured) == measured


def test_the_distribution_of_rewards() -> None:
    found = reward_distribution(torch.arange(101.0).reshape(1, 101), "eval")
    assert (found.prefixes, found.mean, found.source) == (101, 50.0, "eval")
    assert found.standard_deviation == pytest.approx(math.sqrt(101 * 102 / 12))
    assert found.quantiles == {5: 5.0, 25: 25.0, 50: 50.0, 75: 75.0, 95: 95.0}


def test_an_example_is_scored(tokenizer) -> None:
    reward_model = RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)
    found = scored_example(reward_model, "the film was", [" good", " bad and dull"])
    alone = reward_model.score(["the film was"], [" bad and dull"])
    assert (found.prompt, found.answers) == ("the film was", (" good", " bad and dull"))
    assert found.scores[1] == pytest.approx(float(alone[0]), abs=1e-6)


def test_settings_are_those_of_the_objective() -> None:
    weights = Weights(beta=2.0, clip=4.0, arm_beta=0.5, farma_weight=3.0)
    assert objective_settings("soft_value", weights) == {"beta": 2.0, "clip": 4.0}
    assert objective_settings("arm", weights) == {"arm_beta": 0.5}
    assert objective_settings("partial_bt", weights) == objective_settings("arm", None) == {}


def test_the_time_is_that_of_the_last_run() -> None:
    assert training_seconds([{"loss": 1.0}, {"train_runtime": 3}, {"eval_loss": 1.0}, {"train_runtime": 5}]) == 5.0
    assert training_seconds([{"loss": 1.0}]) is None

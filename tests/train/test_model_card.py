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
from peft import LoraConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from rgtg_logits.card import CardFacts, DataFacts, render_card
from rgtg_logits.card.files import card_differences, read_facts, write_card
from rgtg_logits.prefix_accuracy import last_tokens, pair_lengths
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.train import PartialRewardTrainer
from rgtg_logits.train.metrics import EvaluationMetrics
from rgtg_logits.train.model_card import (
    EvaluationRecord,
    card_facts,
    data_facts,
    evaluation_facts,
    hardware,
    objective_settings,
    training_seconds,
)
from rgtg_logits.train.objectives import LossSettings
from rgtg_logits.train.preprocessing import RowCounts

NONE_LEFT_OUT = {"empty": 0, "one sided": 0, "identical": 0, "too long": 0, "unusable": 0, "tied": 0, "mismatched": 0}
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
    assert facts.data == DataFacts(name="org/pairs", on_hub=True, rows=12, cut=0, left_out=NONE_LEFT_OUT)
    (runtime,) = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    assert facts.training_seconds == runtime > 0
    assert facts.hardware == hardware(torch.device("cpu")) and facts.hardware.startswith("CPU (")
    assert facts.rewards.mean == metrics["eval_reward_mean"]
    assert facts.rewards.standard_deviation == metrics["eval_reward_std"]
    assert list(facts.rewards.quantiles) == [5, 25, 50, 75, 95]
    assert facts.rewards.source == "`eval`, after step 2; quantiles: of those cut at 10, 25, 50, 75 and 100 %"
    assert facts.suggested_beta == pytest.approx(1 / metrics["eval_reward_std"], rel=0.05)
    assert facts.example is None and facts.guidance is None

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit" and "films" in card.data.tags
    assert "![Prefix accuracy by position" in card.content and (folder / "prefix_accuracy.png").stat().st_size > 5000
    assert f"- Hardware: {facts.hardware}\n" in card.content
    assert "```text" not in card.content and "None" not in card.content
    assert card_differences(folder) == ""


def test_a_person_can_add_facts_to_the_card_of_a_training(base: str, pairs: Dataset, make_config, tmp_path) -> None:
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs)
    trainer.create_model_card()
    file = tmp_path / "reward-model" / "facts.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "language": ["en"], "notes": ["Prefers short films."]}))

    assert "+Prefers short films." in card_differences(file.parent)
    write_card(file.parent, read_facts(file.parent))
    assert card_differences(file.parent) == ""
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


def test_an_adapter_says_so_until_it_is_merged(base: str, pairs: Dataset, make_config) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = PartialRewardTrainer(base, make_config(), train_dataset=pairs, peft_config=lora)
    adapter, whole = trainer.card_facts(), card_facts(trainer, merged=True)

    assert (adapter.adapter, whole.adapter) == (True, False)
    # How it was trained stays as it is.
    assert adapter.hyperparameters == whole.hyperparameters and whole.hyperparameters["target_modules"] == "q_proj"
    assert "peft" in whole.versions
    assert "PEFT adapter" in render_card(adapter) and "PEFT adapter" not in render_card(whole)


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
    counts = RowCounts(kept=3, cut=1, empty=2, too_long=4)
    assert data_facts(pairs) is None
    assert data_facts(pairs.to_iterable_dataset(), "org/pairs") == DataFacts(name="org/pairs", on_hub=True)
    left_out = {**NONE_LEFT_OUT, "empty": 2, "too long": 4}
    assert data_facts(pairs, counts=counts) == DataFacts(rows=3, cut=1, left_out=left_out)
    # A folder that is not named after a commit was not loaded from the Hub as it is there.
    converted = stored(tmp_path / "org___pairs" / "default" / "0.0.0" / ("f" * 64), pairs, DatasetInfo())
    assert data_facts(converted, "org/pairs") == DataFacts(name="org/pairs", on_hub=True)


def test_standard_errors_are_those_of_many_draws(pairs: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    wins = (torch.rand(4000, 50, generator=generator) < 0.7).double().mean(1)
    found = evaluation_facts(record(50, 0.7, pairs), None, pairs=True)
    assert found.standard_error[100] == pytest.approx(float(wins.std()), rel=0.05)

    noise = torch.randn(4000, 2, 200, generator=generator, dtype=torch.double)
    first, second = noise[:, 0], 0.6 * noise[:, 0] + 0.8 * noise[:, 1]
    correlations = torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(first, second, strict=True)])
    found = evaluation_facts(record(200, 0.6, pairs), None, pairs=False)
    assert found.standard_error[100] == pytest.approx(float(correlations.std()), rel=0.05)
    assert evaluation_facts(record(1, 0.0, pairs), None, pairs=False).standard_error == {}


def record(rows: int, value: float, dataset: Dataset) -> EvaluationRecord:
    metrics = EvaluationMetrics(
        rows, 0.5, {100: value}, prefixes=9, reward_mean=0.0, reward_std=1.0, reward_quantiles={50: 0.0}
    )
    return EvaluationRecord("held-out", metrics, 3, dataset)


def test_held_out_data_of_the_hub_bring_the_figures_into_its_index(tmp_path: Path, pairs: Dataset) -> None:
    folder = tmp_path / "org___pairs" / "default" / "0.0.0" / COMMIT
    known = evaluation_facts(record(12, 0.75, stored(folder, pairs, DatasetInfo())), "org/pairs", pairs=True)
    assert known.data == DataFacts(name="org/pairs", on_hub=True, split="train", revision=COMMIT)
    assert evaluation_facts(record(12, 0.75, pairs), "org/pairs", pairs=True).data is None

    card = render_card(CardFacts(model_id="org/rm", objective="full_bt", evaluations=(known,)))
    (result,) = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.dataset_revision, result.metric_value) == ("org/pairs", COMMIT, 0.75)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_distribution_of_scores_is_that_of_the_set(base: str, pairs: Dataset, make_config, batch_size) -> None:
    config = make_config(per_device_eval_batch_size=batch_size)
    trainer = PartialRewardTrainer(base, config, train_dataset=pairs, eval_dataset=make_pairs(7, seed=1))
    trainer.evaluate()
    found = trainer.card_facts().rewards

    batch = DataCollatorForPreference(pad_token_id=0)(list(trainer.eval_dataset))
    rewards = RewardModel(trainer.model).score_tokens(batch["input_ids"], batch["attention_mask"]).double()
    lengths = pair_lengths(batch["input_ids"], batch["attention_mask"])
    ends, start = torch.cat([lengths.chosen, lengths.rejected]), lengths.start.repeat(2)
    every = torch.cat([row[a:b] for row, a, b in zip(rewards, start, ends, strict=True)])
    assert found.prefixes == len(every)
    assert found.mean == pytest.approx(float(every.mean()), abs=1e-5)
    assert found.standard_deviation == pytest.approx(float(every.std(correction=0)), abs=1e-5)
    cut = rewards.gather(1, last_tokens(ends, start)).flatten()
    expected = torch.quantile(cut, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.double))
    assert list(found.quantiles.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_card_of_labelled_answers(base: str, make_config, tmp_path: Path) -> None:
    rows = [
        {"prompt": "the film was", "completion": f" {'good' if i % 3 else 'bad'} {i}", "reward": i % 3}
        for i in range(9)
    ]
    config = make_config(objective="soft_value", kind="vocabulary", soft_value_beta=0.5)
    data = Dataset.from_list(rows)
    trainer = PartialRewardTrainer(base, config, train_dataset=data, eval_dataset=data)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card()

    facts = read_facts(tmp_path / "reward-model")
    assert (facts.kind, facts.objective) == ("vocabulary", "soft_value")
    assert facts.settings == {"beta": 0.5, "clip": 5.0, "td_lambda": 1.0}
    (found,) = facts.evaluations
    assert found.texts == 9 and found.prefix_accuracy == {}
    for cut, value in found.correlation.items():
        assert value == metrics[f"eval_prefix_correlation_{cut}"]
    text = (tmp_path / "reward-model" / "README.md").read_text()
    assert "log E[exp(0.5 · r) | prefix]" in text and "](prefix_correlation.png)" in text
    assert "- Rows trained on: 9 answers with a reward\n" in text and "beta=1.0, top_k=20" in text
    assert "soft_value_beta" not in text  # It is among the settings of the objective.
    assert ModelCard(text).data.pipeline_tag == "text-generation"


def test_settings_are_those_of_the_objective() -> None:
    settings = LossSettings(beta=2.0, clip=4.0, arm_beta=0.5, farma_weight=3.0)
    assert objective_settings("soft_value", settings) == {"beta": 2.0, "clip": 4.0, "td_lambda": 1.0}
    assert objective_settings("value", settings) == {"td_lambda": 1.0}
    assert objective_settings("arm", settings) == {"arm_beta": 0.5}
    assert objective_settings("partial_bt", settings) == {}


def test_the_time_is_that_of_the_last_run() -> None:
    assert training_seconds([{"loss": 1.0}, {"train_runtime": 3}, {"eval_loss": 1.0}, {"train_runtime": 5}]) == 5.0
    assert training_seconds([{"loss": 1.0}]) is None

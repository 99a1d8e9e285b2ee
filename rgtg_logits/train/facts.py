"""What a training knows of its model, for the model card: no guesses, and what is not known is left out."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl import RewardTrainer

from rgtg_logits._card_facts import CardFacts, DataFacts, Evaluation, RewardDistribution, ScoredExample
from rgtg_logits._card_words import OBJECTIVES
from rgtg_logits.reward_model import RewardModel, RewardModelConfig
from rgtg_logits.train.data import REASONS, PairCounts
from rgtg_logits.train.objectives import Weights

# What a card tells of the training arguments when they differ from the defaults: that which shapes the weights.
_HYPERPARAMETERS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
    "max_length", "center_rewards_coefficient", "disable_dropout", "bf16", "fp16", "seed",
)  # fmt: skip
_LORA = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
_PACKAGES = ("rgtg_logits", "trl", "transformers", "torch", "datasets", "peft")
_SETTINGS = {"soft_value": ("beta", "clip"), "farma": ("farma_weight",), "arm": ("arm_beta",)}
_COMMIT = re.compile("[0-9a-f]{40}")

QUANTILES = (5, 25, 50, 75, 95)
"""Percent at which `reward_distribution` tells scores."""


def card_facts(
    trainer: RewardTrainer,
    *,
    counts: PairCounts | None = None,
    evaluations: Iterable[Evaluation] = (),
    rewards: RewardDistribution | None = None,
    weights: Weights | None = None,
    model_name: str | None = None,
    dataset_name: str | None = None,
    license: str | None = None,
) -> CardFacts:
    """Gathers what a training knows of its model.

    Args:
        trainer: The trainer, whose arguments have an `objective` and whose model has `config.rgtg`.
        counts: What became of the training rows.
        evaluations: What was measured; standard errors that are not there are worked out as `with_errors` says. Of a
            set on which a figure or the loss is not finite, the card says just that.
        rewards: Scores of held-out prefixes by the model as it is now.
        weights: The numbers in the losses.
        model_name: The model's name; by default that of the output folder.
        dataset_name: Hub id or path of the data.
        license: A licence identifier of the Hub, if known.
    """
    model = trainer.model
    adapter = isinstance(model, PeftModel)
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    base = str(inner.config.name_or_path or "")
    tokenizer: Any = trainer.processing_class
    args: Any = trainer.args
    found = list(evaluations)
    finite = [item for item in found if all(map(math.isfinite, (*item.figures.values(), item.loss or 0.0)))]
    described = RewardModelConfig.from_dict(inner.config.rgtg)
    return CardFacts(
        model_id=trainer.hub_model_id or model_name or Path(args.output_dir).name,
        objective=args.objective,
        kind=described.kind,
        unit=described.unit,
        settings=objective_settings(args.objective, weights),
        base_model=base if base and not Path(base).exists() else None,
        data=data_facts(trainer.train_dataset, dataset_name, counts),
        max_length=args.max_length,
        steps=trainer.state.global_step,
        evaluations=tuple(with_errors(item) for item in finite),
        limits=tuple(
            f"On `{item.name}` its scores or its loss were not finite." for item in found if item not in finite
        ),
        rewards=rewards if rewards is not None and math.isfinite(rewards.mean) else None,
        **_strength(described),
        hyperparameters=hyperparameters(args, model),
        hardware=hardware(args.device),
        processes=args.world_size,
        training_seconds=training_seconds(trainer.state.log_history),
        versions={name: version(name) for name in _PACKAGES if name != "peft" or adapter},
        pad_is_eos=tokenizer.pad_token_id == tokenizer.eos_token_id,
        adapter=adapter,
        license=license,
    )


def _strength(described: RewardModelConfig) -> dict[str, Any]:
    """A strength that was told from measured rewards; one that follows from the objective, the card knows itself."""
    beta = described.suggested_beta
    if beta is None or not math.isfinite(beta) or OBJECTIVES[str(described.objective)].beta is not None:
        return {}
    source = "one over the standard deviation of its scores of held-out prefixes, where guidance begins to be felt"
    return {"suggested_beta": float(f"{beta:.2g}"), "beta_source": source}


def objective_settings(objective: str, weights: Weights | None) -> dict[str, float]:
    """Those of `weights` that an objective uses."""
    return {} if weights is None else {name: getattr(weights, name) for name in _SETTINGS.get(objective, ())}


def data_facts(dataset: Any, name: str | None = None, counts: PairCounts | None = None) -> DataFacts | None:
    """Tells what is known of a data set.

    Args:
        dataset: As it was loaded, or mapped and filtered since.
        name: Hub id or path. Of a path only the last part is told, because the rest says nothing to a reader.
        counts: What became of its rows.

    Returns:
        The facts; None if there are none.
    """
    found = DataFacts()
    if name is not None and Path(name).exists():
        found = DataFacts(name=Path(name).name)
    elif name is not None:
        found = replace(_hub_source(dataset, name), name=name, on_hub=True)
    if counts is not None:
        left_out = {reason.replace("_", " "): getattr(counts, reason) for reason in REASONS}
        found = replace(found, rows=counts.kept, cut=counts.cut, left_out=left_out)
    return found if found != DataFacts() else None


def hyperparameters(args: Any, model: Any) -> dict[str, Any]:
    """Training arguments that differ from their defaults, and the shape of an adapter."""
    # Read from the fields, because building a second config resets the devices of this one (transformers 5.23).
    defaults = {field.name: field.default for field in fields(args)}
    values = {name: getattr(args, name) for name in _HYPERPARAMETERS if name in defaults}
    changed = {
        name: value
        for name, value in values.items()
        # Precision that is left to the device (None) is told only where it is not float32.
        if _plain(value) != _plain(defaults[name]) and (value or defaults[name] is not None)
    }
    if isinstance(model, PeftModel):
        adapter = model.active_peft_config
        changed |= {name: getattr(adapter, name) for name in _LORA if hasattr(adapter, name)}
    return {name: _plain(value) for name, value in changed.items()}


def hardware(device: torch.device) -> str:
    """The name of one device of a training."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return device.type


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall time of the last training run, which one that was resumed counts from where it went on."""
    runs = [float(entry["train_runtime"]) for entry in log if "train_runtime" in entry]
    return runs[-1] if runs else None


def with_errors(item: Evaluation) -> Evaluation:
    """Adds standard errors where there are none, taking rows as independent.

    Of an accuracy p of n pairs √(p (1 − p) / n), of a correlation r of n texts (1 − r²) / √(n − 1), which is that of
    normally distributed values.
    """
    errors = dict(item.standard_error)
    if not errors and item.pairs:
        errors = {cut: math.sqrt(p * (1 - p) / item.pairs) for cut, p in item.prefix_accuracy.items()}
    if not errors and item.texts and item.texts > 1:
        errors = {cut: (1 - r**2) / math.sqrt(item.texts - 1) for cut, r in item.correlation.items()}
    return replace(item, standard_error=errors)


def reward_distribution(rewards: Tensor, source: str | None = None) -> RewardDistribution:
    """Mean, spread and quantiles of scores of held-out prefixes.

    Args:
        rewards: Scores of at least two prefixes, of any shape.
        source: Which prefixes.
    """
    scores = rewards.detach().flatten().double().cpu()
    quantiles = scores.quantile(torch.tensor(QUANTILES, dtype=torch.double) / 100)
    return RewardDistribution(
        prefixes=len(scores),
        mean=float(scores.mean()),
        standard_deviation=float(scores.std()),
        quantiles=dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
        source=source,
    )


def scored_example(reward_model: RewardModel, prompt: str, answers: Sequence[str]) -> ScoredExample:
    """Scores answers to a prompt, so that a card can show what its usage example prints.

    Args:
        reward_model: Loaded in float32, as the example loads it.
        prompt: The prompt.
        answers: The answers.
    """
    scores = reward_model.score([prompt] * len(answers), list(answers)).tolist()
    return ScoredExample(prompt=prompt, answers=tuple(answers), scores=tuple(scores))


def _hub_source(dataset: Any, name: str) -> DataFacts:
    """Commit, split and configuration of a data set on the Hub, as the folder that `datasets` keeps it in is called.

    That is NAMESPACE___NAME/CONFIGURATION/VERSION/COMMIT, also after rows were mapped or filtered. A streamed or
    downloaded copy has no such folder, and then nothing is known.
    """
    if not isinstance(dataset, Dataset):
        return DataFacts()
    folders = {Path(file["filename"]).parent for file in dataset.cache_files}
    if len(folders) != 1:
        return DataFacts()
    parts = folders.pop().parts
    if len(parts) < 4 or not _COMMIT.fullmatch(parts[-1]) or _letters(parts[-4]) != _letters(name):
        return DataFacts()
    configuration = dataset.info.config_name
    return DataFacts(
        configuration=configuration if configuration != "default" else None,
        split=None if dataset.split is None else str(dataset.split),
        revision=parts[-1],
    )


def _letters(name: str) -> str:
    """A name as far as it survives in the name of a folder."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _plain(value: Any) -> Any:
    """Enums and sets as text, so that a card reads the same on every run."""
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return getattr(value, "value", value)

"""What a training knows of its model, for the model card: no guesses, and what is not known is left out."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from trl import RewardTrainer

from rgtg_logits.card import CardFacts, DataFacts, Evaluation, RewardDistribution
from rgtg_logits.reward_model import RewardModelConfig
from rgtg_logits.tokenization import text_boundaries
from rgtg_logits.train.data import PERCENTS, REASONS, PairCounts
from rgtg_logits.train.evaluation import Measured
from rgtg_logits.train.models import inner_model
from rgtg_logits.train.objectives import Weights

# What a card tells of the training arguments when they differ from the defaults: that which shapes the weights.
_HYPERPARAMETERS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
    "max_length", "center_rewards_coefficient", "disable_dropout", "bf16", "fp16", "seed",
)  # fmt: skip
_LORA = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
_PACKAGES = ("rgtg_logits", "trl", "transformers", "torch", "datasets", "peft")
_SETTINGS = {
    "value": ("td_lambda",),
    "soft_value": ("beta", "clip", "td_lambda"),
    "farma": ("farma_weight",),
    "arm": ("arm_beta",),
}
_COMMIT = re.compile("[0-9a-f]{40}")
# Objectives whose own strength the card names anyway.
_OWN_STRENGTH = ("soft_value", "arm")


class Measurement(NamedTuple):
    """What an evaluation found.

    Attributes:
        name: Name of the set, as it stands in the names of its metrics.
        found: What was measured.
        step: Optimiser step after which it was.
        dataset: The set.
    """

    name: str
    found: Measured
    step: int
    dataset: Any


def card_facts(
    trainer: RewardTrainer,
    *,
    counts: PairCounts | None = None,
    measurements: Sequence[Measurement] = (),
    model_name: str | None = None,
    dataset_name: str | None = None,
    license: str | None = None,
    merged: bool = False,
) -> CardFacts:
    """Gathers what a training knows of its model.

    Args:
        trainer: The trainer, whose arguments are a `PartialRewardConfig` and whose model has `config.rgtg`.
        counts: What became of the training rows.
        measurements: What was measured, the last one last. Of a set on which a figure or the loss is not finite, the
            card says just that.
        model_name: The model's name; by default that of the output folder.
        dataset_name: Hub id or path of the data.
        license: A licence identifier of the Hub, if known.
        merged: Whether the card is that of a model with the trained adapter inside its weights.
    """
    model = trainer.model
    adapter = isinstance(model, PeftModel)
    inner: Any = inner_model(model)
    base = str(inner.config.name_or_path or "")
    tokenizer: Any = trainer.processing_class
    args: Any = trainer.args
    described = RewardModelConfig.from_dict(inner.config.rgtg)
    finite = [item for item in measurements if _is_finite(item.found)]
    beta, source = suggested_beta(described)
    return CardFacts(
        model_id=trainer.hub_model_id or model_name or Path(args.output_dir).name,
        objective=args.objective,
        kind=described.kind,
        settings=objective_settings(args.objective, args.weights),
        base_model=base if base and not Path(base).exists() else None,
        data=data_facts(trainer.train_dataset, dataset_name, counts),
        max_length=args.max_length,
        steps=trainer.state.global_step,
        evaluations=tuple(evaluation(item, dataset_name, pairs=args.what.data == "pairs") for item in finite),
        rewards=reward_distribution(finite[-1]) if finite else None,
        suggested_beta=beta,
        beta_source=source,
        limits=tuple(
            f"On `{item.name}` its scores or its loss were not finite." for item in measurements if item not in finite
        ),
        hyperparameters=hyperparameters(args, model),
        hardware=hardware(args.device),
        processes=args.world_size,
        training_seconds=training_seconds(trainer.state.log_history),
        versions={name: version(name) for name in _PACKAGES if name != "peft" or adapter},
        pad_is_eos=tokenizer.pad_token_id in text_boundaries(tokenizer).end,
        adapter=adapter and not merged,
        license=license,
    )


def objective_settings(objective: str, weights: Weights) -> dict[str, float]:
    """Those of `weights` that an objective uses."""
    return {name: getattr(weights, name) for name in _SETTINGS.get(objective, ())}


def suggested_beta(described: RewardModelConfig) -> tuple[float | None, str | None]:
    """A guidance strength and where it is from; nothing where the objective itself says it, or nothing is known."""
    beta = described.suggested_beta
    if beta is None or described.reward_std is None or described.objective in _OWN_STRENGTH:
        return None, None
    return float(f"{beta:.2g}"), (
        "one over the standard deviation of its scores on held-out prefixes, at which guidance begins to be felt; it "
        "is no optimum"
    )


def evaluation(item: Measurement, dataset_name: str | None, *, pairs: bool) -> Evaluation:
    """A measurement as a fact, with standard errors that take rows as independent.

    Of an accuracy p of n pairs √(p (1 − p) / n), of a correlation r of n texts (1 − r²) / √(n − 1), which is that of
    normally distributed values.
    """
    found, n = item.found, item.found.rows
    source = data_facts(item.dataset, dataset_name)
    shared: dict[str, Any] = {
        "name": item.name,
        "step": item.step,
        "loss": found.loss,
        # Without a commit, nothing says that the set is of the same data as those that were trained on.
        "data": source if source is not None and source.revision is not None else None,
    }
    if pairs:
        errors = {cut: math.sqrt(p * (1 - p) / n) for cut, p in found.by_percent.items()}
        return Evaluation(pairs=n, prefix_accuracy=found.by_percent, standard_error=errors, **shared)
    errors = {cut: (1 - r**2) / math.sqrt(n - 1) for cut, r in found.by_percent.items()} if n > 1 else {}
    return Evaluation(texts=n, correlation=found.by_percent, standard_error=errors, **shared)


def reward_distribution(item: Measurement) -> RewardDistribution:
    """The scores of a measurement as a fact."""
    cuts = ", ".join(map(str, PERCENTS[:-1]))
    return RewardDistribution(
        prefixes=item.found.prefixes,
        mean=item.found.reward_mean,
        standard_deviation=item.found.reward_std,
        quantiles=item.found.reward_quantiles,
        source=f"`{item.name}`, after step {item.step}; quantiles: of those cut at {cuts} and {PERCENTS[-1]} %",
    )


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
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}, {threads} thread{'s' if threads != 1 else ''})"
    return device.type


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall time of the last training run, which one that was resumed counts from where it went on."""
    runs = [float(entry["train_runtime"]) for entry in log if "train_runtime" in entry]
    return runs[-1] if runs else None


def _is_finite(found: Measured) -> bool:
    return all(map(math.isfinite, (*found.by_percent.values(), found.loss, found.reward_mean, found.reward_std)))


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

"""Facts of a training for its model card: measured or read, never guessed; what is unknown is left out."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from peft import PeftModel
from trl import RewardTrainer

from rgtg_logits.card import CardFacts, DataFacts, PrefixEvaluation, RewardDistribution, write_card
from rgtg_logits.data_formats import REASONS
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.prefix_accuracy import PERCENTS, standard_error
from rgtg_logits.reward_model import RewardModelConfig, unwrap_adapter
from rgtg_logits.tokenization import text_boundaries
from rgtg_logits.train.metrics import EvaluationMetrics
from rgtg_logits.train.objectives import LossSettings
from rgtg_logits.train.preprocessing import RowCounts

# The training arguments that shape the weights; a card lists those that differ from their defaults.
_HYPERPARAMETERS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
    "max_length", "center_rewards_coefficient", "disable_dropout", "bf16", "fp16", "seed",
)  # fmt: skip
_LORA = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
_PACKAGES = ("rgtg_logits", "trl", "transformers", "torch", "datasets", "peft")
_COMMIT = re.compile("[0-9a-f]{40}")


class EvaluationRecord(NamedTuple):
    """An evaluation during or after the training.

    Attributes:
        name: Name of the set, as in the names of its metrics.
        metrics: Its metrics.
        step: Number of optimiser steps before it.
        dataset: The set.
    """

    name: str
    metrics: EvaluationMetrics
    step: int
    dataset: Any


class ModelCardMixin:
    """A trainer whose model card is made from the facts of its training."""

    args: Any
    row_counts: dict[str, RowCounts]
    evaluations: dict[str, EvaluationRecord]
    is_world_process_zero: Callable[[], bool]
    _tag_names: tuple[str, ...]
    _merging: bool

    def card_facts(
        self, model_name: str | None = None, dataset_name: str | None = None, *, license: str | None = None
    ) -> CardFacts:
        """Gathers the facts of this training; see `rgtg_logits.train.model_card.card_facts`."""
        return card_facts(
            cast(RewardTrainer, self),
            counts=self.row_counts.get("train"),
            records=list(self.evaluations.values()),
            model_name=model_name,
            dataset_name=dataset_name,
            license=license,
            merged=self._merging,
        )

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        *,
        license: str | None = None,
    ) -> None:
        """Writes the model card to `output_dir/README.md`, and its facts and pictures beside it.

        `rgtg card` renders it again from `facts.json`, to which facts can be added.

        Args:
            model_name: The model's name; by default that of the output folder.
            dataset_name: Hub id of the data (of a local path the last part is used).
            tags: Tags besides those of this library.
            license: A licence identifier of the Hub, if known.
        """
        if not self.is_world_process_zero():
            return
        extra = [tags] if isinstance(tags, str) else list(tags or [])
        facts = self.card_facts(model_name, dataset_name, license=license)
        facts = replace(facts, tags=tuple(sorted({*extra, *self._tag_names})))
        write_card(Path(self.args.output_dir), facts)


def card_facts(
    trainer: RewardTrainer,
    *,
    counts: RowCounts | None = None,
    records: Sequence[EvaluationRecord] = (),
    model_name: str | None = None,
    dataset_name: str | None = None,
    license: str | None = None,
    merged: bool = False,
) -> CardFacts:
    """Gathers the facts of a training.

    Args:
        trainer: The trainer, whose arguments are a `PartialRewardConfig` and whose model has `config.rgtg`.
        counts: Counts of the training rows.
        records: The evaluations, the last one last. Of a set with a metric that is not finite, the card says just
            that.
        model_name: The model's name; by default that of the output folder.
        dataset_name: Hub id or path of the data.
        license: A licence identifier of the Hub, if known.
        merged: Whether the card describes a model into whose weights the trained adapter is merged.
    """
    model = trainer.model
    has_adapter = isinstance(model, PeftModel)
    inner: Any = unwrap_adapter(model)
    base = str(inner.config.name_or_path or "")
    tokenizer: Any = trainer.processing_class
    args: Any = trainer.args
    config = RewardModelConfig.from_dict(inner.config.rgtg)
    finite = [record for record in records if _is_finite(record.metrics)]
    beta, beta_source = suggested_beta(config)
    return CardFacts(
        model_id=trainer.hub_model_id or model_name or Path(args.output_dir).name,
        objective=args.objective,
        kind=config.kind,
        settings=objective_settings(args.objective, args.loss_settings),
        base_model=base if base and not Path(base).exists() else None,
        data=data_facts(trainer.train_dataset, dataset_name, counts),
        max_length=args.max_length,
        steps=trainer.state.global_step,
        evaluations=tuple(
            evaluation_facts(record, dataset_name, pairs=args.objective_definition.data == "pairs") for record in finite
        ),
        rewards=reward_distribution(finite[-1]) if finite else None,
        suggested_beta=beta,
        beta_source=beta_source,
        limits=tuple(
            f"On `{record.name}` its scores or its loss were not finite." for record in records if record not in finite
        ),
        hyperparameters=hyperparameters(args, model),
        hardware=hardware(args.device),
        processes=args.world_size,
        training_seconds=training_seconds(trainer.state.log_history),
        versions={name: version(name) for name in _PACKAGES if name != "peft" or has_adapter},
        pad_is_eos=tokenizer.pad_token_id in text_boundaries(tokenizer).end,
        adapter=has_adapter and not merged,
        license=license,
    )


def objective_settings(objective: str, settings: LossSettings) -> dict[str, float]:
    """The settings that an objective uses."""
    return {name: getattr(settings, name) for name in OBJECTIVES[objective].settings}


def suggested_beta(config: RewardModelConfig) -> tuple[float | None, str | None]:
    """A guidance strength and its source; None where it follows from the objective itself, or nothing is known."""
    beta = config.suggested_beta
    objective = OBJECTIVES.get(config.objective or "")
    follows_from_objective = objective is not None and objective.suggested_beta is not None
    if beta is None or config.reward_std is None or follows_from_objective:
        return None, None
    return float(f"{beta:.2g}"), (
        "one over the standard deviation of its scores on held-out prefixes, at which guidance begins to be felt; it "
        "is no optimum"
    )


def evaluation_facts(record: EvaluationRecord, dataset_name: str | None, *, pairs: bool) -> PrefixEvaluation:
    """The facts of an evaluation, with standard errors that treat rows as independent.

    The standard error of a correlation r of n texts is (1 − r²) / √(n − 1), as for normally distributed values.
    """
    figures = record.metrics.by_percent
    rows = record.metrics.rows
    source = data_facts(record.dataset, dataset_name)
    shared: dict[str, Any] = {
        "name": record.name,
        "step": record.step,
        "loss": record.metrics.loss,
        # Without a commit, the set may be of other data than the training set.
        "data": source if source is not None and source.revision is not None else None,
    }
    if pairs:
        errors = {percent: standard_error(accuracy, rows) for percent, accuracy in figures.items()}
        return PrefixEvaluation(pairs=rows, prefix_accuracy=figures, standard_error=errors, **shared)
    errors = {}
    if rows > 1:
        errors = {percent: (1 - r**2) / math.sqrt(rows - 1) for percent, r in figures.items()}
    return PrefixEvaluation(texts=rows, correlation=figures, standard_error=errors, **shared)


def reward_distribution(record: EvaluationRecord) -> RewardDistribution:
    """The distribution of the scores in an evaluation."""
    metrics = record.metrics
    cuts = ", ".join(map(str, PERCENTS[:-1]))
    return RewardDistribution(
        prefixes=metrics.prefixes,
        mean=metrics.reward_mean,
        standard_deviation=metrics.reward_std,
        quantiles=metrics.reward_quantiles,
        source=f"`{record.name}`, after step {record.step}; quantiles: of those cut at {cuts} and {PERCENTS[-1]} %",
    )


def data_facts(dataset: Any, name: str | None = None, counts: RowCounts | None = None) -> DataFacts | None:
    """The facts of a data set.

    Args:
        dataset: The data set as it was loaded, or mapped and filtered since.
        name: Hub id or path. The card gets the last part of a path only, because the rest means nothing to a reader.
        counts: Counts of its rows.

    Returns:
        The facts; None if there are none.
    """
    facts = DataFacts()
    if name is not None and Path(name).exists():
        facts = DataFacts(name=Path(name).name)
    elif name is not None:
        facts = replace(_hub_source(dataset, name), name=name, on_hub=True)
    if counts is not None:
        left_out = {reason.replace("_", " "): getattr(counts, reason) for reason in REASONS}
        facts = replace(facts, rows=counts.kept, cut=counts.cut, left_out=left_out)
    return facts if facts != DataFacts() else None


def hyperparameters(args: Any, model: Any) -> dict[str, Any]:
    """Training arguments that differ from their defaults, and the shape of an adapter."""
    # Read from the fields, because building a second config resets the devices of this one (transformers 5.23).
    defaults = {field.name: field.default for field in fields(args)}
    values = {name: getattr(args, name) for name in _HYPERPARAMETERS if name in defaults}
    changed = {
        name: value
        for name, value in values.items()
        # A precision that was left to the device (default None) is listed only where it is not float32.
        if _plain(value) != _plain(defaults[name]) and (value or defaults[name] is not None)
    }
    if isinstance(model, PeftModel):
        adapter = model.active_peft_config
        changed |= {name: getattr(adapter, name) for name in _LORA if hasattr(adapter, name)}
    return {name: _plain(value) for name, value in changed.items()}


def hardware(device: torch.device) -> str:
    """The name of the device, or one of the devices, of a training."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}, {threads} thread{'s' if threads != 1 else ''})"
    return device.type


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall time of the last training run in seconds; of a resumed one, from the checkpoint on."""
    runs = [float(entry["train_runtime"]) for entry in log if "train_runtime" in entry]
    return runs[-1] if runs else None


def _is_finite(metrics: EvaluationMetrics) -> bool:
    values = [*metrics.by_percent.values(), metrics.loss, metrics.reward_mean, metrics.reward_std]
    return all(math.isfinite(value) for value in values)


def _hub_source(dataset: Any, name: str) -> DataFacts:
    """Commit, split and configuration of a data set on the Hub, read from the name of its folder in the cache.

    `datasets` stores it in NAMESPACE___NAME/CONFIGURATION/VERSION/COMMIT, and keeps the commit when rows are mapped or
    filtered. Of a streamed or downloaded copy nothing is known.
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
    """The letters and digits of a name, which survive in the name of a folder."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _plain(value: Any) -> Any:
    """Enums, sets and infinities as text, so that a card is the same on every run."""
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return getattr(value, "value", value)

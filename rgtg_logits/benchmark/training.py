"""The body of `rgtg benchmark --train`: optimiser steps of methods of training on the same pairs, in turns.

- partial_bt: this library's trainer, the loss on every prefix (`partial_bt`) from one forward per text;
- shared_prompt: the same with both answers of a pair in one row behind one copy of the prompt;
- trl: TRL's own `RewardTrainer`, whose loss is on finished answers only;
- row_per_prefix: the recipe of the paper's code, a data set with a row for each prefix pair. It is measured on random
  rows of that data set, and a pair is as many rows as an answer has tokens.

Texts are random tokens and models have random weights: neither changes what a step costs.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from rgtg_logits.benchmark.settings import TrainingBenchmarkSettings
from rgtg_logits.files import write_json
from rgtg_logits.instruments import StepClock, machine
from rgtg_logits.testing import tiny_tokenizer

VOCAB_SIZE = 32_000


@dataclass
class TrainingMeasurement:
    """One method of training at one size.

    Attributes:
        method: Name of the method.
        prompt_length: Tokens of each prompt.
        batch_size: Pairs, or rows, in one step.
        pairs_per_step: Pairs that one step trains on; less than one where a pair is many rows.
        seconds: Time of each step, one list for each round.
    """

    method: str
    prompt_length: int
    batch_size: int
    pairs_per_step: float
    seconds: list[list[float]] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """The median step."""
        return statistics.median(itertools.chain(*self.seconds))

    @property
    def pairs_per_second(self) -> float:
        """Pairs per second by the median step."""
        return self.pairs_per_step / self.step_seconds

    def speedup_over(self, other: TrainingMeasurement) -> float:
        """Ratio of pairs per second to another method's: the median over the rounds, because machines drift."""
        ratios = []
        for seconds, other_seconds in zip(self.seconds, other.seconds, strict=True):
            ratios.append(statistics.median(other_seconds) / statistics.median(seconds))
        return statistics.median(ratios) * self.pairs_per_step / other.pairs_per_step


@dataclass(frozen=True)
class TrainingBenchmarkReport:
    """All measurements of one run."""

    settings: TrainingBenchmarkSettings
    machine: dict[str, str]
    measurements: list[TrainingMeasurement]

    def ratios(self, item: TrainingMeasurement) -> dict[str, float]:
        """Ratios of pairs per second to TRL's trainer, and to one row per prefix, at the same size."""
        size = (item.prompt_length, item.batch_size)
        ratios = {}
        for other in self.measurements:
            if other.method in ("trl", "row_per_prefix") and (other.prompt_length, other.batch_size) == size:
                ratios[f"over_{other.method}"] = item.speedup_over(other)
        return ratios

    def table(self) -> Table:
        """A table of medians and ratios."""
        table = Table(title="Training: pairs per second, by the median optimiser step", box=SIMPLE_HEAD, padding=0)
        for column in ("prompt", "batch", "method", "ms per step", "pairs/s", "× TRL", "× row_per_prefix"):
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
        for item in self.measurements:
            ratios = self.ratios(item)
            names = ("over_trl", "over_row_per_prefix")
            table.add_row(
                str(item.prompt_length), str(item.batch_size), item.method, f"{1000 * item.step_seconds:.0f}",
                f"{item.pairs_per_second:.3g}", *(f"{ratios[name]:.3g}" if name in ratios else "" for name in names),
            )  # fmt: skip
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings, machine, medians, ratios and every single figure as JSON."""
        rows = [
            {**asdict(item), "pairs_per_second": item.pairs_per_second, "ratios": self.ratios(item)}
            for item in self.measurements
        ]
        write_json(path, {"settings": asdict(self.settings), "machine": self.machine, "measurements": rows})


def run_training_benchmark(
    settings: TrainingBenchmarkSettings, progress: Progress | None = None
) -> TrainingBenchmarkReport:
    """Measures every method at every size, in turns."""
    sizes = list(itertools.product(settings.prompt_lengths, settings.batch_sizes))
    total = len(sizes) * settings.rounds * len(settings.methods)
    task = progress.add_task("training", total=total) if progress else None
    measurements = []
    for prompt_length, batch_size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            workload = _TrainingWorkload(settings, prompt_length, batch_size, folder)
            runs = [(workload.measurement(method), workload.trainer(method)) for method in settings.methods]
            for item, (trainer, clock) in runs * settings.rounds:
                trainer.train()
                item.seconds.append(clock.seconds())
                if progress and task is not None:
                    progress.advance(task)
        measurements += [item for item, _ in runs]
    packages = ("torch", "transformers", "trl")
    return TrainingBenchmarkReport(settings, machine(torch.device(settings.device), packages), measurements)


class _StampSteps(TrainerCallback):
    """Stamps the end of every optimiser step, so that the first one, and what comes before it, is not timed."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.stamps.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.stamp()


class _TrainingWorkload:
    """The texts of one size, and the trainers that are compared on them."""

    def __init__(self, settings: TrainingBenchmarkSettings, prompt_length: int, batch_size: int, folder: str) -> None:
        self.settings = settings
        self.prompt_length = prompt_length
        self.batch_size = batch_size
        self.folder = folder
        self.tokenizer: PreTrainedTokenizerBase = tiny_tokenizer()
        self.rows = batch_size * (settings.steps + 1)

    def measurement(self, method: str) -> TrainingMeasurement:
        rows_per_pair = self.settings.answer_length if method == "row_per_prefix" else 1
        return TrainingMeasurement(method, self.prompt_length, self.batch_size, self.batch_size / rows_per_pair)

    def trainer(self, method: str) -> tuple[Trainer, StepClock]:
        """A trainer with a model of its own, and the clock that times its steps."""
        options: dict[str, Any] = {
            "output_dir": str(Path(self.folder, method)), "max_steps": self.settings.steps + 1, "save_strategy": "no",
            "per_device_train_batch_size": self.batch_size, "logging_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "gradient_checkpointing": False, "bf16": False, "max_length": None,
            "use_cpu": self.settings.device == "cpu",
        }  # fmt: skip
        # Packages of the train extra, which the other benchmark does without.
        from datasets import Dataset  # noqa: PLC0415
        from trl import RewardConfig, RewardTrainer  # noqa: PLC0415

        from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer  # noqa: PLC0415

        make: Callable[..., Trainer] = RewardTrainer
        args: RewardConfig = RewardConfig(**options)
        if method in ("partial_bt", "shared_prompt"):
            make = PartialRewardTrainer
            args = PartialRewardConfig(**options, shared_prompt=method == "shared_prompt")
        clock = StepClock(torch.device(self.settings.device))
        callbacks = [_StampSteps(clock)]
        data = Dataset.from_list(self._prefixes() if method == "row_per_prefix" else self._pairs())
        trainer = make(self._model(), args, train_dataset=data, processing_class=self.tokenizer, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        return trainer, clock

    def _model(self) -> LlamaForSequenceClassification:
        set_seed(self.settings.seed)
        heads = max(1, self.settings.width // 64)
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=self.settings.width, intermediate_size=self.settings.width * 8 // 3,
            num_hidden_layers=self.settings.layers, num_attention_heads=heads, num_key_value_heads=heads,
            max_position_embeddings=8192, num_labels=1, pad_token_id=0,
            eos_token_id=1,
        )  # fmt: skip
        return LlamaForSequenceClassification(config)

    def _pairs(self) -> list[dict[str, list[int]]]:
        generator = random.Random(self.settings.seed)

        def tokens(count: int) -> list[int]:
            return [generator.randrange(3, VOCAB_SIZE) for _ in range(count)]

        rows = []
        for _ in range(self.rows):
            prompt = tokens(self.prompt_length)
            chosen = prompt + tokens(self.settings.answer_length)
            rejected = prompt + tokens(self.settings.answer_length)
            rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
        return rows

    def _prefixes(self) -> list[dict[str, list[int]]]:
        """Random rows of the data set that has a row for each prefix pair."""
        generator = random.Random(self.settings.seed)
        rows = []
        for pair in self._pairs():
            length = self.prompt_length + generator.randint(1, self.settings.answer_length)
            rows.append({name: pair[name][:length] for name in ("chosen_ids", "rejected_ids")})
        return rows

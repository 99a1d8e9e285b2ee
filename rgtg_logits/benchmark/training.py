"""What training costs: whole optimiser steps of several ways to train on the same pairs, in turns, in one process.

- "ours": the loss on every prefix (`partial_bt`) from one forward per text;
- "shared_prompt": the same with both answers of a pair in one row behind one copy of the prompt;
- "trl": TRL's own `RewardTrainer`, whose loss is on finished answers only;
- "row_per_prefix": the recipe of the paper's code, a data set with a row for each prefix pair. It is measured on random
  rows of that data set, and a pair is as many rows as an answer has tokens.

Texts are random tokens and models have random weights: what they cost does not depend on it.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
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

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_json
from rgtg_logits.testing import tiny_tokenizer

WAYS = ("ours", "shared_prompt", "trl", "row_per_prefix")
VOCAB_SIZE = 32_000


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What to measure.

    Attributes:
        layers: Layers of the llama-style model.
        width: Its width.
        prompt_lengths: Prompt lengths in tokens.
        answer_length: Tokens of each answer.
        batch_sizes: Pairs in one optimiser step; rows with "row_per_prefix".
        steps: Steps that are timed in each turn; one more goes before them.
        rounds: How often each way takes its turn.
        ways: Which of `WAYS` to measure.
        device: "cpu", or "cuda" for the GPU that the trainer chooses.
        seed: Seed of weights and texts.
    """

    layers: int = 4
    width: int = 256
    prompt_lengths: tuple[int, ...] = (64,)
    answer_length: int = 128
    batch_sizes: tuple[int, ...] = (8,)
    steps: int = 4
    rounds: int = 3
    ways: tuple[str, ...] = WAYS
    device: str = "cpu"
    seed: int = 0


@dataclass
class TrainingMeasurement:
    """One way to train at one size.

    Attributes:
        way: Which way.
        prompt_length: Tokens of each prompt.
        batch_size: Pairs, or rows, in one step.
        pairs_per_step: How much of the data one step gets through.
        seconds: Time of each step, a list for each round.
    """

    way: str
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
        """By the median step."""
        return self.pairs_per_step / self.step_seconds

    def over(self, other: TrainingMeasurement) -> float:
        """How many times more pairs per second than another way: the median over the rounds, because machines drift."""
        rounds = zip(self.seconds, other.seconds, strict=True)
        times = statistics.median(statistics.median(theirs) / statistics.median(ours) for ours, theirs in rounds)
        return times * self.pairs_per_step / other.pairs_per_step


@dataclass(frozen=True)
class TrainingReport:
    """All measurements of one run."""

    settings: TrainingSettings
    machine: dict[str, str]
    measurements: list[TrainingMeasurement]

    def ratios(self, item: TrainingMeasurement) -> dict[str, float]:
        """How many times more pairs per second than TRL's trainer, and than one row per prefix, at the same size."""
        size = (item.prompt_length, item.batch_size)
        others = {other.way: other for other in self.measurements if (other.prompt_length, other.batch_size) == size}
        return {f"over_{way}": item.over(others[way]) for way in ("trl", "row_per_prefix") if way in others}

    def table(self) -> Table:
        """A table of medians and ratios."""
        table = Table(title="Training: pairs per second, by the median optimiser step", box=SIMPLE_HEAD, padding=0)
        for column in ("prompt", "batch", "way", "ms per step", "pairs/s", "× TRL", "× row_per_prefix"):
            table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
        for item in self.measurements:
            ratios = self.ratios(item)
            table.add_row(
                str(item.prompt_length), str(item.batch_size), item.way, f"{1000 * item.step_seconds:.0f}",
                f"{item.pairs_per_second:.3g}",
                *(f"{ratios[name]:.3g}" if name in ratios else "" for name in ("over_trl", "over_row_per_prefix")),
            )  # fmt: skip
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings, machine, medians, ratios and every single figure, as JSON."""
        rows = [
            {**asdict(item), "pairs_per_second": item.pairs_per_second, "ratios": self.ratios(item)}
            for item in self.measurements
        ]
        write_json(path, {"settings": asdict(self.settings), "machine": self.machine, "measurements": rows})


def run_training_benchmark(settings: TrainingSettings, progress: Progress | None = None) -> TrainingReport:
    """Measures every way at every size, in turns.

    Raises:
        InvalidArgumentError: If there is nothing to measure, or no such way.
    """
    _check(settings)
    sizes = list(itertools.product(settings.prompt_lengths, settings.batch_sizes))
    total = len(sizes) * settings.rounds * len(settings.ways)
    task = progress.add_task("training", total=total) if progress else None
    measurements = []
    for prompt_length, batch_size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(settings, prompt_length, batch_size, folder)
            runs = [(bench.measurement(way), bench.trainer(way)) for way in settings.ways]
            for item, (trainer, clock) in runs * settings.rounds:
                trainer.train()
                item.seconds.append(clock.steps())
                if progress and task is not None:
                    progress.advance(task)
        measurements += [item for item, _ in runs]
    return TrainingReport(settings, _machine(settings), measurements)


class _Clock(TrainerCallback):
    """Stamps the end of every step."""

    def __init__(self, device: str) -> None:
        self.device, self.stamps = device, list[float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.stamps = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step but the first, loading its batch included."""
        return [end - begin for begin, end in itertools.pairwise(self.stamps)]


class _Bench:
    """The texts of one size, and the trainers that are compared on them."""

    def __init__(self, settings: TrainingSettings, prompt_length: int, batch_size: int, folder: str) -> None:
        self.settings, self.prompt_length, self.batch_size, self.folder = settings, prompt_length, batch_size, folder
        self.tokenizer: PreTrainedTokenizerBase = tiny_tokenizer()
        self.rows = batch_size * (settings.steps + 1)

    def measurement(self, way: str) -> TrainingMeasurement:
        rows_per_pair = self.settings.answer_length if way == "row_per_prefix" else 1
        return TrainingMeasurement(way, self.prompt_length, self.batch_size, self.batch_size / rows_per_pair)

    def trainer(self, way: str) -> tuple[Trainer, _Clock]:
        """A trainer with a model of its own, and the clock that it turns."""
        options: dict[str, Any] = {
            "output_dir": str(Path(self.folder, way)), "max_steps": self.settings.steps + 1, "save_strategy": "no",
            "per_device_train_batch_size": self.batch_size, "logging_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "gradient_checkpointing": False, "bf16": False, "max_length": None,
            "use_cpu": self.settings.device == "cpu",
        }  # fmt: skip
        # Packages of the train extra, which the other benchmarks do without.
        from datasets import Dataset  # noqa: PLC0415
        from trl import RewardConfig, RewardTrainer  # noqa: PLC0415

        from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer  # noqa: PLC0415

        make: Callable[..., Trainer] = RewardTrainer
        args: RewardConfig = RewardConfig(**options)
        if way in ("ours", "shared_prompt"):
            make, args = PartialRewardTrainer, PartialRewardConfig(**options, shared_prompt=way == "shared_prompt")
        clock = _Clock(self.settings.device)
        data = Dataset.from_list(self._prefixes() if way == "row_per_prefix" else self._pairs())
        trainer = make(self._model(), args, train_dataset=data, processing_class=self.tokenizer, callbacks=[clock])
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
        draw = random.Random(self.settings.seed)

        def tokens(count: int) -> list[int]:
            return [draw.randrange(3, VOCAB_SIZE) for _ in range(count)]

        rows = []
        for _ in range(self.rows):
            prompt = tokens(self.prompt_length)
            texts = [prompt + tokens(self.settings.answer_length) for _ in range(2)]
            rows.append({"chosen_ids": texts[0], "rejected_ids": texts[1]})
        return rows

    def _prefixes(self) -> list[dict[str, list[int]]]:
        """Random rows of the data set that has a row for each prefix pair."""
        draw = random.Random(self.settings.seed)
        rows = []
        for pair in self._pairs():
            length = self.prompt_length + draw.randint(1, self.settings.answer_length)
            rows.append({name: pair[name][:length] for name in ("chosen_ids", "rejected_ids")})
        return rows


def _check(settings: TrainingSettings) -> None:
    unknown = set(settings.ways) - set(WAYS)
    if unknown or not settings.ways:
        raise InvalidArgumentError(
            f"Expected ways among {', '.join(WAYS)}, but got {', '.join(sorted(unknown)) or 'none'}. Name one of them."
        )
    counts = {
        "prompt_length": min(settings.prompt_lengths, default=0), "batch_size": min(settings.batch_sizes, default=0),
        "answer_length": settings.answer_length, "steps": settings.steps, "rounds": settings.rounds,
        "layers": settings.layers, "width": settings.width // 64,
    }  # fmt: skip
    for name, value in counts.items():
        if value < 1:
            raise InvalidArgumentError(
                f"Expected at least one of everything (and a width of 64), but {name} is too small. Raise it."
            )


def _machine(settings: TrainingSettings) -> dict[str, str]:
    device = f"CPU, {torch.get_num_threads()} threads" if settings.device == "cpu" else torch.cuda.get_device_name()
    return {"device": device, **{name: version(name) for name in ("torch", "transformers", "trl")}}

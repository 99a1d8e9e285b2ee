"""What to measure of the cost of guidance, what was measured, and what follows from it."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rgtg_logits.files import write_json

DEFAULT_ARMS = ("plain", "floor", "ours", "replicated", "recompute")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What to measure.

    Attributes:
        base: Hub id or folder of the base model; by default random weights, llama-style, of `layers` and `width`.
        reward_model: Hub id or folder of the reward model; by default of the base model's shape, random weights.
        text: A file of real text to continue: plain, or .jsonl or .json with a column "text". Left out, prompts are
            random tokens.
        layers: Layers of the random models.
        width: Width of the random models.
        prompt_lengths: Prompt lengths in tokens.
        batch_sizes: Numbers of prompts.
        top_ks: Numbers of candidates.
        new_tokens: Tokens to generate in each run (at most 3 by recomputing).
        rounds: How often each way takes its turn.
        arms: Which of `benchmark.ARMS` to measure.
        device: Where the models are.
        dtype: Type of their weights.
        seed: Seed of the weights and prompts.
        prepack: Whether our ways lay the reward models' weights out beforehand, on a CPU; the floor stays as it is.
    """

    base: str | None = None
    reward_model: str | None = None
    text: str | None = None
    layers: int = 12
    width: int = 768
    prompt_lengths: tuple[int, ...] = (64, 512)
    batch_sizes: tuple[int, ...] = (1,)
    top_ks: tuple[int, ...] = (20,)
    new_tokens: int = 24
    rounds: int = 3
    arms: tuple[str, ...] = DEFAULT_ARMS
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    prepack: bool = False


@dataclass
class Measurement:
    """One way of generating at one size.

    Attributes:
        arm: Which way.
        prompt_length: Tokens of each prompt.
        batch_size: Number of prompts.
        top_k: Number of candidates; None for a way that has none.
        first: Milliseconds to the first token, a figure per round.
        further: Milliseconds of each further token, all rounds.
        memory: Peak memory over what the models hold, in MiB, a figure per round.
        read: Tokens that the reward models read for each further token of one prompt, candidates included.
        cache: Bytes of the reward models' caches at the end; None where nobody counts them.
        bookkeeping: Share of a further step that our processor spends outside the reward models (of ours only).
    """

    arm: str
    prompt_length: int
    batch_size: int
    top_k: int | None = None
    first: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    cache: int | None = None
    bookkeeping: list[float] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Prompt length and batch size."""
        return self.prompt_length, self.batch_size

    def medians(self) -> dict[str, float]:
        """Median of each series; of `read`, which is a count and not a noisy time, the mean."""
        series = {"first_ms": self.first, "further_ms": self.further, "memory_mib": self.memory}
        series["bookkeeping_share"] = self.bookkeeping
        figures = {name: statistics.median(values) for name, values in series.items() if values}
        return {**figures, "read_tokens": statistics.fmean(self.read)} if self.read else figures


@dataclass(frozen=True)
class Derived:
    """What follows from several medians.

    Attributes:
        name: "over_floor": times as ratios to the floor of the same size. "prompt": how a further token's time grows
            between the shortest and the longest prompt, as a ratio and as a slope in milliseconds for each 1,000
            tokens of prompt, by itself and over the floor's. "candidates": the ratio of a further token with the most
            candidates to one with the fewest. "retokenizing": the ratio of a further token through another tokenizer
            to one through the same.
        arm: Of which way.
        batch_size: Number of prompts.
        prompt_length: Tokens of each prompt; None if the figures are about several lengths.
        top_k: Number of candidates; None if the way has none or the figures are about several.
        figures: The figures.
    """

    name: str
    arm: str
    batch_size: int
    prompt_length: int | None
    top_k: int | None
    figures: dict[str, float]


@dataclass(frozen=True)
class Profile:
    """Where a further token's time goes, in milliseconds per token of all rows.

    Attributes:
        arm: Which way; see `Measurement` for this and the next three.
        prompt_length: Tokens of each prompt.
        batch_size: Number of prompts.
        top_k: Number of candidates; None for a way that has none.
        parts: By part of the program; they add up to "all", behind which stands what is within another. Python's
            profiler looks at every call, which slows down what calls much and computes little.
        operations: By operation of torch, those inside others left out: its name, calls per token, milliseconds.
    """

    arm: str
    prompt_length: int
    batch_size: int
    top_k: int | None
    parts: dict[str, float]
    operations: list[dict[str, Any]]


@dataclass(frozen=True)
class ProfileReport:
    """All profiles of one run."""

    settings: BenchmarkSettings
    machine: dict[str, str]
    profiles: list[Profile]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them as JSON, with settings and machine."""
        write_json(path, asdict(self))


@dataclass(frozen=True)
class BenchmarkReport:
    """All measurements of one run."""

    settings: BenchmarkSettings
    machine: dict[str, str]
    measurements: list[Measurement]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings, machine, medians, what follows from them and every single figure, as JSON."""
        rows = [{**asdict(item), "medians": item.medians()} for item in self.measurements]
        derived = [asdict(item) for item in self.derived()]
        write_json(path, {"settings": asdict(self.settings), "machine": self.machine, "derived": derived,
                          "measurements": rows})  # fmt: skip

    def derived(self) -> list[Derived]:
        """What follows from the medians: ratios to the floor, growth with the prompt and with the candidates."""
        finders = (_over_floor, _prompt, _candidates, _retokenizing)
        return [found for finder in finders for found in finder(self.measurements)]

    def table(self) -> Table:
        """A table of medians, and of ratios to the floor of the same size."""
        table = Table(
            title="Medians in ms and their ratios to the floor, tokens read per token, MiB",
            box=SIMPLE_HEAD, padding=0,
        )  # fmt: skip
        for column in ("prompt", "batch", "way", "k", "first", "ratio", "next", "ratio", "read", "peak", "cache"):
            table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
        floors = {item.size: item.medians() for item in self.measurements if item.arm == "floor"}
        previous = None
        for item in self.measurements:
            if previous not in (None, item.size):
                table.add_section()
            previous = item.size
            table.add_row(*map(str, item.size), item.arm, *_cells(item, floors.get(item.size)))
        return table

    def notes(self) -> list[str]:
        """What the table has no column for: a line for each size, or for each batch size."""
        heading = "further token, share outside the reward models"
        lines: dict[str, list[str]] = {}
        for item in self.measurements:
            if item.bookkeeping:
                share = f"{_label(item)} {item.medians()['bookkeeping_share']:.1%}"
                lines.setdefault(f"{heading}, {_where(item)}", []).append(share)
        for found in self.derived():
            if found.name in HEADINGS:
                lines.setdefault(f"{HEADINGS[found.name]}, {_where(found)}", []).append(_figures(found))
        return [f"{start}: {'; '.join(parts)}" for start, parts in lines.items()]


HEADINGS = {
    "prompt": "further token, longest over shortest prompt",
    "candidates": "further token, most over fewest candidates",
    "retokenizing": "further token, another tokenizer over the same",
}


def _cells(item: Measurement, floor: dict[str, float] | None) -> list[str]:
    medians = item.medians()
    cells = ["" if item.top_k is None else str(item.top_k)]
    for name in ("first_ms", "further_ms"):
        cells += [f"{medians[name]:.1f}", f"{medians[name] / floor[name]:.2f}" if floor else ""]
    read = f"{medians['read_tokens']:.4g}" if item.read else ""
    cache = "" if item.cache is None else f"{item.cache / 2**20:.1f}"
    return [*cells, read, f"{medians['memory_mib']:.0f}", cache]


def _label(item: Measurement | Derived) -> str:
    return item.arm if item.top_k is None else f"{item.arm} (k {item.top_k})"


def _where(item: Measurement | Derived) -> str:
    batch = f"batch {item.batch_size}"
    return batch if item.prompt_length is None else f"prompt {item.prompt_length}, {batch}"


def _figures(item: Derived) -> str:
    """A derived figure as a note has it."""
    words = f"{_label(item)} {item.figures['ratio']:.2f}"
    if "ratio_over_floor" in item.figures:
        words += f" ({item.figures['ratio_over_floor']:.2f} × the floor's)"
    return words


def _over_floor(measurements: list[Measurement]) -> list[Derived]:
    floors = {item.size: item.medians() for item in measurements if item.arm == "floor"}
    return [
        Derived("over_floor", item.arm, item.batch_size, item.prompt_length, item.top_k, {
            name: item.medians()[name] / floors[item.size][name] for name in ("first_ms", "further_ms")
        })
        for item in measurements if item.size in floors and item.arm != "floor"
    ]  # fmt: skip


def _prompt(measurements: list[Measurement]) -> list[Derived]:
    floor_only = _prompt_of([item for item in measurements if item.arm == "floor"])
    floors = {found.batch_size: found.figures for found in floor_only}
    others = _prompt_of([item for item in measurements if item.arm != "floor"])
    for found in others:
        floor = floors.get(found.batch_size, {})
        # Where the floor does not grow beyond noise there is nothing to compare a slope with.
        ratios = {f"{name}_over_floor": found.figures[name] / value for name, value in floor.items() if value > 0}
        found.figures.update(ratios)
    return [*floor_only, *others]


def _prompt_of(measurements: list[Measurement]) -> list[Derived]:
    derived = []
    for (arm, batch, k), group in _grouped(measurements, "arm", "batch_size", "top_k"):
        times = {item.prompt_length: item.medians()["further_ms"] for item in group}
        short, long = min(times), max(times)
        if short < long:
            slope = 1000 * (times[long] - times[short]) / (long - short)
            derived.append(
                Derived("prompt", arm, batch, None, k, {"ratio": times[long] / times[short], "slope_ms": slope})
            )
    return derived


def _candidates(measurements: list[Measurement]) -> list[Derived]:
    derived = []
    for (arm, batch, length), group in _grouped(measurements, "arm", "batch_size", "prompt_length"):
        times = {item.top_k: item.medians()["further_ms"] for item in group if item.top_k is not None}
        if len(times) > 1:
            derived.append(
                Derived("candidates", arm, batch, length, None, {"ratio": times[max(times)] / times[min(times)]})
            )
    return derived


def _retokenizing(measurements: list[Measurement]) -> list[Derived]:
    derived = []
    for (batch, length, k), group in _grouped(measurements, "batch_size", "prompt_length", "top_k"):
        times = {item.arm: item.medians()["further_ms"] for item in group}
        if {"ours", "retokenizing"} <= set(times):
            ratio = {"ratio": times["retokenizing"] / times["ours"]}
            derived.append(Derived("retokenizing", "retokenizing", batch, length, k, ratio))
    return derived


def _grouped(measurements: list[Measurement], *names: str) -> list[tuple[tuple[Any, ...], list[Measurement]]]:
    """Measurements that agree in some attributes, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for item in measurements:
        groups.setdefault(tuple(getattr(item, name) for name in names), []).append(item)
    return list(groups.items())

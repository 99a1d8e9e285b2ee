"""The reports of `rgtg benchmark`: measurements, figures derived from their medians, and profiles."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rgtg_logits.benchmark.settings import BenchmarkSettings
from rgtg_logits.files import write_json


@dataclass
class MethodMeasurement:
    """One method of generating at one size.

    Attributes:
        method: Name of the method.
        prompt_length: Tokens of each prompt.
        batch_size: Number of prompts.
        top_k: Number of candidates; None for a method that has none.
        first: Milliseconds to the first token, one figure per round.
        further: Milliseconds of each further token, of all rounds.
        memory: Peak memory over what the models hold, in MiB, one figure per round.
        read: Tokens that the reward models read for each further token of one prompt, candidates included.
        cache: Bytes of the reward models' caches at the end; None where they are not counted.
        bookkeeping: Share of a further step that this library's processor spends outside the reward models.
    """

    method: str
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
        series = {
            "first_ms": self.first, "further_ms": self.further, "memory_mib": self.memory,
            "bookkeeping_share": self.bookkeeping,
        }  # fmt: skip
        figures = {name: statistics.median(values) for name, values in series.items() if values}
        if self.read:
            figures["read_tokens"] = statistics.fmean(self.read)
        return figures


@dataclass(frozen=True)
class DerivedFigure:
    """Figures that follow from the medians of several measurements.

    Attributes:
        name: "over_floor": times as ratios to the floor of the same size. "prompt": how a further token's time grows
            between the shortest and the longest prompt, as a ratio and as a slope in milliseconds for each 1,000
            tokens of prompt, by itself and over the floor's. "candidates": the ratio of a further token with the most
            candidates to one with the fewest. "retokenizing": the ratio of a further token through another tokenizer
            to one through the same.
        method: Name of the method.
        batch_size: Number of prompts.
        prompt_length: Tokens of each prompt; None if the figures are about several lengths.
        top_k: Number of candidates; None if the method has none or the figures are about several numbers.
        figures: The figures.
    """

    name: str
    method: str
    batch_size: int
    prompt_length: int | None
    top_k: int | None
    figures: dict[str, float]


@dataclass(frozen=True)
class MethodProfile:
    """Where the time of a further token goes, in milliseconds per token of all rows.

    `torch.profiler` records every operation, which slows down parts of many small operations.

    Attributes:
        method: Name of the method; see `MethodMeasurement` for this and the next three.
        prompt_length: Tokens of each prompt.
        batch_size: Number of prompts.
        top_k: Number of candidates; None for a method that has none.
        parts: Self time by part of the program; parts add up to "all".
        operations: Self time by operation of torch: its name, calls per token, milliseconds.
    """

    method: str
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
    profiles: list[MethodProfile]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings, machine and profiles as JSON."""
        write_json(path, asdict(self))


@dataclass(frozen=True)
class BenchmarkReport:
    """All measurements of one run."""

    settings: BenchmarkSettings
    machine: dict[str, str]
    measurements: list[MethodMeasurement]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings, machine, derived figures, medians and every single figure as JSON."""
        report = {
            "settings": asdict(self.settings),
            "machine": self.machine,
            "derived": [asdict(item) for item in self.derived()],
            "measurements": [{**asdict(item), "medians": item.medians()} for item in self.measurements],
        }
        write_json(path, report)

    def derived(self) -> list[DerivedFigure]:
        """Ratios to the floor, growth with the prompt and with the candidates, and the price of another tokenizer."""
        return [
            *_ratios_to_floor(self.measurements),
            *_growth_with_prompt(self.measurements),
            *_growth_with_candidates(self.measurements),
            *_retokenizing_ratios(self.measurements),
        ]

    def table(self) -> Table:
        """A table of medians, and of their ratios to the floor of the same size."""
        table = Table(
            title="Medians in ms and their ratios to the floor, tokens read per token, MiB",
            box=SIMPLE_HEAD, padding=0,
        )  # fmt: skip
        for column in ("prompt", "batch", "method", "k", "first", "ratio", "next", "ratio", "read", "peak", "cache"):
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
        floors = _floors(self.measurements)
        previous = None
        for item in self.measurements:
            if previous not in (None, item.size):
                table.add_section()
            previous = item.size
            table.add_row(*map(str, item.size), item.method, *_cells(item, floors.get(item.size)))
        return table

    def notes(self) -> list[str]:
        """Lines for figures without a column in the table: one for each size, or for each batch size."""
        heading = "further token, share outside the reward models"
        lines: dict[str, list[str]] = {}
        for item in self.measurements:
            if item.bookkeeping:
                share = f"{_label(item)} {item.medians()['bookkeeping_share']:.1%}"
                lines.setdefault(f"{heading}, {_size(item)}", []).append(share)
        for figure in self.derived():
            if figure.name in HEADINGS:
                lines.setdefault(f"{HEADINGS[figure.name]}, {_size(figure)}", []).append(_ratio(figure))
        return [f"{start}: {'; '.join(parts)}" for start, parts in lines.items()]


HEADINGS = {
    "prompt": "further token, longest over shortest prompt",
    "candidates": "further token, most over fewest candidates",
    "retokenizing": "further token, another tokenizer over the same",
}


def _cells(item: MethodMeasurement, floor: dict[str, float] | None) -> list[str]:
    medians = item.medians()
    cells = ["" if item.top_k is None else str(item.top_k)]
    for name in ("first_ms", "further_ms"):
        cells += [f"{medians[name]:.1f}", f"{medians[name] / floor[name]:.2f}" if floor else ""]
    read = f"{medians['read_tokens']:.4g}" if item.read else ""
    cache = "" if item.cache is None else f"{item.cache / 2**20:.1f}"
    return [*cells, read, f"{medians['memory_mib']:.0f}", cache]


def _label(item: MethodMeasurement | DerivedFigure) -> str:
    return item.method if item.top_k is None else f"{item.method} (k {item.top_k})"


def _size(item: MethodMeasurement | DerivedFigure) -> str:
    batch = f"batch {item.batch_size}"
    return batch if item.prompt_length is None else f"prompt {item.prompt_length}, {batch}"


def _ratio(figure: DerivedFigure) -> str:
    """A derived ratio as a note shows it."""
    note = f"{_label(figure)} {figure.figures['ratio']:.2f}"
    if "ratio_over_floor" in figure.figures:
        note += f" ({figure.figures['ratio_over_floor']:.2f} × the floor's)"
    return note


def _floors(measurements: list[MethodMeasurement]) -> dict[tuple[int, int], dict[str, float]]:
    """Medians of the floor by size."""
    return {item.size: item.medians() for item in measurements if item.method == "floor"}


def _ratios_to_floor(measurements: list[MethodMeasurement]) -> list[DerivedFigure]:
    floors = _floors(measurements)
    derived = []
    for item in measurements:
        floor = floors.get(item.size)
        if floor is not None and item.method != "floor":
            medians = item.medians()
            ratios = {name: medians[name] / floor[name] for name in ("first_ms", "further_ms")}
            derived.append(
                DerivedFigure("over_floor", item.method, item.batch_size, item.prompt_length, item.top_k, ratios)
            )
    return derived


def _growth_with_prompt(measurements: list[MethodMeasurement]) -> list[DerivedFigure]:
    """Growth of each method, the floor's first, and of the others over the floor's."""
    floor_growth = _growth_of([item for item in measurements if item.method == "floor"])
    floors = {growth.batch_size: growth.figures for growth in floor_growth}
    others = _growth_of([item for item in measurements if item.method != "floor"])
    for growth in others:
        for name, value in floors.get(growth.batch_size, {}).items():
            # Where the floor does not grow beyond noise there is nothing to compare a slope with.
            if value > 0:
                growth.figures[f"{name}_over_floor"] = growth.figures[name] / value
    return [*floor_growth, *others]


def _growth_of(measurements: list[MethodMeasurement]) -> list[DerivedFigure]:
    derived = []
    for (method, batch, k), group in _grouped(measurements, "method", "batch_size", "top_k"):
        times = {item.prompt_length: item.medians()["further_ms"] for item in group}
        short, long = min(times), max(times)
        if short < long:
            slope = 1000 * (times[long] - times[short]) / (long - short)
            figures = {"ratio": times[long] / times[short], "slope_ms": slope}
            derived.append(DerivedFigure("prompt", method, batch, None, k, figures))
    return derived


def _growth_with_candidates(measurements: list[MethodMeasurement]) -> list[DerivedFigure]:
    derived = []
    for (method, batch, length), group in _grouped(measurements, "method", "batch_size", "prompt_length"):
        times = {item.top_k: item.medians()["further_ms"] for item in group if item.top_k is not None}
        if len(times) > 1:
            ratio = {"ratio": times[max(times)] / times[min(times)]}
            derived.append(DerivedFigure("candidates", method, batch, length, None, ratio))
    return derived


def _retokenizing_ratios(measurements: list[MethodMeasurement]) -> list[DerivedFigure]:
    derived = []
    for (batch, length, k), group in _grouped(measurements, "batch_size", "prompt_length", "top_k"):
        times = {item.method: item.medians()["further_ms"] for item in group}
        if "guided" in times and "retokenizing" in times:
            ratio = {"ratio": times["retokenizing"] / times["guided"]}
            derived.append(DerivedFigure("retokenizing", "retokenizing", batch, length, k, ratio))
    return derived


def _grouped(
    measurements: list[MethodMeasurement], *names: str
) -> list[tuple[tuple[Any, ...], list[MethodMeasurement]]]:
    """Measurements that agree in some attributes, in order of appearance."""
    groups: dict[tuple[Any, ...], list[MethodMeasurement]] = {}
    for item in measurements:
        groups.setdefault(tuple(getattr(item, name) for name in names), []).append(item)
    return list(groups.items())

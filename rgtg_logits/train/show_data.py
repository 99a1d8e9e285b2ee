"""Report of how a training would read a data set: format, counts of rows by reason, and rows as the model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rgtg_logits.data_files import nothing_written_beside, reading
from rgtg_logits.data_formats import DATA, Reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.train.dataset_columns import DataChoice, check_columns, nothing_left
from rgtg_logits.train.length_limit import LengthLimit
from rgtg_logits.train.preprocessing import DatasetPreparation
from rgtg_logits.train.run import load_training_data


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A data set, and how it is to be read.

    Attributes:
        data: File, folder or Hub id.
        objective: The objective that it is read for; by default one that fits: pairs first.
        model: Model whose tokenizer and chat template render the rows; without one they are shown as they are read.
        split: The split.
        config: Configuration of a data set on the Hub.
        dataset_format: See `PartialRewardConfig`.
        columns: See `PartialRewardConfig`.
        max_length: Longest text in tokens; None for no limit.
        rows: How many rows to show.
    """

    data: str
    objective: str | None = None
    model: str | None = None
    split: str = "train"
    config: str | None = None
    dataset_format: str = "auto"
    columns: Sequence[str] = ()
    max_length: int | None = 1024
    rows: int = 3


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A data set as it is read.

    Attributes:
        format: Name of the format; None if the rows are tokens already.
        sets: Data sets of this format, in words.
        objective: The objective that it was read for.
        unread: Columns of texts that are not read.
        counts: Rows kept and cut, and left out by reason.
        rows: The first rows: the texts of each by name, as the model sees them, and reward or margin.
    """

    format: str | None
    sets: str
    objective: str
    unread: tuple[str, ...]
    counts: Mapping[str, int]
    rows: Sequence[Mapping[str, str]]

    def __str__(self) -> str:
        lines = [
            f"Format: {self.format} ({self.sets})" if self.format else "Format: tokens",
            f"Read for: {self.objective}",
        ]
        if self.unread:
            lines.append(f"Texts that are not read, in the columns: {', '.join(self.unread)}")
        lines.append("Rows: " + ", ".join(f"{count} {reason}" for reason, count in self.counts.items() if count))
        for number, row in enumerate(self.rows):
            lines += ["", f"Row {number}", *(f"  {name}: {text!r}" for name, text in row.items())]
        return "\n".join(lines)


def show_data(settings: DataSettings) -> DataReport:
    """Reads a data set as a training would, without a model or with its tokenizer alone.

    Raises:
        InvalidArgumentError: If the data cannot be read, or no row of them can be used.
    """
    splits = load_training_data(settings.data, settings.config)
    if settings.split not in splits:
        raise InvalidArgumentError(
            f"Expected {settings.data!r} to have the split {settings.split!r}, but it has "
            f"{', '.join(map(repr, splits))}. Name one of these with --split."
        )
    dataset = splits[settings.split]
    choice = DataChoice(settings.dataset_format, list(settings.columns))
    name, plan = _plan(dataset, settings, choice)
    if settings.model is None and plan is not None:
        with reading(settings.data, "the data"):
            counts, rows = _as_read(dataset, plan, settings.rows)
        if not counts["kept"]:
            raise nothing_left(OBJECTIVES[name], settings.split, Counter(counts))
    else:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False) if settings.model else None
        counts, rows = _as_trained(dataset, name, settings, choice, tokenizer)
    return DataReport(
        format=plan.format.name if plan else None,
        sets=plan.format.sets if plan else "",
        objective=name,
        unread=plan.unread if plan else (),
        counts=counts,
        rows=rows,
    )


def _plan(dataset: Any, settings: DataSettings, choice: DataChoice) -> tuple[str, Reading | None]:
    """The objective that data are read for, and how."""
    if settings.objective is not None:
        if settings.objective not in OBJECTIVES:
            raise InvalidArgumentError(
                f"Expected objective to be one of {', '.join(OBJECTIVES)}, but got {settings.objective!r}. Leave it "
                "out for one that fits."
            )
        return settings.objective, check_columns(dataset, OBJECTIVES[settings.objective], settings.split, choice)
    try:
        return "partial_bt", check_columns(dataset, OBJECTIVES["partial_bt"], settings.split, choice)
    except InvalidArgumentError as error:
        try:
            return "value", check_columns(dataset, OBJECTIVES["value"], settings.split, choice)
        except InvalidArgumentError:
            raise error from None


def _as_read(dataset: Any, plan: Reading, count: int) -> tuple[dict[str, int], list[dict[str, str]]]:
    counts: Counter[str] = Counter(kept=0)
    rows: list[dict[str, str]] = []
    for row in plan.all_rows(dataset):
        counts["kept" if isinstance(row, Mapping) else row] += 1
        if isinstance(row, Mapping) and len(rows) < count:
            names = ("prompt", *DATA[plan.data], "given", "margin", "reward")
            rows.append({name: _words(row[name]) for name in names if row.get(name) not in (None, "", [])})
    return dict(counts), rows


def _as_trained(
    dataset: Any, objective: str, settings: DataSettings, choice: DataChoice, tokenizer: Any
) -> tuple[dict[str, int], list[dict[str, str]]]:
    limit = LengthLimit(
        settings.max_length, OBJECTIVES[objective].every_prefix, getattr(tokenizer, "bos_token_id", None)
    )
    preparation = DatasetPreparation(OBJECTIVES[objective], settings.split, limit, None, choice)
    with nothing_written_beside(dataset):
        if OBJECTIVES[objective].data == "pairs":
            prepared = preparation.pairs(dataset, tokenizer, lambda rows: rows)
        else:
            prepared = preparation.labels(dataset, tokenizer)
    counts = preparation.counts(prepared)
    shown = [dict(_decoded(row, tokenizer)) for row in prepared.select(range(min(settings.rows, len(prepared))))]
    return vars(counts) if counts is not None else {}, shown


def _decoded(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[tuple[str, str]]:
    def text(ids: Sequence[int]) -> str:
        return str(ids) if tokenizer is None else str(tokenizer.decode(ids))

    if "chosen_ids" in row:
        yield from ((name, text(row[f"{name}_ids"])) for name in DATA["pairs"])
    else:
        yield "before the answer", text(row["input_ids"][: row["start"]])
        yield "answer", text(row["input_ids"][row["start"] :])
    yield from ((name, str(row[name])) for name in ("margin", "reward") if name in row)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(f"[{turn['role']}] {turn.get('content', '')}" for turn in value)
    return str(value)

"""Checks of data sets before anything is loaded: their columns, and how these are read for an objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from rgtg_logits.data_formats import FORMAT_ADVICE, REASONS, DatasetFormat, Reading, plan_reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES, Objective

SAMPLE = 100
"""Rows that show how a data set is to be read."""

_TOKENIZED = {
    "pairs": (("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")),
    "labels": tuple(("input_ids", reward) for reward in ("reward", "label")),
}
_COLUMNS = {
    "pairs": (("chosen", "rejected"),),
    "labels": tuple((answer, reward) for answer in ("completion", "text") for reward in ("reward", "label")),
}
_COLUMNS_IN_WORDS = {
    "pairs": "'chosen' and 'rejected' (and perhaps 'prompt' and 'margin')",
    "labels": "'completion' or 'text', and 'reward' or 'label' (and perhaps 'prompt')",
}
_ROWS_IN_WORDS = {
    "pairs": "pairs of two different, non-empty answers",
    "labels": "non-empty answers with a reward each",
}


@dataclass(frozen=True)
class DataChoice:
    """The user's word on the format and the columns of a data set.

    Attributes:
        dataset_format: Name of a format, or "auto".
        columns: See `data_formats.mapped_columns`.
    """

    dataset_format: str = "auto"
    columns: Any = None


def check_datasets(objective: Objective, train: Any, evaluation: Any, choice: DataChoice | None = None) -> None:
    """Checks the columns of the training data and of all evaluation data; see `check_columns`.

    Other objects than data sets are left to TRL to refuse.
    """
    sets = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    for name, dataset in [("train", train), *sets.items()]:
        if isinstance(dataset, (Dataset, IterableDataset)):
            check_columns(dataset, objective, name, choice)


def check_stream(dataset: Any, args: TrainingArguments) -> None:
    """Checks that a training on streamed data, whose number of rows is unknown, has an end.

    Raises:
        InvalidArgumentError: If it has none.
    """
    if isinstance(dataset, IterableDataset) and args.max_steps <= 0:
        raise InvalidArgumentError(
            "Expected max_steps, because streamed data have no known number of rows, but it was not given. Pass "
            "--max_steps, or load all rows by leaving out --dataset_streaming."
        )


def check_columns(dataset: Any, objective: Objective, name: str, choice: DataChoice | None = None) -> Reading | None:
    """Checks that a data set has the columns that an objective learns from, and returns how it is read.

    Args:
        dataset: The data.
        objective: The objective that is trained or evaluated.
        name: Name of the data in messages.
        choice: What the user says about its columns.

    Returns:
        How its rows are read; None if they are tokens already.

    Raises:
        InvalidArgumentError: If a column is missing, or there is no row, or prompts are not read.
    """
    choice = choice or DataChoice()
    rows = list(islice(dataset, SAMPLE))
    columns = dataset.column_names or (list(rows[0]) if rows else [])
    if not columns or not rows:
        raise nothing_left(objective, name, Counter())
    data = objective.data
    if any(set(names) <= set(columns) for names in _TOKENIZED[data]):
        return None
    reading = plan_reading(
        rows, columns, data=data, name=name, dataset_format=choice.dataset_format, mapping=choice.columns
    )
    present = [*columns, *(reading.mapping if reading is not None else ())]
    if reading is None or not _fits(objective.data, reading.format, present):
        fitting = [other.name for other in OBJECTIVES.values() if _gives(rows, columns, other.data, choice)]
        advice = f"choose one of the objectives {', '.join(fitting)}" if fitting else "rename its columns"
        raise InvalidArgumentError(
            f"Expected the {name} data to have the columns {_COLUMNS_IN_WORDS[data]}, because the objective "
            f"{objective.name!r} learns from {_ROWS_IN_WORDS[data]}, but got {', '.join(map(repr, columns))}. Use "
            f"other data, or {advice}. {FORMAT_ADVICE}"
        )
    return reading


def nothing_left(objective: Objective, name: str, counts: Mapping[str, int]) -> InvalidArgumentError:
    """The error of data in which no row can be used; `counts` are those left out by reason."""
    reasons = ", ".join(f"{counts[reason]} {reason.replace('_', ' ')}" for reason in REASONS)
    return InvalidArgumentError(
        f"Expected the {name} data to hold {_ROWS_IN_WORDS[objective.data]} within max_length tokens, but none is left "
        f"({reasons}). Check the columns {_COLUMNS_IN_WORDS[objective.data]}, or raise max_length."
    )


def _gives(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], data: str, choice: DataChoice) -> bool:
    """Whether rows of this kind can be read from a data set."""
    if any(set(names) <= set(columns) for names in _TOKENIZED[data]):
        return True
    reading = plan_reading(
        rows, columns, data=data, name="", dataset_format=choice.dataset_format, mapping=choice.columns, checked=False
    )
    return reading is not None and _fits(data, reading.format, [*columns, *reading.mapping])


def _fits(data: str, format: DatasetFormat, columns: Sequence[str]) -> bool:
    if format.pairs is not None or format.labels is not None:
        return format.converter(data) is not None
    return any(set(names) <= set(columns) for names in _COLUMNS[data])

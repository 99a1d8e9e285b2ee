"""Preprocessing of data sets: rows that cannot be used are left out, long ones are cut, and both are counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES, Objective
from rgtg_logits.tokenization import common_prefix_length, encode_finished
from rgtg_logits.train.length_limit import LengthLimit

REASONS = ("empty", "one_sided", "identical", "too_long", "unusable")
"""Why rows are left out; see `RowCounts`."""
REASON = "left_out_because"
"""Temporary column: why the row is left out, one of `REASONS`; empty if it is kept."""
CUT = "was_cut"
"""Temporary column: whether the row was cut at `max_length`."""

_COLUMNS = {
    "pairs": (("chosen", "rejected"), ("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")),
    "labels": tuple(
        (answer, reward) for answer in ("completion", "text", "input_ids") for reward in ("reward", "label")
    ),
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
class RowCounts:
    """How many rows of a data set are used and left out: pairs, or answers with a reward each.

    Attributes:
        kept: Rows that are used.
        cut: Those of them whose texts were cut at `max_length` tokens.
        empty: Left out because there is no answer: none given, an empty text, or no messages.
        one_sided: Left out because a pair has one answer only.
        identical: Left out because both texts of a pair are the same, or become the same when cut.
        too_long: Left out because a text is longer than `max_length` tokens.
        unusable: Left out because the prompt is missing, or a margin or reward is missing or no finite number.
    """

    kept: int
    cut: int = 0
    empty: int = 0
    one_sided: int = 0
    identical: int = 0
    too_long: int = 0
    unusable: int = 0

    @property
    def left_out(self) -> int:
        """Number of all rows that are not used."""
        return sum(getattr(self, reason) for reason in REASONS)

    def __str__(self) -> str:
        reasons = ", ".join(f"{getattr(self, reason)} {reason.replace('_', ' ')}" for reason in REASONS)
        return f"{self.kept} rows kept ({self.cut} cut at max_length), {self.left_out} left out: {reasons}"


class DatasetPreparation:
    """Prepares one data set for an objective, and counts the rows that are left out.

    Rows of streamed data are left out without being counted, because they are read only during training.

    Args:
        objective: The objective that is trained or evaluated.
        name: Name of the data in messages.
        limit: How long texts may be.
        num_proc: Number of processes that `datasets` may use.
    """

    def __init__(self, objective: Objective, name: str, limit: LengthLimit, num_proc: int | None = None) -> None:
        self._objective = objective
        self._name = name
        self._limit = limit
        self._num_proc = num_proc
        self._reasons: Counter[str] = Counter()
        self._cut = 0

    def pairs(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, tokenized: Callable[[Any], Any]) -> Any:
        """Preference pairs as `chosen_ids`, `rejected_ids` and perhaps `margin`.

        Args:
            dataset: Texts, messages or tokens.
            tokenizer: The reward model's, for texts.
            tokenized: Turns messages into tokens, and leaves tokens as they are.
        """
        columns = check_columns(dataset, self._objective, self._name)
        if {"chosen", "rejected"} <= set(columns) and "chosen_ids" not in columns:
            dataset = self._without_problems(dataset)
            dataset = _without_repeated_prompt(dataset)
            dataset = self._encoded_texts(dataset, tokenizer)
        return self._shaped(tokenized(dataset), _shape_pair, {"limit": self._limit})

    def labels(self, dataset: Any, tokenized: Callable[[Mapping[str, Any]], tuple[list[int], int]]) -> Any:
        """Answers with a reward each, as `input_ids`, `start` (number of tokens of the prompt) and `reward`.

        Args:
            dataset: Texts, messages or tokens.
            tokenized: Returns the tokens of a row, and how many of them are the prompt.
        """
        columns = check_columns(dataset, self._objective, self._name)
        options = {"limit": self._limit, "tokenized": tokenized}
        return self._shaped(dataset, _shape_label, options, remove_columns=columns)

    def counts(self, dataset: Any) -> RowCounts | None:
        """The counts of rows, from the prepared data; None for streamed data."""
        if not isinstance(dataset, Dataset):
            return None
        return RowCounts(len(dataset), self._cut, **{reason: self._reasons[reason] for reason in REASONS})

    def _without_problems(self, dataset: Any) -> Any:
        """Leaves out pairs that cannot be tokenised."""
        if not isinstance(dataset, Dataset):
            return dataset.filter(_is_usable)
        options = {"remove_columns": dataset.column_names, **self._options(dataset, "Checking")}
        return self._kept(dataset, dataset.map(_problem_of, **options)[REASON])

    def _encoded_texts(self, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Adds the tokens of pairs of texts; messages are left to TRL."""
        row: Mapping[str, Any] = next(iter(dataset), {})
        if not isinstance(row.get("chosen"), str):
            return dataset
        options = self._options(dataset, "Tokenizing")
        return dataset.map(_encode_pair, fn_kwargs={"tokenizer": tokenizer}, **options)

    def _shaped(self, dataset: Any, shape: Callable[..., Any], arguments: dict[str, Any], **options: Any) -> Any:
        """Cuts rows, and leaves out those that cannot be used."""
        dataset = dataset.map(shape, fn_kwargs=arguments, **options, **self._options(dataset, "Cutting"))
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_is_kept).remove_columns([REASON, CUT])
        self._cut += sum(dataset[CUT])
        return self._kept(dataset, dataset[REASON]).remove_columns([REASON, CUT])

    def _kept(self, dataset: Dataset, reasons: Sequence[str]) -> Dataset:
        self._reasons.update(reasons)
        kept = [row for row, reason in enumerate(reasons) if not reason]
        if not kept:
            raise _nothing_left(self._objective, self._name, self._reasons)
        return dataset if len(kept) == len(dataset) else dataset.select(kept)

    def _options(self, dataset: Any, activity: str) -> dict[str, Any]:
        if not isinstance(dataset, Dataset):
            return {}
        return {"num_proc": self._num_proc, "desc": f"{activity} the {self._name} data"}


def check_datasets(objective: Objective, train: Any, evaluation: Any) -> None:
    """Checks the columns of the training data and of all evaluation data; see `check_columns`.

    Other objects than data sets are left to TRL to refuse.
    """
    sets = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    for name, dataset in [("train", train), *sets.items()]:
        if isinstance(dataset, (Dataset, IterableDataset)):
            check_columns(dataset, objective, name)


def check_columns(dataset: Any, objective: Objective, name: str) -> list[str]:
    """Checks that a data set has the columns that an objective learns from, and returns all its columns.

    Args:
        dataset: The data.
        objective: The objective that is trained or evaluated.
        name: Name of the data in messages.

    Raises:
        InvalidArgumentError: If a column is missing, or there is no row.
    """
    columns = dataset.column_names
    if columns is None:
        columns = list(_first_row(dataset))
    if not columns or (isinstance(dataset, Dataset) and not len(dataset)):
        raise _nothing_left(objective, name, Counter())
    data = objective.data
    if not _fits(objective, columns):
        fitting = [other.name for other in OBJECTIVES.values() if _fits(other, columns)]
        advice = f"choose one of the objectives {', '.join(fitting)}" if fitting else "rename its columns"
        raise InvalidArgumentError(
            f"Expected the {name} data to have the columns {_COLUMNS_IN_WORDS[data]}, because the objective "
            f"{objective.name!r} learns from {_ROWS_IN_WORDS[data]}, but got {', '.join(map(repr, columns))}. Use "
            f"other data, or {advice}."
        )
    return list(columns)


def add_lengths(dataset: Dataset, column: str, num_proc: int | None = None) -> Dataset:
    """Adds a column for length-grouped batching: the length of the longer text of each tokenised pair."""
    return dataset.map(_length, fn_kwargs={"column": column}, num_proc=num_proc)


def has_text(answer: Any) -> bool:
    """Whether there is an answer: a text, or messages of which the last one is not empty."""
    if isinstance(answer, list):
        return bool(answer) and any(value for key, value in answer[-1].items() if key != "role")
    return isinstance(answer, str) and bool(answer)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number or a boolean."""
    return isinstance(value, Real) and math.isfinite(value)


def _nothing_left(objective: Objective, name: str, counts: Mapping[str, int]) -> InvalidArgumentError:
    reasons = ", ".join(f"{counts[reason]} {reason.replace('_', ' ')}" for reason in REASONS)
    return InvalidArgumentError(
        f"Expected the {name} data to hold {_ROWS_IN_WORDS[objective.data]} within max_length tokens, but none is left "
        f"({reasons}). Check the columns {_COLUMNS_IN_WORDS[objective.data]}, or raise max_length."
    )


def _fits(objective: Objective, columns: Sequence[str]) -> bool:
    return any(set(names) <= set(columns) for names in _COLUMNS[objective.data])


def _problem(row: Mapping[str, Any]) -> str:
    """Why a pair of texts or messages cannot be tokenised; empty if it can."""
    answered = [has_text(row.get(column)) for column in ("chosen", "rejected")]
    if not all(answered):
        return "one_sided" if any(answered) else "empty"
    # A prompt may be an empty text, but not a conversation without messages.
    return "unusable" if "prompt" in row and row["prompt"] in (None, []) else ""


def _problem_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {REASON: _problem(row)}


def _length(row: Mapping[str, Any], column: str) -> dict[str, int]:
    return {column: max(len(row["chosen_ids"]), len(row["rejected_ids"]))}


def _is_usable(row: Mapping[str, Any]) -> bool:
    return not _problem(row)


def _is_kept(row: Mapping[str, Any]) -> bool:
    return not row[REASON]


def _without_repeated_prompt(dataset: Any) -> Any:
    """Removes the column `prompt` where it is text beside whole conversations: in many data sets they begin with it."""
    row = _first_row(dataset)
    repeated = isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list)
    return dataset.remove_columns("prompt") if repeated else dataset


def _encode_pair(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The tokens of two finished texts, where TRL (1.16) would add a second end to what a tokenizer closes itself."""
    prompt = row.get("prompt", "")
    return {f"{name}_ids": encode_finished(tokenizer, prompt + row[name]) for name in ("chosen", "rejected")}


def _first_row(dataset: Any) -> Mapping[str, Any]:
    for row in dataset:
        return row
    return {}


def _shape_pair(row: Mapping[str, Any], limit: LengthLimit) -> dict[str, Any]:
    texts = [list(row[column] or []) for column in ("chosen_ids", "rejected_ids")]
    reason, cut = "", False
    if not all(texts):
        reason = "one_sided" if any(texts) else "empty"
    elif not is_number(row.get("margin", 0.0)):
        reason = "unusable"
    elif texts[0] == texts[1]:
        reason = "identical"
    elif limit.exceeded(texts) and not limit.cuts:
        reason = "too_long"
    else:
        cut = limit.exceeded(texts)
        texts, _ = limit.cut(texts, common_prefix_length(*texts))
        reason = "identical" if texts[0] == texts[1] else ""
    return {"chosen_ids": texts[0], "rejected_ids": texts[1], REASON: reason, CUT: cut and not reason}


def _shape_label(
    row: Mapping[str, Any], limit: LengthLimit, tokenized: Callable[[Mapping[str, Any]], tuple[list[int], int]]
) -> dict[str, Any]:
    reward = row.get("reward", row.get("label"))
    has_answer = bool(row["input_ids"]) if "input_ids" in row else has_text(row.get("completion", row.get("text")))
    ids: list[int] = []
    start = 0
    reason = ""
    if not has_answer:
        reason = "empty"
    elif not is_number(reward) or row.get("prompt", "") is None:
        reason = "unusable"
    else:
        ids, start = tokenized(row)
        reason = "too_long" if limit.exceeded([ids]) and not limit.cuts else ""
    cut = not reason and limit.exceeded([ids])
    (ids,), lost = limit.cut([ids], start)
    number = float(reward) if is_number(reward) else 0.0
    return {"input_ids": ids, "start": start - lost, "reward": number, REASON: reason, CUT: cut}

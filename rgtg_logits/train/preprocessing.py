"""Preprocessing of data sets: rows that cannot be used are left out, long ones are cut, and both are counted."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from numbers import Real
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value
from transformers import PreTrainedTokenizerBase

from rgtg_logits.data_formats import DATA, REASONS, Reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import Objective
from rgtg_logits.tokenization import common_prefix_length
from rgtg_logits.train.completions import answer_tokens, whole_tokens
from rgtg_logits.train.dataset_columns import DataChoice, check_columns, nothing_left
from rgtg_logits.train.length_limit import LengthLimit

logger = logging.getLogger(__name__)

REASON = "left_out_because"
"""Temporary column: why the row is left out, one of `REASONS`; empty if it is kept."""
CUT = "was_cut"
"""Temporary column: whether the row was cut at `max_length`."""


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
        tied: Left out because neither answer of a pair is preferred.
        mismatched: Left out because the answers are conversations that do not hold the row's prompt.
    """

    kept: int
    cut: int = 0
    empty: int = 0
    one_sided: int = 0
    identical: int = 0
    too_long: int = 0
    unusable: int = 0
    tied: int = 0
    mismatched: int = 0

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
        choice: What the user says about its columns.
    """

    def __init__(
        self,
        objective: Objective,
        name: str,
        limit: LengthLimit,
        num_proc: int | None = None,
        choice: DataChoice | None = None,
    ) -> None:
        self._objective = objective
        self._name = name
        self._limit = limit
        self._num_proc = num_proc
        self._choice = choice or DataChoice()
        self._reasons: Counter[str] = Counter()
        self._cut = 0

    def pairs(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, tokenized: Callable[[Any], Any]) -> Any:
        """Preference pairs as `chosen_ids`, `rejected_ids` and perhaps `margin`.

        Args:
            dataset: Texts, messages or tokens.
            tokenizer: The reward model's, for texts and messages.
            tokenized: Gives rows that are tokens already the present names of their columns.
        """
        reading = check_columns(dataset, self._objective, self._name, self._choice)
        if reading is not None:
            dataset = self._encoded(dataset, reading, tokenizer)
        return self._shaped(tokenized(dataset), _shape_pair)

    def labels(self, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Answers with a reward each, as `input_ids`, `start` (number of tokens of the prompt) and `reward`.

        Args:
            dataset: Texts, messages or tokens.
            tokenizer: The reward model's, for texts and messages.
        """
        reading = check_columns(dataset, self._objective, self._name, self._choice)
        if reading is not None:
            dataset = self._encoded(dataset, reading, tokenizer)
        return self._shaped(dataset, _shape_label)

    def counts(self, dataset: Any) -> RowCounts | None:
        """The counts of rows, from the prepared data; None for streamed data."""
        if not isinstance(dataset, Dataset):
            return None
        return RowCounts(len(dataset), self._cut, **{reason: self._reasons[reason] for reason in REASONS})

    def _encoded(self, dataset: Any, reading: Reading, tokenizer: PreTrainedTokenizerBase) -> Any:
        """The tokens of all rows in which there are prompt and answers."""
        if reading.unread:
            columns = ", ".join(map(repr, reading.unread))
            logger.warning("%s data: texts in the columns %s are not read.", self._name, columns)
        logger.info("%s data: read in the format %r (%s).", self._name, reading.format.name, reading.format.sets)
        encode = partial(_encode, reading, tokenizer)
        if reading.data in reading.format.whole:
            return self._encoded_at_once(dataset, reading, encode)
        features = _features(reading)
        batch = partial(_encode_batch, encode, reading, tuple(features))
        options: dict[str, Any] = {
            "batched": True, "with_indices": True, "remove_columns": dataset.column_names, "features": features,
        }  # fmt: skip
        if isinstance(dataset, IterableDataset):
            options["remove_columns"] = options["remove_columns"] or list(_first_row(dataset))
            return dataset.map(batch, **options).filter(_is_kept).remove_columns([REASON])
        dataset = dataset.map(batch, **options, **self._options(dataset, "Tokenizing"))
        return self._kept(dataset, dataset[REASON]).remove_columns([REASON])

    def _encoded_at_once(
        self, dataset: Any, reading: Reading, encode: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Any:
        """The tokens of rows that are made of several rows of the data."""
        if isinstance(dataset, IterableDataset):
            raise InvalidArgumentError(
                f"Expected all rows of the {self._name} data at once, because in the format {reading.format.name!r} a "
                "row is made of several, but they are streamed. Leave out --dataset_streaming."
            )
        rows = []
        for each in reading.all_rows(dataset):
            if isinstance(each, str):
                self._reasons[each] += 1
            else:
                rows.append(encode(each))
        if not rows:
            raise nothing_left(self._objective, self._name, self._reasons)
        return Dataset.from_list(rows)

    def _shaped(self, dataset: Any, shape: Callable[..., Any]) -> Any:
        """Cuts rows, and leaves out those that cannot be used."""
        arguments = {"limit": self._limit}
        dataset = dataset.map(shape, fn_kwargs=arguments, **self._options(dataset, "Cutting"))
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_is_kept).remove_columns([REASON, CUT])
        self._cut += sum(dataset[CUT])
        return self._kept(dataset, dataset[REASON]).remove_columns([REASON, CUT])

    def _kept(self, dataset: Dataset, reasons: Sequence[str]) -> Dataset:
        self._reasons.update(reasons)
        kept = [row for row, reason in enumerate(reasons) if not reason]
        if not kept:
            raise nothing_left(self._objective, self._name, self._reasons)
        return dataset if len(kept) == len(dataset) else dataset.select(kept)

    def _options(self, dataset: Any, activity: str) -> dict[str, Any]:
        if not isinstance(dataset, Dataset):
            return {}
        return {"num_proc": self._num_proc, "desc": f"{activity} the {self._name} data"}


def add_lengths(dataset: Dataset, column: str, num_proc: int | None = None) -> Dataset:
    """Adds a column for length-grouped batching: the length of the longer text of each tokenised pair."""
    return dataset.map(_length, fn_kwargs={"column": column}, num_proc=num_proc)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number or a boolean."""
    return isinstance(value, (Real, Decimal)) and math.isfinite(value)


def _length(row: Mapping[str, Any], column: str) -> dict[str, int]:
    return {column: max(len(row["chosen_ids"]), len(row["rejected_ids"]))}


def _is_kept(row: Mapping[str, Any]) -> bool:
    return not row[REASON]


def _encode(reading: Reading, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """The tokens of a row that was read, and its margin or reward."""
    between = reading.format.between if reading.format.native else None
    if reading.data == "pairs":
        ids = {f"{name}_ids": whole_tokens(row, row[name], tokenizer, between) for name in DATA["pairs"]}
        return {**ids, "margin": _number(row["margin"])} if "margin" in row else ids
    tokens, start = answer_tokens(row, tokenizer, between)
    return {"input_ids": tokens, "start": start, "reward": _number(row["reward"])}


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _features(reading: Reading) -> Features:
    """The columns of encoded rows: not inferred, because a whole batch of rows may be left out."""
    tokens = [Value("int64")]
    if reading.data == "labels":
        return Features(input_ids=tokens, start=Value("int64"), reward=Value("float64"), **{REASON: Value("string")})
    margin = {"margin": Value("float64")} if reading.has_margin else {}
    return Features(chosen_ids=tokens, rejected_ids=tokens, **margin, **{REASON: Value("string")})


def _encode_batch(
    encode: Callable[[dict[str, Any]], dict[str, Any]],
    reading: Reading,
    columns: Sequence[str],
    batch: Mapping[str, Any],
    indices: list[int],
) -> dict[str, list[Any]]:
    """Tokenises rows; those that cannot be read stay, with the reason, to be counted."""
    rows: list[dict[str, Any]] = []
    for position, index in enumerate(indices):
        for each in reading.rows({name: values[position] for name, values in batch.items()}, index):
            rows.append({REASON: each} if isinstance(each, str) else {**encode(each), REASON: ""})
    return {name: [row.get(name) for row in rows] for name in columns}


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


def _shape_label(row: Mapping[str, Any], limit: LengthLimit) -> dict[str, Any]:
    reward = row.get("reward", row.get("label"))
    ids = list(row["input_ids"] or [])
    start = min(int(row.get("start") or 0), max(len(ids) - 1, 0))
    reason = ""
    if not ids:
        reason = "empty"
    elif not is_number(reward):
        reason = "unusable"
    elif limit.exceeded([ids]) and not limit.cuts:
        reason = "too_long"
    cut = not reason and limit.exceeded([ids])
    (ids,), lost = limit.cut([ids], start)
    number = float(reward) if reward is not None and is_number(reward) else 0.0
    return {"input_ids": ids, "start": start - lost, "reward": number, REASON: reason, CUT: cut}

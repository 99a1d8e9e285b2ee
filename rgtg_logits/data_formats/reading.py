"""Reading of a data set: its format, the columns that are read, and rows with prompt and answers in one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgtg_logits.data_formats.converters import Row
from rgtg_logits.data_formats.formats import DatasetFormat
from rgtg_logits.data_formats.messages import bring_together, has_text, plain_value
from rgtg_logits.data_formats.recognition import COLUMNS, find_format, mapped_columns
from rgtg_logits.errors import InvalidArgumentError

REASONS = ("empty", "one_sided", "identical", "too_long", "unusable", "tied", "mismatched")
"""Why rows are left out."""
DATA = {"pairs": ("chosen", "rejected"), "labels": ("completion",)}
"""The columns of answers in a row that was read."""
FORMAT_ADVICE = "Map the columns with --columns prompt=… chosen=…, or name a format with --dataset_format."

QUESTIONS = ("question", "instruction", "input", "query", "problem", "history", "context", "post", "conversation")
"""Names of columns that hold prompts in other sets."""
_KEPT = ("tools", "chat_template_kwargs")
_SEPARATE_ANSWERS = 0.5
"""Share of rows without a common beginning above which a question is thought to be missing."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a data set are read.

    Attributes:
        format: The format of the data set.
        data: "pairs" or "labels".
        name: Name of the data in messages.
        mapping: From names of columns here to those in the data.
        repeated: Whether texts of answers begin with their prompt.
        unread: Columns of texts that are not read.
        has_margin: Whether pairs have a margin.
    """

    format: DatasetFormat
    data: str
    name: str
    mapping: Mapping[str, str]
    repeated: bool = False
    unread: tuple[str, ...] = ()
    has_margin: bool = False

    def rows(self, row: Row, index: int) -> Iterator[dict[str, Any] | str]:
        """The rows that a row becomes, prompt and answers all texts or all messages; or why there is none.

        Args:
            row: A row as it is in the data.
            index: Its number, for messages.

        Raises:
            InvalidArgumentError: If a column holds neither a text nor messages.
        """
        row = mapped(row, self.mapping)
        convert = self.format.converter(self.data)
        if convert is None:
            yield self._together(_plain_row(row, self.data), index)
            return
        try:
            found = list(convert(row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(
                f"Expected row {index} of the {self.name} data to be of the format {self.format.name!r}, but reading "
                f"it failed: {type(error).__name__}: {error}. Correct the row, or read other columns with --columns."
            ) from error
        for each in found:
            yield each if isinstance(each, str) else self._together(each, index)

    def all_rows(self, rows: Iterable[Row]) -> Iterator[dict[str, Any] | str]:
        """The same for all rows, where a row is made of several."""
        convert = self.format.converter(self.data)
        if convert is None or self.data not in self.format.whole:
            for index, row in enumerate(rows):
                yield from self.rows(row, index)
            return
        for index, each in enumerate(convert(mapped(row, self.mapping) for row in rows)):
            yield each if isinstance(each, str) else self._together(each, index)

    def _together(self, row: dict[str, Any], index: int) -> dict[str, Any] | str:
        def plain(column: str) -> Any:
            return plain_value(row.get(column), f"the column {column!r} of row {index} of the {self.name} data")

        names = DATA[self.data]
        answers = [plain(name) for name in names]
        answered = [has_text(answer) for answer in answers]
        if not all(answered):
            return "one_sided" if any(answered) else "empty"
        together = bring_together(plain("prompt") if "prompt" in row else "", answers, repeated=self.repeated)
        if isinstance(together, str):
            return together
        prompt, answers = together
        return {**row, "prompt": prompt, **dict(zip(names, answers, strict=True))}


def plan_reading(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    data: str,
    name: str,
    dataset_format: str = "auto",
    mapping: Mapping[str, str] | Iterable[str] | None = None,
    checked: bool = True,
) -> Reading | None:
    """Decides how a data set is read, from its columns and its first rows.

    Args:
        rows: The first rows.
        columns: All columns.
        data: "pairs" or "labels".
        name: Name of the data in messages.
        dataset_format: A format's name, or "auto".
        mapping: See `mapped_columns`.
        checked: Whether a question that is not read is an error.

    Returns:
        How it is read; None if no format fits.

    Raises:
        InvalidArgumentError: If a format or column is wrong, or a question is not read: texts have no common beginning,
            and a column of texts is left over.
    """
    mapping = mapped_columns(mapping)
    missing = [source for source in mapping.values() if source and source not in columns]
    if missing:
        raise InvalidArgumentError(
            f"Expected the {name} data to have the column {missing[0]!r}, which --columns names, but got "
            f"{', '.join(map(repr, columns))}. Name one of these."
        )
    sample = [mapped(row, mapping) for row in rows]
    present = [*mapped(dict.fromkeys(columns), mapping)]
    found = find_format(dataset_format, sample[0] if sample else {}, present, data)
    if found is None:
        return None
    if found.pairs is not None or found.labels is not None:
        return Reading(found, data, name, mapping, has_margin=found.margin)
    read = {*COLUMNS, *_KEPT, *mapping.values(), "input_ids", "start"}
    unread = tuple(column for column in columns if column not in read and any(_has_texts(row, column) for row in rows))
    reading = Reading(found, data, name, mapping, _repeats_prompt(sample, data), unread, "margin" in present)
    if not checked or "prompt" in present or "prompt" in mapping:
        return reading
    questions = [column for column in unread if column.lower() in QUESTIONS and not _is_within(rows, column, read)]
    if questions or (unread and _lacks_question(sample, data)):
        raise InvalidArgumentError(
            f"Expected the {name} data to have prompts, because their answers do not begin with one, but no column "
            f"is called prompt, and of the columns {', '.join(map(repr, unread))} none is read. Name the prompt with "
            f"--columns prompt={(questions or unread)[0]}, or say that there is none with --columns prompt=."
        )
    return reading


def mapped(row: Row, mapping: Mapping[str, str]) -> dict[str, Any]:
    """A row with the columns that are read under their names here."""
    if not mapping:
        return dict(row)
    taken = {source: name for name, source in mapping.items() if source}
    kept = {name: value for name, value in row.items() if name not in taken and name not in mapping}
    return {**kept, **{name: row.get(source) for source, name in taken.items()}}


def _plain_row(row: dict[str, Any], data: str) -> dict[str, Any]:
    if data == "labels":
        answer = row["completion"] if "completion" in row else row.get("text")
        row = {**row, "completion": answer, "reward": row.get("reward", row.get("label"))}
    read = ("prompt", *DATA[data], "margin", "reward", *_KEPT)
    return {name: row[name] for name in read if name in row}


def _has_texts(row: Row, column: str) -> bool:
    value = row.get(column)
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and bool({"role", "from"} & set(value[0]))
    return isinstance(value, str) and bool(value)


def _is_within(rows: Sequence[Row], column: str, read: set[str]) -> bool:
    """Whether the texts that are read hold those of a column, as transcripts hold their question."""
    texts = [(row[column], [str(value) for name, value in row.items() if name in read]) for row in rows if row[column]]
    return all(isinstance(text, str) and any(text in other for other in others) for text, others in texts)


def _repeats_prompt(rows: Sequence[Row], data: str) -> bool:
    """Whether all answers begin with their prompts, as they do where the whole texts are given."""
    texts = [
        [row["prompt"], *(row.get(name) for name in DATA[data])]
        for row in rows
        if isinstance(row.get("prompt"), str) and row["prompt"]
    ]
    texts = [each for each in texts if all(isinstance(text, str) and text for text in each)]
    # A single row may begin like its prompt by chance.
    return len(texts) > 1 and all(text.startswith(each[0]) for each in texts for text in each[1:])


def _lacks_question(rows: Sequence[Row], data: str) -> bool:
    """Whether most answers stand alone: pairs without a common beginning, or completions of nothing."""
    if data == "labels":
        return any(isinstance(row.get("completion"), str) for row in rows)
    answers = [(row.get("chosen"), row.get("rejected")) for row in rows]
    texts = [(one, other) for one, other in answers if isinstance(one, str) and isinstance(other, str) and one != other]
    separate = sum(not _share_a_word(one, other) for one, other in texts)
    return bool(texts) and separate > _SEPARATE_ANSWERS * len(texts)


def _share_a_word(one: str, other: str) -> bool:
    return one.split()[:1] == other.split()[:1]

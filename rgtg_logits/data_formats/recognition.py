"""Recognition of a data set's format by its columns, and columns under other names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rgtg_logits.data_formats.converters import Row
from rgtg_logits.data_formats.formats import FORMATS, NAMES, DatasetFormat
from rgtg_logits.errors import InvalidArgumentError

COLUMNS = ("prompt", "chosen", "rejected", "margin", "completion", "text", "reward", "label", "tools")
"""Columns that are read, and that others may be mapped to."""


def find_format(name: str, first: Row, columns: Sequence[str], data: str) -> DatasetFormat | None:
    """The format of a data set; None if none fits.

    Args:
        name: A format's name, or "auto".
        first: The first row, which may lack values.
        columns: All columns.
        data: "pairs" or "labels"; formats that have both kinds, or the wanted one, come first.

    Raises:
        InvalidArgumentError: If there is no format of that name, or its columns are missing.
    """
    if name != "auto" and name not in NAMES:
        raise InvalidArgumentError(
            f"Expected dataset_format to be auto or one of {', '.join(NAMES)}, but got {name!r}. Choose one of these, "
            "or map the columns with --columns prompt=… chosen=…."
        )
    named = [each for each in FORMATS if name in ("auto", each.name)]
    fitting = [each for each in named if set(each.columns) <= set(columns) and (name != "auto" or each.fits(first))]
    if not fitting and name != "auto":
        needed = " or ".join(", ".join(map(repr, each.columns)) for each in named)
        raise InvalidArgumentError(
            f"Expected the columns {needed} of the format {name!r}, but got {', '.join(map(repr, columns))}. Leave out "
            "--dataset_format, or map the columns with --columns."
        )
    # A set with pairs and rewards may be read in a plain format too: the wanted kind decides.
    wanted = [each for each in fitting if each.converter(data) is not None or _is_plain(each)]
    return next(iter([*wanted, *fitting]), None)


def _is_plain(each: DatasetFormat) -> bool:
    return each.pairs is None and each.labels is None


def mapped_columns(pairs: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """The mapping from a column's name here to its name in the data; an empty one says that there is no such column.

    Args:
        pairs: A mapping, or words such as "prompt=question".

    Raises:
        InvalidArgumentError: If a word is not of this form, or names a column that nothing reads.
    """
    words = [f"{name}={source}" for name, source in pairs.items()] if isinstance(pairs, Mapping) else list(pairs or ())
    mapping = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or name not in COLUMNS or (not source and name != "prompt"):
            raise InvalidArgumentError(
                f"Expected columns such as prompt=question, with one of {', '.join(COLUMNS)} on the left (prompt= says "
                f"that there is none), but got {word!r}. Write the column of your data on the right."
            )
        mapping[name] = source
    return mapping

"""Data sets that commands read: files, folders and Hub ids. Needs the package `datasets` when a set is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rgtg_logits.errors import InvalidArgumentError

DATA_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""The builder of `datasets` for each file suffix; a file may have .gz behind it."""


def builder_for(name: str) -> str | None:
    """The builder of `datasets` for a file of this name; None for other names, such as a Hub id or a folder."""
    return DATA_FILE_BUILDERS.get(Path(name.removesuffix(".gz")).suffix)


def open_stream(name: str, content: str, option: str) -> Any:
    """Opens a data set for streaming: nothing is stored on disk, and only the rows that are used are read.

    Args:
        name: A file, a Hub id, or a folder of data files.
        content: A word for the rows, for messages.
        option: The command-line option that names the data set, for messages.

    Returns:
        The data set's splits; those of a file are `{"train": ...}`. Iterating may raise the errors of `datasets`.

    Raises:
        InvalidArgumentError: If the package `datasets` is missing, or there is no such file.
    """
    try:
        from datasets import load_dataset  # noqa: PLC0415  (a package of the train extra)
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(
            f"Expected the package datasets, which reads {name!r}, but it is not installed. "
            'Run: pip install datasets, or pip install "rgtg_logits[train]".'
        ) from error
    builder = builder_for(name)
    if builder is None:
        return load_dataset(name, streaming=True)
    if not Path(name).is_file():
        raise InvalidArgumentError(f"Expected a file with {content}, but {name!r} does not exist. Check {option}.")
    return load_dataset(builder, data_files={"train": name}, streaming=True)

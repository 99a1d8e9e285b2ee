"""Data sets that commands read: files, folders and Hub ids. Needs the package `datasets` when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rgtg_logits.errors import InvalidArgumentError

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""What of `datasets` reads a file, by its suffix; each may be followed by .gz."""


def builder(name: str) -> str | None:
    """What reads a file of this name; None if its suffix is none of a data file, as that of a Hub id."""
    return BUILDERS.get(Path(name.removesuffix(".gz")).suffix)


def open_stream(name: str, what: str, flag: str) -> Any:
    """Opens a data set for reading row by row: nothing is kept on disk, and no more is read than is wanted.

    Args:
        name: A file, a Hub id, or a folder of data files.
        what: What it should hold, for messages.
        flag: Where the user named it.

    Returns:
        Its splits, of which those of a file are `{"train": ...}`; reading them may raise what `datasets` raises.

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
    kind = builder(name)
    if kind is not None and not Path(name).is_file():
        raise InvalidArgumentError(f"Expected a file with {what}, but {name!r} does not exist. Check {flag}.")
    return load_dataset(kind or name, data_files={"train": name} if kind else None, streaming=True)

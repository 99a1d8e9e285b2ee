"""Data sets that commands read: files, folders and Hub ids. Needs the package `datasets` when a set is opened."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rgtg_logits.errors import InvalidArgumentError

DATA_FILE_BUILDERS = {
    ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".tsv": "csv", ".arrow": "arrow",
    ".txt": "text",
}  # fmt: skip
"""The builder of `datasets` for each file suffix; a file may have .gz or .zst behind it."""
_COMPRESSED = (".gz", ".zst")
_OPTIONS = {".tsv": {"sep": "\t"}, ".txt": {"encoding": "utf-8-sig"}}
"""Options of a builder; a txt file may begin with a byte order mark, which is no text."""


def builder_for(name: str) -> str | None:
    """The builder of `datasets` for a file of this name; None for other names, such as a Hub id or a folder."""
    return DATA_FILE_BUILDERS.get(_suffix(name))


def open_stream(name: str, content: str, option: str) -> Any:
    """Opens a data set for streaming: nothing is stored on disk, and only the rows that are used are read.

    Args:
        name: A file, a Hub id, or a folder of data files or of `save_to_disk`.
        content: A word for the rows, for messages.
        option: The command-line option that names the data set, for messages.

    Returns:
        The data set's splits; those of a file are `{"train": ...}`. Rows are to be read within `reading`.

    Raises:
        InvalidArgumentError: If the package `datasets` is missing, or there is no such file, or nothing in it.
    """
    _check_package(name)
    if builder_for(name) is not None and not Path(name).is_file():
        raise InvalidArgumentError(f"Expected a file with {content}, but {name!r} does not exist. Check {option}.")
    return open_splits(name, option, streaming=True)


def open_splits(name: str, option: str, *, config: str | None = None, streaming: bool = False) -> Any:
    """Opens a data set: a file, a folder of data files, a folder that `save_to_disk` wrote, or a Hub id.

    Args:
        name: Path or Hub id.
        option: The command-line option that names the data set, for messages.
        config: Configuration of a data set on the Hub.
        streaming: Whether rows are read when they are used, without loading everything first.

    Returns:
        The data set's splits; those of a file, or of one data set on disk, are `{"train": ...}`.

    Raises:
        InvalidArgumentError: If the package `datasets` is missing, or the data are damaged or empty.
    """
    _check_package(name)
    from datasets import Dataset, load_dataset, load_from_disk  # noqa: PLC0415  (a package of the train extra)

    path = Path(name)
    with reading(name, option):
        if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
            saved = load_from_disk(name)
            splits = {"train": saved} if isinstance(saved, Dataset) else saved
            return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits
        if not path.is_file():
            return load_dataset(name, name=config, streaming=streaming)
        if not path.stat().st_size:
            raise InvalidArgumentError(f"Expected rows in {name!r}, but the file is empty. Check {option}.")
        builder = builder_for(name)
        files = {"train": str(_decompressed(path) if path.suffix.lower() == ".zst" else path)}
        return load_dataset(builder, data_files=files, streaming=streaming, **_OPTIONS.get(_suffix(name), {}))


@contextmanager
def reading(name: str, option: str) -> Iterator[None]:
    """Turns the errors of reading a data set into one sentence, with the row of a damaged file.

    Args:
        name: Path or Hub id.
        option: The command-line option that names the data set.

    Raises:
        InvalidArgumentError: If the data cannot be read.
    """
    from datasets.exceptions import DatasetGenerationError, DatasetsError  # noqa: PLC0415

    try:
        yield
    except InvalidArgumentError:
        raise
    # A file without rows ends the loader's own iteration (datasets 5.2).
    except (OSError, ValueError, LookupError, EOFError, StopIteration, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        reason = _damage(Path(name)) or str(cause) or "there are no rows in it"
        suffixes = ", ".join(DATA_FILE_BUILDERS)
        raise InvalidArgumentError(
            f"Expected {name!r} to be a data file ({suffixes}, perhaps with .gz or .zst), a folder of such files or of "
            f"save_to_disk, or the Hub id of a data set, but reading it failed: {reason.rstrip('.')}. Check {option}."
        ) from error


@contextmanager
def nothing_written_beside(dataset: Any) -> Iterator[None]:
    """Keeps `datasets` from caching mapped rows in the folder that a data set was loaded from.

    It caches beside the rows (datasets 5.2), which for a data set of `save_to_disk` is a folder of the user's; there
    the files are even read as rows later.
    """
    import datasets  # noqa: PLC0415

    home = Path(datasets.config.HF_DATASETS_CACHE).resolve()
    files = [Path(file["filename"]).resolve() for file in getattr(dataset, "cache_files", [])]
    if all(home in file.parents for file in files) or not datasets.is_caching_enabled():
        yield
        return
    datasets.disable_caching()
    try:
        yield
    finally:
        datasets.enable_caching()


def _check_package(name: str) -> None:
    try:
        import datasets  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(
            f"Expected the package datasets, which reads {name!r}, but it is not installed. "
            'Run: pip install datasets, or pip install "rgtg_logits[train]".'
        ) from error


def _suffix(name: str) -> str:
    path = Path(name.lower())
    return path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix


def _decompressed(file: Path) -> Path:
    """A copy of a zstandard file in the cache of `datasets`, which needs a further package to read such files."""
    import datasets  # noqa: PLC0415
    import pyarrow  # noqa: PLC0415

    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    copy = Path(datasets.config.HF_DATASETS_CACHE, "decompressed", f"{key}{_suffix(file.name)}")
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_suffix(".partial")
        with pyarrow.input_stream(str(file), compression="zstd") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
        partial.replace(copy)
    return copy


def _damage(file: Path) -> str | None:
    """The first damaged row of a JSON Lines file, in words; None if there is none, or it is no such file."""
    if not file.is_file() or file.suffix.lower() not in (".jsonl", ".json"):
        return None
    with file.open("rb") as lines:
        for number, line in enumerate(line for line in lines if line.strip()):
            try:
                text = line.decode("utf-8-sig")
                json.dumps(json.loads(text), ensure_ascii=False).encode()
            except UnicodeEncodeError:
                return f"row {number} holds half of a surrogate pair (\\ud83d or the like), which is no character"
            except ValueError as error:
                # A file that is one JSON value over several lines has no rows to name.
                return None if file.suffix.lower() == ".json" else f"row {number} is no JSON ({error})"
    return None

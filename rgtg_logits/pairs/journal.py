"""An append-only log (a journal) of the answers drawn so far, from which an interrupted run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.settings import check_same_run


class Journal:
    """A file with one JSON line for each answer, in order, behind a line with the settings of the run.

    Lines are appended a batch at a time and forced to the disk, so a run that is killed at any time leaves whole lines
    and perhaps the beginning of one more, which is dropped. The first line appears whole or not at all.

    One process writes the answers of a run in one order, and may resume with another batch size, so a log of lines
    fits. The processes of an evaluation share batches in any order: their log, `evaluate.records.Store`, is a file for
    each batch instead.

    Args:
        path: The file.
        identity: The settings that determine the lines, as JSON values.

    Raises:
        InvalidArgumentError: If the journal is of a run with other settings, or damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: _write(file, _line(identity)))
        with path.open("rb") as file:
            first = file.readline()
        self._check_identity(first, json.loads(json.dumps(identity)))
        # Byte offsets of the ends of the lines.
        self._ends = [len(first)]
        for index, line in enumerate(self._lines()):
            self._parse(line, index)
            self._ends.append(self._ends[-1] + len(line))
        self.truncate(len(self))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def truncate(self, count: int) -> None:
        """Drops everything behind the first `count` answers."""
        os.truncate(self._path, self._ends[count])
        del self._ends[count + 1 :]

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds answers; they are on the disk when it returns."""
        lines = [_line({"answer": index, **record}) for index, record in enumerate(records, len(self))]
        with self._path.open("ab") as file:
            _write(file, b"".join(lines))
        for line in lines:
            self._ends.append(self._ends[-1] + len(line))

    def records(self) -> Iterator[dict[str, Any]]:
        """The answers, read from the disk.

        Raises:
            InvalidArgumentError: If another process has written to the file.
        """
        for index, line in enumerate(self._lines()):
            record = self._parse(line, index)
            del record["answer"]
            yield record

    def remove(self) -> None:
        """Deletes the file."""
        self._path.unlink()

    def _lines(self) -> Iterator[bytes]:
        """The whole lines behind the first one."""
        with self._path.open("rb") as file:
            file.readline()
            yield from (line for line in file if line.endswith(b"\n"))

    def _check_identity(self, line: bytes, identity: Mapping[str, Any]) -> None:
        try:
            stored = json.loads(line)
        except ValueError as error:
            raise self._damaged("its first line is not JSON") from error
        check_same_run(
            stored,
            identity,
            f"of the run that started {str(self._path)!r}",
            "Use those settings to resume it, delete the file to start anew, or write to another --output.",
        )

    def _parse(self, line: bytes, index: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise self._damaged(f"line {index + 2} is not JSON") from error
        if not isinstance(record, dict) or record.get("answer") != index:
            raise self._damaged(f"line {index + 2} is not that of answer {index}, as if two runs had written to it")
        return record

    def _damaged(self, how: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"Expected {str(self._path)!r} to hold the answers of one run in order, but {how}. Delete it to start anew."
        )


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _line(values: Mapping[str, Any]) -> bytes:
    # NaN and infinities are not JSON, but Python reads them back, and nothing else reads this file.
    return json.dumps(values).encode() + b"\n"

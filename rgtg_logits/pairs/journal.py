"""What has been done so far, on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically


class Journal:
    """A file of one line for each answer, in order, behind a line that says of which run.

    Lines are appended a batch at a time and forced to the disk, so whatever kills the run leaves whole lines and
    perhaps the beginning of one more, which is dropped. The first line appears whole or not at all.

    Args:
        path: The file.
        identity: Everything that decides what the lines are, as JSON values.

    Raises:
        InvalidArgumentError: If there is a journal of another run, or one that is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: _write(file, _line(identity)))
        with path.open("rb") as file:
            first = file.readline()
        self._check_identity(first, json.loads(json.dumps(identity)))
        self._ends = [len(first)]
        for index, line in enumerate(self._lines()):
            self._check_line(line, index)
            self._ends.append(self._ends[-1] + len(line))
        self.keep(len(self))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def keep(self, count: int) -> None:
        """Drops what is behind the first `count` answers."""
        os.truncate(self._path, self._ends[count])
        del self._ends[count + 1 :]

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds answers; when it returns they are on the disk."""
        lines = [_line({"answer": index, **record}) for index, record in enumerate(records, len(self))]
        with self._path.open("ab") as file:
            _write(file, b"".join(lines))
        for line in lines:
            self._ends.append(self._ends[-1] + len(line))

    def records(self) -> Iterator[dict[str, Any]]:
        """The answers, read from the disk.

        Raises:
            InvalidArgumentError: If something else has written to the file.
        """
        for index, line in enumerate(self._lines()):
            record = self._check_line(line, index)
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
            found = json.loads(line)
        except ValueError as error:
            raise self._damaged("its first line is not JSON") from error
        differing = [name for name in identity if name not in found or found[name] != identity[name]]
        if differing:
            changes = ", ".join(f"{name} was {found.get(name)!r} and is {identity[name]!r}" for name in differing)
            raise InvalidArgumentError(
                f"Expected the settings of the run that {str(self._path)!r} was begun with, but {changes}. Use those "
                "settings to go on with it, delete the file to begin anew, or write to another --output."
            )

    def _check_line(self, line: bytes, index: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise self._damaged(f"line {index + 2} is not JSON") from error
        if not isinstance(record, dict) or record.get("answer") != index:
            raise self._damaged(f"line {index + 2} is not that of answer {index}, as if two runs had written to it")
        return record

    def _damaged(self, how: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"Expected {str(self._path)!r} to hold the answers of one run in order, but {how}. Delete it to begin anew."
        )


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _line(values: Mapping[str, Any]) -> bytes:
    # NaN and infinities are read again by Python, and nothing else reads this file.
    return json.dumps(values).encode() + b"\n"

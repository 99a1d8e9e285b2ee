"""Results on disk: a finished stage is read back, an interrupted one starts again.

Every file and folder appears whole or not at all, so its presence proves that its stage has finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Writes a text file in one step; the rename is atomic because the draft lies in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def draft_of(path: Path) -> Path:
    """A hidden neighbour of a file or folder, to be renamed to it when complete."""
    return path.with_name(f".{path.name}.draft")


def once(path: Path, make: Callable[[], Any]) -> Any:
    """Returns the JSON result of a stage, which runs only if it has not finished before."""
    if not path.exists():
        write(path, json.dumps(make(), indent=1))
    # Read back even when just made, so that a resumed run sees the very same numbers.
    return json.loads(path.read_text(encoding="utf-8"))


def once_rows(path: Path, make: Callable[[], Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Like `once`, for JSON Lines."""
    if not path.exists():
        write_rows(path, make())
    return read_rows(path)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON Lines in one step."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads JSON Lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]

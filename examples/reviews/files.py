"""Results on disk: a stage that finished is read back, one that was killed starts again.

Every file appears whole or not at all, so its presence is the proof that its stage has finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Writes a text file in one step; the rename is atomic because the draft lies in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """Returns the JSON result of a stage, and runs the stage only if it has not finished before."""
    if not path.exists():
        write(path, json.dumps(make(), indent=1))
    # Read back even when just made, so that a resumed run sees the very same numbers.
    return json.loads(path.read_text(encoding="utf-8"))


def once_rows(path: Path, make: Callable[[], Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """As `once`, for a list of objects, one a line."""
    if not path.exists():
        write(path, "".join(json.dumps(row) + "\n" for row in make()))
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]

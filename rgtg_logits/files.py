"""Files that appear whole or not at all, and their names for people elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: str | os.PathLike[str], content: str | Callable[[BinaryIO], None]) -> None:
    """Writes a file that appears whole or not at all, and is on the disk when this returns; makes folders on the way.

    Args:
        path: The file, which is replaced if there is one.
        content: Its text, or what writes it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a file can be moved in one go only within a file system.
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """Writes JSON that appears whole or not at all; `options` as in `json.dumps`."""
    write_atomically(path, json.dumps(content, **{"indent": 1, **options}) + "\n")


def display_name(name: str) -> str:
    """A Hub id or an import path as it is; of a local path only the last part, because the rest says nothing."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name

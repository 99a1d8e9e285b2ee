"""Atomic writing of files, and names of models for readers on other machines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: str | os.PathLike[str], content: str | Callable[[BinaryIO], None]) -> None:
    """Writes a file that appears complete or not at all, and is on the disk when this returns; creates its folders.

    Args:
        path: The file, which is replaced if there is one.
        content: Its text, or a function that writes its bytes.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within a file system.
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
    """Writes JSON by `write_atomically`; `options` as in `json.dumps`."""
    write_atomically(path, json.dumps(content, **{"indent": 1, **options}) + "\n")


def display_name(name: str) -> str:
    """A Hub id or an import path unchanged, a local path reduced to its last part, which is all that others can use."""
    path = Path(name)
    is_local = path.exists() or path.is_absolute()
    return path.name if is_local else name

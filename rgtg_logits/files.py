"""Atomic writing of files, and names of models for readers on other machines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

# A string in JSON holds no line break, so no text is taken for a list.
_NUMBER = r"(?:-?\d[\d.eE+-]*|null|NaN|-?Infinity)"
_SEPARATOR = r",\n\s*"
_NUMBERS = re.compile(rf"\[\n\s*({_NUMBER}(?:{_SEPARATOR}{_NUMBER})*)\n\s*\]")


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


def write_json(path: str | os.PathLike[str], content: Any, *, allow_nan: bool = True) -> None:
    """Writes JSON that appears whole or not at all; see `format_json`."""
    write_atomically(path, format_json(content, allow_nan=allow_nan) + "\n")


def format_json(content: Any, *, allow_nan: bool = True) -> str:
    """Indented JSON with each list of numbers on one line.

    Args:
        content: Data that `json.dumps` accepts.
        allow_nan: Whether NaN and infinities may be written, which strict JSON does not have.

    Raises:
        ValueError: If there is a NaN or an infinity, and `allow_nan` is false.
    """
    return _NUMBERS.sub(_on_one_line, json.dumps(content, indent=1, allow_nan=allow_nan))


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{re.sub(_SEPARATOR, ', ', numbers[1])}]"


def display_name(name: str) -> str:
    """A Hub id or an import path unchanged, a local path reduced to its last part, which is all that others can use."""
    path = Path(name)
    is_local = path.exists() or path.is_absolute()
    return path.name if is_local else name

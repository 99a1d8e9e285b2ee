"""Values that users pass in forms of other libraries: checked and made plain once."""

from __future__ import annotations

from typing import Any


def plain_number(value: Any) -> int | float | None:
    """The plain number of a Python, numpy or torch scalar; None for anything else, booleans included."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value

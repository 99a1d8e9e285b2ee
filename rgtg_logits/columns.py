"""Settings that are one number for all rows, or a column: one number for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.inputs import plain_number

Column: TypeAlias = Any
"""A number for all rows; or one for each row: a tensor or an array of shape [rows] or [rows, 1], or a list."""


def plain_setting(value: Any) -> int | float | Tensor | None:
    """A number as a plain one; one number for each row as a column [rows, 1] on the CPU; None for anything else.

    Args:
        value: A scalar of any library, or a `Column`. Booleans are refused.
    """
    number = plain_number(value)
    if number is not None:
        return number
    if isinstance(value, (list, tuple)):
        numbers = [plain_number(each) for each in value]
        value = torch.tensor(numbers) if numbers and None not in numbers else None
    if not hasattr(value, "__array__"):
        return None
    column = torch.as_tensor(value).detach().cpu()
    is_column = column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1)
    if not is_column or len(column) == 0 or column.dtype == torch.bool or column.is_complex():
        return None
    return column.reshape(-1, 1)


def holds(value: int | float | Tensor | None, rule: Callable[[Any], bool]) -> bool:
    """Whether a rule holds for a number, or for each number of a column; not for None."""
    if value is None:
        return False
    return all(map(rule, value.flatten().tolist())) if isinstance(value, Tensor) else rule(value)


def spread(setting: Any, rows: int) -> Any:
    """The setting for a number of rows: each entry of a column covers as many rows in succession.

    Those are the beams and return sequences of a prompt, in the order of `generate`. What is no column stays as it is.

    Raises:
        InvalidArgumentError: If the rows are no multiple of the column's entries.
    """
    if not isinstance(setting, Tensor):
        return setting
    entries = len(setting)
    if rows % entries:
        raise InvalidArgumentError(
            f"Expected settings for each row or each prompt, but got {entries} entries for {rows} rows. Pass one "
            "number for all rows, or a tensor with one entry for each prompt or row."
        )
    return setting.repeat_interleave(rows // entries, dim=0)


def column_on(setting: float | Tensor, like: Tensor) -> float | Tensor:
    """A column on the device of a tensor, as [rows, 1] of float32; a number stays as it is."""
    if not isinstance(setting, Tensor):
        return setting
    return setting.to(like.device, torch.float32, non_blocking=True).reshape(-1, 1)

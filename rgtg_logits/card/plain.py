"""Dataclasses as JSON values and back, strictly: a misspelt fact is an error, not a fact that vanishes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rgtg_logits.errors import InvalidArgumentError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """JSON values of a dataclass, without the fields that are as they are by default, and so unknown.

    Raises:
        InvalidArgumentError: If a number is NaN or infinite, which JSON cannot say.
    """
    if is_dataclass(value):
        known = ((part.name, getattr(value, part.name)) for part in fields(value) if not _is_default(part, value))
        return {name: to_plain(inner) for name, inner in known}
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgumentError(f"Expected finite numbers among the facts, but got {value}. Leave that fact out.")
    return value


def from_plain(cls: type[T], values: Any, where: str) -> T:
    """Makes a dataclass of JSON values.

    Args:
        cls: The dataclass.
        values: What `to_plain` returned, perhaps read from a file.
        where: What to call it in messages.

    Raises:
        InvalidArgumentError: If a key is unknown or missing, or a value of another type than the field.
    """
    if not isinstance(values, Mapping):
        raise _wrong(where, "an object", values)
    parts: dict[str, Field[Any]] = {part.name: part for part in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(parts))
    if unknown:
        raise InvalidArgumentError(
            f"Expected {where} to have keys among {', '.join(parts)}, but got {', '.join(map(repr, unknown))}. "
            "Correct or remove what is not among them."
        )
    missing = [name for name, part in parts.items() if name not in values and _needed(part)]
    if missing:
        raise InvalidArgumentError(
            f"Expected {where} to have {', '.join(map(repr, missing))}, but got {', '.join(values) or 'nothing'}. "
            "Add what is missing."
        )
    kinds = get_type_hints(cls)
    return cls(**{name: _value(kinds[name], inner, f"{name} of {where}") for name, inner in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type that a field is annotated with."""
    options = [option for option in get_args(kind) if option is not NoneType]
    if NoneType in get_args(kind):
        return None if value is None else _value(options[0], value, where)
    if is_dataclass(kind):
        return from_plain(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _items(options, value, where)
    if get_origin(kind) is Mapping:
        return _entries(options[0], options[1], value, where)
    if kind is float and type(value) is int:
        return float(value)
    if kind is Any or type(value) is kind:
        return value
    raise _wrong(where, kind.__name__, value)


def _items(options: list[Any], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    kinds = [options[0]] * len(value) if options[-1] is Ellipsis else options
    if len(kinds) != len(value):
        raise _wrong(where, f"a list of {len(kinds)}", value)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_value(kind, inner, f"item {index} of {where}") for index, (kind, inner) in pairs)


def _entries(key_kind: Any, value_kind: Any, value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    if key_kind is int and not all(str(key).isdecimal() for key in value):
        raise _wrong(f"the keys of {where}", "whole numbers", list(value))
    return {key_kind(key): _value(value_kind, inner, f"{key!r} in {where}") for key, inner in value.items()}


def _is_default(part: Field[Any], owner: Any) -> bool:
    if _needed(part):
        return False
    default = part.default if part.default_factory is MISSING else part.default_factory()
    return bool(getattr(owner, part.name) == default)


def _needed(part: Field[Any]) -> bool:
    return part.default is MISSING and part.default_factory is MISSING


def _wrong(where: str, expected: str, value: Any) -> InvalidArgumentError:
    return InvalidArgumentError(f"Expected {where} to be {expected}, but got {value!r}. Correct it in the facts.")

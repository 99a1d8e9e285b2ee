"""Checks that the settings of every command share: values out of range, and runs that resume with other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any, NamedTuple

from rgtg_logits.errors import InvalidArgumentError

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Types of weights that commands take; "auto" is that of the checkpoint."""


class Rule(NamedTuple):
    """A rule for one setting.

    Attributes:
        holds: Whether the value is in its range.
        expected: The range, in words.
    """

    holds: bool
    expected: str


def one_of(value: str | None, choices: Iterable[str], *, optional: bool = False) -> Rule:
    """The rule that a value is one of some choices, or None if it is optional."""
    choices = tuple(choices)
    return Rule(value in choices or (optional and value is None), f"one of {', '.join(choices)}")


def at_least(least: int, value: int | None, expected: str) -> Rule:
    """The rule that a count, if it is given, is large enough."""
    return Rule(value is None or value >= least, expected)


def positive(value: float, expected: str) -> Rule:
    """The rule that a number is finite and above 0."""
    return Rule(isfinite(value) and value > 0, expected)


def check_rules(
    settings: object, rules: Mapping[str, Rule], advice: str | Callable[[str], str], *, owner: str = ""
) -> None:
    """Checks settings one after another.

    Args:
        settings: The settings, each an attribute.
        rules: The rule of each setting, by its name.
        advice: What to do about a wrong value: a sentence, or a function from the name of the setting to one.
        owner: Whose settings they are, for the message.

    Raises:
        InvalidArgumentError: If a value breaks its rule.
    """
    for name, rule in rules.items():
        if not rule.holds:
            subject = f"{name} of {owner}" if owner else name
            sentence = advice if isinstance(advice, str) else advice(name)
            raise InvalidArgumentError(
                f"Expected {subject} to be {rule.expected}, but got {getattr(settings, name)!r}. {sentence}"
            )


def check_same_run(stored: Mapping[str, Any], current: Mapping[str, Any], run: str, advice: str) -> None:
    """Checks that a run resumes with the settings that it was started with.

    Args:
        stored: The settings on disk, which may have others besides.
        current: The settings now, as JSON values.
        run: Which run it is, for the message.
        advice: What to do about other settings.

    Raises:
        InvalidArgumentError: If a setting is another one.
    """
    changes = [
        f"{name} was {stored.get(name)!r} and is {value!r}"
        for name, value in current.items()
        if name not in stored or stored[name] != value
    ]
    if changes:
        raise InvalidArgumentError(f"Expected the settings {run}, but {', '.join(changes)}. {advice}")

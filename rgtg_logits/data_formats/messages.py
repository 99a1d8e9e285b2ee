"""Prompts and answers as texts or messages, in the forms that data sets have, brought together row by row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from rgtg_logits.errors import InvalidArgumentError

Messages: TypeAlias = "list[dict[str, Any]]"

ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "function": "tool", "observation": "tool",
}  # fmt: skip
"""Other names of roles, as in lists of the ShareGPT kind."""

_ROLE_IN_TEXT = re.compile(r"\b(?:human|user|prompter|assistant|gpt|system)\s*:", re.IGNORECASE)


def user(text: str | None) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str | None) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def plain_value(value: Any, place: str) -> str | Messages | None:
    """A text, or messages with the keys `role` and `content`; None where there is nothing.

    Messages of the ShareGPT kind (`from`, `value`) and a single message are taken too. Arrow gives every message of a
    data set the same keys: those that are None are removed, because templates ask which keys there are.

    Args:
        value: What a column holds.
        place: Column and row, for messages.

    Raises:
        InvalidArgumentError: If it is anything else, such as a number or a list of texts.
    """
    if value is None or isinstance(value, str):
        return value
    turns = [value] if isinstance(value, dict) else value
    if isinstance(turns, list) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns):
        return [_message(turn) for turn in turns]
    holds = type(value).__name__
    if isinstance(value, list):
        holds += f" of {type(value[0]).__name__}"
    raise InvalidArgumentError(
        f"Expected {place} to hold a text or a list of messages (role and content), but got {holds}. Name another "
        "column with --columns, or write it as a text."
    )


def has_text(answer: Any) -> bool:
    """Whether there is an answer: a text, or messages of which the last one is not empty."""
    if isinstance(answer, list):
        return bool(answer) and any(value for key, value in answer[-1].items() if key != "role")
    return isinstance(answer, str) and bool(answer)


def bring_together(
    prompt: str | Messages | None, answers: Sequence[str | Messages], *, repeated: bool = False
) -> tuple[str | Messages, list[Any]] | str:
    """Prompt and answers of a row in one form, so that each text holds the prompt once.

    A text beside messages becomes a message. Where the answers are whole conversations, a prompt that they hold already
    is not put before them again.

    Args:
        prompt: The prompt; None if there is none.
        answers: One or two answers, none of them empty.
        repeated: Whether text answers of this data set begin with their prompt.

    Returns:
        The prompt and the answers, all texts or all messages; or the reason why the row cannot be used: "unusable"
        without a question, "mismatched" if the conversations are about another prompt.
    """
    if all(isinstance(answer, str) for answer in answers) and not isinstance(prompt, list):
        if prompt is None:
            return "unusable"
        if repeated and all(str(answer).startswith(prompt) for answer in answers):
            return "", list(answers)
        return prompt, list(answers)
    return _conversations(prompt, answers)


def _conversations(
    prompt: str | Messages | None, answers: Sequence[str | Messages]
) -> tuple[str | Messages, list[Any]] | str:
    turns = [[assistant(answer)] if isinstance(answer, str) else list(answer) for answer in answers]
    asked = [any(turn["role"] == "user" for turn in each) for each in turns]
    if not prompt:
        return ([], turns) if all(asked) else "unusable"
    repeated = [_holds(each[:-1], prompt) for each in turns]
    if all(asked) and all(repeated):
        return [], turns
    if any(is_asked and holds for is_asked, holds in zip(asked, repeated, strict=True)):
        return "mismatched"
    if isinstance(prompt, list):
        return prompt, turns
    # A system message comes first.
    return "mismatched" if any(asked) else ([], [_with_question(each, prompt) for each in turns])


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in turn.items() if value is not None}
    if "from" in kept:
        kept = {"role": kept["from"], "content": kept.get("value", "")}
    role = str(kept.get("role"))
    return {**kept, "role": ROLES.get(role.lower(), role)}


def _with_question(turns: Messages, prompt: str) -> Messages:
    first = 1 if turns and turns[0]["role"] == "system" else 0
    return [*turns[:first], user(prompt), *turns[first:]]


def _holds(turns: Messages, prompt: str | Messages) -> bool:
    """Whether a conversation holds a prompt: in one message, or over several of them."""
    asked = prompt if isinstance(prompt, str) else "".join(str(turn.get("content") or "") for turn in prompt)
    return _letters(asked) in _letters("".join(str(turn.get("content") or "") for turn in turns))


def _letters(text: str) -> str:
    """A text without spaces, and without the names of roles that a transcript of a conversation has."""
    return "".join(_ROLE_IN_TEXT.sub("", text).split())

"""The texts and conversations that `RewardModel.score` takes, in every form in which users have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rgtg_logits.errors import InvalidArgumentError

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""A conversation: messages with "role" and "content"."""
Texts: TypeAlias = str | Sequence[str]
Conversations: TypeAlias = Messages | Sequence[Messages]


def paired(prompts: Texts | Conversations, responses: Texts | Conversations | None) -> list[str | Messages]:
    """Whole texts and conversations, from prompts and the responses to them; see `RewardModel.score`.

    Raises:
        InvalidArgumentError: If the lists differ in length, or hold anything else.
    """
    beginnings = _listed(prompts, "prompts")
    if responses is None:
        return beginnings
    endings = _listed(responses, "responses")
    if len(beginnings) != len(endings):
        raise InvalidArgumentError(
            f"Expected one response for each prompt, but got {len(beginnings)} prompts and {len(endings)} responses."
        )
    return [_joined(*pair) for pair in zip(beginnings, endings, strict=True)]


def _listed(given: Texts | Conversations, name: str) -> list[str | Messages]:
    """The texts or conversations as a list, also if one stands alone."""
    if isinstance(given, str) or (_is_list(given) and given and all(isinstance(item, Mapping) for item in given)):
        given = [given]  # type: ignore[assignment]
    for item in given if _is_list(given) else [given]:
        is_conversation = _is_list(item) and item and all(map(_is_message, item))
        if not isinstance(item, str) and not is_conversation:
            raise InvalidArgumentError(
                f"Expected {name} to be texts, or conversations (lists of messages with 'role' and 'content'), but got "
                f"{_shown(item)}. Pass a list of one or the other."
            )
    return list(given)  # type: ignore[arg-type]


def _joined(prompt: str | Messages, response: str | Messages) -> str | Messages:
    if isinstance(prompt, str):
        if isinstance(response, str):
            return prompt + response
        raise InvalidArgumentError(
            f"Expected a text as the response to a text, but got messages for {_shown(prompt)}. Pass messages as the "
            "prompt as well."
        )
    if isinstance(response, str):
        return [*prompt, {"role": "assistant", "content": response}]
    return [*prompt, *response]


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, (str, bytes))


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping) and "role" in item


def _shown(item: object) -> str:
    text = repr(item)
    return f"{type(item).__name__} {text if len(text) <= 80 else text[:80] + '…'}"

"""The tokens that end a base model's text besides those of its tokenizer: those of users, and the end of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError

_CONTENT = "zq8contentqz"
"""The assistant's content in a rendered chat."""

_REFUSALS = (TemplateError, ValueError, TypeError, KeyError, AttributeError)
"""Errors of templates that do not take such a conversation. Reading plain text needs no template, so none is fatal."""


def checked_eos_token_ids(eos_token_id: object) -> tuple[int, ...]:
    """Checks the end tokens that a user names, one or several as in generation configs; None is none.

    Raises:
        InvalidArgumentError: If they are no token ids.
    """
    if eos_token_id is None:
        return ()
    is_sequence = isinstance(eos_token_id, Sequence) and not isinstance(eos_token_id, (str, bytes))
    checked = []
    for token in cast("Sequence[object]", eos_token_id) if is_sequence else (eos_token_id,):
        if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
            raise InvalidArgumentError(
                f"Expected eos_token_id to be a token id of 0 or more, or several of them, but got {eos_token_id!r}. "
                "Pass model.generation_config.eos_token_id of the base model, or leave it out."
            )
        checked.append(int(token))
    return tuple(checked)


def end_of_turn_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token that a chat template writes directly behind an assistant's message, as base models then generate it.

    Empty if there is no template, or if it writes anything else there than a special or an added token. White space is
    no end, although some tokenizers add tokens for it.
    """
    text = _text_behind_answer(tokenizer)
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    added = tokenizer.added_tokens_decoder.get(tokens[0]) if tokens else None
    # Its content is compared because an unknown character is written as a special token, too.
    if added is None or not added.content.strip() or not text.startswith(added.content):
        return set()
    return {int(tokens[0])}


def _text_behind_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the chat template writes behind the last message, an assistant's."""
    if tokenizer.chat_template is None:
        return ""
    messages = [{"role": "user", "content": "zq0qz"}, {"role": "assistant", "content": _CONTENT}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except _REFUSALS:
        return ""
    return text.partition(_CONTENT)[2] if text.count(_CONTENT) == 1 else ""

"""Tokens of answers with a reward each: TRL's prompt-completion rows, whole texts, or rows that are tokenised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.tokenization import common_prefix_length, encode_finished, encode_prompt


def answer_tokens(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Tokenises a prompt and its answer in one go, as preference pairs are.

    A text is closed by `tokenization.encode_finished`, a conversation by its template. The answer begins at the first
    token that is not the one of the prompt alone, because the prompt's last letters may share a token with the answer's
    first.

    Args:
        row: `completion` or `text`, and perhaps `prompt`: texts, or lists of messages, with `tools` and
            `chat_template_kwargs` as in TRL. Or `input_ids`, and perhaps `start`.
        tokenizer: The reward model's.

    Returns:
        The tokens, and how many of them are the prompt; at least one is the answer.

    Raises:
        InvalidArgumentError: If one of prompt and answer is text, and the other one messages.
    """
    if "input_ids" in row:
        ids, start = list(row["input_ids"]), int(row.get("start", 0))
        return ids, min(start, len(ids) - 1)
    answer = row["completion"] if "completion" in row else row["text"]
    prompt = row.get("prompt", type(answer)())
    if type(prompt) is not type(answer):
        raise InvalidArgumentError(
            f"Expected prompt and answer both as texts, or both as lists of messages, but got {type(prompt).__name__} "
            f"and {type(answer).__name__}. Write both in the same way."
        )
    ids, given = (_texts if isinstance(answer, str) else _conversations)(row, prompt, answer, tokenizer)
    return ids, min(common_prefix_length(ids, given), len(ids) - 1)


def _texts(
    row: Mapping[str, Any], prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    return encode_finished(tokenizer, prompt + answer), encode_prompt(tokenizer, prompt)


def _conversations(
    row: Mapping[str, Any], prompt: list[Any], answer: list[Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    tools = row.get("tools")
    options = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
        "tokenize": True,
        "return_dict": True,
    }
    ids = tokenizer.apply_chat_template([*prompt, *answer], **options)["input_ids"]
    # With what opens the answer, because guided tokens come after that.
    given = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)["input_ids"] if prompt else []
    return list(ids), list(given)

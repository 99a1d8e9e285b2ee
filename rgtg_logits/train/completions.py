"""Tokens of rows that were read: prompts and answers as texts or messages, in which each is closed once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rgtg_logits.data_formats import Messages
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.tokenization import common_prefix_length, encode_finished, encode_prompt


def whole_tokens(
    row: Mapping[str, Any], answer: str | Messages, tokenizer: PreTrainedTokenizerBase, between: str | None = None
) -> list[int]:
    """Tokenises a prompt and its answer in one go.

    A text is closed by `tokenization.encode_finished`, a conversation by its template.

    Args:
        row: `prompt`, and perhaps `tools` and `chat_template_kwargs` as in TRL; `finished` is false for an answer that
            goes on.
        answer: The answer, in the form of the prompt.
        tokenizer: The reward model's.
        between: Joins the messages of a question and its answer where the tokenizer has no chat template; None for
            messages that are a chat, which need one.

    Raises:
        InvalidArgumentError: If a chat meets a tokenizer without a template, or the template refuses it.
    """
    finished = row.get("finished", True)
    if isinstance(answer, list):
        turns = [*row["prompt"], *answer]
        if tokenizer.chat_template is not None or between is None:
            return _rendered(row, turns, tokenizer, continue_final_message=not finished)
        text = between.join(turn["content"] for turn in turns)
    else:
        text = row["prompt"] + answer
    return encode_finished(tokenizer, text) if finished else encode_prompt(tokenizer, text)


def answer_tokens(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, between: str | None = None
) -> tuple[list[int], int]:
    """Tokenises an answer behind its prompt, as preference pairs are.

    The answer begins at the first token that is not the one of the prompt alone, because the prompt's last letters may
    share a token with the answer's first.

    Args:
        row: `prompt` and `completion`, both texts or both messages, and what `whole_tokens` reads; `given` is how much
            of the answer the reward is not about. Or `input_ids`, and perhaps `start`.
        tokenizer: The reward model's.
        between: See `whole_tokens`.

    Returns:
        The tokens, and how many of them are the prompt; at least one is the answer.
    """
    if "input_ids" in row:
        ids, start = list(row["input_ids"]), int(row.get("start", 0))
        return ids, min(start, len(ids) - 1)
    ids = whole_tokens(row, row["completion"], tokenizer, between)
    return ids, min(common_prefix_length(ids, _prompt_tokens(row, tokenizer, between)), len(ids) - 1)


def _prompt_tokens(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, between: str | None) -> list[int]:
    """The tokens of the prompt alone, and of what the answer begins with without being judged for it."""
    given = row.get("given") or ""
    if isinstance(row["prompt"], str):
        return encode_prompt(tokenizer, row["prompt"] + given)
    if given:
        begun = [{**row["completion"][0], "content": given}]
        return whole_tokens({**row, "finished": False}, begun, tokenizer, between)
    if tokenizer.chat_template is not None:
        # With what opens the answer, because guided tokens come after that.
        return _rendered(row, row["prompt"], tokenizer, add_generation_prompt=True) if row["prompt"] else []
    return encode_prompt(tokenizer, "".join(f"{turn['content']}{between or ''}" for turn in row["prompt"]))


def _rendered(
    row: Mapping[str, Any], turns: Messages, tokenizer: PreTrainedTokenizerBase, **rendering: Any
) -> list[int]:
    if tokenizer.chat_template is None:
        raise InvalidArgumentError(
            "Expected a model with a chat template, because the data hold messages, but its tokenizer has none. Train "
            "a chat model, or name one whose template to use with --chat_template_path."
        )
    tools = row.get("tools")
    options = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    }
    try:
        encoded = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options, **rendering)
    except TemplateError as error:
        raise InvalidArgumentError(
            f"Expected messages that the chat template takes, but it says of {json.dumps(turns)[:200]}: {error}. "
            "Leave such rows out of the data."
        ) from error
    return list(encoded["input_ids"])

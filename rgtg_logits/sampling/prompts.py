"""Prompts: reading them from a file or a data set, and encoding them for the base model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.data_files import builder_for, open_stream, reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers import Detokenizer
from rgtg_logits.tokenization import encode_prompt

Messages = list[dict[str, Any]]

COLUMNS = ("prompt", "messages", "text")
"""Columns that may hold prompts; the first that exists is taken."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that can be answered.

    Attributes:
        index: Row in the data, counting rows that are left out.
        value: The text or the messages, as written into output rows.
        text: The decoded tokens without special ones, for rewards that read plain text.
        ids: Token ids.
    """

    index: int
    value: str | Messages
    text: str
    ids: list[int]


def read_prompts(name: str, column: str | None, split: str | None, limit: int | None) -> list[str | Messages]:
    """Reads the prompts of a data set: texts, or lists of messages.

    The answer at the end of a conversation is left out. Blank lines of a txt file are skipped.

    Args:
        name: A file, a Hub id, or a folder of data files.
        column: The column to take; see `COLUMNS` for the default.
        split: The split to take; by default train, or else the first.
        limit: Most rows to read.

    Raises:
        InvalidArgumentError: If the package `datasets` is missing; if there is no such file, data set, split or column;
            or if the column does not hold prompts.
    """
    splits = open_stream(name, "prompts", "--prompts")
    with reading(name, "--prompts"):
        rows = iter(splits[_split(splits, name, split)])
        if builder_for(name) == "text":
            rows = (row for row in rows if row["text"].strip())
        first = list(islice(rows, 1))
        column = _column(first, name, column)
        values = [row.get(column) for row in islice(chain(first, rows), limit)]
    return [_prompt(value, name, column, number) for number, value in enumerate(values)]


def digest_prompts(prompts: Sequence[str | Messages]) -> str:
    """The SHA-256 of all prompts, to recognise them when a run resumes."""
    return hashlib.sha256(json.dumps(list(prompts), sort_keys=True).encode()).hexdigest()


def encode_prompts(
    prompts: Sequence[str | Messages],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_tokens: int | None = None,
    prompt_prefix: str = "",
) -> list[Prompt]:
    """The tokens of each prompt, with what the tokenizer itself puts before a text, and not what it puts after one.

    Messages are rendered by the tokenizer's chat template, up to where the answer begins.

    Args:
        prompts: Texts or lists of messages.
        tokenizer: The base model's.
        prompt_tokens: How much of each text to keep, in tokens without special ones; a shorter text is kept whole.
        prompt_prefix: Put before each text.

    Raises:
        InvalidArgumentError: If messages meet a tokenizer without a chat template, or are to be changed, or the
            template refuses them.
    """
    detokenizer = Detokenizer(tokenizer)
    encoded = []
    for index, prompt in enumerate(prompts):
        value = prompt
        if isinstance(value, str):
            if prompt_tokens is not None:
                value = _beginning(value, detokenizer, tokenizer, prompt_tokens)
            value = prompt_prefix + value
            ids = encode_prompt(tokenizer, value)
        elif prompt_tokens is not None or prompt_prefix:
            raise InvalidArgumentError(
                f"Expected texts, because prompt_tokens={prompt_tokens} and prompt_prefix={prompt_prefix!r} change "
                "texts, but the prompts are messages. Leave both out, or name a column of texts with --prompt_column."
            )
        else:
            ids = _render(value, tokenizer, index) if value else []
        encoded.append(Prompt(index, value, detokenizer.decode(ids), ids))
    return encoded


def usable_prompts(
    prompts: Sequence[Prompt], model: PreTrainedModel, max_new_tokens: int
) -> tuple[list[Prompt], Counter[str]]:
    """The prompts that a model can answer, and the counts of the others by reason.

    Args:
        prompts: The prompts.
        model: The base model.
        max_new_tokens: Longest answer, which has to fit behind the prompt into the model's context.

    Raises:
        InvalidArgumentError: If no prompt is left.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    usable, left_out = [], Counter[str]()
    for prompt in prompts:
        if not prompt.ids:
            left_out["empty"] += 1
        elif context is not None and len(prompt.ids) + max_new_tokens > context:
            left_out["too long for the base model"] += 1
        else:
            usable.append(prompt)
    if not usable:
        raise InvalidArgumentError(
            f"Expected prompts of one token or more that leave room for {max_new_tokens} new tokens, but none is left "
            f"of {len(prompts)}: {describe_counts(left_out)}. Use other prompts, or lower --max_new_tokens."
        )
    return usable, left_out


def describe_counts(counts: Mapping[str, int]) -> str:
    """Counts by reason, as one phrase."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "nothing"


def _split(splits: Mapping[str, Any], name: str, split: str | None) -> str:
    if split is None:
        return "train" if "train" in splits else next(iter(splits))
    if split not in splits:
        raise InvalidArgumentError(
            f"Expected {name!r} to have the split {split!r}, but it has {', '.join(map(repr, splits))}. "
            "Name one of these with --split."
        )
    return split


def _column(rows: Sequence[Mapping[str, Any]], name: str, column: str | None) -> str:
    candidates = [column] if column is not None else list(COLUMNS)
    for candidate in candidates:
        if rows and candidate in rows[0]:
            return candidate
    raise InvalidArgumentError(
        f"Expected {name!r} to hold rows with a column {' or '.join(map(repr, candidates))}, but got "
        f"{', '.join(map(repr, rows[0])) if rows else 'no rows'}. Name the column with --prompt_column."
    )


def _prompt(value: object, name: str, column: str, number: int) -> str | Messages:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, dict) and "role" in turn for turn in value):
        # Arrow gives every message of a data set the same keys, with None for those that it does not have.
        turns = [{key: part for key, part in turn.items() if part is not None} for turn in value]
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        return turns
    raise InvalidArgumentError(
        f"Expected the column {column!r} of {name!r} to hold texts or lists of messages, but row {number} holds "
        f"{type(value).__name__}. Name another column with --prompt_column."
    )


def _beginning(text: str, detokenizer: Detokenizer, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return text if len(ids) <= tokens else detokenizer.decode(ids[:tokens])


def _render(messages: Messages, tokenizer: PreTrainedTokenizerBase, index: int) -> list[int]:
    if tokenizer.chat_template is None:
        raise InvalidArgumentError(
            "Expected a base model with a chat template, because the prompts are messages, but its tokenizer has none. "
            "Use a chat model, or a column of texts with --prompt_column."
        )
    try:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    except TemplateError as error:
        raise InvalidArgumentError(
            f"Expected messages that the base model's chat template takes, but it says of row {index}: {error}. "
            "Leave such rows out of the data."
        ) from error
    return list(encoded["input_ids"])

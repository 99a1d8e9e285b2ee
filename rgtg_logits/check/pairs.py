"""Preference pairs, and how often a reward model tells the better answer from its beginning.

Needs the package `datasets`, and nothing else of the train extra.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.sampling import open_stream
from rgtg_logits.tokenization import common_prefix_length, encode_finished

PERCENTS = (10, 25, 50, 75, 100)
"""Where answers are cut."""
SPLITS = ("test", "validation", "train")
"""Which part of a data set is read, in this order."""


@dataclass(frozen=True)
class PrefixAccuracy:
    """How often the beginning of the chosen answer has the higher reward; 0.5 is chance, ties count half.

    Attributes:
        pairs: Number of pairs.
        cut: Of these, pairs with a text that was cut at the reward model's context.
        left_out: Pairs not used: an answer is empty, or both are the same.
        accuracy: From percent of the answer to the fraction of pairs judged right.
    """

    pairs: int
    cut: int
    left_out: int
    accuracy: dict[int, float]

    @property
    def standard_error(self) -> float:
        """The largest that the standard error of an accuracy can be."""
        return 0.5 / math.sqrt(self.pairs)


def read_pairs(name: str, count: int) -> list[Mapping[str, Any]]:
    """Reads the first rows of a data set with the columns `chosen`, `rejected` and perhaps `prompt`.

    Args:
        name: A file (json, jsonl, csv, each also as .gz, or parquet), a Hub id, or a folder of data files.
        count: Most rows to read.

    Raises:
        InvalidArgumentError: If `datasets` is missing, or there is no such file, data set or column.
    """
    try:
        # A few hundred rows of what may be gigabytes are wanted.
        splits = open_stream(name, "preference pairs", "--pairs")
        split = next((split for split in SPLITS if split in splits), next(iter(splits)))
        rows = list(splits[split].take(count))
    except InvalidArgumentError:
        raise
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"Expected {name!r} to be a json, jsonl, csv or parquet file, a folder of such files, or the Hub id of a "
            f"data set, but reading it failed: {error} Check --pairs."
        ) from error
    if not rows or not {"chosen", "rejected"} <= set(rows[0]):
        raise InvalidArgumentError(
            f"Expected {name!r} to hold rows with the columns chosen and rejected (and perhaps prompt), but got "
            f"{', '.join(map(repr, rows[0])) if rows else 'no rows'}. Rename its columns."
        )
    return rows


def prefix_accuracy(reward_model: RewardModel, rows: Iterable[Mapping[str, Any]]) -> PrefixAccuracy:
    """Cuts both answers of each pair at percentages of their own length and compares the rewards.

    An answer is what follows the longest common prefix of the two texts, which are tokenised and closed as in training.
    The cut keeps at least one token and rounds up; at 100 % it is the finished answer with its end-of-text token.

    Args:
        reward_model: A reward model with a tokenizer.
        rows: Mappings with `chosen`, `rejected` and perhaps `prompt`: texts, or lists of messages.

    Raises:
        InvalidArgumentError: If no pair can be used, or messages meet a tokenizer without a chat template.
    """
    limit, wins = reward_model.max_length, list[list[float]]()
    cut = left_out = 0
    for row in rows:
        texts = [_tokens(reward_model, row, column) for column in ("chosen", "rejected")]
        chosen, rejected = (text[:limit] for text in texts)
        if not row["chosen"] or not row["rejected"] or chosen == rejected:
            left_out += 1
            continue
        cut += limit is not None and max(map(len, texts)) > limit
        wins.append(_wins(reward_model, chosen, rejected))
    if not wins:
        raise InvalidArgumentError(
            f"Expected pairs of two different answers, but all {left_out} are empty or the same. Use other pairs."
        )
    shares = [sum(column) / len(wins) for column in zip(*wins, strict=True)]
    return PrefixAccuracy(len(wins), cut, left_out, dict(zip(PERCENTS, shares, strict=True)))


def _wins(reward_model: RewardModel, chosen: Sequence[int], rejected: Sequence[int]) -> list[float]:
    """For each percentage, 1 where the chosen prefix wins, 0 where it loses, 0.5 for a tie."""
    start = common_prefix_length(chosen, rejected)
    good, bad = (reward_model.score_tokens(torch.tensor([text]))[0].tolist() for text in (chosen, rejected))
    pairs = [
        (good[_last(len(chosen), start, percent)], bad[_last(len(rejected), start, percent)]) for percent in PERCENTS
    ]
    return [0.5 * ((one > other) - (one < other)) + 0.5 for one, other in pairs]


def _last(length: int, start: int, percent: int) -> int:
    # Integers, because 0.1 * 30 is more than 3 in floating point and would round up to 4.
    kept = max(1, ((length - start) * percent + 99) // 100)
    # An answer that is a beginning of the other one has no token of its own: its reward is that of the common prefix.
    return min(start + kept, length) - 1


def _tokens(reward_model: RewardModel, row: Mapping[str, Any], column: str) -> list[int]:
    """A text as in training: the prompt, the answer, and what closes it."""
    tokenizer, answer, prompt = reward_model.tokenizer, row[column] or "", row.get("prompt") or ""
    if tokenizer is None:
        raise InvalidArgumentError(
            "Expected a reward model with a tokenizer, because pairs are text, but it has none. "
            "Pass tokenizer= to RewardModel."
        )
    if isinstance(answer, str) and isinstance(prompt, str):
        return encode_finished(tokenizer, prompt + answer)
    if tokenizer.chat_template is None or isinstance(answer, str):
        raise InvalidArgumentError(
            "Expected prompt, chosen and rejected as texts, or as lists of messages for a tokenizer with a chat "
            f"template, but got a prompt of type {type(prompt).__name__} and an answer of type {type(answer).__name__}"
            f"{'' if tokenizer.chat_template else ' for a tokenizer without one'}. Write all of them as texts."
        )
    # Many data sets give the prompt as text beside whole conversations that begin with it.
    messages = [*prompt, *answer] if not isinstance(prompt, str) else answer
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])

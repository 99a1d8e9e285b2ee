"""Prefix accuracy of a reward model on preference pairs from a file or data set.

Of the train extra it needs nothing but the package `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rgtg_logits.data_files import open_stream, reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.prefix_accuracy import PERCENTS, PairRewards, pair_lengths, prefix_wins, standard_error
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.tokenization import encode_finished

SPLITS = ("test", "validation", "train")
"""Splits to read, in order of preference."""


@dataclass(frozen=True)
class PrefixAccuracy:
    """Prefix accuracy of a reward model: 0.5 is chance, ties count half.

    Attributes:
        pairs: Number of pairs.
        cut: Those of them with a text that was cut at the reward model's context.
        left_out: Number of pairs that were not used: an answer is empty, or both are the same.
        accuracy: From percent of the answer to the fraction of pairs whose chosen prefix has the higher reward.
    """

    pairs: int
    cut: int
    left_out: int
    accuracy: dict[int, float]

    @property
    def standard_error(self) -> float:
        """The largest standard error that an accuracy can have, that of 0.5."""
        return standard_error(0.5, self.pairs)


def read_pairs(name: str, count: int) -> list[Mapping[str, Any]]:
    """Reads the first rows of a data set with the columns `chosen`, `rejected` and perhaps `prompt`.

    Args:
        name: A file (json, jsonl, csv, each also as .gz, or parquet), a Hub id, or a folder of data files.
        count: Most rows to read.

    Raises:
        InvalidArgumentError: If `datasets` is missing, or there is no such file, data set or column.
    """
    # Streamed, because a few hundred rows are read of what may be gigabytes.
    splits = open_stream(name, "preference pairs", "--pairs")
    with reading(name, "--pairs"):
        preferred = [split for split in SPLITS if split in splits]
        split = preferred[0] if preferred else next(iter(splits))
        rows = list(splits[split].take(count))
    if not rows or not {"chosen", "rejected"} <= set(rows[0]):
        raise InvalidArgumentError(
            f"Expected {name!r} to hold rows with the columns chosen and rejected (and perhaps prompt), but got "
            f"{', '.join(map(repr, rows[0])) if rows else 'no rows'}. Rename its columns."
        )
    return rows


def measure_prefix_accuracy(reward_model: RewardModel, rows: Iterable[Mapping[str, Any]]) -> PrefixAccuracy:
    """Measures the accuracy of rewards at `PERCENTS` of the answers, as training does; see `prefix_wins`.

    The texts are tokenised and closed as in training.

    Args:
        reward_model: A reward model with a tokenizer.
        rows: Mappings with `chosen`, `rejected` and perhaps `prompt`: texts, or lists of messages.

    Raises:
        InvalidArgumentError: If no pair can be used, or messages meet a tokenizer without a chat template.
    """
    limit = reward_model.max_length
    wins: list[Tensor] = []
    cut = 0
    left_out = 0
    for row in rows:
        chosen = _tokens(reward_model, row, "chosen")
        rejected = _tokens(reward_model, row, "rejected")
        if not row["chosen"] or not row["rejected"] or chosen[:limit] == rejected[:limit]:
            left_out += 1
            continue
        if limit is not None and max(len(chosen), len(rejected)) > limit:
            cut += 1
        wins.append(_wins(reward_model, chosen[:limit], rejected[:limit]))
    if not wins:
        raise InvalidArgumentError(
            f"Expected pairs of two different answers, but all {left_out} are empty or the same. Use other pairs."
        )
    accuracy = torch.cat(wins).mean(0).tolist()
    return PrefixAccuracy(len(wins), cut, left_out, dict(zip(PERCENTS, accuracy, strict=True)))


def _wins(reward_model: RewardModel, chosen: Sequence[int], rejected: Sequence[int]) -> Float[Tensor, "1 percents"]:
    """The outcome of one pair; see `prefix_wins`."""
    texts = [torch.tensor(chosen), torch.tensor(rejected)]
    # Each text in a forward of its own, because the rounding of a reward depends on padding.
    rewards = [reward_model.score_tokens(text[None])[0].cpu() for text in texts]
    input_ids = pad_sequence(texts, batch_first=True)
    attention_mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    padded = pad_sequence(rewards, batch_first=True).double()
    return prefix_wins(PairRewards(padded[:1], padded[1:], pair_lengths(input_ids, attention_mask)))


def _tokens(reward_model: RewardModel, row: Mapping[str, Any], column: str) -> list[int]:
    """A text as in training: the prompt, the answer, and what closes it."""
    tokenizer = reward_model.tokenizer
    answer = row[column] or ""
    prompt = row.get("prompt") or ""
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

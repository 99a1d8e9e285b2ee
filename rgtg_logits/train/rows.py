"""Rows of data sets: which of them can be trained on, how long ones are cut, and what became of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES, Objective
from rgtg_logits.tokenization import common_prefix_length, encode_finished
from rgtg_logits.train.data import REASONS, PairCounts

REASON, CUT = "left_out_because", "was_cut"
"""Columns in which a row says, while data are prepared, why it is left out (nothing if it is not) and if it was cut."""

_TAKEN = {
    "pairs": (("chosen", "rejected"), ("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")),
    "labels": tuple(
        (answer, reward) for answer in ("completion", "text", "input_ids") for reward in ("reward", "label")
    ),
}
_WANTED = {
    "pairs": "'chosen' and 'rejected' (and perhaps 'prompt' and 'margin')",
    "labels": "'completion' or 'text', and 'reward' or 'label' (and perhaps 'prompt')",
}

_MEANING = {
    "pairs": "pairs of two different, non-empty answers",
    "labels": "non-empty answers with a reward each",
}


@dataclass(frozen=True)
class Limit:
    """How long a text may be, and what happens to a longer one.

    A long row is left out, or cut to `max_length` tokens: what is left is a prefix all the same. It is cut from the
    answer's end. Where the prompt would leave the answer less than a quarter of `max_length` (or than its whole length,
    if that is less), the prompt is cut too, from its left, but for a start token, until it leaves that much. Both texts
    of a pair lose the same tokens of what they have in common.

    Attributes:
        max_length: Most tokens of a text; None for any number.
        cuts: Whether longer texts are cut; otherwise they are left out.
        bos: The token that starts a text, if there is one.
    """

    max_length: int | None
    cuts: bool
    bos: int | None

    def exceeded(self, texts: Sequence[Sequence[int]]) -> bool:
        """Whether any of the texts is too long."""
        return self.max_length is not None and max(map(len, texts)) > self.max_length

    def cut(self, texts: Sequence[list[int]], start: int) -> tuple[list[list[int]], int]:
        """The texts without what is too much, and how many tokens of the prompt they lost.

        Args:
            texts: Texts that begin with the same prompt.
            start: Tokens of the prompt.
        """
        if self.max_length is None or not self.exceeded(texts):
            return list(texts), 0
        answer = max(map(len, texts)) - start
        reserved = min(answer, -(-self.max_length // 4))
        lost = max(0, start - (self.max_length - reserved))
        kept = int(0 < lost < start and texts[0][0] == self.bos)
        return [(text[:kept] + text[kept + lost :])[: self.max_length] for text in texts], lost


class Preparation:
    """Prepares one data set for an objective, counting what is left out of it.

    Rows of streamed data are left out as well, but nobody knows how many before they have been read.

    Args:
        objective: What the data are for.
        name: What messages call the data.
        limit: How long texts may be.
        num_proc: Number of processes that `datasets` may use.
    """

    def __init__(self, objective: Objective, name: str, limit: Limit, num_proc: int | None = None) -> None:
        self._objective, self._name, self._limit, self._num_proc = objective, name, limit, num_proc
        self._found: Counter[str] = Counter()

    def pairs(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, tokenized: Callable[[Any], Any]) -> Any:
        """Preference pairs as `chosen_ids`, `rejected_ids` and perhaps `margin`.

        Args:
            dataset: Texts, messages or tokens.
            tokenizer: The reward model's, for texts.
            tokenized: Turns messages into tokens, and leaves tokens as they are.
        """
        columns = check_columns(dataset, self._objective, self._name)
        if {"chosen", "rejected"} <= set(columns) and "chosen_ids" not in columns:
            dataset = self._without_problems(dataset)
            dataset = _without_repeated_prompt(dataset)
            dataset = self._encoded_texts(dataset, tokenizer)
        return self._shaped(tokenized(dataset), _shape_pair, {"limit": self._limit})

    def labelled(self, dataset: Any, tokenized: Callable[[Mapping[str, Any]], tuple[list[int], int]]) -> Any:
        """Answers with a reward each, as `input_ids`, `start` (tokens of the prompt) and `reward`.

        Args:
            dataset: Texts, messages or tokens.
            tokenized: From a row to its tokens and the number of those that are the prompt.
        """
        columns = check_columns(dataset, self._objective, self._name)
        options = {"limit": self._limit, "tokenized": tokenized}
        return self._shaped(dataset, _shape_labelled, options, remove_columns=columns)

    def counts(self, dataset: Any) -> PairCounts | None:
        """What became of the rows, of which `dataset` are those that are left; None for streamed data."""
        if not isinstance(dataset, Dataset):
            return None
        return PairCounts(len(dataset), self._found[CUT], **{reason: self._found[reason] for reason in REASONS})

    def _without_problems(self, dataset: Any) -> Any:
        """Leaves out pairs that cannot be tokenised."""
        if not isinstance(dataset, Dataset):
            return dataset.filter(_is_whole)
        options = {"remove_columns": dataset.column_names, **self._options(dataset, "Checking")}
        return self._kept(dataset, dataset.map(_problem_of, **options)[REASON])

    def _encoded_texts(self, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Adds the tokens of pairs of texts; messages are left to TRL."""
        row: Mapping[str, Any] = next(iter(dataset), {})
        if not isinstance(row.get("chosen"), str):
            return dataset
        options = self._options(dataset, "Tokenizing")
        return dataset.map(_encode_pair, fn_kwargs={"tokenizer": tokenizer}, **options)

    def _shaped(self, dataset: Any, shape: Callable[..., Any], arguments: dict[str, Any], **options: Any) -> Any:
        """Cuts rows, and leaves out those that cannot be used."""
        dataset = dataset.map(shape, fn_kwargs=arguments, **options, **self._options(dataset, "Cutting"))
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_is_kept).remove_columns([REASON, CUT])
        self._found[CUT] += sum(dataset[CUT])
        return self._kept(dataset, dataset[REASON]).remove_columns([REASON, CUT])

    def _kept(self, dataset: Dataset, reasons: Sequence[str]) -> Dataset:
        self._found.update(reasons)
        kept = [row for row, reason in enumerate(reasons) if not reason]
        if not kept:
            raise _nothing_left(self._objective, self._name, self._found)
        return dataset if len(kept) == len(dataset) else dataset.select(kept)

    def _options(self, dataset: Any, what: str) -> dict[str, Any]:
        if not isinstance(dataset, Dataset):
            return {}
        return {"num_proc": self._num_proc, "desc": f"{what} the {self._name} data"}


def check_datasets(objective: Objective, train: Any, evaluation: Any) -> None:
    """Checks the columns of the data to train on and of all that there are to evaluate on; see `check_columns`.

    What is no data set is left to TRL to refuse.
    """
    sets = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    for name, dataset in [("train", train), *sets.items()]:
        if isinstance(dataset, (Dataset, IterableDataset)):
            check_columns(dataset, objective, name)


def check_columns(dataset: Any, objective: Objective, name: str) -> list[str]:
    """The columns of data.

    Args:
        dataset: The data.
        objective: What they are for.
        name: What messages call them.

    Raises:
        InvalidArgumentError: If they are not those that the objective learns from, or there is no row.
    """
    columns = dataset.column_names
    if columns is None:
        columns = list(next(iter(dataset), {}))
    if not columns or (isinstance(dataset, Dataset) and not len(dataset)):
        raise _nothing_left(objective, name, Counter())
    data = objective.data
    if not _fits(objective, columns):
        fitting = [other.name for other in OBJECTIVES.values() if _fits(other, columns)]
        advice = f"choose one of the objectives {', '.join(fitting)}" if fitting else "rename its columns"
        raise InvalidArgumentError(
            f"Expected the {name} data to have the columns {_WANTED[data]}, because the objective {objective.name!r} "
            f"learns from {_MEANING[data]}, but got {', '.join(map(repr, columns))}. Use other data, or {advice}."
        )
    return list(columns)


def add_lengths(dataset: Dataset, column: str, num_proc: int | None = None) -> Dataset:
    """Adds the length that a tokenised pair is padded to at least, by which batches can be grouped."""
    return dataset.map(_length, fn_kwargs={"column": column}, num_proc=num_proc)


def has_text(answer: Any) -> bool:
    """Whether there is an answer: text, or messages of which the last one says anything."""
    if isinstance(answer, list):
        return bool(answer) and any(value for key, value in answer[-1].items() if key != "role")
    return isinstance(answer, str) and bool(answer)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, or true or false."""
    return isinstance(value, Real) and math.isfinite(value)


def _nothing_left(objective: Objective, name: str, found: Mapping[str, int]) -> InvalidArgumentError:
    reasons = ", ".join(f"{found[reason]} {reason.replace('_', ' ')}" for reason in REASONS)
    return InvalidArgumentError(
        f"Expected the {name} data to hold {_MEANING[objective.data]} within max_length tokens, but none is left "
        f"({reasons}). Check the columns {_WANTED[objective.data]}, or raise max_length."
    )


def _fits(objective: Objective, columns: Sequence[str]) -> bool:
    return any(set(names) <= set(columns) for names in _TAKEN[objective.data])


def _problem(row: Mapping[str, Any]) -> str:
    """Why a pair of texts or messages cannot be tokenised."""
    answered = [has_text(row.get(column)) for column in ("chosen", "rejected")]
    if not all(answered):
        return "one_sided" if any(answered) else "empty"
    # An empty text is a prompt, but a conversation has at least a message.
    return "unusable" if "prompt" in row and row["prompt"] in (None, []) else ""


def _problem_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {REASON: _problem(row)}


def _length(row: Mapping[str, Any], column: str) -> dict[str, int]:
    return {column: max(len(row["chosen_ids"]), len(row["rejected_ids"]))}


def _is_whole(row: Mapping[str, Any]) -> bool:
    return not _problem(row)


def _is_kept(row: Mapping[str, Any]) -> bool:
    return not row[REASON]


def _without_repeated_prompt(dataset: Any) -> Any:
    """Without the column `prompt` where it is text beside conversations, as in many data sets: they begin with it."""
    row: Mapping[str, Any] = next(iter(dataset), {})
    repeated = isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list)
    return dataset.remove_columns("prompt") if repeated else dataset


def _encode_pair(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The tokens of two finished texts, where TRL (1.16) would add a second end to what a tokenizer closes itself."""
    prompt = row.get("prompt", "")
    return {f"{name}_ids": encode_finished(tokenizer, prompt + row[name]) for name in ("chosen", "rejected")}


def _shape_pair(row: Mapping[str, Any], limit: Limit) -> dict[str, Any]:
    texts = [list(row[column] or []) for column in ("chosen_ids", "rejected_ids")]
    reason, cut = "", False
    if not all(texts):
        reason = "one_sided" if any(texts) else "empty"
    elif not is_number(row.get("margin", 0.0)):
        reason = "unusable"
    elif texts[0] == texts[1]:
        reason = "identical"
    elif limit.exceeded(texts) and not limit.cuts:
        reason = "too_long"
    else:
        cut = limit.exceeded(texts)
        texts, _ = limit.cut(texts, common_prefix_length(*texts))
        reason = "identical" if texts[0] == texts[1] else ""
    return {"chosen_ids": texts[0], "rejected_ids": texts[1], REASON: reason, CUT: cut and not reason}


def _shape_labelled(
    row: Mapping[str, Any], limit: Limit, tokenized: Callable[[Mapping[str, Any]], tuple[list[int], int]]
) -> dict[str, Any]:
    reward, reason, ids, start = row.get("reward", row.get("label")), "", list[int](), 0
    answered = bool(row["input_ids"]) if "input_ids" in row else has_text(row.get("completion", row.get("text")))
    if not answered:
        reason = "empty"
    elif not is_number(reward) or row.get("prompt", "") is None:
        reason = "unusable"
    else:
        ids, start = tokenized(row)
        reason = "too_long" if limit.exceeded([ids]) and not limit.cuts else ""
    cut = not reason and limit.exceeded([ids])
    (ids,), lost = limit.cut([ids], start)
    number = float(reward) if is_number(reward) else 0.0
    return {"input_ids": ids, "start": start - lost, "reward": number, REASON: reason, CUT: cut}

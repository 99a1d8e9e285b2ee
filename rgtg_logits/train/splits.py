"""The rows to train on and those to evaluate on, which are taken by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from trl import ScriptArguments

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.dataset_columns import DataChoice, check_columns

EVALUATION_SPLITS = ("validation", "valid", "dev", "eval", "test_prefs")
"""Names of splits to evaluate on, if there is none of the name that is asked for."""
NO_EVALUATION = "none"
"""Value of `--dataset_test_split` for no evaluation at all."""
_SHARE = 0.05
_MOST_ROWS = 500


class Splits(NamedTuple):
    """The data of a training.

    Attributes:
        train: Rows to train on.
        evaluation: Rows to evaluate on; None if there are none.
        source: Where the latter come from, in words.
    """

    train: Any
    evaluation: Any
    source: str


def choose_splits(
    data: Mapping[str, Any], script: ScriptArguments, args: PartialRewardConfig, name: str | None
) -> Splits:
    """Takes the split to evaluate on, or holds out 5 % of the rows (at most 500) where there is none.

    Rows are held out at random; in formats in which a row is made of several, at the end, where they are together.

    Args:
        data: All splits.
        script: Names of the splits; "none" to evaluate on nothing.
        args: The training arguments.
        name: Name of the data, if there is one.

    Raises:
        InvalidArgumentError: If there is no split of a name that was given.
    """
    train = _split(data, script.dataset_train_split, name)
    if script.dataset_test_split == NO_EVALUATION:
        return Splits(train, None, "no evaluation, as was asked for")
    if script.dataset_test_split in data or script.dataset_test_split != "test":
        return Splits(train, _split(data, script.dataset_test_split, name), f"the split {script.dataset_test_split!r}")
    for other in EVALUATION_SPLITS:
        if other in data:
            return Splits(train, data[other], f"the split {other!r}")
    rows = min(_MOST_ROWS, int(_SHARE * len(train))) if isinstance(train, Dataset) else 0
    if not rows:
        if args.eval_strategy != "no":
            _split(data, script.dataset_test_split, name)
        return Splits(train, None, "no evaluation: there is no split for it, and too few or streamed rows to hold out")
    reading = check_columns(train, args.objective_definition, "train", DataChoice(args.dataset_format, args.columns))
    order = np.arange(len(train))
    if reading is None or reading.data not in reading.format.whole:
        order = np.random.default_rng(args.seed).permutation(len(train))
    kept, held_out = order[:-rows], order[-rows:]
    return Splits(
        train.select(np.sort(kept)),
        train.select(np.sort(held_out)),
        f"{rows} of {len(train)} rows that were held out (--dataset_test_split none trains on all)",
    )


def _split(data: Mapping[str, Any], split: str, name: str | None) -> Any:
    if split not in data:
        raise InvalidArgumentError(
            f"Expected {'the mixture' if name is None else repr(name)} to have the split {split!r}, but it has "
            f"{', '.join(map(repr, data))}. Name one with --dataset_train_split or --dataset_test_split."
        )
    return data[split]

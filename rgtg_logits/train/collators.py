"""Data collators; for preference pairs it is TRL's `DataCollatorForPreference`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.data.data_collator import DataCollatorMixin


@dataclass
class DataCollatorForRewardLabels(DataCollatorMixin):
    """Makes batches of answers with a reward each, padded on the right.

    A call returns `input_ids` and `attention_mask` of shape (rows, length), `start` and `reward` of shape (rows,).

    Args:
        pad_token_id: The padding token.
        pad_to_multiple_of: Pads up to a multiple of this many tokens.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Makes one batch."""
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        multiple = self.pad_to_multiple_of or 1
        width = math.ceil(int(lengths.max()) / multiple) * multiple
        input_ids = torch.full((len(examples), width), self.pad_token_id)
        for row, example in zip(input_ids, examples, strict=True):
            row[: len(example["input_ids"])] = torch.as_tensor(example["input_ids"])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(width)[None] < lengths[:, None]).long(),
            "start": torch.tensor([int(example["start"]) for example in examples]),
            "reward": torch.tensor([float(example["reward"]) for example in examples]),
        }

"""Batches of texts of about the same length, in an order that a resumed training finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class RepeatableOrder(Sampler[int]):
    """A sampler that groups by length and draws the same order whenever it comes to the same epoch.

    By itself (transformers 5.23) it draws from the global generator, of which a training that is resumed in the middle
    of an epoch does not know where it was when the epoch began.

    Args:
        sampler: What groups by length.
        seed: Seed of the order.
        epoch: Says which epoch begins.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(self.sampler)

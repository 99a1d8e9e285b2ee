"""Length-grouped batches in an order that a resumed training reproduces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class ResumableLengthGroupedSampler(Sampler[int]):
    """A `LengthGroupedSampler` that draws the same order each time an epoch begins, as in a run that was interrupted.

    By itself (transformers 5.23), the sampler draws from the global random generator. A training that is resumed in the
    middle of an epoch does not know the state which that generator had when the epoch began.

    Args:
        sampler: The sampler that groups by length.
        seed: Seed of the order.
        epoch: Returns the number of the current epoch.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(self.sampler)

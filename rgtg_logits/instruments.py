"""Instruments: the time of each step of `generate`, of the reward models inside it, what they read, peak memory."""

from __future__ import annotations

import ctypes
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, StoppingCriteria
from typing_extensions import override


class Clock(StoppingCriteria):
    """Stamps the end of every step; never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stamps = device, list[float]()

    def start(self) -> None:
        """Stamps the beginning of the first step."""
        self.stamps = [self._now()]

    def steps(self) -> list[float]:
        """Milliseconds of each step."""
        return [1000 * (end - begin) for begin, end in itertools.pairwise(self.stamps)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.stamps.append(self._now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Timer(LogitsProcessor):
    """Times a processor and the forwards inside it, to tell bookkeeping from reading, and counts the tokens read.

    Args:
        processor: What to time; None for nothing.
        readers: The modules whose forwards are reading. One may call another, which then counts for nothing.
    """

    def __init__(self, processor: LogitsProcessor | None, readers: Sequence[nn.Module]) -> None:
        self.processor, self.readers = processor, readers
        self.calls: list[float] = []
        self.forwards: list[float] = []
        self.tokens: list[int] = []

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.processor is None:
            return scores
        self.forwards.append(0.0)
        self.tokens.append(0)
        # On a GPU a synchronisation here would change what is measured, so only the launch is timed.
        start = time.perf_counter()
        result = self.processor(input_ids, scores)
        self.calls.append(time.perf_counter() - start)
        return result

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Times and counts forwards while the block runs."""
        begun: list[float] = []

        def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.tokens and not begun:
                self.tokens[-1] += (arguments[0] if arguments else named["input_ids"]).numel()
            begun.append(time.perf_counter())

        def after(*_: Any) -> None:
            ended = time.perf_counter() - begun.pop()
            if self.forwards and not begun:
                self.forwards[-1] += ended

        with ExitStack() as stack:
            for reader in self.readers:
                stack.callback(reader.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(reader.register_forward_hook(after).remove)
            yield

    def shares(self, steps: list[float]) -> list[float]:
        """Time spent outside the readers, as a share of each step (in milliseconds)."""
        return [
            1000 * (call - forward) / step for call, forward, step in zip(self.calls, self.forwards, steps, strict=True)
        ]


@contextmanager
def peak_memory(device: torch.device, figures: list[float]) -> Iterator[None]:
    """Adds the peak memory of the block over what was held before, in MiB.

    Raises:
        OSError: If memory on a CPU cannot be measured on this system.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        yield
        figures.append((torch.cuda.max_memory_allocated(device) - held) / 2**20)
    else:
        status = Path("/proc/self/status")
        if not status.exists():
            raise OSError("Expected Linux to measure memory on a CPU, because peak memory is read from /proc.")
        # Freed memory goes back and the kernel's high-water mark is reset first, so that each run has its own peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        held = _status_kib(status, "VmRSS")
        yield
        figures.append((_status_kib(status, "VmHWM") - held) / 1024)


def _status_kib(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

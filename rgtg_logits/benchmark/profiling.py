"""Where the time of a further token goes: by part of this library, and by operation of torch.

Parts are the ranges that `profiled` names in `torch.profiler`'s timeline. A part's time is its self time: the time in
its own ranges less the time in the ranges inside them, so that parts add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from transformers import LogitsProcessor, StoppingCriteria
from typing_extensions import override

from rgtg_logits.profiling import PREFIX, profiled

PARTS = (
    "base model", "candidates", "padding mask", "tokenisation", "plan", "cache", "attention mask", "reward model",
    "head", "policy", "rest of the processor",
)  # fmt: skip
"""The parts of the program that are ranges of the timeline."""

OPERATIONS = 20
"""Number of operations that are named: those that take the most time."""


class FurtherTokens(StoppingCriteria):
    """Calls `begin` when the first token is there, and counts the tokens after it; never stops `generate`."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self.begin = begin
        self.tokens = -1
        self.begun = 0.0

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.tokens += 1
        if self.tokens == 0:
            self.begin()
            self.begun = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class ProfiledProcessor(LogitsProcessor):
    """A logits processor whose calls are ranges of the timeline.

    Args:
        processor: The processor; None for none.
    """

    def __init__(self, processor: LogitsProcessor | None) -> None:
        self.processor = processor

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores if self.processor is None else self._guided(input_ids, scores)

    @profiled("rest of the processor")
    def _guided(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self.processor is not None
        return self.processor(input_ids, scores)


def profile_tokens(
    run: Callable[[StoppingCriteria], None], base: nn.Module, device: torch.device
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Profiles the further tokens of one generation.

    Args:
        run: Generates once, with one more stopping criterion.
        base: The base model.
        device: Where the models are.

    Returns:
        Milliseconds of a further token by part of the program, which add up to "all" (of a GPU, launches alone), and
        the operations of torch that take the most time.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    further = FurtherTokens(profiler.start)
    with _ranges_of(base, "base model"):
        run(further)
        seconds = time.perf_counter() - further.begun
        profiler.stop()
    parts = _parts(profiler.events(), 1000 * seconds, further.tokens)
    return parts, _operations(profiler.key_averages(), further.tokens, on_gpu=device.type == "cuda")


def _parts(events: Any, milliseconds: float, tokens: int) -> dict[str, float]:
    """Self time of each part for each token, of all that was recorded."""
    parts = dict.fromkeys(PARTS, 0.0)
    # Sorted by their beginnings, so that the open ranges form a stack.
    open_ranges: list[Any] = []
    ranges = [event for event in events if event.name.startswith(PREFIX) and event.device_type == DeviceType.CPU]
    for event in sorted(ranges, key=lambda event: (event.time_range.start, -event.time_range.end)):
        while open_ranges and open_ranges[-1].time_range.end <= event.time_range.start:
            open_ranges.pop()
        duration = event.time_range.elapsed_us() / 1000 / tokens
        name = event.name.removeprefix(PREFIX)
        parts[name] = parts.get(name, 0.0) + duration
        if open_ranges:
            parts[open_ranges[-1].name.removeprefix(PREFIX)] -= duration
        open_ranges.append(event)
    total = milliseconds / tokens
    return {**parts, "rest of generate": total - sum(parts.values()), "all": total}


def _operations(averages: Any, tokens: int, *, on_gpu: bool) -> list[dict[str, Any]]:
    """The operations with the most self time: name, calls and milliseconds for each token."""
    operations = []
    for average in averages:
        if not average.key.startswith(PREFIX):
            microseconds = average.self_device_time_total if on_gpu else average.self_cpu_time_total
            calls = average.count / tokens
            operations.append({"name": average.key, "calls": calls, "ms": microseconds / 1000 / tokens})
    return sorted(operations, key=lambda operation: -operation["ms"])[:OPERATIONS]


@contextmanager
def _ranges_of(module: nn.Module, part: str) -> Iterator[None]:
    """Forwards of a module are ranges of the timeline while the block runs."""
    ranges: list[record_function] = []

    def before(*_: Any) -> None:
        ranges.append(record_function(PREFIX + part).__enter__())

    def after(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    before_hook = module.register_forward_pre_hook(before)
    after_hook = module.register_forward_hook(after)
    try:
        yield
    finally:
        before_hook.remove()
        after_hook.remove()

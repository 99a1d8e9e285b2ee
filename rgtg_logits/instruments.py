"""Instruments of `rgtg benchmark`, `rgtg check` and `rgtg evaluate`: clocks, forward counters, memory, the floor."""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor, StoppingCriteria
from typing_extensions import override

from rgtg_logits.reward_model import RewardModel


def read_clock(device: torch.device) -> float:
    """Seconds of the performance counter, read once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        # A copy to the host waits for everything before it, on accelerators of every kind.
        torch.zeros(1, device=device).cpu()
    return time.perf_counter()


class StepClock(StoppingCriteria):
    """Stamps the end of every step; as a stopping criterion it does so for `generate`, which it never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stamps: list[float] = []

    def stamp(self) -> None:
        """Ends a step; the first stamp begins the first step."""
        self.stamps.append(read_clock(self.device))

    def seconds(self) -> list[float]:
        """Seconds of each step."""
        return [end - begin for begin, end in itertools.pairwise(self.stamps)]

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.stamp()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Stopwatch:
    """Seconds, with pauses.

    Attributes:
        seconds: Time in the blocks that were counted, without the blocks that were paused.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the time of the block."""
        begin = read_clock(self._device)
        yield
        self.seconds += read_clock(self._device) - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out of the one around it."""
        begin = read_clock(self._device)
        yield
        self.seconds -= read_clock(self._device) - begin


@dataclass
class ForwardCount:
    """Forwards of some modules so far.

    Attributes:
        forwards: Number of forwards.
        tokens: Tokens read by them: rows × columns, padding included.
        seconds: Time in them; on a GPU, time to launch them.
    """

    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0


@contextmanager
def count_forwards(modules: Sequence[nn.Module]) -> Iterator[ForwardCount]:
    """Counts and times the forwards of modules while the block runs.

    Args:
        modules: The modules. Where one calls another, only the outer forward counts.
    """
    count = ForwardCount()
    begins: list[float] = []

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not begins:
            tokens = arguments[0] if arguments else named.get("input_ids")
            if tokens is None:
                # A model may look up the embeddings of its tokens before it calls its backbone.
                tokens = named["inputs_embeds"]
            count.forwards += 1
            count.tokens += tokens.shape[0] * tokens.shape[1]
        begins.append(time.perf_counter())

    def after(*_: Any) -> None:
        seconds = time.perf_counter() - begins.pop()
        if not begins:
            count.seconds += seconds

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            # Always called, because a forward that fails, out of memory say, must not hide those that follow.
            stack.callback(module.register_forward_hook(after, always_call=True).remove)
        yield count


@dataclass(frozen=True)
class ProcessorCall:
    """One call of a logits processor.

    Attributes:
        seconds: Time of the call; on a GPU, time to launch its work.
        forward_seconds: The part of it in forwards of reward models.
        tokens: Tokens that these read.
    """

    seconds: float
    forward_seconds: float
    tokens: int


class TimedProcessor(LogitsProcessor):
    """Times each call of a processor and the forwards inside it, which tells bookkeeping from reading.

    Args:
        processor: The processor; None for none, which is never timed.
        forwards: The running count of the reward models' forwards.
    """

    def __init__(self, processor: LogitsProcessor | None, forwards: ForwardCount) -> None:
        self.processor = processor
        self.forwards = forwards
        self.calls: list[ProcessorCall] = []

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.processor is None:
            return scores
        before = copy.copy(self.forwards)
        # On a GPU a synchronisation here would change what is measured, so only the launch is timed.
        begin = time.perf_counter()
        result = self.processor(input_ids, scores)
        seconds = time.perf_counter() - begin
        forward_seconds = self.forwards.seconds - before.seconds
        self.calls.append(ProcessorCall(seconds, forward_seconds, self.forwards.tokens - before.tokens))
        return result

    def bookkeeping_shares(self, steps: Sequence[float]) -> list[float]:
        """Time outside the reward models as a share of each step, whose seconds are given."""
        calls = zip(self.calls, steps, strict=True)
        return [(call.seconds - call.forward_seconds) / step for call, step in calls]


class FloorProcessor(LogitsProcessor):
    """The floor of guidance: one cached single-token step of the reward model per token, its reward thrown away."""

    def __init__(self, reward_model: RewardModel) -> None:
        self.reward_model = reward_model
        self.cache = DynamicCache()
        self.length = 0

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        # Which tokens are read does not matter, and the reward model may have fewer than the base model.
        new = input_ids[:, self.length :].clamp(max=self.reward_model.vocab_size - 1).to(self.reward_model.device)
        mask = torch.ones_like(input_ids, device=new.device)
        states, _ = self.reward_model.hidden_states(new, mask, None, self.cache, use_cache=True, last=1)
        if self.reward_model.kind == "causal":
            self.reward_model.rewards(states[:, -1])
        self.length = input_ids.shape[1]
        return scores


@contextmanager
def peak_memory(device: torch.device, figures: list[float]) -> Iterator[None]:
    """Adds to `figures` the peak memory of the block over what was held before, in MiB.

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
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[name].split()[0])


def machine(device: torch.device, packages: Sequence[str] = ("torch", "transformers")) -> dict[str, str]:
    """The device and the versions of packages, to keep beside figures."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, **{package: version(package) for package in packages}}

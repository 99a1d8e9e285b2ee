"""Where the time of a further token goes: by part of this library, and by operation of torch."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria
from typing_extensions import override

PACKAGE = Path(__file__).resolve().parent.parent

PARTS = {
    "candidates": (("candidates.py", "select"), ("candidates.py", "narrowed")),
    "text mask": (("prefix.py", "text_mask"),),
    "tokenising, trees": (("_text.py", "encode"), ("_layout.py", "place"), ("_branches.py", "grow")),
    "comparing rows": (
        ("_reader.py", "_pick"), ("_reader.py", "_check"), ("_reader.py", "_computed"), ("_reader.py", "_fit"),
        ("_reader.py", "_drawn"), ("prefix.py", "plan"), ("prefix.py", "remember"),
    ),
    "attention mask": (("_sibling_mask.py", "tree_mask"),),
    "taking over the drawn token": (("_passes.py", "_recall"),),
    "reward model": (("reward_model.py", "hidden_states"),),
    "head": (("causal.py", "_values"), ("vocabulary.py", "_values"), ("retokenizing.py", "_values")),
    "formula": (("guidance.py", "truncate"), ("guidance.py", "guide"), ("guidance.py", "spread")),
}  # fmt: skip
"""Functions of this library, none of which calls another, by what they are for."""

OPERATIONS = 20
"""So many operations are named, those that take the most time."""


class FurtherTokens(StoppingCriteria):
    """Calls `begin` when the first token is there, and counts those that follow; never stops `generate`."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self.begin = begin
        self.tokens = -1
        self.begun = 0.0

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.tokens += 1
        if self.tokens == 0:
            self.begun = time.perf_counter()
            self.begin()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def time_by_part(run: Callable[[StoppingCriteria], None], base: nn.Module) -> dict[str, float]:
    """Milliseconds of a further token by part of the program; of a GPU, the launches alone.

    Args:
        run: Generates once, with one more stopping criterion.
        base: The base model.
    """
    python = cProfile.Profile()
    further = FurtherTokens(python.enable)
    with _timed(base) as forwards:
        run(further)
        python.disable()
        ended = time.perf_counter()
    per_token = 1000 / further.tokens
    spent = _Spent(pstats.Stats(python).stats, per_token)  # type: ignore[attr-defined]
    everything, own_base = per_token * (ended - further.begun), per_token * sum(forwards[1:])
    parts = {name: spent.inside(*functions) for name, functions in PARTS.items()}
    processor = spent.inside(("processor.py", "__call__"))
    rest = {"rest of the processor": processor - sum(parts.values())} if processor else {}
    rest["rest of generate"] = everything - own_base - (processor or sum(parts.values()))
    within = {"within reward model: cache": spent.inside(("_kv_cache.py", "update"))}
    return {"base model": own_base, **parts, **rest, "all": everything, **within}


def time_by_operation(run: Callable[[StoppingCriteria], None], device: torch.device) -> list[dict[str, Any]]:
    """The operations of torch that a further token spends the most time in.

    Args:
        run: Generates once, with one more stopping criterion.
        device: Where the models are.
    """
    gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
    profiler = torch.profiler.profile(activities=activities)
    further = FurtherTokens(profiler.start)
    run(further)
    profiler.stop()
    operations = [
        {
            "name": item.key,
            "calls": item.count / further.tokens,
            "ms": (item.self_device_time_total if gpu else item.self_cpu_time_total) / 1000 / further.tokens,
        }
        for item in profiler.key_averages()
    ]
    return sorted(operations, key=lambda item: -item["ms"])[:OPERATIONS]


class _Spent:
    """Reads times from what Python's profiler counted."""

    def __init__(self, stats: dict[tuple[str, int, str], tuple[Any, ...]], scale: float) -> None:
        self._stats, self._scale = stats, scale

    def inside(self, *functions: tuple[str, str]) -> float:
        """Time in functions of this library, given by file and name, and in all that they call."""
        return self._scale * sum(
            figures[3]
            for (file, _, name), figures in self._stats.items()
            if PACKAGE in Path(file).parents and (Path(file).name, name) in functions
        )


@contextmanager
def _timed(module: nn.Module) -> Iterator[list[float]]:
    """Seconds of each forward while the block runs."""
    begun: list[float] = []
    spent: list[float] = []
    before = module.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
    after = module.register_forward_hook(lambda *_: spent.append(time.perf_counter() - begun.pop()))
    try:
        yield spent
    finally:
        before.remove()
        after.remove()

"""What guidance costs: time to the first token, time of a further token, memory; measured, in one process.

Five ways of generating the same number of tokens take turns, and medians are compared, because machines drift:

- plain: `generate` alone;
- floor: plain and one cached single-token reward model step per token, the least that any guidance can cost;
- ours: `PartialRewardLogitsProcessor`;
- replicated: the reward model's cache held k times, one copy per candidate, as RAD and ARGS do;
- recompute: k whole rows through the reward model for every token, without a cache.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    set_seed,
)

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers import CausalScorer

ARMS = ("plain", "floor", "ours", "replicated", "recompute")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What to measure.

    Attributes:
        base: Hub id or folder of the base model; by default random weights, llama-style, of `layers` and `width`.
        reward_model: Hub id or folder of the reward model; by default of the base model's shape, random weights.
        layers: Layers of the random models.
        width: Width of the random models.
        prompt_lengths: Prompt lengths in tokens.
        batch_sizes: Numbers of prompts.
        top_k: Number of candidates.
        new_tokens: Tokens to generate in each run (at most 3 by recomputing).
        rounds: How often each way takes its turn.
        arms: Which of `ARMS` to measure.
        device: Where the models are.
        dtype: Type of their weights.
        seed: Seed of the weights and prompts.
    """

    base: str | None = None
    reward_model: str | None = None
    layers: int = 12
    width: int = 768
    prompt_lengths: tuple[int, ...] = (64, 512)
    batch_sizes: tuple[int, ...] = (1,)
    top_k: int = 20
    new_tokens: int = 24
    rounds: int = 3
    arms: tuple[str, ...] = ARMS
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0


@dataclass
class Measurement:
    """One way of generating at one size.

    Attributes:
        arm: Which way.
        prompt_length: Tokens of each prompt.
        batch_size: Number of prompts.
        first: Milliseconds to the first token, a figure per round.
        further: Milliseconds of each further token, all rounds.
        memory: Peak memory over what the models hold, in MiB, a figure per round.
        cache: Bytes of the reward model's cache at the end ("ours" only).
        bookkeeping: Share of a further step that the processor spends outside the reward model ("ours" only).
    """

    arm: str
    prompt_length: int
    batch_size: int
    first: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    cache: int | None = None
    bookkeeping: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Median of each series."""
        series = {"first_ms": self.first, "further_ms": self.further, "memory_mib": self.memory}
        series["bookkeeping_share"] = self.bookkeeping
        return {name: statistics.median(values) for name, values in series.items() if values}


@dataclass(frozen=True)
class BenchmarkReport:
    """All measurements of one run."""

    settings: BenchmarkSettings
    machine: dict[str, str]
    measurements: list[Measurement]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings, machine, medians and every single figure as JSON; the file appears whole or not at all."""
        rows = [{**asdict(item), "medians": item.medians()} for item in self.measurements]
        text = json.dumps({"settings": asdict(self.settings), "machine": self.machine, "measurements": rows}, indent=1)
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text)
        partial.replace(target)

    def table(self) -> Table:
        """A table of medians, and of ratios to the floor of the same size."""
        table = Table(
            title="Cost of guidance: medians, ratios to the floor, memory in MiB", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for column in ("prompt", "batch", "way", "first ms", "ratio", "next ms", "ratio", "peak", "cache"):
            table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
        floors = {(m.prompt_length, m.batch_size): m.medians() for m in self.measurements if m.arm == "floor"}
        previous = None
        for item in self.measurements:
            size = (item.prompt_length, item.batch_size)
            if previous not in (None, size):
                table.add_section()
            previous = size
            table.add_row(str(size[0]), str(size[1]), item.arm, *_cells(item, floors.get(size)))
        return table

    def notes(self) -> list[str]:
        """What the table has no column for."""
        return [
            f"prompt {m.prompt_length}, batch {m.batch_size}: the processor spends "
            f"{m.medians()['bookkeeping_share']:.1%} of a further token outside the reward model"
            for m in self.measurements
            if m.bookkeeping
        ]


def _cells(item: Measurement, floor: dict[str, float] | None) -> list[str]:
    medians = item.medians()
    cells = []
    for name in ("first_ms", "further_ms"):
        ratio = f"{medians[name] / floor[name]:.2f}" if floor else ""
        cells += [f"{medians[name]:.1f}", ratio]
    cache = "" if item.cache is None else f"{item.cache / 2**20:.1f}"
    return [*cells, f"{medians['memory_mib']:.0f}", cache]


def run_benchmark(settings: BenchmarkSettings, progress: Progress | None = None) -> BenchmarkReport:
    """Measures every way at every size, in turns."""
    _check(settings)
    base, reward_model = load_models(settings)
    sizes = [(length, batch) for length in settings.prompt_lengths for batch in settings.batch_sizes]
    measurements = [Measurement(arm, *size) for size in sizes for arm in settings.arms]
    task = progress.add_task("benchmark", total=len(measurements) * settings.rounds) if progress else None
    for size in sizes:
        for _ in range(settings.rounds):
            for item in measurements:
                if (item.prompt_length, item.batch_size) == size:
                    measure(item, base, reward_model, settings)
                    if progress and task is not None:
                        progress.advance(task)
    return BenchmarkReport(settings, _machine(settings), measurements)


def _check(settings: BenchmarkSettings) -> None:
    unknown = set(settings.arms) - set(ARMS)
    if unknown:
        raise InvalidArgumentError(f"Expected ways among {', '.join(ARMS)}, but got {', '.join(sorted(unknown))}.")
    if settings.dtype not in ("float32", "bfloat16", "float16"):
        raise InvalidArgumentError(f"Expected dtype to be float32, bfloat16 or float16, but got {settings.dtype!r}.")
    small = {"rounds": settings.rounds, "top_k": settings.top_k, "new_tokens": settings.new_tokens - 1}
    for name, value in small.items():
        if value < 1:
            raise InvalidArgumentError(
                f"Expected at least one round, one candidate and two tokens, but {name} is too small. Raise it."
            )


def load_models(settings: BenchmarkSettings) -> tuple[PreTrainedModel, RewardModel]:
    """Loads the models named, or makes llama-style ones with random weights."""
    dtype = getattr(torch, settings.dtype)
    set_seed(settings.seed)
    if settings.base:
        base = AutoModelForCausalLM.from_pretrained(
            settings.base, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    else:
        base = LlamaForCausalLM(_llama(settings)).to(dtype)
    if settings.reward_model:
        reward_model = RewardModel.from_pretrained(settings.reward_model, dtype=dtype)
        reward_model.model.to(settings.device)
    else:
        config = LlamaConfig(**{**base.config.to_dict(), "num_labels": 1}) if settings.base else _llama(settings)
        reward_model = RewardModel(LlamaForSequenceClassification(config).to(settings.device, dtype))
    return base.to(settings.device).eval(), reward_model


def _llama(settings: BenchmarkSettings) -> LlamaConfig:
    heads = max(1, settings.width // 64)
    return LlamaConfig(
        vocab_size=32_000, hidden_size=settings.width, intermediate_size=settings.width * 8 // 3,
        num_hidden_layers=settings.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=8192, pad_token_id=0, num_labels=1, tie_word_embeddings=False,
    )  # fmt: skip


def measure(item: Measurement, base: PreTrainedModel, reward_model: RewardModel, settings: BenchmarkSettings) -> None:
    """One run of one way; adds its figures to `item`."""
    device = torch.device(settings.device)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (item.batch_size, item.prompt_length)
    # Base models may have more padding rows than the reward model can read.
    known = min(base.config.get_text_config().vocab_size, reward_model.vocab_size)
    prompts = torch.randint(3, known, shape, generator=generator).to(device)
    processor = _processor(item.arm, reward_model, settings.top_k)
    clock, timer = _Clock(device), _Timer(processor, reward_model.backbone, device)
    # Recomputing takes minutes for what the others do in seconds, and each of its steps costs the same.
    tokens = min(settings.new_tokens, 3) if item.arm == "recompute" else settings.new_tokens
    with torch.no_grad(), timer.listening(), _peak_memory(device, item.memory):
        start = clock.now()
        base.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, pad_token_id=0,
            min_new_tokens=tokens, max_new_tokens=tokens,
            stopping_criteria=[clock], logits_processor=[timer] if processor else [],
        )  # fmt: skip
    stamps = [start, *clock.stamps]
    steps = [1000 * (end - begin) for begin, end in itertools.pairwise(stamps)]
    item.first.append(steps[0])
    item.further.extend(steps[1:])
    if isinstance(processor, PartialRewardLogitsProcessor) and isinstance(processor.scorer, CausalScorer):
        item.cache = processor.scorer.cache_bytes()
        item.bookkeeping.extend(timer.shares(steps)[1:])


def _processor(arm: str, reward_model: RewardModel, top_k: int) -> LogitsProcessor | None:
    makers: dict[str, Callable[[], LogitsProcessor | None]] = {
        "plain": lambda: None,
        "floor": lambda: _Floor(reward_model),
        "ours": lambda: PartialRewardLogitsProcessor(reward_model, top_k=top_k),
        "replicated": lambda: _Replicated(reward_model, top_k),
        "recompute": lambda: _Recompute(reward_model, top_k),
    }
    return makers[arm]()


class _Floor(LogitsProcessor):
    """One cached single-token step of the reward model, whose result is thrown away."""

    def __init__(self, reward_model: RewardModel) -> None:
        self.reward_model, self.cache, self.length = reward_model, DynamicCache(), 0

    def __call__(self, input_ids: Int[Tensor, "batch length"], scores: Tensor) -> Tensor:
        mask = torch.ones_like(input_ids)
        hidden, _ = self.reward_model.hidden_states(input_ids[:, self.length :], mask, None, self.cache, use_cache=True)
        self.reward_model.rewards(hidden[:, -1])
        self.length = input_ids.shape[1]
        return scores


class _Replicated(LogitsProcessor):
    """k copies of the prefix, each with its candidate; the copy of the drawn one is copied k times again."""

    def __init__(self, reward_model: RewardModel, top_k: int) -> None:
        self.reward_model, self.top_k = reward_model, top_k
        self.cache: DynamicCache | None = None
        self.last: Int[Tensor, "batch k"] | None = None

    def __call__(self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        best, ids = scores.topk(self.top_k)
        batch, device = ids.shape[0], ids.device
        rows = torch.arange(batch, device=device)
        if self.cache is None or self.last is None:
            self.cache = DynamicCache()
            tokens = torch.cat([input_ids.repeat_interleave(self.top_k, dim=0), ids.reshape(-1, 1)], dim=1)
        else:
            drawn = (self.last == input_ids[:, -1:]).int().argmax(-1)
            self.cache.reorder_cache((rows * self.top_k + drawn).repeat_interleave(self.top_k))
            tokens = ids.reshape(-1, 1)
        self.last = ids
        hidden, _ = self.reward_model.hidden_states(tokens, None, None, self.cache, use_cache=True)
        return _spread(scores, ids, best + self.reward_model.rewards(hidden[:, -1]).reshape(batch, -1))


class _Recompute(LogitsProcessor):
    """k whole rows for every token."""

    def __init__(self, reward_model: RewardModel, top_k: int) -> None:
        self.reward_model, self.top_k = reward_model, top_k

    def __call__(self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        best, ids = scores.topk(self.top_k)
        tokens = torch.cat([input_ids.repeat_interleave(self.top_k, dim=0), ids.reshape(-1, 1)], dim=1)
        hidden, _ = self.reward_model.hidden_states(tokens, None, None)
        return _spread(scores, ids, best + self.reward_model.rewards(hidden[:, -1]).reshape(ids.shape))


def _spread(scores: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    return torch.full_like(scores, float("-inf")).scatter(-1, ids, values.to(scores.dtype))


class _Clock(StoppingCriteria):
    """Stamps the end of every step; never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stamps = device, list[float]()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.stamps.append(self.now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Timer(LogitsProcessor):
    """Times a processor, and the reward model inside it, to tell bookkeeping from forward."""

    def __init__(self, processor: LogitsProcessor | None, backbone: nn.Module, device: torch.device) -> None:
        self.processor, self.backbone, self.device = processor, backbone, device
        self.calls: list[float] = []
        self.forwards: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.processor is None:
            return scores
        self.forwards.append(0.0)
        start = self._now()
        result = self.processor(input_ids, scores)
        self.calls.append(self._now() - start)
        return result

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Times the backbone while the block runs."""
        begun: list[float] = []
        before = self.backbone.register_forward_pre_hook(lambda *_: begun.append(self._now()))
        after = self.backbone.register_forward_hook(lambda *_: self._ended(begun.pop()))
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def shares(self, steps: list[float]) -> list[float]:
        """Time spent outside the backbone, as a share of each step (in milliseconds)."""
        return [
            1000 * (call - forward) / step
            for call, forward, step in zip(self.calls, self.forwards, steps, strict=False)
        ]

    def _ended(self, begun: float) -> None:
        if self.forwards:
            self.forwards[-1] += self._now() - begun

    def _now(self) -> float:
        # On a GPU a synchronisation here would change what is measured, so only the launch is timed.
        return time.perf_counter()


@contextmanager
def _peak_memory(device: torch.device, figures: list[float]) -> Iterator[None]:
    """Adds the peak memory of the block over what was held before, in MiB."""
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


def _machine(settings: BenchmarkSettings) -> dict[str, str]:
    import transformers  # noqa: PLC0415

    name = (
        torch.cuda.get_device_name()
        if settings.device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}

"""What guidance costs: time to the first token, time of a further token, memory; measured, in one process.

Several ways of generating the same number of tokens take turns, and medians are compared, because machines drift; what
the ways are is said in `_arms`. They continue

- random tokens, with models of random weights and no text;
- the text, token by token, with a base model of random weights: by itself it would write noise, which another
  tokenizer cuts into far more pieces than text. `Hint` and `Follow` say how;
- what the base model draws behind pieces of the text, with a trained base model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from rich.progress import Progress
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from rgtg_logits.benchmark.methods import ARMS, OURS, WITHOUT_CANDIDATES, Arm, make_arm
from rgtg_logits.benchmark.profiling import time_by_operation, time_by_part
from rgtg_logits.benchmark.report import (
    DEFAULT_ARMS,
    BenchmarkReport,
    BenchmarkSettings,
    Measurement,
    Profile,
    ProfileReport,
)
from rgtg_logits.benchmark.workload import BenchmarkModels, Follow, Hint, Texts, load_models, make_texts, read_text
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.instruments import Clock, Timer, peak_memory

__all__ = [
    "ARMS",
    "DEFAULT_ARMS",
    "BenchmarkModels",
    "BenchmarkReport",
    "BenchmarkSettings",
    "Measurement",
    "Profile",
    "ProfileReport",
    "Texts",
    "measure",
    "run_benchmark",
    "run_profile",
]  # fmt: skip


def run_benchmark(settings: BenchmarkSettings, progress: Progress | None = None) -> BenchmarkReport:
    """Measures every way at every size, in turns.

    Raises:
        InvalidArgumentError: If there is nothing to measure, or the models or the text are too small for it.
        CheckpointError: If the reward model cannot be loaded.
    """
    models, texts = _load(settings)
    measurements = list(_measurements(settings))
    task = progress.add_task("benchmark", total=len(measurements) * settings.rounds) if progress else None
    # Each measurement collects garbage first, which takes longer than a few tokens unless what is there is left out.
    gc.freeze()
    try:
        for size in dict.fromkeys(item.size for item in measurements):
            for item in [item for item in measurements if item.size == size] * settings.rounds:
                measure(item, models, settings, texts)
                if progress and task is not None:
                    progress.advance(task)
    finally:
        gc.unfreeze()
    return BenchmarkReport(settings, _machine(settings), measurements)


def run_profile(settings: BenchmarkSettings, progress: Progress | None = None) -> ProfileReport:
    """Says of every way at every size where the time of a further token goes; see `Profile`.

    Raises:
        InvalidArgumentError: If there is nothing to profile, or the models or the text are too small for it.
        CheckpointError: If the reward model cannot be loaded.
    """
    models, texts = _load(settings)
    measurements = list(_measurements(settings))
    profiles = []
    task = progress.add_task("profile", total=len(measurements)) if progress else None
    for item in measurements:

        def run(criterion: StoppingCriteria, item: Measurement = item) -> None:
            generation = _prepare(item, models, texts, settings)
            generation.run(models, generation.arm.processor, criterion)

        parts = time_by_part(run, models.base)
        operations = time_by_operation(run, torch.device(settings.device))
        profiles.append(Profile(item.arm, *item.size, item.top_k, parts, operations))
        if progress and task is not None:
            progress.advance(task)
    return ProfileReport(settings, _machine(settings), profiles)


def measure(
    item: Measurement, models: BenchmarkModels, settings: BenchmarkSettings, texts: Texts | None = None
) -> None:
    """One run of one way; adds its figures to `item`.

    Args:
        item: The way and its size.
        models: The models.
        settings: Of which the new tokens, the device and the seed count.
        texts: What to continue; random tokens by default.
    """
    device = torch.device(settings.device)
    generation = _prepare(item, models, texts or Texts(models.vocab_size, settings.seed), settings)
    arm = generation.arm
    clock, timer = Clock(device), Timer(arm.processor, arm.readers)
    with timer.listening(), peak_memory(device, item.memory):
        clock.start()
        generation.run(models, timer, clock)
    steps = clock.steps()
    item.first.append(steps[0])
    item.further.extend(steps[1:])
    item.read.extend(tokens / item.batch_size for tokens in timer.tokens[1:])
    item.cache = arm.cache_bytes()
    if item.arm in OURS:
        item.bookkeeping.extend(timer.shares(steps)[1:])


@dataclass(frozen=True)
class _Generation:
    """All that one run needs."""

    arm: Arm
    prompts: Int[Tensor, "batch length"]
    tokens: int
    before: list[LogitsProcessor]
    behind: list[LogitsProcessor]

    @torch.no_grad()
    def run(self, models: BenchmarkModels, processor: LogitsProcessor | None, criterion: StoppingCriteria) -> None:
        guiding = [] if processor is None else [processor]
        models.base.generate(
            self.prompts, attention_mask=torch.ones_like(self.prompts), do_sample=True, top_k=0, pad_token_id=0,
            min_new_tokens=self.tokens, max_new_tokens=self.tokens, stopping_criteria=[criterion],
            logits_processor=[*self.before, *guiding, *self.behind],
        )  # fmt: skip


def _prepare(item: Measurement, models: BenchmarkModels, texts: Texts, settings: BenchmarkSettings) -> _Generation:
    # Recomputing takes minutes for what the others do in seconds, and each of its steps costs the same.
    tokens = min(settings.new_tokens, 3) if item.arm == "recompute" else settings.new_tokens
    rows = texts.rows(item.batch_size, item.prompt_length + settings.new_tokens).to(settings.device)
    prompts = rows[:, : item.prompt_length]
    arm = make_arm(item.arm, models, item.top_k or 0, torch.ones_like(prompts), prepack=settings.prepack)
    if not texts.follow:
        return _Generation(arm, prompts, tokens, [], [])
    vocab_size = models.base.config.get_text_config().vocab_size
    return _Generation(arm, prompts, tokens, [Hint(texts, rows, vocab_size)], [Follow(rows)])


def _measurements(settings: BenchmarkSettings) -> Iterator[Measurement]:
    """What is to be measured, each once; what has no candidates once per size."""
    for length in settings.prompt_lengths:
        for batch in settings.batch_sizes:
            for arm in settings.arms:
                for top_k in (None,) if arm in WITHOUT_CANDIDATES else settings.top_ks:
                    yield Measurement(arm, length, batch, top_k)


def _load(settings: BenchmarkSettings) -> tuple[BenchmarkModels, Texts]:
    _check(settings)
    text = None if settings.text is None else read_text(settings.text)
    models = load_models(settings, text)
    _check_lengths(settings, models)
    return models, make_texts(settings, models, text)


def _check(settings: BenchmarkSettings) -> None:
    unknown = set(settings.arms) - set(ARMS)
    if unknown:
        raise InvalidArgumentError(f"Expected ways among {', '.join(ARMS)}, but got {', '.join(sorted(unknown))}.")
    if settings.dtype not in ("float32", "bfloat16", "float16"):
        raise InvalidArgumentError(f"Expected dtype to be float32, bfloat16 or float16, but got {settings.dtype!r}.")
    small = {
        "rounds": settings.rounds, "new_tokens": settings.new_tokens - 1, "top_k": min(settings.top_ks, default=0),
        "batch_size": min(settings.batch_sizes, default=0), "prompt_length": min(settings.prompt_lengths, default=0),
    }  # fmt: skip
    for name, value in small.items():
        if value < 1:
            raise InvalidArgumentError(
                "Expected at least one round, candidate, prompt and token of it, and two new tokens, but "
                f"{name} is too small. Raise it."
            )
    if settings.prepack and (settings.device != "cpu" or "compiled" in settings.arms):
        raise InvalidArgumentError(
            "Expected models on the CPU and no way that is compiled with --prepack, but got "
            f"--device {settings.device} and the ways {', '.join(settings.arms)}. Leave one of them out."
        )
    if "retokenizing" in settings.arms and settings.text is None:
        raise InvalidArgumentError(
            "Expected a text for the way retokenizing, because its tokenizer is trained on it and random tokens are "
            "no text, but got none. Give --text, or leave that way out."
        )


def _check_lengths(settings: BenchmarkSettings, models: BenchmarkModels) -> None:
    longest = max(settings.prompt_lengths) + settings.new_tokens
    config = models.base.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), models.reward_model.max_length]
    limit = min((limit for limit in limits if limit is not None), default=longest)
    if longest > limit:
        raise InvalidArgumentError(
            f"Expected prompts and new tokens of at most {limit} tokens, the context of the models, but got {longest}. "
            "Use shorter prompts or fewer new tokens."
        )


def _machine(settings: BenchmarkSettings) -> dict[str, str]:
    import transformers  # noqa: PLC0415

    name = (
        torch.cuda.get_device_name()
        if settings.device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}

"""The body of `rgtg benchmark`: methods of generating take turns in one process, because machines drift.

Each method generates the same number of tokens, and medians are compared; `benchmark.methods` says what they are. What
they continue depends on the models:

- models of random weights without a text continue random tokens;
- a base model of random weights with a text is made to write that text, token by token: by itself it would write noise,
  which another tokenizer cuts into far more tokens than text. `TextHint` and `ForceText` say how;
- a trained base model continues passages of the text by itself.
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

from rgtg_logits.benchmark.methods import BenchmarkMethod, make_method
from rgtg_logits.benchmark.profiling import ProfiledProcessor, profile_tokens
from rgtg_logits.benchmark.report import BenchmarkReport, MethodMeasurement, MethodProfile, ProfileReport
from rgtg_logits.benchmark.settings import LIBRARY_METHODS, WITHOUT_CANDIDATES, BenchmarkSettings
from rgtg_logits.benchmark.workload import (
    BenchmarkModels,
    ForceText,
    TextHint,
    TokenSource,
    load_models,
    make_token_source,
    read_text,
)
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.instruments import StepClock, TimedProcessor, count_forwards, machine, peak_memory


def run_benchmark(settings: BenchmarkSettings, progress: Progress | None = None) -> BenchmarkReport:
    """Measures every method at every size, in turns.

    Raises:
        InvalidArgumentError: If the models or the text are too small for what is measured.
        CheckpointError: If the reward model cannot be loaded.
    """
    models, source = _load(settings)
    measurements = list(_measurements(settings))
    task = progress.add_task("benchmark", total=len(measurements) * settings.rounds) if progress else None
    # Each measurement collects garbage first, which takes longer than a few tokens unless old objects are left out.
    gc.freeze()
    try:
        for size in dict.fromkeys(item.size for item in measurements):
            for item in [item for item in measurements if item.size == size] * settings.rounds:
                measure(item, models, settings, source)
                if progress and task is not None:
                    progress.advance(task)
    finally:
        gc.unfreeze()
    return BenchmarkReport(settings, machine(torch.device(settings.device)), measurements)


def run_profile(settings: BenchmarkSettings, progress: Progress | None = None) -> ProfileReport:
    """Profiles every method at every size: where the time of a further token goes; see `MethodProfile`.

    Raises:
        InvalidArgumentError: If the models or the text are too small for what is profiled.
        CheckpointError: If the reward model cannot be loaded.
    """
    models, source = _load(settings)
    device = torch.device(settings.device)
    measurements = list(_measurements(settings))
    profiles = []
    task = progress.add_task("profile", total=len(measurements)) if progress else None
    for item in measurements:

        def run(criterion: StoppingCriteria, item: MethodMeasurement = item) -> None:
            generation = _prepare(item, models, source, settings)
            generation.run(models, ProfiledProcessor(generation.method.processor), criterion)

        parts, operations = profile_tokens(run, models.base, device)
        profiles.append(MethodProfile(item.method, *item.size, item.top_k, parts, operations))
        if progress and task is not None:
            progress.advance(task)
    return ProfileReport(settings, machine(device), profiles)


def measure(item: MethodMeasurement, models: BenchmarkModels, settings: BenchmarkSettings, source: TokenSource) -> None:
    """Runs one method once and adds its figures to `item`.

    Args:
        item: The method and its size.
        models: The models.
        settings: The number of new tokens, the device, and whether to prepack.
        source: The tokens to continue.
    """
    device = torch.device(settings.device)
    generation = _prepare(item, models, source, settings)
    method = generation.method
    clock = StepClock(device)
    with count_forwards(method.reward_modules) as forwards, peak_memory(device, item.memory):
        processor = TimedProcessor(method.processor, forwards)
        clock.stamp()
        generation.run(models, processor, clock)
    steps = clock.seconds()
    milliseconds = [1000 * step for step in steps]
    item.first.append(milliseconds[0])
    item.further.extend(milliseconds[1:])
    item.read.extend(call.tokens / item.batch_size for call in processor.calls[1:])
    item.cache = method.cache_bytes()
    if item.method in LIBRARY_METHODS:
        item.bookkeeping.extend(processor.bookkeeping_shares(steps)[1:])


@dataclass(frozen=True)
class _Generation:
    """One call of `generate`, ready to run.

    Attributes:
        method: The method.
        prompts: The prompts.
        tokens: How many tokens to generate.
        before: Logits processors in front of the method's.
        behind: Logits processors behind it.
    """

    method: BenchmarkMethod
    prompts: Int[Tensor, "batch length"]
    tokens: int
    before: list[LogitsProcessor]
    behind: list[LogitsProcessor]

    @torch.no_grad()
    def run(self, models: BenchmarkModels, processor: LogitsProcessor, criterion: StoppingCriteria) -> None:
        models.base.generate(
            self.prompts, attention_mask=torch.ones_like(self.prompts), do_sample=True, top_k=0, pad_token_id=0,
            min_new_tokens=self.tokens, max_new_tokens=self.tokens, stopping_criteria=[criterion],
            logits_processor=[*self.before, processor, *self.behind],
        )  # fmt: skip


def _prepare(
    item: MethodMeasurement, models: BenchmarkModels, source: TokenSource, settings: BenchmarkSettings
) -> _Generation:
    # Recomputing takes minutes where the others take seconds, and each of its steps costs the same.
    tokens = min(settings.new_tokens, 3) if item.method == "recompute" else settings.new_tokens
    rows = source.rows(item.batch_size, item.prompt_length + settings.new_tokens).to(settings.device)
    prompts = rows[:, : item.prompt_length]
    method = make_method(item.method, models, item.top_k or 0, torch.ones_like(prompts), prepack=settings.prepack)
    if not source.force:
        return _Generation(method, prompts, tokens, [], [])
    vocab_size = models.base.config.get_text_config().vocab_size
    return _Generation(method, prompts, tokens, [TextHint(source, rows, vocab_size)], [ForceText(rows)])


def _measurements(settings: BenchmarkSettings) -> Iterator[MethodMeasurement]:
    """An empty measurement for every method at every size; methods without candidates have one for all `top_ks`."""
    for length in settings.prompt_lengths:
        for batch in settings.batch_sizes:
            for method in settings.methods:
                for top_k in (None,) if method in WITHOUT_CANDIDATES else settings.top_ks:
                    yield MethodMeasurement(method, length, batch, top_k)


def _load(settings: BenchmarkSettings) -> tuple[BenchmarkModels, TokenSource]:
    text = None if settings.text is None else read_text(settings.text)
    models = load_models(settings, text)
    _check_lengths(settings, models)
    return models, make_token_source(settings, models, text)


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

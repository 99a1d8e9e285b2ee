"""`rgtg benchmark`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rgtg_logits.cli.console import needs_extra, progress_bar
from rgtg_logits.cli.options import OutputJson

if TYPE_CHECKING:
    from rgtg_logits.benchmark import BenchmarkSettings


def benchmark(
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model: Hub id or folder. Random weights by default.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Reward model: Hub id or folder. Random weights by default.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help='Real text to continue: a plain file, or .jsonl or .json with a column "text".'
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(metavar="LAYERS", help="Layers of the random models: 12, with --train 4.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="WIDTH", help="Width of the random models: 768, with --train 256.")
    ] = None,
    prompt_length: Annotated[
        list[int] | None,
        typer.Option(
            metavar="TOKENS",
            help="Prompt length; may be given several times. By default 64 and 512, with --train 64.",
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="ROWS",
            help="Number of prompts; may be given several times. By default 1, with --train 8 pairs.",
        ),
    ] = None,
    top_k: Annotated[
        list[int] | None,
        typer.Option(
            metavar="TOKENS",
            help="Number of candidates per token; may be given several times. By default 20.",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(metavar="TOKENS", help="Tokens to generate in each run.")] = 24,
    rounds: Annotated[int, typer.Option(metavar="ROUNDS", help="How often each method takes its turn.")] = 3,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="Method to measure; may be given several times. By default plain, floor, guided, replicated and "
            "recompute; there are compiled, top_p, vocabulary, log_ratio, log_ratio_pair, retokenizing and weighted "
            "too. With --train: partial_bt, shared_prompt, trl and row_per_prefix.",
        ),
    ] = None,
    way: Annotated[list[str] | None, typer.Option(metavar="METHOD", hidden=True)] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of weights and prompts.")] = 0,
    prepack: Annotated[
        bool, typer.Option("--prepack", help="Prepack the reward models' weights for the CPU's matrix instructions.")
    ] = False,
    output: OutputJson = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a profile of the time of a further token, as JSON."),
    ] = None,
    churn: Annotated[
        bool,
        typer.Option(
            "--churn", help="Count instead what the reward model reads at steps at which requests come and go."
        ),
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Measure training instead: pairs per second, against TRL's own trainer.")
    ] = False,
    answer_length: Annotated[int, typer.Option(metavar="TOKENS", help="Length of each answer, with --train.")] = 128,
) -> None:
    """Measures what guidance costs: first token, further tokens, memory, as ratios to the least possible."""
    if way is not None:
        warnings.warn(
            "--way is now called --method, and will be removed in the next release.", FutureWarning, stacklevel=2
        )
        method = [*(method or []), *way]
    common = _given(
        layers=layers, width=width, prompt_lengths=prompt_length, batch_sizes=batch_size, rounds=rounds, device=device,
        seed=seed,
    )  # fmt: skip
    if train:
        _benchmark_training({**common, **_given(methods=method, answer_length=answer_length)}, output)
        return
    from rgtg_logits.benchmark import BenchmarkSettings, run_benchmark, run_profile

    settings = BenchmarkSettings(
        base=base, reward_model=reward_model, text=text, new_tokens=new_tokens, dtype=dtype, prepack=prepack,
        **common, **_given(methods=method, top_ks=top_k),
    )  # fmt: skip
    if churn:
        _count_churn(settings, output)
        return
    with progress_bar() as progress:
        report = run_benchmark(settings, progress)
        profiles = None if profile is None else run_profile(settings, progress)
    Console().print(report.table())
    for line in report.notes():
        Console().print(line)
    if output is not None:
        report.save(output)
    if profile is not None and profiles is not None:
        profiles.save(profile)


def _count_churn(settings: BenchmarkSettings, output: Path | None) -> None:
    from rgtg_logits.benchmark import run_churn

    with progress_bar() as progress:
        report = run_churn(settings, progress)
    Console().print(report.table())
    for line in report.notes():
        Console().print(line)
    if output is not None:
        report.save(output)


def _benchmark_training(options: dict[str, Any], output: Path | None) -> None:
    from rgtg_logits.benchmark import TrainingBenchmarkSettings, run_training_benchmark

    with needs_extra("train"), progress_bar() as progress:
        report = run_training_benchmark(TrainingBenchmarkSettings(**options), progress)
    Console().print(report.table())
    if output is not None:
        report.save(output)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given, lists as tuples; the settings know the defaults of the others."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value is not None
    }

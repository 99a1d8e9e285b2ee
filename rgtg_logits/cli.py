"""The command `rgtg`: parses and calls, holds no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rgtg_logits.benchmark import ARMS, DEFAULT_ARMS, BenchmarkSettings, run_benchmark, run_profile
from rgtg_logits.card_files import check_folder, render_folder
from rgtg_logits.check import CheckSettings, run_check
from rgtg_logits.demo import run_demo
from rgtg_logits.errors import RGTGError

app = typer.Typer(
    help="Reward-guided text generation.", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)


@app.command()
def demo(
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; may be given several times.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: Hub id or folder. The shipped one by default.")] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="Reward model: Hub id or folder. Shipped by default.")
    ] = None,
    beta: Annotated[float, typer.Option(help="Guidance strength in nats per unit of reward; 0 is off.")] = 4.0,
    top_k: Annotated[int, typer.Option(help="Number of candidates per token.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 48,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    trace: Annotated[Path | None, typer.Option(help="Also write a page that shows every step, as HTML.")] = None,
) -> None:
    """Shows texts with and without guidance side by side, with reward and time per token."""
    run_demo(
        prompts=prompt, base=base, reward_model=reward_model, beta=beta, top_k=top_k, max_new_tokens=max_new_tokens,
        seed=seed, trace=trace,
    )  # fmt: skip


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Trains a partial-sequence reward model; takes the arguments of `trl reward`, `--objective` and `--kind`."""
    try:
        from rgtg_logits.train.run import train as body  # noqa: PLC0415  (needs the train extra, and seconds to import)
    except ModuleNotFoundError as error:
        raise RGTGError(
            f"Expected the packages of the train extra, but {error.name} is missing. "
            'Run: pip install "rgtg_logits[train]".'
        ) from error
    body(context.args)


@app.command()
def card(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders with a facts.json.", show_default=False)
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show what differs, and end with status 1 if anything does.")
    ] = False,
) -> None:
    """Makes the model card of a folder (README.md, pictures) again from facts.json, which may have been edited."""
    if not check:
        for folder in folders:
            render_folder(folder)
        return
    found = [difference for difference in map(check_folder, folders) if difference]
    for difference in found:
        typer.echo(difference)
    raise typer.Exit(1 if found else 0)


@app.command()
def check(
    base: Annotated[str, typer.Argument(help="Base model: Hub id or folder.", show_default=False)],
    reward_model: Annotated[str, typer.Argument(help="Reward model: Hub id or folder.", show_default=False)],
    beta: Annotated[float, typer.Option(help="Guidance strength in nats per unit of reward.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Number of candidates per token.")] = 20,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto. By default float32 on a CPU, else auto.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... By default a GPU if there is one.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="How rewards are read, for checkpoints that do not say: causal (scalar head), vocabulary (logits) or "
            "log_ratio (log-probabilities)."
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; may be given several times.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Preference pairs, for prefix accuracy: json, jsonl, csv, parquet or Hub id.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate, which must fit into the contexts.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write everything found, as JSON.")] = None,
) -> None:
    """Checks a base model and a reward model of yours: do they fit, is guidance exact, what does it cost?

    Ends with status 0 if nothing failed, 1 if something is not exact or would fail, 2 if a model cannot be loaded.
    """
    options = {} if prompt is None else {"prompts": tuple(prompt)}
    settings = CheckSettings(
        beta=beta, top_k=top_k, dtype=dtype, device=device, kind=kind, pairs=pairs, max_new_tokens=max_new_tokens,
        seed=seed, **options,
    )  # fmt: skip
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        report = run_check(base, reward_model, settings, progress)
    Console().print(report.table())
    if output is not None:
        report.save(output)
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def benchmark(
    base: Annotated[str | None, typer.Option(help="Base model: Hub id or folder. Random weights by default.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="Reward model: Hub id or folder. Random by default.")] = None,
    text: Annotated[
        str | None, typer.Option(help='Real text to continue: a plain file, or .jsonl or .json with a column "text".')
    ] = None,
    layers: Annotated[int, typer.Option(help="Layers of the random models.")] = 12,
    width: Annotated[int, typer.Option(help="Width of the random models.")] = 768,
    prompt_length: Annotated[list[int], typer.Option(help="Prompt length in tokens; may repeat.")] = [64, 512],  # noqa: B006
    batch_size: Annotated[list[int], typer.Option(help="Number of prompts; may repeat.")] = [1],  # noqa: B006
    top_k: Annotated[list[int], typer.Option(help="Number of candidates per token; may repeat.")] = [20],  # noqa: B006
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate in each run.")] = 24,
    rounds: Annotated[int, typer.Option(help="How often each way takes its turn.")] = 3,
    way: Annotated[list[str], typer.Option(help=f"What to measure: {', '.join(ARMS)}; may repeat.")] = [*DEFAULT_ARMS],  # noqa: B006
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of weights and prompts.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write every figure, as JSON.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Also write where the time of a further token goes, as JSON.")
    ] = None,
) -> None:
    """Measures what guidance costs: first token, further tokens, memory, as ratios to the least possible."""
    settings = BenchmarkSettings(
        base=base, reward_model=reward_model, text=text, layers=layers, width=width,
        prompt_lengths=tuple(prompt_length), batch_sizes=tuple(batch_size), top_ks=tuple(top_k), new_tokens=new_tokens,
        rounds=rounds, arms=tuple(way), device=device, dtype=dtype, seed=seed,
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        report = run_benchmark(settings, progress)
        profiles = None if profile is None else run_profile(settings, progress)
    Console().print(report.table())
    for line in report.notes():
        Console().print(line)
    if output is not None:
        report.save(output)
    if profile is not None and profiles is not None:
        profiles.save(profile)


def main() -> None:
    """Runs the command; mistakes end in one message, not in a traceback."""
    try:
        app()
    except RGTGError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] {error}", highlight=False)
        raise SystemExit(2) from error

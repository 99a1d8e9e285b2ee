"""The command `rgtg`: parses and calls, holds no logic."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rgtg_logits.benchmark import (
    DEFAULT_METHODS,
    METHODS,
    TRAINING_METHODS,
    BenchmarkSettings,
    TrainingBenchmarkSettings,
    run_benchmark,
    run_profile,
    run_training_benchmark,
)
from rgtg_logits.card import card_differences, render_folder, score_example
from rgtg_logits.check import CheckSettings, run_check
from rgtg_logits.demo import run_demo
from rgtg_logits.errors import InvalidArgumentError, RGTGError
from rgtg_logits.hub import PushOptions
from rgtg_logits.pairs import PairSettings, RateColumn, make_pairs
from rgtg_logits.reward_model import push_folder

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
    """Trains a partial-sequence reward model; takes the arguments of `trl reward`, `--objective` and `--kind`.

    Arguments of `accelerate launch` (`--num_processes 2`, `--accelerate_config FILE`) are handed to it.
    """
    try:
        from rgtg_logits.train import launch_training  # noqa: PLC0415  (needs the train extra, and seconds to import)
    except ModuleNotFoundError as error:
        raise _missing_extra(error) from error
    launch_training(context.args)


@app.command()
def card(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders with a facts.json.", show_default=False)
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show what differs, and end with status 1 if anything does.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="Prompt of the usage example.")] = "",
    answer: Annotated[
        list[str] | None,
        typer.Option(help="Answer to score with the model for the usage example; may be given several times."),
    ] = None,
) -> None:
    """Makes the model card of a folder (README.md, pictures) again from facts.json, which may have been edited."""
    if not check:
        for folder in folders:
            if answer is not None:
                score_example(folder, prompt, answer)
            render_folder(folder)
        return
    found = [difference for difference in map(card_differences, folders) if difference]
    for difference in found:
        typer.echo(difference)
    raise typer.Exit(1 if found else 0)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a reward model.", show_default=False)],
    repository: Annotated[
        str, typer.Argument(help="Name on the Hub: organisation/name, or name for your own.", show_default=False)
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Visibility if the repository is created.", show_default="the namespace's"
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, created if it does not exist.", show_default="main")
    ] = None,
    commit_message: Annotated[str, typer.Option(help="Title of the commit.")] = "Upload reward model",
    commit_description: Annotated[str | None, typer.Option(help="Further text of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Uploads a reward model to the Hub in one commit: weights, configuration, tokenizer, card, and nothing else.

    The folder is checked first. The access token is that of HF_TOKEN or of `hf auth login`.
    """
    options = PushOptions(
        private=private, revision=revision, commit_message=commit_message, commit_description=commit_description,
        create_pr=create_pr,
    )  # fmt: skip
    Console(soft_wrap=True).print(push_folder(folder, repository, options), highlight=False)


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
    prompt_format: Annotated[
        str | None, typer.Option(help="chat, for a reward model that reads chats by its chat template.")
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
        beta=beta, top_k=top_k, dtype=dtype, device=device, kind=kind, prompt_format=prompt_format, pairs=pairs,
        max_new_tokens=max_new_tokens, seed=seed, **options,
    )  # fmt: skip
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        report = run_check(base, reward_model, settings, progress)
    Console().print(report.table())
    if output is not None:
        report.save(output)
    raise typer.Exit(1 if report.failed else 0)


@app.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
def pairs(
    base: Annotated[str, typer.Argument(help="Model that answers: Hub id or folder.", show_default=False)],
    prompts: Annotated[str, typer.Option(help="Texts or messages: json, jsonl, csv, parquet, txt, or a Hub id.")],
    reward: Annotated[
        str, typer.Option(help="Reward model or classifier (Hub id, folder), or package.module:function.")
    ],
    output: Annotated[str, typer.Option(help="File to write: .jsonl or .parquet.")],
    format: Annotated[str, typer.Option(help="pairs, or labels: prompt, completion, reward.")] = "pairs",
    samples: Annotated[int | None, typer.Option(help="Answers to each prompt; 2 for pairs, 1 for labels.")] = None,
    pairs_per_prompt: Annotated[int | None, typer.Option(help="By default as many as use no answer twice.")] = None,
    label: Annotated[str, typer.Option(help="bt: draw who wins by Bradley-Terry; argmax: the better one wins.")] = "bt",
    scale: Annotated[float, typer.Option(help="bt: factor of reward differences, in nats per unit of reward.")] = 1.0,
    label_name: Annotated[str | None, typer.Option(help="Label (or index) whose log-odds a classifier gives.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="By default the first of prompt, messages, text.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="How much of each text to take, for completing.")] = None,
    prompt_prefix: Annotated[str, typer.Option(help="Put before each text, such as <|endoftext|>.")] = "",
    split: Annotated[str | None, typer.Option(help="Split of the prompts. By default train, or the first.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most rows to read.")] = None,
    temperature: Annotated[float, typer.Option(help="As in generate; 1 draws from the base model itself.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="As in generate; 1 cuts nothing.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="As in generate; 0 cuts nothing. With --guide: its candidates.")] = 0,
    guide: Annotated[str | None, typer.Option(help="Reward model that guides the answers.", show_default=False)] = None,
    beta: Annotated[float, typer.Option(help="Strength of --guide.")] = 1.0,
    rest: Annotated[str, typer.Option(help="Tokens that --guide does not score: drop or keep.")] = "drop",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Answers at once; changes no draw.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32 (default on a CPU), bfloat16, float16, auto.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... By default a GPU if there is one.")] = None,
) -> None:
    """Makes preference pairs or labelled answers from a base model and any reward, for `rgtg train`.

    Leave temperature, top_p and top_k alone for the objectives `value` and `soft_value`, which need answers of the base
    model itself; or of the guided one, for a reward model that has to know the texts that guidance leads to (--guide).
    A function of yours takes (prompts, responses), two lists of texts, and returns a reward for each.

    A run that was killed goes on where it was when it is started again. Beside the output, a file that ends in .facts
    says how it was made.
    """
    settings = PairSettings(
        base=base, prompts=prompts, reward=reward, output=output, format=format, samples=samples,
        pairs_per_prompt=pairs_per_prompt, label=label, scale=scale, label_name=label_name,
        prompt_column=prompt_column, prompt_tokens=prompt_tokens, prompt_prefix=prompt_prefix, split=split,
        limit=limit, temperature=temperature, top_p=top_p, top_k=top_k, guide=guide, beta=beta, rest=rest,
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed, dtype=dtype, device=device,
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        report = make_pairs(settings, progress)
    Console().print(report.table())


@app.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
def evaluate(
    base: Annotated[str, typer.Argument(help="Base model: Hub id or folder.", show_default=False)],
    prompts: Annotated[str, typer.Option(help="Texts or messages: json, jsonl, csv, parquet, txt, or a Hub id.")],
    judge: Annotated[
        list[str], typer.Option(metavar="NAME=REWARD", help="What judges, as in `rgtg pairs --reward`; may repeat.")
    ],
    output: Annotated[str, typer.Option(help="Folder to write records, tables, figures and report.html to.")],
    methods: Annotated[str | None, typer.Option(help="YAML or JSON list of methods; see the documentation.")] = None,
    guide: Annotated[
        str | None, typer.Option(help="Instead of --methods: a reward model, compared with the base model alone.")
    ] = None,
    beta: Annotated[list[float] | None, typer.Option(help="Strengths of --guide; may repeat. By default 1.")] = None,
    label_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LABEL", help="Label whose log-odds a judge gives; may repeat.")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option(metavar="METHOD=METHOD", help="Compare at equal divergence; may repeat.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Answers to each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    top_k: Annotated[int, typer.Option(help="Candidates, where a method does not say; 0 is the vocabulary.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 32,
    prompt_column: Annotated[str | None, typer.Option(help="By default the first of prompt, messages, text.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="How much of each text to take, for completing.")] = None,
    prompt_prefix: Annotated[str, typer.Option(help="Put before each text, such as <|endoftext|>.")] = "",
    split: Annotated[str | None, typer.Option(help="Split of the prompts. By default train, or the first.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most prompts to read.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (default on a CPU), bfloat16, float16, auto.")] = None,
    guide_dtype: Annotated[str | None, typer.Option(help="The same for what guides and ranks.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... By default a GPU if there is one.")] = None,
    num_processes: Annotated[int, typer.Option(help="Processes that share the work, by accelerate.")] = 1,
) -> None:
    """Compares ways to generate: reward, exact divergence from the base model, diversity and time, with intervals.

    An evaluation that was killed goes on where it was when it is started again; with more methods, strengths or judges,
    only what is new is done.
    """
    try:
        from rgtg_logits import evaluate as evaluation  # noqa: PLC0415  (needs the evaluate extra)
    except ModuleNotFoundError as error:
        raise _missing_extra(error, "evaluate") from error
    settings = evaluation.EvaluationSettings(
        base=base, prompts=prompts, methods=evaluation.choose_methods(methods, guide, beta),
        judges=dict(map(_pair, judge)), output=output,
        label_names=dict(map(_pair, label_name or [])), compare=tuple(map(_pair, compare or [])),
        seeds=seeds, seed=seed, max_new_tokens=max_new_tokens, top_k=top_k, batch_size=batch_size,
        prompt_column=prompt_column, prompt_tokens=prompt_tokens, prompt_prefix=prompt_prefix, split=split, limit=limit,
        dtype=dtype, guide_dtype=guide_dtype, device=device,
    )  # fmt: skip
    if num_processes > 1 and not evaluation.is_worker():
        evaluation.launch_processes(num_processes, sys.argv[1:], on_cpu=device == "cpu")
        return
    with _progress() as progress:
        results = evaluation.evaluate(settings, progress)
    if evaluation.is_first():
        for table in evaluation.console_tables(results):
            Console().print(table)
        Console(soft_wrap=True).print(f"{Path(output) / 'report.html'} shows everything.", highlight=False)


def _pair(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not (name and equals and value):
        raise InvalidArgumentError(f"Expected two names with = between them, but got {option!r}. Write NAME=VALUE.")
    return name, value


@app.command()
def benchmark(
    base: Annotated[str | None, typer.Option(help="Base model: Hub id or folder. Random weights by default.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="Reward model: Hub id or folder. Random by default.")] = None,
    text: Annotated[
        str | None, typer.Option(help='Real text to continue: a plain file, or .jsonl or .json with a column "text".')
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of the random models: 12, with --train 4.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the random models: 768, with --train 256.")] = None,
    prompt_length: Annotated[
        list[int] | None, typer.Option(help="Prompt length in tokens; may repeat. 64 and 512, with --train 64.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Number of prompts; may repeat. 1, with --train 8 pairs.")
    ] = None,
    top_k: Annotated[list[int], typer.Option(help="Number of candidates per token; may repeat.")] = [20],  # noqa: B006
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate in each run.")] = 24,
    rounds: Annotated[int, typer.Option(help="How often each method takes its turn.")] = 3,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What to measure; may repeat. {', '.join(METHODS)} (by default {', '.join(DEFAULT_METHODS)}); with "
            f"--train {', '.join(TRAINING_METHODS)}."
        ),
    ] = None,
    way: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of weights and prompts.")] = 0,
    prepack: Annotated[
        bool, typer.Option("--prepack", help="Lay the reward models' weights out beforehand, on a CPU.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Also write every figure, as JSON.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Also write where the time of a further token goes, as JSON.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Measure training instead: pairs per second, against TRL's own trainer.")
    ] = False,
    answer_length: Annotated[int, typer.Option(help="Tokens of each answer, with --train.")] = 128,
) -> None:
    """Measures what guidance costs: first token, further tokens, memory, as ratios to the least possible."""
    if way:
        warnings.warn("--way is called --method now and ends with the next release.", FutureWarning, stacklevel=1)
        method = [*(method or []), *way]
    common = _given(
        layers=layers, width=width, prompt_lengths=prompt_length, batch_sizes=batch_size, rounds=rounds, device=device,
        seed=seed,
    )  # fmt: skip
    if train:
        _benchmark_training({**common, **_given(methods=method, answer_length=answer_length)}, output)
        return
    settings = BenchmarkSettings(
        base=base, reward_model=reward_model, text=text, top_ks=tuple(top_k), new_tokens=new_tokens, dtype=dtype,
        prepack=prepack, **common, **_given(methods=method),
    )  # fmt: skip
    with _progress() as progress:
        report = run_benchmark(settings, progress)
        profiles = None if profile is None else run_profile(settings, progress)
    Console().print(report.table())
    for line in report.notes():
        Console().print(line)
    if output is not None:
        report.save(output)
    if profile is not None and profiles is not None:
        profiles.save(profile)


def _benchmark_training(options: dict[str, Any], output: Path | None) -> None:
    try:
        with _progress() as progress:
            report = run_training_benchmark(TrainingBenchmarkSettings(**options), progress)
    except ModuleNotFoundError as error:
        raise _missing_extra(error) from error
    Console().print(report.table())
    if output is not None:
        report.save(output)


def _given(**options: Any) -> dict[str, Any]:
    """Options that were given, lists as tuples; of the others, settings know the defaults."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value is not None
    }


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _missing_extra(error: ModuleNotFoundError, extra: str = "train") -> RGTGError:
    return RGTGError(
        f"Expected the packages of the {extra} extra, but {error.name} is missing. "
        f'Run: pip install "rgtg_logits[{extra}]".'
    )


def main() -> None:
    """Runs the command; mistakes end in one message, not in a traceback."""
    try:
        app()
    except RGTGError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()

"""`rgtg evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rgtg_logits.cli.console import needs_extra, progress_bar
from rgtg_logits.cli.options import (
    GUIDANCE,
    BaseModel,
    BatchSize,
    Device,
    DType,
    Limit,
    MaxNewTokens,
    PromptColumn,
    PromptPrefix,
    Prompts,
    PromptTokens,
    Seed,
    Split,
)
from rgtg_logits.errors import InvalidArgumentError


def evaluate(
    base: BaseModel,
    prompts: Prompts,
    judge: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=REWARD", help="Judge of the answers, as in `rgtg pairs --reward`; may be given several times."
        ),
    ],
    output: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder to write records, tables, figures and report.html to.")
    ],
    methods: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML or JSON list of methods; see the documentation.")
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Instead of --methods: a reward model, compared with the base model alone.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None,
    beta: Annotated[
        list[float] | None,
        typer.Option(
            metavar="STRENGTH",
            help="Strength of --guide; may be given several times. By default 1.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None,
    label_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LABEL", help="Label whose log-odds a judge gives; may be given several times."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD=METHOD", help="Compare two methods at equal divergence; may be given several times."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="ANSWERS", help="Answers to each prompt.")] = 1,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 64,
    top_k: Annotated[
        int,
        typer.Option(
            metavar="TOKENS",
            help="Candidates per token, where a method does not say; 0 is the vocabulary.",
            rich_help_panel=GUIDANCE,
        ),
    ] = 20,
    batch_size: BatchSize = 32,
    prompt_column: PromptColumn = None,
    prompt_tokens: PromptTokens = None,
    prompt_prefix: PromptPrefix = "",
    split: Split = None,
    limit: Limit = None,
    dtype: DType = None,
    guide_dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="The same for the models that guide and rank.")
    ] = None,
    device: Device = None,
    num_processes: Annotated[
        int, typer.Option(metavar="PROCESSES", help="Processes that share the work, started by accelerate.")
    ] = 1,
) -> None:
    """Compares decoding methods: reward, exact divergence from the base model, diversity and time, with intervals.

    An evaluation that was killed resumes when it is started again; with more methods, strengths or judges, only the new
    ones are computed.
    """
    with needs_extra("evaluate"):
        from rgtg_logits import evaluate as evaluation
    settings = evaluation.EvaluationSettings(
        base=base, prompts=prompts, methods=evaluation.choose_methods(methods, guide, beta),
        judges=dict(map(_split_pair, judge)), output=output,
        label_names=dict(map(_split_pair, label_name or [])), compare=tuple(map(_split_pair, compare or [])),
        seeds=seeds, seed=seed, max_new_tokens=max_new_tokens, top_k=top_k, batch_size=batch_size,
        prompt_column=prompt_column, prompt_tokens=prompt_tokens, prompt_prefix=prompt_prefix, split=split, limit=limit,
        dtype=dtype, guide_dtype=guide_dtype, device=device,
    )  # fmt: skip
    if num_processes > 1 and not evaluation.is_worker():
        evaluation.launch_processes(num_processes, sys.argv[1:], on_cpu=device == "cpu")
        return
    with progress_bar() as progress:
        results = evaluation.run_evaluation(settings, progress)
    if evaluation.is_first():
        for table in evaluation.console_tables(results):
            Console().print(table)
        Console(soft_wrap=True).print(f"{Path(output) / 'report.html'} shows everything.", highlight=False)


def _split_pair(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not (name and equals and value):
        raise InvalidArgumentError(f"Expected two names with = between them, but got {option!r}. Write NAME=VALUE.")
    return name, value

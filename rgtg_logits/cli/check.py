"""`rgtg check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rgtg_logits.cli.console import spinner
from rgtg_logits.cli.options import BaseModel, Beta, Device, DType, MaxNewTokens, Prompt, Seed, TopK


def check(
    base: BaseModel,
    reward_model: Annotated[
        str, typer.Argument(metavar="REWARD_MODEL", help="Reward model: Hub id or folder.", show_default=False)
    ],
    beta: Beta = 1.0,
    top_k: TopK = 20,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How rewards are read, for checkpoints that do not say: causal (scalar head), vocabulary (logits) or "
            "log_ratio (log-probabilities).",
        ),
    ] = None,
    prompt_format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="chat, for a reward model that reads chats by its chat template."),
    ] = None,
    prompt: Prompt = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Preference pairs, for prefix accuracy: json, jsonl, csv, parquet or Hub id."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 32,
    seed: Seed = 0,
    dtype: DType = None,
    device: Device = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all findings, as JSON.")] = None,
) -> None:
    """Checks a base model and a reward model of yours: do they fit, is guidance exact, what does it cost?

    Ends with status 0 if nothing failed, 1 if something is not exact or would fail, 2 if a model cannot be loaded.
    """
    from rgtg_logits.check import CheckSettings, run_check

    prompts = {} if prompt is None else {"prompts": tuple(prompt)}
    settings = CheckSettings(
        beta=beta, top_k=top_k, dtype=dtype, device=device, kind=kind, prompt_format=prompt_format, pairs=pairs,
        max_new_tokens=max_new_tokens, seed=seed, **prompts,
    )  # fmt: skip
    with spinner() as progress:
        report = run_check(base, reward_model, settings, progress)
    Console().print(report.table())
    if output is not None:
        report.save(output)
    raise typer.Exit(1 if report.failed else 0)

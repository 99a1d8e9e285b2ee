"""`rgtg pairs`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from rgtg_logits.cli.console import progress_bar
from rgtg_logits.cli.options import (
    GUIDANCE,
    BaseModel,
    BatchSize,
    Beta,
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


def pairs(
    base: BaseModel,
    prompts: Prompts,
    reward: Annotated[
        str,
        typer.Option(metavar="REWARD", help="Reward model or classifier (Hub id, folder), or package.module:function."),
    ],
    output: Annotated[str, typer.Option(metavar="FILE", help="File to write: .jsonl or .parquet.")],
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="pairs, or labels: prompt, completion, reward.")
    ] = "pairs",
    samples: Annotated[
        int | None, typer.Option(metavar="ANSWERS", help="Answers to each prompt; 2 for pairs, 1 for labels.")
    ] = None,
    pairs_per_prompt: Annotated[
        int | None, typer.Option(metavar="PAIRS", help="By default as many as use no answer twice.")
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            metavar="RULE", help="bt: draw the chosen answer by Bradley-Terry; argmax: choose the better one."
        ),
    ] = "bt",
    scale: Annotated[
        float,
        typer.Option(metavar="FACTOR", help="bt: factor of reward differences, in nats per unit of reward."),
    ] = 1.0,
    label_name: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Label (or index) whose log-odds a classifier gives.")
    ] = None,
    prompt_column: PromptColumn = None,
    prompt_tokens: PromptTokens = None,
    prompt_prefix: PromptPrefix = "",
    split: Split = None,
    limit: Limit = None,
    temperature: Annotated[
        float, typer.Option(metavar="NUMBER", help="As in generate; 1 draws from the base model itself.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option(metavar="PROBABILITY", help="As in generate; 1 truncates nothing.")] = 1.0,
    top_k: Annotated[
        int,
        typer.Option(metavar="TOKENS", help="As in generate; 0 truncates nothing. With --guide: its candidates."),
    ] = 0,
    guide: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Reward model that guides the answers.", show_default=False, rich_help_panel=GUIDANCE
        ),
    ] = None,
    beta: Beta = 1.0,
    rest: Annotated[
        str,
        typer.Option(
            metavar="RULE", help="Tokens that --guide does not score: drop or keep.", rich_help_panel=GUIDANCE
        ),
    ] = "drop",
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    dtype: DType = None,
    device: Device = None,
) -> None:
    """Makes preference pairs or labelled answers from a base model and any reward, for `rgtg train`.

    The objectives `value` and `soft_value` need answers of the base model itself: for them, leave temperature, top_p
    and top_k at their defaults. With --guide, the answers are those of the guided model, for a reward model that has to
    know the texts that guidance leads to. A reward function of yours takes (prompts, responses), two lists of texts,
    and returns a reward for each.

    A run that was killed resumes when it is started again. Beside the output, a file that ends in .facts records how it
    was made.
    """
    from rgtg_logits.pairs import PairSettings, RateColumn, make_pairs

    settings = PairSettings(
        base=base, prompts=prompts, reward=reward, output=output, format=format, samples=samples,
        pairs_per_prompt=pairs_per_prompt, label=label, scale=scale, label_name=label_name,
        prompt_column=prompt_column, prompt_tokens=prompt_tokens, prompt_prefix=prompt_prefix, split=split,
        limit=limit, temperature=temperature, top_p=top_p, top_k=top_k, guide=guide, beta=beta, rest=rest,
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed, dtype=dtype, device=device,
    )  # fmt: skip
    with progress_bar(RateColumn()) as progress:
        report = make_pairs(settings, progress)
    Console().print(report.table())

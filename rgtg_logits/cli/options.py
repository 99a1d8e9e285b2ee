"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GUIDANCE = "Guidance"
PROMPTS = "Prompts"
RUNNING = "Running"

BaseModel = Annotated[str, typer.Argument(metavar="BASE", help="Base model: Hub id or folder.", show_default=False)]

Beta = Annotated[
    float,
    typer.Option(
        metavar="STRENGTH", help="Guidance strength in nats per unit of reward; 0 is off.", rich_help_panel=GUIDANCE
    ),
]
TopK = Annotated[int, typer.Option(metavar="TOKENS", help="Number of candidates per token.", rich_help_panel=GUIDANCE)]

Prompt = Annotated[
    list[str] | None,
    typer.Option(metavar="PROMPT", help="Text to continue; may be given several times.", rich_help_panel=PROMPTS),
]
Prompts = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Texts or messages: json, jsonl, csv, parquet, txt, or a Hub id.",
        rich_help_panel=PROMPTS,
    ),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="By default the first of prompt, messages, text.", rich_help_panel=PROMPTS),
]
PromptTokens = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Cut each text to this many tokens, for completing.", rich_help_panel=PROMPTS),
]
PromptPrefix = Annotated[
    str,
    typer.Option(metavar="PREFIX", help="Put before each text, such as <|endoftext|>.", rich_help_panel=PROMPTS),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT", help="Split of the prompts. By default train, or the first.", rich_help_panel=PROMPTS
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="ROWS", help="Most rows to read.", rich_help_panel=PROMPTS)]

MaxNewTokens = Annotated[
    int, typer.Option(metavar="TOKENS", help="Longest continuation, in tokens.", rich_help_panel=RUNNING)
]
BatchSize = Annotated[int, typer.Option(metavar="ROWS", help="Rows at once; changes no draw.", rich_help_panel=RUNNING)]
Seed = Annotated[int, typer.Option(metavar="SEED", help="Seed of the draws.", rich_help_panel=RUNNING)]
DType = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16, float16 or auto. By default float32 on a CPU, else auto.",
        rich_help_panel=RUNNING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, ... By default a GPU if there is one.",
        rich_help_panel=RUNNING,
    ),
]
OutputJson = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write every figure, as JSON.", rich_help_panel=RUNNING)
]

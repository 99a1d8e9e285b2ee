"""`rgtg card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders with a facts.json.", show_default=False)
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show differences, and end with status 1 if there are any.")
    ] = False,
    prompt: Annotated[str, typer.Option(metavar="PROMPT", help="Prompt of the usage example.")] = "",
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ANSWER",
            help="Answer to score with the model for the usage example; may be given several times.",
        ),
    ] = None,
) -> None:
    """Renders the model card of a folder (README.md, pictures) again from facts.json, which may have been edited."""
    from rgtg_logits.card import card_differences, render_folder, score_example

    if not check:
        for folder in folders:
            if answer is not None:
                score_example(folder, prompt, answer)
            render_folder(folder)
        return
    differences = [difference for difference in map(card_differences, folders) if difference]
    for difference in differences:
        typer.echo(difference)
    raise typer.Exit(1 if differences else 0)

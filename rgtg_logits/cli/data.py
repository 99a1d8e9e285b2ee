"""`rgtg data`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from rgtg_logits.cli.console import needs_extra


def data(
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or Hub id.", show_default=False)],
    objective: Annotated[
        str | None, typer.Option(metavar="OBJECTIVE", help="As of rgtg train; by default one that fits, pairs first.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model whose tokenizer and chat template render the rows.")
    ] = None,
    dataset_format: Annotated[
        str, typer.Option(metavar="FORMAT", help="Name of a format; auto recognises it by the columns.")
    ] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of a column, such as prompt=question; may be repeated."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Split of the data.")] = "train",
    dataset_config: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Configuration of a data set on the Hub.")
    ] = None,
    max_length: Annotated[int, typer.Option(metavar="TOKENS", help="Longest text in tokens, as in training.")] = 1024,
    rows: Annotated[int, typer.Option(metavar="ROWS", help="Rows to show.")] = 3,
) -> None:
    """Shows what `rgtg train` would read from a data set: format, counts by reason, and rows as the model sees them."""
    with needs_extra("train"):
        from rgtg_logits.train import DataSettings, show_data
    settings = DataSettings(
        data=data, objective=objective, model=model, split=split, config=dataset_config, dataset_format=dataset_format,
        columns=columns or (), max_length=max_length, rows=rows,
    )  # fmt: skip
    # Texts of the data are shown escaped: control characters in them are not for the terminal.
    Console().print(str(show_data(settings)), markup=False, highlight=False, soft_wrap=True)

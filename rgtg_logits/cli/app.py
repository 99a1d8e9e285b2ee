"""All commands in one typer app, and the entry point."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rgtg_logits import __version__
from rgtg_logits.cli.benchmark import benchmark
from rgtg_logits.cli.card import card
from rgtg_logits.cli.check import check
from rgtg_logits.cli.data import data
from rgtg_logits.cli.demo import demo
from rgtg_logits.cli.evaluate import evaluate
from rgtg_logits.cli.pairs import pairs
from rgtg_logits.cli.push import push
from rgtg_logits.cli.train import train
from rgtg_logits.errors import RGTGError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Local variables may hold texts and tokens, which do not belong into a traceback that people paste.
    pretty_exceptions_show_locals=False,
    # Options may be written with dashes or underscores; commands inherit this.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
app.command()(demo)
# The training parser, not typer, knows the options of `rgtg train`, --help included.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(train)
app.command()(data)
app.command()(pairs)
app.command()(evaluate)
app.command()(check)
app.command()(benchmark)
app.command()(card)
app.command()(push)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"rgtg_logits {__version__}")
        raise typer.Exit


@app.callback()
def _rgtg(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Reward-guided text generation."""


def main() -> None:
    """Runs the command; a mistake ends in one message and status 2, not in a traceback."""
    try:
        app()
    except RGTGError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(2) from error

"""`rgtg train`."""

from __future__ import annotations

import typer

from rgtg_logits.cli.console import needs_extra


def train(context: typer.Context) -> None:
    """Trains a reward model of partial texts, with the options of `trl reward` and `accelerate launch`.

    `rgtg train --help` lists them all, those of this package (`--objective`, `--kind`, …) first.
    """
    with needs_extra("train"):
        from rgtg_logits.train import launch_training
    launch_training(context.args)

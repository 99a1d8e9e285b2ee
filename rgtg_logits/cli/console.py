"""Progress displays, and the message for a missing extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from rgtg_logits.errors import RGTGError


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on stderr that counts finished items.

    Args:
        columns: Further columns, shown before the elapsed time.
    """
    counted = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*counted, *columns, TimeElapsedColumn(), console=Console(stderr=True))


def spinner() -> Progress:
    """A spinner on stderr with the current stage, which disappears at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turns the error of a missing package into one that names the extra to install.

    Args:
        extra: The extra that the code in the `with` block imports from.

    Raises:
        RGTGError: If a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise RGTGError(
            f"Expected the packages of the {extra} extra, but {error.name} is missing. "
            f'Run: pip install "rgtg_logits[{extra}]".'
        ) from error

"""`rgtg evaluate` as several processes."""

from __future__ import annotations

import os
from collections.abc import Sequence

_MODULE = "rgtg_logits.cli"


def is_worker() -> bool:
    """Whether this is one of several processes already."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the one that reports."""
    return int(os.environ.get("RANK", "0")) == 0


def launch_processes(processes: int, argv: Sequence[str], *, on_cpu: bool) -> None:
    """Runs the command in several processes, by `accelerate launch`.

    Args:
        processes: How many.
        argv: Arguments of the command, its name first.
        on_cpu: Whether they are to use the CPU.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415  (an extra)

    arguments = launch_command_parser().parse_args(["--num_processes", str(processes), "--module", _MODULE, *argv])
    if on_cpu:
        # With --cpu alone accelerate (1.15) starts one process without a word.
        arguments.cpu, arguments.multi_gpu = False, True
    launch_command(arguments)

"""Commands in several processes, by `accelerate launch`. Needs the package `accelerate` when processes are launched."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

_COMMAND_MODULE = "rgtg_logits.cli"


def is_worker() -> bool:
    """Whether this process is one of several that accelerate or torchrun has launched."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the only one or the one of rank 0, which reports."""
    return int(os.environ.get("RANK", "0")) == 0


def launch_processes(processes: int, argv: Sequence[str], *, on_cpu: bool) -> None:
    """Runs the command `rgtg` in several processes.

    Args:
        processes: Number of processes.
        argv: Arguments of `rgtg`, beginning with the name of its command.
        on_cpu: Whether the processes compute on the CPU.
    """
    from accelerate.commands.launch import launch_command_parser  # noqa: PLC0415  (an extra)

    arguments = launch_command_parser().parse_args(["--num_processes", str(processes), "--module", _COMMAND_MODULE])
    launch(arguments, argv, on_cpu=on_cpu)


def launch(arguments: argparse.Namespace, argv: Sequence[str], *, on_cpu: bool, cpu_args: Sequence[str] = ()) -> None:
    """Runs a module in the processes that parsed arguments of `accelerate launch` describe.

    Args:
        arguments: Arguments of `accelerate launch`, among them `--module` and its name.
        argv: Arguments of the module.
        on_cpu: Whether the processes compute on the CPU, also if `arguments` do not say so (`--cpu`).
        cpu_args: Further arguments of the module where several processes compute on the CPU.
    """
    from accelerate.commands.launch import launch_command  # noqa: PLC0415  (an extra)

    arguments.training_script_args = list(argv)
    if (arguments.num_processes or 1) > 1 and (arguments.cpu or on_cpu):
        # With --cpu alone accelerate (1.15) silently starts one process, which would do a part of the work.
        arguments.cpu = False
        arguments.multi_gpu = True
        arguments.training_script_args += cpu_args
    launch_command(arguments)

"""Commands in several processes, by `accelerate launch`. Needs the package `accelerate` when processes are launched."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rgtg_logits.errors import InvalidArgumentError

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
    launch_module(_COMMAND_MODULE, argv, ["--num_processes", str(processes)], on_cpu=on_cpu)


def launch_module(
    module: str,
    argv: Sequence[str],
    launch_args: Sequence[str],
    *,
    on_cpu: bool,
    cpu_args: Sequence[str] = (),
) -> None:
    """Runs `python -m module` in the processes that `accelerate launch` starts.

    Args:
        module: Name of the module.
        argv: Its arguments.
        launch_args: Arguments of `accelerate launch`, such as `--num_processes 2`.
        on_cpu: Whether the processes compute on the CPU; `--cpu` among `launch_args` says so too.
        cpu_args: Further arguments of the module for several processes on the CPU.

    Raises:
        InvalidArgumentError: If `accelerate launch` does not know one of `launch_args`.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415  (an extra)

    arguments, unknown = launch_command_parser().parse_known_args([*launch_args, "--module", module])
    if unknown or arguments.training_script != module:
        raise InvalidArgumentError(
            f"Expected arguments of the command or of `accelerate launch`, but got {' '.join(unknown or launch_args)}. "
            "See the command's --help and `accelerate launch --help`."
        )
    arguments.training_script_args = list(argv)
    if (arguments.num_processes or 1) > 1 and (arguments.cpu or on_cpu):
        # With --cpu alone accelerate (1.15) silently starts one process, which would do a part of the work.
        arguments.cpu = False
        arguments.multi_gpu = True
        arguments.training_script_args += cpu_args
    launch_command(arguments)

"""`rgtg train` in one process or, with arguments of `accelerate launch` among its own, in several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from accelerate.commands.launch import launch_command_parser

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.launcher import is_worker, launch
from rgtg_logits.train.arguments import suggest_option
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.run import make_parser, train

_MODULE = "rgtg_logits.train.launch"


def launch_training(argv: list[str]) -> None:
    """Trains as command-line arguments say, and passes those of `accelerate launch` on to it.

    Without any of these, training runs in this process, unless there are several GPUs, which need a process each.
    `--accelerate_config` is a file made by `accelerate config`, or the name of one that TRL ships (such as "zero3").

    Args:
        argv: Arguments without the program's name.

    Raises:
        InvalidArgumentError: If neither the training nor `accelerate launch` knows an argument, or the arguments of
            the training do not fit together.
    """
    # Each launched process runs this module too, whether torchrun or accelerate has started it.
    if is_worker():
        train(argv, allow_unknown=True)
        return
    parser = make_parser()
    *parsed, in_file, on_line = parser.parse_args_and_config(
        argv, return_remaining_strings=True, separate_remaining_strings=True
    )
    launch_args = _with_config_file([*in_file, *on_line])
    if not launch_args and torch.cuda.device_count() < 2:
        train(argv)
        return
    launcher = launch_command_parser()
    arguments, unknown = launcher.parse_known_args([*launch_args, "--module", _MODULE])
    if unknown or arguments.training_script != _MODULE:
        raise InvalidArgumentError(
            f"Expected arguments of training or of `accelerate launch`, but got {' '.join(unknown or launch_args)}."
            f"{suggest_option(unknown, parser, launcher)} See `rgtg train --help`."
        )
    on_cpu = any(isinstance(item, PartialRewardConfig) and item.device.type == "cpu" for item in parsed)
    launch(arguments, without(argv, on_line), on_cpu=on_cpu, cpu_args=("--use_cpu", "true"))


def without(argv: Sequence[str], removed: Sequence[str]) -> list[str]:
    """The arguments without some of them, which are given in the same order."""
    kept: list[str] = []
    position = 0
    for argument in argv:
        if position < len(removed) and argument == removed[position]:
            position += 1
        else:
            kept.append(argument)
    return kept


def _with_config_file(launch_args: list[str]) -> list[str]:
    """Spells `--accelerate_config` as `accelerate launch` does."""
    launch_args = ["--accelerate_config" if argument == "--accelerate-config" else argument for argument in launch_args]
    if "--accelerate_config" not in launch_args:
        return launch_args
    index = launch_args.index("--accelerate_config")
    name = launch_args[index + 1] if index + 1 < len(launch_args) else ""
    shipped = Path(str(resources.files("trl") / "accelerate_configs"))
    file = Path(name) if Path(name).is_file() else shipped / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
        raise InvalidArgumentError(
            f"Expected --accelerate_config to be a file or one of {names}, but got {name!r}. Make one with "
            "`accelerate config --config_file FILE`."
        )
    return ["--config_file", str(file), *launch_args[:index], *launch_args[index + 2 :]]


if __name__ == "__main__":
    launch_training(sys.argv[1:])

"""`rgtg train` in one process or, with arguments of `accelerate launch` among its own, in several."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

import torch
from accelerate.commands.launch import launch_command, launch_command_parser

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train.arguments import suggest_option
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.run import make_parser, train

_MODULE = "rgtg_logits.train.launch"


def launch_training(argv: list[str]) -> None:
    """Trains as told by command-line arguments; those that `accelerate launch` knows are for it.

    Without any, training runs in this process, unless there are several GPUs, which need a process each.
    `--accelerate_config` is a file made by `accelerate config`, or the name of one that TRL ships (such as "zero3").

    Args:
        argv: Arguments without the program's name.

    Raises:
        InvalidArgumentError: If neither the training nor `accelerate launch` knows an argument, or a training cannot be
            done as told.
    """
    # Each of several processes comes here too, when this is run by torchrun or by accelerate itself.
    if "LOCAL_RANK" in os.environ:
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
    arguments.training_script_args = without(argv, on_line)
    on_cpu = any(isinstance(item, PartialRewardConfig) and item.device.type == "cpu" for item in parsed)
    if (arguments.num_processes or 1) > 1 and (arguments.cpu or on_cpu):
        # On a CPU accelerate (1.15) starts one process without a word, which would train on a part of each batch.
        arguments.cpu, arguments.multi_gpu = False, True
        arguments.training_script_args += ["--use_cpu", "true"]
    launch_command(arguments)


def without(argv: list[str], taken: list[str]) -> list[str]:
    """What is left of arguments when some, in the same order, are taken out."""
    rest, left = iter(taken), []
    following = next(rest, None)
    for argument in argv:
        if argument == following:
            following = next(rest, None)
        else:
            left.append(argument)
    return left


def _with_config_file(launch_args: list[str]) -> list[str]:
    """Spells `--accelerate_config` as `accelerate launch` does."""
    launch_args = ["--accelerate_config" if argument == "--accelerate-config" else argument for argument in launch_args]
    if "--accelerate_config" not in launch_args:
        return launch_args
    place = launch_args.index("--accelerate_config")
    name = launch_args[place + 1] if place + 1 < len(launch_args) else ""
    shipped = Path(str(resources.files("trl") / "accelerate_configs"))
    file = Path(name) if Path(name).is_file() else shipped / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
        raise InvalidArgumentError(
            f"Expected --accelerate_config to be a file or one of {names}, but got {name!r}. Make one with "
            "`accelerate config --config_file FILE`."
        )
    return ["--config_file", str(file), *launch_args[:place], *launch_args[place + 2 :]]


if __name__ == "__main__":
    launch_training(sys.argv[1:])

"""The command-line parser of `rgtg train`: help in groups, the options of this package first, and suggestions."""

from __future__ import annotations

import argparse
import copy
import difflib
import inspect
from collections.abc import Iterable
from dataclasses import fields

from accelerate.commands.launch import launch_command_parser
from transformers import TrainingArguments
from trl import DatasetMixtureConfig, ModelConfig, RewardConfig, ScriptArguments, TrlParser
from typing_extensions import override

from rgtg_logits.train.config import PartialRewardConfig

OBJECTIVE = ("objective", "kind")
LOSS = ("td_lambda", "soft_value_beta", "soft_value_clip", "arm_beta", "farma_weight")

_DESCRIPTION = (
    "Trains a reward model whose rewards of unfinished texts can guide decoding. --config FILE reads any of these "
    "options from a YAML file. With options of `accelerate launch`, training runs in several processes; "
    "--accelerate_config is a file made by `accelerate config`, or the name of one that TRL ships, such as zero3. "
    "Dashes and underscores in options are the same."
)
# `launch_training` sets these itself.
_SET_BY_LAUNCHER = ("help", "config_file", "module", "no_python")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows of each option the spelling with underscores alone, which halves the length of its line."""

    @override
    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [option for option in action.option_strings if "-" not in option[2:]]
        return super()._format_action_invocation(shown)


class TrainingParser(TrlParser):
    """The parser of `trl reward` and `PartialRewardConfig`, whose help is grouped."""

    def __init__(self) -> None:
        super().__init__(
            (ScriptArguments, PartialRewardConfig, ModelConfig, DatasetMixtureConfig),
            prog="rgtg train",
            usage="%(prog)s --model_name_or_path MODEL --dataset_name DATA --output_dir FOLDER [OPTIONS]",
            description=_DESCRIPTION,
            formatter_class=_HelpFormatter,
        )

    @override
    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        for title, actions in [*self._groups(), *_launcher_groups()]:
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def _groups(self) -> list[tuple[str, list[argparse.Action]]]:
        """Title and options of each group; an option belongs to the first group that names it."""
        names = {
            "objective": OBJECTIVE,
            "loss": LOSS,
            "other options of rgtg_logits": inspect.get_annotations(PartialRewardConfig),
            "model (TRL)": _names(ModelConfig),
            "data (TRL)": [*_names(ScriptArguments), *_names(DatasetMixtureConfig)],
            "reward training (TRL)": set(_names(RewardConfig)) - set(_names(TrainingArguments)),
            "training (transformers)": [*_names(TrainingArguments), "help"],
        }
        remaining = list(self._actions)
        groups = []
        for title, members in names.items():
            groups.append((title, [action for action in remaining if action.dest in members]))
            remaining = [action for action in remaining if action.dest not in members]
        return groups


def _names(configuration: type) -> list[str]:
    return [field.name for field in fields(configuration)]


def _launcher_groups() -> list[tuple[str, list[argparse.Action]]]:
    groups = []
    for group in launch_command_parser()._action_groups:
        actions = [
            action for action in group._group_actions if action.option_strings and action.dest not in _SET_BY_LAUNCHER
        ]
        groups.append((f"accelerate launch: {group.title}", actions))
    return groups


def suggest_option(arguments: Iterable[str], *parsers: argparse.ArgumentParser) -> str:
    """A sentence that names the known option nearest to the first unknown one; empty if none is near.

    Args:
        arguments: Unknown arguments, options and values.
        parsers: The parsers that know options.
    """
    unknown = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    known = [option for parser in parsers for action in parser._actions for option in action.option_strings]
    matches = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.7) if unknown else []
    return f" Did you mean {matches[0]}?" if matches else ""

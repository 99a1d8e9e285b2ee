"""The command line of `rgtg train`: help in groups, and the nearest option to a mistyped one."""

from __future__ import annotations

import inspect

import pytest

from rgtg_logits.train.arguments import LOSS, OBJECTIVE, TrainingParser, suggest_option
from rgtg_logits.train.config import PartialRewardConfig


def test_help_begins_with_the_options_of_this_package() -> None:
    text = TrainingParser().format_help()
    package_options = inspect.get_annotations(PartialRewardConfig)
    assert {*OBJECTIVE, *LOSS} <= set(package_options)
    titles = ["\nobjective:", "\nloss:", "\nother options of rgtg_logits:", "\nmodel (TRL):", "\ndata (TRL):"]
    titles += ["\nreward training (TRL):", "\ntraining (transformers):", "\naccelerate launch: "]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert all(text.index(f"\n  --{name} ") < places[3] for name in package_options)
    assert text.index("--num_processes") > places[-1]


def test_help_has_each_option_once() -> None:
    parser = TrainingParser()
    lines = parser.format_help().partition("\naccelerate launch: ")[0].splitlines()
    for action in parser._actions:
        option = next(option for option in action.option_strings if "-" not in option[2:])
        assert sum(f"{line.strip()} ".startswith((f"{option} ", f"{option},")) for line in lines) == 1, option


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["--objectve", "arm"], " Did you mean --objective?"),
        (["arm", "--td-lamda=0.9"], " Did you mean --td-lambda?"),
        (["--zzz"], ""),
        (["arm"], ""),
        ([], ""),
    ],
)
def test_the_nearest_option(arguments: list[str], suggestion: str) -> None:
    assert suggest_option(arguments, TrainingParser()) == suggestion

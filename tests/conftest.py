"""Checks shapes and types in the signatures of the formulas during the whole test run; options of the test run."""

import warnings

import pytest
import torch
from jaxtyping import install_import_hook

# The hook stays, because modules are imported when they are first needed. It is not for the whole package: tests pass
# stand-ins and wrong types on purpose, and typer reads signatures.
CHECKED = ("candidates", "exact", "guidance", "padding", "train.losses")
install_import_hook([f"rgtg_logits.{name}" for name in CHECKED], "typechecker.checked")

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*generation flags are not valid.*")


def pytest_addoption(parser):
    parser.addoption("--slice", metavar="I/N", help="Of the tests marked slow, every Nth from the Ith on, from 0.")


def pytest_collection_modifyitems(config, items):
    if config.getoption("slice") is None:
        return
    first, step = (int(number) for number in config.getoption("slice").split("/"))
    slow = sorted(item.nodeid for item in items if item.get_closest_marker("slow"))
    others = set(slow) - set(slow[first::step])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in others])
    items[:] = [item for item in items if item.nodeid not in others]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)

"""Checks shapes and types in the signatures of the formulas during the whole test run; options of the test run."""

import warnings

from jaxtyping import install_import_hook

# The hook stays, because modules are imported when they are first needed. It is not for the whole package: tests pass
# stand-ins and wrong types on purpose, and typer reads signatures.
CHECKED = ("candidates", "exact", "guidance", "padding", "train.losses")
install_import_hook([f"rgtg_logits.{name}" for name in CHECKED], "typechecker.checked")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*generation flags are not valid.*")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)

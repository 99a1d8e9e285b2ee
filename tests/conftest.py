"""Checks every shape and type in the package's signatures during the whole test run."""

import warnings

from jaxtyping import install_import_hook

with install_import_hook("rgtg_logits", "typechecker.checked"):
    pass

import pytest
import torch

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*generation flags are not valid.*")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)

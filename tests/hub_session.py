"""A pytest plugin (-p hub_session): a Hub on loopback for the whole process.

The client reads the address of the Hub once, when it is imported, so it must not have been imported before.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hub_server import HubServer

assert "huggingface_hub" not in sys.modules, "the client is loaded already; run this in a process of its own"

HUB = HubServer()
HOME = Path(tempfile.mkdtemp(prefix="hub-home-"))
os.environ.update(
    HF_ENDPOINT=HUB.url, HF_HOME=str(HOME), HF_TOKEN="hf_writer", HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_XET="1",
)  # fmt: skip


@pytest.fixture
def hub():
    """The Hub without repositories, and an empty cache."""
    HUB.reset()
    yield HUB
    shutil.rmtree(HOME / "hub", ignore_errors=True)


@pytest.fixture(scope="session")
def model():
    """A reward model trained on prefixes, with its tokenizer."""
    from rgtg_logits import RewardModel, RewardModelConfig
    from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

    config = RewardModelConfig(objective="partial_bt")
    return RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer(), config=config)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds of every wait, none of which takes place."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def pytest_sessionfinish():
    shutil.rmtree(HOME, ignore_errors=True)

"""Pushes and loads by Hub id: the real client against a real HTTP server on loopback.

They run in a process of their own because the client reads the address of the Hub once, when it is imported. The cases
are in hub_push.py, hub_faults.py, hub_load.py and hub_train.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*arguments):
    plugins = ("-p", "hub_session", "-p", "no:cacheprovider", "-p", "no:xdist")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *plugins, *arguments]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    settings["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), settings.get("PYTHONPATH", "")])
    result = subprocess.run(command, cwd=HERE, env=settings, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_pushes_and_loads():
    run("hub_push.py", "hub_faults.py", "hub_load.py", "hub_train.py")


@pytest.mark.slow
def test_a_full_disk_and_no_network():
    run("hub_load.py", "-m", "slow")

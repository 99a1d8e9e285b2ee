"""Loading by Hub id: the real client against a real HTTP server on loopback, in a process of its own.

A process of its own, because the client reads its address once, when it is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

COMMIT = "0" * 40


class _Hub(BaseHTTPRequestHandler):
    """Serves one folder as the repository org/rm, for reading."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/rm"):
            names = sorted(file.name for file in self.folder.iterdir())
            listing = [{"type": "file", "path": name, "size": 1, "oid": COMMIT} for name in names]
            info = {"id": "org/rm", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self.answer(200, json.dumps(listing if "/tree/" in path else info).encode())
        elif not path.startswith("/org/rm/resolve/"):
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif (file := self.folder / path.split("/", 5)[-1]).is_file():
            content = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.answer(200, content, headers)
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def hub(folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def reward_model(tmp_path):
    config = RewardModelConfig(objective="partial_bt")
    model = RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer(), config=config)
    model.save_pretrained(tmp_path / "rm")
    return model


CODE = """
import sys, rgtg_logits
try:
    processor = rgtg_logits.PartialRewardLogitsProcessor(sys.argv[1])
    model = processor.scorer.reward_model
    print(model.config.objective, float(model.score(["the film"], [" was good"])))
except rgtg_logits.RGTGError as error:
    print(type(error).__name__, error)
"""


def load(name, endpoint, tmp_path, offline="0"):
    """What a program prints that loads a reward model by its id."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-c", CODE, name]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True).stdout


def test_a_repository_and_then_its_cache(reward_model, tmp_path):
    expected = float(reward_model.score(["the film"], [" was good"]))
    with hub(tmp_path / "rm") as endpoint:
        first = load("org/rm", endpoint, tmp_path)
    again = load("org/rm", "http://127.0.0.1:9", tmp_path, offline="1")
    for printed in (first, again):
        objective, score = printed.split()
        # Not to the last digit, which depends on the number of threads of a process.
        assert objective == "partial_bt" and float(score) == pytest.approx(expected, abs=1e-4)


def test_a_repository_that_does_not_exist(reward_model, tmp_path):
    with hub(tmp_path / "rm") as endpoint:
        printed = load("org/nothing", endpoint, tmp_path)
    assert printed.startswith("CheckpointError Expected 'org/nothing' to be a Hub id or a folder")
    assert "not a valid model identifier" in printed and "Check the name, the access token" in printed


def test_a_repository_without_safetensors(reward_model, tmp_path):
    (tmp_path / "rm" / "model.safetensors").rename(tmp_path / "rm" / "pytorch_model.bin")
    with hub(tmp_path / "rm") as endpoint:
        printed = load("org/rm", endpoint, tmp_path)
    assert printed.startswith(
        "CheckpointError Expected 'org/rm' to be a Hub id or a folder with config.json, safetensors"
    )


def test_a_hub_that_cannot_be_reached(tmp_path):
    printed = load("org/nothing", "http://127.0.0.1:9", tmp_path, offline="1")
    assert printed.startswith("CheckpointError Expected 'org/nothing' to be a Hub id or a folder")
    assert "Check the name, the access token" in printed

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
import torch
from transformers import AutoModelForSequenceClassification

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer


def commit_of(folder):
    return hashlib.sha1(folder.name.encode()).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    """Serves folders for reading: `name` as the repository org/name, `name@revision` as another revision of it."""

    def __init__(self, root, *arguments):
        self.root = root
        super().__init__(*arguments)

    def do_GET(self):
        path = self.path.split("?")[0]
        api = path.startswith("/api/models/org/")
        name, _, rest = path.removeprefix("/api/models/org/" if api else "/org/").partition("/")
        revision, _, file = rest.partition("/")[2].partition("/")
        revisions = {}
        for path in self.root.glob(f"{name}*"):
            revisions[path.name.partition("@")[2] or "main"] = revisions[commit_of(path)] = path
        if not revisions:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif (folder := revisions.get(revision or "main")) is None:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            names = sorted(file.name for file in folder.iterdir())
            listing = [{"type": "file", "path": name, "size": 1, "oid": commit_of(folder)} for name in names]
            info = {"id": f"org/{name}", "sha": commit_of(folder), "siblings": [{"rfilename": name} for name in names]}
            self.answer(200, json.dumps(listing if rest.startswith("tree") else info).encode())
        elif (file := folder / file).is_file():
            content = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit_of(folder)}
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
def hub(root):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, root)) as server:
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
for revision in sys.argv[2:] or [None]:
    try:
        if revision is None:
            model = rgtg_logits.PartialRewardLogitsProcessor(sys.argv[1]).scorer.reward_model
        else:
            model = rgtg_logits.RewardModel.from_pretrained(sys.argv[1], revision=revision)
        print(model.config.objective, float(model.score(["the film"], [" was good"])))
    except rgtg_logits.RGTGError as error:
        print(type(error).__name__, *str(error).split())
"""


def load(name, endpoint, tmp_path, *revisions, offline="0"):
    """What a program prints that loads a reward model by its id; a line for each revision."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-c", CODE, name, *revisions]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True).stdout


def test_a_repository_and_then_its_cache(reward_model, tmp_path):
    expected = float(reward_model.score(["the film"], [" was good"]))
    with hub(tmp_path) as endpoint:
        first = load("org/rm", endpoint, tmp_path)
    again = load("org/rm", "http://127.0.0.1:9", tmp_path, offline="1")
    for printed in (first, again):
        objective, score = printed.split()
        # Not to the last digit, which depends on the number of threads of a process.
        assert objective == "partial_bt" and float(score) == pytest.approx(expected, abs=1e-4)


def double(head):
    with torch.no_grad():
        head.weight.mul_(2)


def test_revisions(reward_model, tmp_path):
    double(reward_model.head)
    reward_model.save_pretrained(tmp_path / "rm@v2")
    with hub(tmp_path) as endpoint:
        there, missing = load("org/rm", endpoint, tmp_path, "v2", "v3").splitlines()
    expected = float(reward_model.score(["the film"], [" was good"]))
    assert float(there.split()[1]) == pytest.approx(expected, abs=1e-4)
    assert missing.startswith("CheckpointError Expected 'org/rm' to be a Hub id") and "the revision" in missing


def test_a_revision_of_an_adapter_is_none_of_its_base(reward_model, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"]))
    changed = RewardModel(adapted, tiny_tokenizer(), config=reward_model.config)
    for folder in (tmp_path / "adapter", tmp_path / "adapter@v2"):
        changed.save_pretrained(folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "org/rm"}))
        double(changed.head.modules_to_save["default"])
    with hub(tmp_path) as endpoint:
        objective, score = load("org/adapter", endpoint, tmp_path, "v2").split()
    expected = 2 * float(reward_model.score(["the film"], [" was good"]))
    assert objective == "partial_bt" and float(score) == pytest.approx(expected, abs=1e-4)


def test_a_repository_that_does_not_exist(reward_model, tmp_path):
    with hub(tmp_path) as endpoint:
        printed = load("org/nothing", endpoint, tmp_path)
    assert printed.startswith("CheckpointError Expected 'org/nothing' to be a Hub id or a folder")
    assert "not a valid model identifier" in printed and "Check the name, the access token" in printed


def test_a_repository_without_safetensors(reward_model, tmp_path):
    (tmp_path / "rm" / "model.safetensors").rename(tmp_path / "rm" / "pytorch_model.bin")
    with hub(tmp_path) as endpoint:
        printed = load("org/rm", endpoint, tmp_path)
    assert printed.startswith(
        "CheckpointError Expected 'org/rm' to be a Hub id or a folder with config.json, safetensors"
    )


def test_a_hub_that_cannot_be_reached(tmp_path):
    printed = load("org/nothing", "http://127.0.0.1:9", tmp_path, offline="1")
    assert printed.startswith("CheckpointError Expected 'org/nothing' to be a Hub id or a folder")
    assert "Check the name, the access token" in printed

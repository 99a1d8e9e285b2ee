"""Cases of test_hub.py: loading by a Hub id."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForSequenceClassification, pipeline

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
WEIGHTS = "/resolve/[^/]+/model.safetensors"
LISTING = "GET /api/models/org/rm"


@pytest.fixture(scope="module")
def models():
    """A reward model and another version of it."""
    one, two = (RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer(), config=config) for config in CONFIGS)
    with torch.no_grad():
        two.head.weight.mul_(2)
    return one, two


CONFIGS = (RewardModelConfig(objective="partial_bt"), RewardModelConfig(objective="full_bt"))


def files_of(model, folder, **options):
    model.save_pretrained(folder, **options)
    files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    shutil.rmtree(folder)
    return files


@pytest.fixture
def rm(hub, models, tmp_path):
    """org/rm with two commits."""
    hub.put("org/rm", files_of(models[1], tmp_path / "two"))
    hub.put("org/rm", {**files_of(models[0], tmp_path / "one"), "optimizer.pt": b"", "checkpoint-1/config.json": b""})
    return models[0]


def equal(one, other):
    expected, got = one.model.state_dict(), other.model.state_dict()
    return expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def cached():
    """Names of all blobs in the Hub's cache."""
    cache = Path(os.environ["HF_HOME"], "hub")
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts)


# Models


def test_by_a_name(hub, rm):
    processor = PartialRewardLogitsProcessor("org/rm")
    loaded = processor.scorer.reward_model
    assert equal(loaded, rm) and loaded.config == rm.config
    assert loaded.model.config.name_or_path == loaded.model.name_or_path == loaded.tokenizer.name_or_path == "org/rm"
    assert not any("optimizer" in line or "checkpoint-1" in line for line in hub.log)
    hub.log.clear()
    assert equal(RewardModel.from_pretrained("org/rm"), rm)
    assert hub.log == [LISTING], "a cached file was requested again"
    assert equal(RewardModel.from_pretrained("org/rm", force_download=True), rm)
    assert sum("GET" in line and "resolve" in line for line in hub.log) == len(cached())


def test_without_this_library(hub, rm):
    plain = AutoModelForSequenceClassification.from_pretrained("org/rm")
    with torch.no_grad():
        assert float(plain(IDS).logits) == pytest.approx(float(rm.score_tokens(IDS)[0, -1]), abs=1e-6)
    classify = pipeline("text-classification", model="org/rm", function_to_apply="none")
    expected = rm.score_tokens(torch.tensor([rm.tokenizer("the film was")["input_ids"]]))[0, -1]
    assert classify("the film was")[0]["score"] == pytest.approx(float(expected), abs=1e-4)
    # The files that transformers has put into the cache are enough.
    assert equal(RewardModel.from_pretrained("org/rm", local_files_only=True), rm)
    folder = Path(snapshot_download("org/rm"))
    assert {path.name for path in folder.iterdir()} >= set(hub.files("org/rm")) - {"checkpoint-1/config.json"}
    assert equal(RewardModel.from_pretrained(folder), rm)


def test_revisions(hub, rm, models):
    first, last = list(hub.repositories["org/rm"].commits)
    hub.repositories["org/rm"].refs["v1"] = first
    assert equal(RewardModel.from_pretrained("org/rm", revision="v1"), models[1])
    assert equal(RewardModel.from_pretrained("org/rm", revision=last), rm)
    assert RewardModel.from_pretrained("org/rm", revision=first).config.objective == "full_bt"
    with pytest.raises(CheckpointError, match=r"it has no such branch, tag or commit \(404.*Check the revision"):
        RewardModel.from_pretrained("org/rm", revision="v3")


def test_shards_and_a_subfolder(hub, models, tmp_path):
    files = files_of(models[0], tmp_path / "rm", max_shard_size="20KB")
    assert sum(name.endswith(".safetensors") for name in files) == 5
    hub.put("org/rm", {**{f"best/{name}": content for name, content in files.items()}, "model.safetensors": b"other"})
    assert equal(RewardModel.from_pretrained("org/rm", subfolder="best"), models[0])
    assert not any(line.endswith("/model.safetensors") for line in hub.log)


def test_private_and_gated(hub, models, tmp_path):
    files = files_of(models[0], tmp_path / "rm")
    hub.put("org/secret", files, private=True)
    hub.put("eve/gated", files, gated=True)
    assert equal(RewardModel.from_pretrained("org/secret"), models[0])
    assert equal(RewardModel.from_pretrained("eve/gated", token="hf_stranger"), models[0])
    for name, token, message in (
        ("org/secret", "hf_stranger", "no such repository, or the access token may not see it"),
        ("org/secret", False, r"there is no valid access token for it \(401.*hf auth login"),
        ("org/secret", "hf_wrong", "Invalid credentials"),
        ("eve/gated", False, "access to it is gated .*Ask for access on its page"),
    ):
        shutil.rmtree(Path(os.environ["HF_HOME"], "hub"), ignore_errors=True)
        with pytest.raises(CheckpointError, match=f"Expected to download '{name}' from the Hub, but .*{message}"):
            RewardModel.from_pretrained(name, token=token)
        assert cached() == []


def test_an_adapter_whose_revision_is_none_of_its_base(hub, models, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    hub.put("org/rm", files_of(models[0], tmp_path / "rm"))
    base = AutoModelForSequenceClassification.from_pretrained("org/rm")
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"]))
    changed = RewardModel(adapted, tiny_tokenizer(), config=CONFIGS[0])
    hub.put("org/adapter", files_of(changed, tmp_path / "adapter"))
    with torch.no_grad():
        changed.head.modules_to_save["default"].weight.mul_(2)
    hub.put("org/adapter", files_of(changed, tmp_path / "adapter"), ref="v2")
    for revision, factor in ((None, 1), ("v2", 2)):
        loaded = RewardModel.from_pretrained("org/adapter", revision=revision)
        assert loaded.config == CONFIGS[0]
        assert torch.allclose(loaded.score_tokens(IDS), factor * models[0].score_tokens(IDS), atol=1e-5)
    del hub.repositories["org/rm"]
    shutil.rmtree(Path(os.environ["HF_HOME"], "hub"), ignore_errors=True)
    with pytest.raises(CheckpointError, match="Expected to download 'org/rm' from the Hub, but .* no such repository"):
        RewardModel.from_pretrained("org/adapter")


# The cache


def test_a_cache_of_its_own_and_without_a_network(hub, rm, tmp_path):
    with pytest.raises(CheckpointError, match="the cache does not hold all of it.*Load it once with a network"):
        RewardModel.from_pretrained("org/rm", local_files_only=True)
    RewardModel.from_pretrained("org/rm", cache_dir=tmp_path / "cache")
    assert cached() == [] and hub.log
    hub.log.clear()
    assert equal(RewardModel.from_pretrained("org/rm", cache_dir=tmp_path / "cache", local_files_only=True), rm)
    assert hub.log == []


CODE = """
import sys, rgtg_logits
for name in sys.argv[1:]:
    try:
        print(float(rgtg_logits.PartialRewardLogitsProcessor(name).scorer.reward_model.score(["the film"], [" was"])))
    except rgtg_logits.RGTGError as error:
        print(type(error).__name__, *str(error).split())
"""


@pytest.mark.slow
def test_offline(hub, rm):
    RewardModel.from_pretrained("org/rm")
    settings = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", CODE, "org/rm", "org/nothing"]
    printed = subprocess.check_output(command, env={**os.environ, **settings}, text=True).splitlines()
    # Not to the last digit, which depends on the number of threads of a process.
    assert float(printed[0]) == pytest.approx(float(rm.score(["the film"], [" was"])), abs=1e-4)
    assert printed[1].startswith("CheckpointError Expected to download 'org/nothing' from the Hub, but it may not be")


def test_a_hub_that_is_down_leaves_the_cache(hub, rm, waits):
    RewardModel.from_pretrained("org/rm")
    hub.put("org/rm", {}, title="newer")
    hub.fail(LISTING, 503, times=3)
    with pytest.warns(UserWarning, match=r"the Hub failed \(503.* from the cache, which may be out of date"):
        assert equal(RewardModel.from_pretrained("org/rm"), rm)
    assert waits[:2] == [1, 2]


def test_a_download_that_broke_off_leaves_the_version_before(hub, rm, models, tmp_path):
    RewardModel.from_pretrained("org/rm")
    hub.put("org/rm", files_of(models[1], tmp_path / "two"))
    hub.fail(f"GET .*{WEIGHTS}", 403)
    with pytest.raises(CheckpointError, match="the access token may not do that"):
        RewardModel.from_pretrained("org/rm")
    assert equal(RewardModel.from_pretrained("org/rm", local_files_only=True), rm)
    assert equal(RewardModel.from_pretrained("org/rm"), models[1])
    assert equal(RewardModel.from_pretrained("org/rm", local_files_only=True), models[1])


# Failures: a clear error, nothing half done, and success when the fault is gone


@pytest.mark.parametrize(
    "fault, message",
    [
        ({"pattern": LISTING, "status": 401, "times": 9}, r"no valid access token for it \(401"),
        ({"pattern": LISTING, "status": 403, "times": 9}, "the access token may not do that"),
        ({"pattern": LISTING, "status": 404, "times": 9}, "there is no such repository"),
        ({"pattern": LISTING, "status": 429, "headers": {"Retry-After": "900"}, "times": 9}, "Wait 900 seconds, then"),
        ({"pattern": LISTING, "status": 500, "times": 99}, r"the Hub failed \(500.*Try again in a few minutes"),
        ({"pattern": LISTING, "drop": "answer", "times": 99}, "the connection failed or broke off.*Check the network"),
        ({"pattern": WEIGHTS, "status": 403, "times": 9}, "the access token may not do that"),
        ({"pattern": WEIGHTS, "status": 500, "times": 99}, r"the Hub failed \(500"),
        ({"pattern": f"GET .*{WEIGHTS}", "status": 429, "headers": {"Retry-After": "1"}, "times": 99}, "Wait 1 sec"),
        ({"pattern": f"GET .*{WEIGHTS}", "cut": 0, "times": 99}, "the connection failed or broke off"),
        # Cut off with a length to match, or changed with the same length: the listing says otherwise.
        ({"pattern": WEIGHTS, "change": lambda content: content[:5000], "times": 9}, r"model\.safetensors came with"),
        ({"pattern": WEIGHTS, "change": lambda content: content[:-1] + b"!", "times": 9}, r"safetensors came with"),
        ({"pattern": "config.json", "change": lambda content: b" " + content[1:], "times": 9}, "config.json came with"),
    ],
)
def test_a_download_that_fails_leaves_nothing_half_done(hub, rm, fault, message):
    hub.fail(**fault)
    with pytest.raises(CheckpointError, match=f"Expected .*'org/rm'.*{message}") as caught:
        RewardModel.from_pretrained("org/rm")
    assert "came with" in message or caught.value.__cause__ is not None
    with pytest.raises(CheckpointError, match="the cache does not hold all of it"):
        RewardModel.from_pretrained("org/rm", local_files_only=True)
    hub.faults.clear()
    assert equal(RewardModel.from_pretrained("org/rm"), rm)


def test_a_connection_that_breaks_off_once_is_taken_up_again(hub, rm):
    hub.fail(f"GET .*{WEIGHTS}", cut=30_000)
    try:
        loaded = RewardModel.from_pretrained("org/rm")
    except CheckpointError as error:
        # Clients before 1.0 do not go on by themselves.
        assert "the connection failed or broke off" in str(error)
        loaded = RewardModel.from_pretrained("org/rm")
    assert equal(loaded, rm)


def broken(files, case):
    if case == "cut":
        files["model.safetensors"] = files["model.safetensors"][:-100]
    elif case == "header":
        files["model.safetensors"] = files["model.safetensors"].replace(b'"shape":[1,32]', b'"shape":[9,32]')
    elif case == "pickles":
        files["pytorch_model.bin"] = files.pop("model.safetensors")
    elif case == "nothing":
        del files["model.safetensors"]
    elif case == "tokenizer":
        files = {name: content for name, content in files.items() if "token" not in name}
    return files


@pytest.mark.parametrize(
    "case, message",
    [
        ("cut", "to be a whole safetensors file, but it is cut off or damaged"),
        ("header", "to be a whole safetensors file, but it is cut off or damaged"),
        ("pickles", r"but it has pickled weights only \(pytorch_model.bin\). Pickles can run code"),
        ("nothing", "but it lacks model.safetensors"),
        ("tokenizer", "to hold a tokenizer"),
    ],
)
def test_repositories_that_are_refused(hub, models, tmp_path, case, message):
    hub.put("org/rm", broken(files_of(models[0], tmp_path / "rm"), case))
    with pytest.raises(CheckpointError, match=f"'org/rm'.*{message}"):
        RewardModel.from_pretrained("org/rm")
    assert not any(".bin" in line for line in hub.log)


@contextmanager
def largest_file(size):
    """Limits the size of the files that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_on_the_disk(hub, rm):
    with largest_file(50_000), pytest.raises(CheckpointError, match="but the disk is full .*cache_dir or HF_HOME") as e:
        RewardModel.from_pretrained("org/rm")
    assert e.value.__cause__.errno == errno.EFBIG
    with pytest.raises(CheckpointError, match="the cache does not hold all of it"):
        RewardModel.from_pretrained("org/rm", local_files_only=True)
    assert equal(RewardModel.from_pretrained("org/rm"), rm)


FULL = """
import sys, rgtg_logits
try:
    rgtg_logits.RewardModel.from_pretrained("org/rm", cache_dir=sys.argv[1])
except rgtg_logits.errors.CheckpointError as error:
    print(error.__cause__.errno, *str(error).split())
"""


@pytest.mark.slow
def test_a_disk_that_is_full(hub, rm, tmp_path):
    mount = f"mount -t tmpfs -o size=64k none {tmp_path} && "
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-Urm", "sh", "-c", mount + "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs user namespaces")
    run = f'{mount} exec "$0" -c "$1" {tmp_path}'
    printed = subprocess.check_output(["unshare", "-Urm", "sh", "-c", run, sys.executable, FULL], text=True)
    assert printed.startswith(f"{errno.ENOSPC} Expected to download 'org/rm' from the Hub, but the disk is full")


def test_folders_are_not_names():
    with pytest.raises(CheckpointError, match="is neither. Check the path"):
        RewardModel.from_pretrained("./org/rm")
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="that is no name of a repository"):
        RewardModel.from_pretrained("org/..rm")

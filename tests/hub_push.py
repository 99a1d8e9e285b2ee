"""Cases of test_hub.py: pushes that succeed, and folders that are refused."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from packaging.version import Version
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, TorchAoConfig
from typer.testing import CliRunner

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError, HubError, InvalidArgumentError, RewardModelError, RGTGError
from rgtg_logits.hub.upload import PushOptions
from rgtg_logits.reward_model.saving import push_folder
from rgtg_logits.testing import tiny_base_model, tiny_config, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

PARTIAL = RewardModelConfig(objective="partial_bt")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
CARD = """---
license: mit
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model]
---
# A reward model

![Prefix accuracy](figures/accuracy.png) <img src="./spread.png"> ![Elsewhere](https://example.org/a.png)
![Not a picture](secret.txt) ![Outside](../outside.png)
"""


@pytest.fixture
def folder(model, tmp_path):
    """The output folder of a training, with everything that must not be uploaded."""
    folder = tmp_path / "out"
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    for name in (
        "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "token", ".env",
        "secret.txt", "unnamed.png", "spread.png", "figures/accuracy.png", "runs/events.out", "../outside.png",
        "pytorch_model.bin", "model-00001-of-00009.safetensors", "checkpoint-1/model.safetensors",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("hf_secret")
    return folder


def names(hub, repository="org/rm", revision="main"):
    return set(hub.files(repository, revision)) - {".gitattributes"}


def base_names(model, tmp_path):
    """The files of a checkpoint without a card."""
    model.save_pretrained(tmp_path / "plain")
    return {file.name for file in (tmp_path / "plain").iterdir()}


# Files


def test_a_push_is_one_commit_and_loads_to_the_last_bit(hub, model, tmp_path):
    address = model.push_to_hub("org/rm", commit_message="New", commit_description="Why")
    assert hub.titles("org/rm") == ["New", "initial commit"] and not hub.repositories["org/rm"].private
    last = next(hub.repositories["org/rm"].history("main"))
    assert (last.description, address) == ("Why", f"{hub.url}/org/rm/commit/{last.sha}")
    assert names(hub) == base_names(model, tmp_path)
    assert json.loads(hub.files("org/rm")["config.json"])["rgtg"] == PARTIAL.to_dict()
    loaded = RewardModel.from_pretrained("org/rm")
    expected, got = model.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_second_push_leaves_nothing_of_the_first(hub, model):
    model.push_to_hub("org/rm", max_shard_size="20KB")
    assert "model-00001-of-00005.safetensors" in names(hub) and "model.safetensors.index.json" in names(hub)
    files = dict(hub.files("org/rm"))
    for name in ("README.md", "special_tokens_map.json", "pytorch_model.bin", "training_args.bin", "data/x.json"):
        files[name] = b"old"
    hub.put("org/rm", files, title="by hand")
    model.push_to_hub("org/rm", commit_message="whole")
    assert hub.titles("org/rm")[:2] == ["whole", "by hand"]
    assert {name for name in names(hub) if "safetensors" in name} == {"model.safetensors"}
    assert {"README.md", "data/x.json"} <= names(hub) and not {"pytorch_model.bin", "training_args.bin"} & names(hub)
    assert hub.files("org/rm").get("special_tokens_map.json") != b"old"
    address = model.push_to_hub("org/rm", commit_message="again")
    assert hub.titles("org/rm")[0] == "whole" and address.endswith(hub.repositories["org/rm"].refs["main"])


def test_nothing_but_the_files_named(hub, model, folder, tmp_path):
    expected = {*base_names(model, tmp_path), "README.md", "figures/accuracy.png", "spread.png"}
    push_folder(folder, "org/rm", PushOptions())
    assert names(hub) == expected
    model.push_to_hub("org/other", card=folder / "README.md")
    assert names(hub, "org/other") == expected
    sent = b"".join(content for name, content in hub.files("org/rm").items() if not name.endswith(".png"))
    assert b"hf_secret" not in sent
    assert hub.log.count("POST /api/validate-yaml") == 2
    if Version(huggingface_hub.__version__) >= Version("2.0"):  # Before, it knows one Hub only.
        ModelCard.load(folder / "README.md").validate()


@pytest.fixture
def headers_read(monkeypatch):
    """Names of the safetensors files whose headers the library has read so far."""
    names = []

    def read(file, *arguments):
        names.append(Path(file).name)
        return safe_open(file, *arguments)

    for name, module in sys.modules.items():
        if name.startswith("rgtg_logits") and hasattr(module, "safe_open"):
            monkeypatch.setattr(module, "safe_open", read)
    return names


def test_a_push_reads_each_header_once(hub, model, folder, headers_read):
    push_folder(folder, "org/rm", PushOptions())
    assert headers_read == ["model.safetensors"]
    headers_read.clear()
    model.push_to_hub("org/rm", max_shard_size="20KB")
    assert sorted(headers_read) == sorted(name for name in names(hub) if name.endswith(".safetensors"))
    assert len(headers_read) == 5


def test_a_language_model_and_a_name_without_a_namespace(hub):
    config = RewardModelConfig(kind="vocabulary")
    model = RewardModel(tiny_vocabulary_model(vocab_size=300), tiny_tokenizer(), config=config)
    address = model.push_to_hub("words")
    assert address.startswith(f"{hub.url}/ada/words/commit/")
    assert RewardModel.from_pretrained("ada/words").kind == "vocabulary"


def test_private_and_public(hub, model):
    model.push_to_hub("org/rm", private=True)
    assert hub.repositories["org/rm"].private
    assert RewardModel.from_pretrained("org/rm").config == PARTIAL
    with pytest.raises(CheckpointError, match="no such repository, or the access token may not see it"):
        RewardModel.from_pretrained("org/rm", token="hf_stranger")
    model.push_to_hub("org/open")
    before = hub.state()
    with pytest.raises(HubError, match="to be a private repository, but it exists and is public"):
        model.push_to_hub("org/open", private=True, commit_message="secret")
    assert hub.state() == before


def test_branches_and_pull_requests(hub, model):
    model.push_to_hub("org/rm", revision="v2")
    assert hub.titles("org/rm") == ["initial commit"] and hub.titles("org/rm", "v2")[0] == "Upload reward model"
    model.push_to_hub("org/rm", revision="v2", max_shard_size="20KB", commit_message="more")
    assert len(hub.titles("org/rm", "v2")) == 3 and "model.safetensors" not in names(hub, revision="v2")
    address = model.push_to_hub("org/rm", create_pr=True)
    assert address == f"{hub.url}/org/rm/discussions/1" and hub.titles("org/rm") == ["initial commit"]
    assert "model.safetensors" in names(hub, revision="refs/pr/1")
    with pytest.raises(InvalidArgumentError, match="a pull request to go to main"):
        model.push_to_hub("org/rm", create_pr=True, revision="v2")
    with pytest.raises(InvalidArgumentError, match="commit_message to be a title"):
        model.push_to_hub("org/rm", commit_message=" ")


# Adapters


@pytest.fixture
def adapted(hub, model):
    """A LoRA adapter, far from zero, on a language model that is on the Hub."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    base = tiny_base_model(vocab_size=300)
    base.save_pretrained("base-of-adapter")
    tiny_tokenizer().save_pretrained("base-of-adapter")
    hub.put("org/base", {file.name: file.read_bytes() for file in Path("base-of-adapter").iterdir()})
    return adapter_on("base-of-adapter", "org/base", peft)


def adapter_on(folder, name, peft, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0, **options)
        base.name_or_path = name
        adapter = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"])
        adapted = peft.get_peft_model(base, adapter).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name or "modules_to_save" in parameter_name:
                parameter.normal_(std=0.3)
    return RewardModel(adapted, tiny_tokenizer(), config=PARTIAL)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_adapter_is_merged_into_a_copy(hub, adapted):
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    adapted.push_to_hub("org/rm")
    assert "model.safetensors" in names(hub) and not {"adapter_config.json", "rgtg.json", "README.md"} & names(hub)
    after = adapted.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    loaded = RewardModel.from_pretrained("org/rm")
    assert loaded.config == PARTIAL
    assert torch.allclose(loaded.score_tokens(IDS), adapted.score_tokens(IDS), atol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained("org/rm")
    assert float(plain(IDS).logits.detach()) == pytest.approx(float(adapted.score_tokens(IDS)[0, -1]), abs=1e-5)


def test_an_adapter_on_request_and_never_a_mixture(hub, adapted):
    adapted.push_to_hub("org/rm")
    adapted.push_to_hub("org/rm", adapter=True, commit_message="adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "rgtg.json"} <= names(hub)
    assert not {"config.json", "model.safetensors", "README.md"} & names(hub)
    assert json.loads(hub.files("org/rm")["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    loaded = RewardModel.from_pretrained("org/rm")
    assert torch.allclose(loaded.score_tokens(IDS), adapted.score_tokens(IDS), atol=1e-6)
    assert loaded.config == PARTIAL and loaded._inner.config.name_or_path == "org/base"
    adapted.push_to_hub("org/rm", commit_message="merged")
    assert hub.titles("org/rm")[:2] == ["merged", "adapter"]
    assert not any("adapter" in name or name == "rgtg.json" for name in names(hub))


def test_a_quantised_base_is_not_merged_into(hub, adapted):
    peft = pytest.importorskip("peft")
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    options = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig()), "dtype": torch.float32}
    quantised = adapter_on("base-of-adapter", "org/base", peft, **options)
    with pytest.warns(UserWarning, match="The adapter is uploaded without its base model, which is quantised"):
        quantised.push_to_hub("org/rm")
    assert "adapter_model.safetensors" in names(hub)
    with pytest.raises(RewardModelError, match="Expected a base model that is not quantised"):
        quantised.push_to_hub("org/rm", adapter=False)


def test_an_adapter_that_nobody_else_could_load(hub, model, adapted):
    peft = pytest.importorskip("peft")
    local = adapter_on("base-of-adapter", str(Path("base-of-adapter").absolute()), peft)
    before = hub.state()
    with pytest.raises(CheckpointError, match="to name its base model by its Hub id, but it names '/"):
        local.push_to_hub("org/rm", adapter=True)
    with pytest.raises(InvalidArgumentError, match="Expected a model with an adapter"):
        model.push_to_hub("org/rm", adapter=True)
    assert hub.state() == before


# Folders


def test_the_command_pushes_a_checked_folder(hub, folder, monkeypatch):
    cli = pytest.importorskip("rgtg_logits.cli", reason="needs the demo extra")
    run = CliRunner().invoke
    result = run(cli.app, ["push", str(folder), "org/rm", "--private", "--revision", "v1", "--commit-message", "Hello"])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == f"{hub.url}/org/rm/commit/{hub.repositories['org/rm'].refs['v1']}"
    assert hub.titles("org/rm", "v1")[0] == "Hello" and hub.repositories["org/rm"].private
    result = run(cli.app, ["push", str(folder / "figures"), "org/rm"])
    assert isinstance(result.exception, CheckpointError)


def rewrite(file, old, new):
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))


def index(folder, **weight_map):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def mix(folder):
    (folder / "adapter_config.json").write_text("{}")
    shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")


CORRUPTIONS = {
    "pickles": lambda folder: (folder / "model.safetensors").unlink(),
    "nothing": lambda folder: [file.unlink() for file in folder.glob("*model*")],
    "cut": lambda folder: os.truncate(folder / "model.safetensors", 50_000),
    # One float more than there is.
    "header": lambda folder: rewrite(folder / "model.safetensors", b'"shape":[1,32]', b'"shape":[1,33]'),
    "head": lambda folder: rewrite(folder / "model.safetensors", b"score.weight", b"scare.weight"),
    "architecture": lambda folder: tiny_base_model(vocab_size=300).save_pretrained(folder),
    "labels": tiny_config("llama", num_labels=3, architectures=["LlamaForSequenceClassification"]).save_pretrained,
    "code": lambda folder: rewrite(folder / "config.json", b'"llama"', b'"unheard_of"'),
    "json": lambda folder: (folder / "config.json").write_text("{"),
    "tokenizer": lambda folder: [file.unlink() for file in folder.glob("*token*.json")],
    "mixture": mix,
    "shard": lambda folder: index(folder, **{"score.weight": "gone.safetensors"}),
    "weight": lambda folder: index(folder, **{"score.weight": "part.safetensors", "gone": "part.safetensors"}),
}


@pytest.mark.parametrize(
    "case, message",
    [
        ("pickles", r"but it lacks model.safetensors and has pickled weights \(pytorch_model.bin\). Pickles can run"),
        ("nothing", r"weights in safetensors, but it lacks model.safetensors\. Save it again"),
        ("cut", "to be a whole safetensors file, but it is cut off or damaged"),
        ("header", "to be a whole safetensors file, but it is cut off or damaged"),
        ("head", "to hold the weights of a reward head"),
        ("architecture", "which has no reward head"),
        ("labels", "num_labels=1"),
        ("code", "of an architecture that transformers ships"),
        ("json", "to be JSON, but it cannot be read"),
        ("tokenizer", "to hold a tokenizer"),
        ("mixture", "to hold one reward model, but it holds an adapter and a whole model"),
        ("shard", "but it lacks gone.safetensors"),
        ("weight", "to hold every weight that model.safetensors.index.json lists, but they lack gone"),
    ],
)
def test_folders_that_are_refused_before_the_hub_is_asked(hub, folder, case, message):
    CORRUPTIONS[case](folder)
    with pytest.raises(RGTGError, match=message):
        push_folder(folder, "org/rm", PushOptions())
    assert hub.log == []


def test_a_plain_reward_model_is_pushed_with_a_warning(hub, tmp_path):
    tiny_reward_model(vocab_size=300).save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.warns(UserWarning, match="does not say how it was trained"):
        push_folder(tmp_path / "plain", "org/rm", PushOptions())
    assert "model.safetensors" in names(hub)

"""Cases of test_hub.py: pushes after training."""

import json

import pytest
import torch

pytest.importorskip("trl", reason="training needs trl")

from datasets import Dataset
from peft import LoraConfig

from rgtg_logits import RewardModel
from rgtg_logits.errors import HubError, InvalidArgumentError
from rgtg_logits.testing import tiny_base_model, tiny_tokenizer
from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer
from rgtg_logits.train.run import train

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
PAIRS = [{"prompt": "the film was", "chosen": f" good {n}", "rejected": f" a bad end {n}"} for n in range(6)]
QUICK = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "save_strategy": "no"}
NEVER = ("optimizer", "training_args", "checkpoint", "runs/", "trainer_state")


@pytest.fixture
def base(hub, tmp_path):
    """org/base, a language model."""
    tiny_base_model(vocab_size=300).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    hub.put("org/base", {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()})
    return "org/base"


def trainer_of(base, folder, **options):
    args = PartialRewardConfig(str(folder), hub_model_id="org/rm", hub_private_repo=True, disable_tqdm=True, **QUICK)
    trainer = PartialRewardTrainer(base, args, train_dataset=Dataset.from_list(PAIRS), **options)
    trainer.train()
    return trainer


def names(hub):
    return set(hub.files("org/rm")) - {".gitattributes"}


def test_a_training_is_pushed_in_one_commit(hub, base, tmp_path):
    trainer = trainer_of(base, tmp_path / "out")
    address = trainer.push_to_hub(dataset_name="org/pairs")
    assert hub.titles("org/rm") == ["End of training", "initial commit"] and hub.repositories["org/rm"].private
    assert address.endswith(hub.repositories["org/rm"].refs["main"])
    assert (tmp_path / "out" / "training_args.bin").exists()
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names(hub)
    assert not any(part in name for name in names(hub) for part in NEVER)
    assert "org/base" in hub.files("org/rm")["README.md"].decode()
    loaded = RewardModel.from_pretrained("org/rm")
    assert loaded.config.objective == "partial_bt"
    assert torch.allclose(loaded.score_tokens(IDS), RewardModel(trainer.model).score_tokens(IDS), atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="Expected a training with an adapter"):
        trainer.push_to_hub(adapter=True)


def test_an_adapter_is_merged_or_not(hub, base, tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = trainer_of(base, tmp_path / "out", peft_config=adapter)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    trainer.push_to_hub()
    assert "model.safetensors" in names(hub) and not any("adapter" in name for name in names(hub))
    pushed = hub.files("org/rm")["README.md"].decode()
    saved = (tmp_path / "out" / "README.md").read_text()
    assert "base_model_relation: adapter" not in pushed and "base_model_relation: adapter" in saved
    expected = RewardModel(trainer.model).score_tokens(IDS)
    assert torch.allclose(RewardModel.from_pretrained("org/rm").score_tokens(IDS), expected, atol=1e-5)
    trainer.push_to_hub("Adapter", adapter=True)
    assert hub.titles("org/rm")[:2] == ["Adapter", "End of training"]
    assert "adapter_model.safetensors" in names(hub) and "model.safetensors" not in names(hub)
    assert "base_model_relation: adapter" in hub.files("org/rm")["README.md"].decode()
    assert torch.allclose(RewardModel.from_pretrained("org/rm").score_tokens(IDS), expected, atol=1e-5)


def test_a_token_without_permission_fails_before_the_training(hub, base, tmp_path):
    args = PartialRewardConfig(
        str(tmp_path / "out"), push_to_hub=True, hub_model_id="org/rm", hub_token="hf_reader", **QUICK
    )
    with pytest.raises(HubError, match="to create 'org/rm' on the Hub before training, but the access token may not"):
        PartialRewardTrainer(base, args, train_dataset=Dataset.from_list(PAIRS))


def test_the_command_trains_and_pushes(hub, base, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    options = {"model_name_or_path": base, "dataset_name": file, "output_dir": tmp_path / "out", **QUICK}
    options |= {"hub_model_id": "org/rm", "save_strategy": "steps", "save_steps": 1}
    command = [str(part) for name, value in options.items() for part in (f"--{name}", value)] + ["--push_to_hub"]
    hub.fail("POST /api/models/.*/commit/", 500)
    with pytest.raises(HubError, match=r"the Hub failed \(500"):
        train(command)
    # The trainer itself has created the repository, before the training; the trained model is safe on disk.
    assert names(hub) == set()
    assert RewardModel.from_pretrained(tmp_path / "out").config.objective == "partial_bt"
    train(command)
    assert hub.titles("org/rm") == ["End of training", "initial commit"]
    assert not any(part in name for name in names(hub) for part in NEVER)
    assert RewardModel.from_pretrained("org/rm").config.objective == "partial_bt"


def test_data_by_a_name(hub, base, tmp_path):
    rows = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
    sha = hub.put("datasets/org/pairs", {"train.jsonl": rows, "test.jsonl": rows})
    options = {"model_name_or_path": base, "dataset_name": "org/pairs", "output_dir": tmp_path / "out", **QUICK}
    train([str(part) for name, value in options.items() for part in (f"--{name}", value)])
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["data"]["name"] == "org/pairs" and facts["data"]["rows"] == len(PAIRS)
    assert (facts["data"]["split"], facts["data"]["revision"]) == ("train", sha)
    assert facts["evaluations"][0]["pairs"] == len(PAIRS)

"""Checkpoints laid out as published reward models are: read for what they are, or refused for the true reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rgtg_logits import RewardModel
from rgtg_logits.errors import CheckpointError
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

WIDTH = 32
LABELS = ("num_labels", "id2label", "label2id")
MEAN_STD = {"value_head_prefix": "score", "normalize_reward": True, "mean": 1.5, "std": 2.0}


def renamed(name):
    return lambda weights: {name if key == "score.weight" else key: value for key, value in weights.items()}


def with_more(change=None, **more):
    more = {name.replace("__", "."): value for name, value in more.items()}
    return lambda weights: {**(change(weights) if change else weights), **more}


def rebuilt(folder, change=lambda weights: weights, *, without=(), **config):
    """A tiny checkpoint with other names of weights and other keys in its config; returns the ordinary model."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in values.items() if key not in without}))
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return model


LAYOUTS = {
    "as transformers has it (Skywork, FsfairX, OffsetBias)": ({}, {}),
    "no num_labels": ({}, {"without": LABELS}),
    "num_labels alone": ({}, {"without": LABELS[1:], "num_labels": 1}),
    "OpenRLHF": ({"change": renamed("value_head.weight")}, {"without": LABELS, "architectures": ["RewardModel"]}),
    "Athene": ({"change": renamed("v_head.weight")}, {"architectures": ["AtheneForSequenceClassification"]}),
    "UltraRM, Eurus": (
        {"change": renamed("regression_head.weight")},
        {"architectures": ["EurusRewardModel"], "without": LABELS, "auto_map": {"AutoModel": "eurus.EurusRewardModel"}},
    ),
    "a language model's output layer left over": (
        {"change": with_more(lm_head__weight=torch.ones(5, WIDTH))}, {},
    ),
    "TRL's value head": (
        {"change": with_more(renamed("v_head.summary.weight"), lm_head__weight=torch.ones(5, WIDTH))},
        {"architectures": ["LlamaForCausalLM"], "without": LABELS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_linear_head_is_found_under_every_name(name, tmp_path):
    change, config = LAYOUTS[name]
    model = rebuilt(tmp_path, **change, **config)
    expected = RewardModel(model, tiny_tokenizer()).score(["How?"], [" Fine."])
    reward_model = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(reward_model.score(["How?"], [" Fine."]), expected)
    # Saved as any other one.
    reward_model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(RewardModel.from_pretrained(tmp_path / "saved").score(["How?"], [" Fine."]), expected)


AFFINE = {
    "OpenRLHF normalises": ({}, MEAN_STD, lambda output: (output - 1.5) / 2),
    "but not unless it says so": ({}, {**MEAN_STD, "normalize_reward": False}, lambda output: output),
    "a bias": ({"change": with_more(score__bias=torch.tensor([5.0]))}, {}, lambda output: output + 5),
    "beaver": (
        {"change": with_more(renamed("score_head.weight"), score_head__bias=torch.tensor([-2.0]))},
        {"architectures": ["LlamaForScore"]}, lambda output: output - 2,
    ),
    "a bias and a normalisation": (
        {"change": with_more(renamed("value_head.weight"), value_head__bias=torch.tensor([5.0]))},
        {"architectures": ["RewardModel"], **MEAN_STD}, lambda output: (output + 5 - 1.5) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AFFINE)
def test_rewards_are_in_the_unit_of_the_models_maker(name, tmp_path):
    change, config, maker = AFFINE[name]
    model = rebuilt(tmp_path, **change, **config)
    expected = maker(RewardModel(model, tiny_tokenizer()).score(["How?"], [" Fine."]))
    reward_model = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(reward_model.score(["How?"], [" Fine."]), expected)
    reward_model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(RewardModel.from_pretrained(tmp_path / "saved").score(["How?"], [" Fine."]), expected)


MLP = {"score.0.weight": torch.ones(WIDTH, WIDTH), "score.2.weight": torch.ones(1, WIDTH)}
REFUSED = {
    "INF-ORM": (
        lambda weights: {**{key: value for key, value in weights.items() if key != "score.weight"}, **MLP},
        {"architectures": ["INFORMForSequenceClassification"]},
        r"a head of one linear layer, but it has several \(score.0.weight, score.2.weight\), as an MLP",
    ),
    "ArmoRM": (
        with_more(renamed("gating.layers.0.weight"), regression_layer__weight=torch.ones(19, WIDTH)),
        {"architectures": ["LlamaForRewardModelWithGating"]},
        "LlamaForRewardModelWithGating with another head, whose code is never run",
    ),
    "custom code under the stock name": (
        with_more(extra__dense__weight=torch.ones(2, 2)), {},
        "LlamaForSequenceClassification to use every weight of .* no place for extra.dense.weight: rewards would be",
    ),
    "unmerged adapters": (
        with_more(**{"model__layers__0__self_attn__q_proj__lora_A__weight": torch.ones(4, WIDTH)}), {},
        "no place for model.layers.0.self_attn.q_proj.lora_A.weight: .* Merge adapters before saving",
    ),
    "a normalisation without numbers": ({}, {**MEAN_STD, "std": None}, "says normalize_reward, but got 1.5 and None"),
    "a normalisation by zero": ({}, {**MEAN_STD, "std": 0.0}, "says normalize_reward, but got 1.5 and 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_for_the_true_reason(name, tmp_path):
    change, config, message = REFUSED[name]
    rebuilt(tmp_path, **({"change": change} if change else {}), **config)
    with pytest.raises(CheckpointError, match=message):
        RewardModel.from_pretrained(tmp_path)

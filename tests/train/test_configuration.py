"""The arguments that say what is trained, models that fit them or not, and data that `rgtg train` is told of."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import make_answers, make_pairs
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PhiConfig,
    PhiForCausalLM,
)

from rgtg_logits.errors import InvalidArgumentError, RewardModelError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model.config import RewardModelConfig
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.testing import tiny_base_model
from rgtg_logits.train import PartialRewardTrainer
from rgtg_logits.train.run import train

QUICK = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no"]


# Arguments


def test_the_usual_kind_of_each_objective(make_config) -> None:
    kinds = {name: make_config(objective=name).kind for name in OBJECTIVES}
    assert kinds == {
        "partial_bt": "causal", "full_bt": "causal", "value": "causal", "soft_value": "causal",
        "cumulative": "causal", "farma": "vocabulary", "arm": "log_ratio",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objective": "full_bt", "kind": "vocabulary"},
            r"kind to be one of 'causal', which the objective 'full_bt' can train, but got 'vocabulary'\. Leave it "
            "out, or choose one of the objectives partial_bt, value, soft_value, cumulative, farma",
        ),
        ({"kind": "telepathic"}, r"'causal', 'vocabulary', .* but got 'telepathic'\. Leave it out\.$"),
        ({"soft_value_beta": 0.0}, r"soft_value_beta to be a finite number > 0, but got 0\.0"),
        ({"soft_value_clip": -1.0}, r"soft_value_clip to be a finite number > 0, but got -1\.0"),
        ({"arm_beta": float("inf")}, "arm_beta to be a finite number > 0, but got inf"),
        ({"objective": "value", "td_lambda": 1.5}, r"td_lambda from 0 to 1, .* but got 1\.5 for 'value'"),
        ({"td_lambda": 0.5}, r"but got 0\.5 for 'partial_bt'\. Leave it out"),
        ({"farma_weight": float("nan")}, "farma_weight to be a finite number ≥ 0, but got nan"),
        (
            {"objective": "arm", "center_rewards_coefficient": 0.01},
            r"center_rewards_coefficient for .* 'full_bt' only, but got 0\.01 for 'arm'",
        ),
    ],
)
def test_arguments_out_of_range(make_config, options, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make_config(**options)


def test_what_is_allowed(make_config) -> None:
    assert make_config(objective="farma", farma_weight=0.0).loss_settings.farma_weight == 0.0
    assert make_config(center_rewards_coefficient=0.01).loss_settings.center == 0.01
    assert make_config(objective="arm", arm_beta=0.05).reward_model.beta == 0.05


def test_a_strength_to_start_from() -> None:
    assert RewardModelConfig(objective="soft_value", reward_std=4.0).suggested_beta == 1.0
    assert RewardModelConfig(kind="log_ratio", objective="arm", reward_std=40.0).suggested_beta == 1.0
    assert RewardModelConfig(objective="value", reward_std=4.0).suggested_beta == 0.25
    assert RewardModelConfig(objective="partial_bt").suggested_beta is None
    assert RewardModelConfig(objective="partial_bt", reward_std=0.0).suggested_beta is None


def test_dicts_of_older_and_later_versions() -> None:
    assert RewardModelConfig.from_dict({"version": 1, "kind": "causal"}) == RewardModelConfig()
    full = RewardModelConfig(objective="value", unit="stars", beta=2.0, reward_mean=0.5, reward_std=0.25)
    assert RewardModelConfig.from_dict({**full.to_dict(), "from_the_future": 1}) == full
    assert RewardModelConfig().to_dict() == {"version": 1, "kind": "causal"}


# Models


def test_loaded_models_of_the_wrong_class(base: str, make_config, tokenizer) -> None:
    language_model = AutoModelForCausalLM.from_pretrained(base)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    options = {"train_dataset": make_pairs(2, seed=0), "processing_class": tokenizer}
    with pytest.raises(
        InvalidArgumentError,
        match=r"a …ForSequenceClassification model, because the objective 'partial_bt' .* 'causal', but got "
        r"LlamaForCausalLM\. Load it with AutoModelForSequenceClassification\.from_pretrained\(…, num_labels=1\)",
    ):
        PartialRewardTrainer(language_model, make_config(), **options)
    with pytest.raises(
        InvalidArgumentError,
        match=r"a …ForCausalLM model, .* 'farma' .* 'vocabulary', but got LlamaForSequenceClassification\. Load it "
        "with AutoModelForCausalLM",
    ):
        PartialRewardTrainer(classifier, make_config(objective="farma"), **options)
    two = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    with pytest.raises(RewardModelError, match=r"num_labels=1 .* has num_labels=2"):
        PartialRewardTrainer(two, make_config(), **options)


def test_a_loaded_language_model_keeps_its_configuration(base: str, make_config, tokenizer, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    labels = model.config.id2label
    config = make_config(objective="arm")
    trainer = PartialRewardTrainer(model, config, train_dataset=make_pairs(2, seed=0), processing_class=tokenizer)
    assert trainer.model is model
    assert model.config.id2label == labels
    trainer.save_model()
    assert "id2label" not in json.loads((tmp_path / "reward-model" / "config.json").read_text())


@pytest.fixture(params=["llama", "gpt2", "tied", "biased"])
def language_model(request, tokenizer, tmp_path: Path) -> str:
    """A folder with a language model, with an output layer of its own or the embeddings'."""
    name, size = str(tmp_path / "lm"), len(tokenizer)
    if request.param == "biased":
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = PhiForCausalLM(PhiConfig(vocab_size=size, **sizes))
        torch.nn.init.normal_(model.lm_head.bias)
    elif request.param == "tied":
        model = tiny_base_model("llama", vocab_size=size, tie_word_embeddings=True)
    else:
        model = tiny_base_model(request.param, vocab_size=size)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    return name


@pytest.mark.parametrize("loaded", [False, True])
def test_rewards_begin_as_a_tenth_of_the_logits(language_model: str, make_config, tokenizer, loaded: bool) -> None:
    before = AutoModelForCausalLM.from_pretrained(language_model)
    given = AutoModelForCausalLM.from_pretrained(language_model) if loaded else language_model
    options = {"train_dataset": make_answers(4, seed=0), "processing_class": tokenizer}
    trainer = PartialRewardTrainer(given, make_config(objective="value", kind="vocabulary"), **options)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(trainer.model(ids).logits, 0.1 * before(ids).logits)
    assert torch.equal(trainer.model.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_a_vocabulary_model_is_trained_further_as_it_is(language_model: str, make_config, tmp_path: Path) -> None:
    options = {"train_dataset": make_answers(4, seed=0)}
    config = make_config(objective="value", kind="vocabulary", save_strategy="steps", save_steps=1)
    first = PartialRewardTrainer(language_model, config, **options)
    first.train()
    first.save_model()
    config = make_config(objective="cumulative", kind="vocabulary")
    second = PartialRewardTrainer(str(tmp_path / "reward-model"), config, **options)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(second.model(ids).logits, first.model.eval()(ids).logits)
    resumed = PartialRewardTrainer(language_model, make_config(objective="value", kind="vocabulary"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "reward-model" / "checkpoint-1"))
    for one, other in zip(resumed.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("error:Model with `tie_word_embeddings=True`")
def test_an_adapter_holds_the_layer_that_was_scaled(language_model: str, make_config, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules="all-linear", modules_to_save=[])
    config = make_config(objective="value", kind="vocabulary", learning_rate=1e-2)
    trainer = PartialRewardTrainer(language_model, config, train_dataset=make_answers(4, seed=0), peft_config=lora)
    trainer.train()
    trainer.save_model()
    assert lora.modules_to_save == []
    loaded = RewardModel.from_pretrained(tmp_path / "reward-model")
    texts = ["the film was"] * 2, [" good", " bad and the end was bad"]
    expected = RewardModel(trainer.model, loaded.tokenizer).score(*texts)
    torch.testing.assert_close(loaded.score(*texts), expected, rtol=0, atol=1e-6)
    assert float(expected.abs().max()) > 0

    merged = loaded.model.merge_and_unload()
    RewardModel(merged, loaded.tokenizer, config=loaded.config).save_pretrained(tmp_path / "merged")
    again = RewardModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again.score(*texts), expected, rtol=0, atol=1e-5)
    assert not again.model.config.tie_word_embeddings


def test_an_output_layer_that_cannot_be_scaled(base: str, make_config, tokenizer, caplog) -> None:
    class Own(torch.nn.Linear):
        pass

    model = AutoModelForCausalLM.from_pretrained(base)
    layer = Own(32, len(tokenizer), bias=False)
    model.set_output_embeddings(layer)
    before = layer.weight.detach().clone()
    config = make_config(objective="farma")
    with caplog.at_level(logging.WARNING):
        PartialRewardTrainer(model, config, train_dataset=make_pairs(2, seed=0), processing_class=tokenizer)
    assert "its output layer is a Own that cannot be scaled" in caplog.text
    assert torch.equal(layer.weight, before)


def test_options_for_loading(base: str, make_config, caplog) -> None:
    options = {"dtype": "bfloat16", "attn_implementation": "eager"}
    with caplog.at_level(logging.WARNING):
        for objective in ("partial_bt", "farma"):
            config = make_config(objective=objective, model_init_kwargs=dict(options))
            trainer = PartialRewardTrainer(base, config, train_dataset=make_pairs(2, seed=0))
            assert trainer.model.dtype == torch.bfloat16
            assert trainer.model.config._attn_implementation == "eager"
            assert trainer.args.model_init_kwargs == options
    assert "will be ignored" not in caplog.text
    float32 = PartialRewardTrainer(base, make_config(objective="farma"), train_dataset=make_pairs(2, seed=0))
    assert float32.model.dtype == torch.float32


def test_a_loaded_model_is_not_quantised(base: str, make_config, tokenizer, caplog) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    options = {"train_dataset": make_pairs(2, seed=0), "processing_class": tokenizer}
    with caplog.at_level(logging.WARNING):
        PartialRewardTrainer(model, make_config(), quantization_config=BitsAndBytesConfig(load_in_4bit=True), **options)
    assert "quantization_config is not used, because the model is loaded already" in caplog.text


def test_options_that_are_refused(base: str, make_config) -> None:
    pairs = make_pairs(2, seed=0)
    for config in (make_config(trust_remote_code=True), make_config(model_init_kwargs={"trust_remote_code": True})):
        with pytest.raises(InvalidArgumentError, match="without code of its own, but got trust_remote_code=True"):
            PartialRewardTrainer(base, config, train_dataset=pairs)
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(InvalidArgumentError, match="one quantization_config, but got one in model_init_kwargs and"):
        PartialRewardTrainer(
            base,
            make_config(model_init_kwargs={"quantization_config": quantization}),
            train_dataset=pairs,
            quantization_config=quantization,
        )


# The command


def test_a_vocabulary_model_from_labels_on_the_command_line(base: str, tmp_path: Path) -> None:
    data, out = tmp_path / "answers", tmp_path / "rm"
    data.mkdir()
    make_answers(6, seed=0).to_json(data / "train.jsonl")
    make_answers(3, seed=1).to_json(data / "test.jsonl")
    options = ["--objective", "soft_value", "--kind", "vocabulary", "--soft_value_beta", "0.5"]
    train(["--model_name_or_path", base, "--dataset_name", str(data), "--output_dir", str(out), *QUICK, *options])
    loaded = RewardModel.from_pretrained(out)
    assert (loaded.kind, loaded.config.objective, loaded.config.beta) == ("vocabulary", "soft_value", 0.5)
    assert loaded.config.reward_std is not None
    assert loaded.config.suggested_beta == 1.0
    assert (out / "README.md").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_files_of_labels(base: str, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"answers.{suffix}"
    getattr(make_answers(4, seed=0), f"to_{suffix}")(file)
    out = tmp_path / "rm"
    options = ["--objective", "value", "--output_dir", str(out), *QUICK]
    train(["--model_name_or_path", base, "--dataset_name", str(file), *options])
    assert RewardModel.from_pretrained(out).config.objective == "value"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture(base: str, tmp_path: Path, streaming: bool, caplog) -> None:
    for name in ("one", "two"):
        make_pairs(4, seed=len(name)).to_json(tmp_path / f"{name}.jsonl")
    config, out = tmp_path / "config.yaml", tmp_path / "rm"
    parts = "".join(f"  - path: json\n    data_files: {tmp_path / name}.jsonl\n" for name in ("one", "two"))
    split = "streaming: true\n" if streaming else "test_split_size: 0.25\n"
    config.write_text(f"model_name_or_path: {base}\nobjective: partial_bt\ndatasets:\n{parts}{split}")
    with caplog.at_level(logging.WARNING):
        train(["--config", str(config), "--output_dir", str(out), "--dataset_name", "org/unread", *QUICK])
    assert "'org/unread' is not read" in caplog.text
    card = (out / "README.md").read_text()
    assert str(tmp_path) not in card
    assert ("2 pairs, after step 1" in card) == (not streaming)


def test_a_mixture_without_a_split_to_evaluate_on(base: str, tmp_path: Path) -> None:
    make_pairs(4, seed=0).to_json(tmp_path / "one.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text(f"datasets:\n  - path: json\n    data_files: {tmp_path}/one.jsonl\neval_strategy: epoch\n")
    arguments = ["--config", str(config), "--model_name_or_path", base, "--output_dir", str(tmp_path / "rm"), *QUICK]
    with pytest.raises(InvalidArgumentError, match="Expected the mixture to have the split 'test', but it has 'train'"):
        train(arguments)

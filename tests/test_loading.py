"""Checkpoints of every kind: architectures without a classifier class, adapters, placed and quantised models."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    T5Config,
    TorchAoConfig,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.granite.modeling_granite import GranitePreTrainedModel

from rgtg_logits import CausalScorer, ReferenceScorer, RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError, InvalidArgumentError, RewardModelError
from rgtg_logits.reward_model.classifiers import classifier_class
from rgtg_logits.testing import (
    EOS,
    PAD,
    check_scorer,
    tiny_base_model,
    tiny_reward_model,
    tiny_tokenizer,
    tiny_vocabulary_model,
)

PARTIAL = RewardModelConfig(objective="partial_bt")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
UNLISTED = {
    "granite": SMALL,
    "cohere2": {**SMALL, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2},
    "codegen": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "gpt_neox_japanese": {**SMALL, "intermediate_multiple_size": 2},
    "mamba": {**SMALL, "state_size": 4, "time_step_rank": 4},
}
"""Architectures without a sequence classifier in transformers; some with a prefix other than "model"."""


def unlisted(model_type, **changes):
    config = AutoConfig.for_model(
        model_type, **{"pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS, **UNLISTED[model_type], **changes}
    )
    model = classifier_class(config)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module", params=UNLISTED)
def built(request):
    return unlisted(request.param, num_labels=1)


def same_weights(one, other):
    expected, loaded = one.state_dict(), other.state_dict()
    return expected.keys() == loaded.keys() and all(torch.equal(expected[name], loaded[name]) for name in expected)


# Architectures without a classifier class


def test_a_built_classifier_survives_saving(built, tmp_path):
    assert type(built.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    RewardModel(built, tiny_tokenizer(), config=PARTIAL).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = RewardModel.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(built).__name__]
    assert type(loaded.model) is type(built) and same_weights(built, loaded.model)
    assert loaded.config == PARTIAL


@torch.no_grad()
def test_the_reward_of_every_prefix_is_the_built_models_own_logit(built):
    rewards = RewardModel(built).score_tokens(IDS)
    for length in range(1, IDS.shape[1] + 1):
        assert float(rewards[0, length - 1]) == pytest.approx(float(built(IDS[:, :length]).logits), abs=1e-5)
    padded = torch.cat([IDS, torch.full((1, 3), PAD)], dim=1)
    assert float(built(padded).logits) == pytest.approx(float(rewards[0, -1]), abs=1e-5)


def test_the_laws_on_built_classifiers(built):
    reward_model = RewardModel(built)
    check_scorer(CausalScorer(reward_model), ReferenceScorer(reward_model), rounds=1)


def test_a_language_models_weights_fit_the_built_classifier(built, tmp_path):
    """As when a reward model is trained from it: only the head is missing."""
    model = AutoModelForCausalLM.from_config(built.config)
    model.save_pretrained(tmp_path)
    loaded, info = type(built).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert same_weights(model.base_model, loaded.base_model)


def test_a_built_checkpoint_loads_without_this_library(tmp_path):
    model = unlisted("granite", num_labels=1)
    RewardModel(model, config=PARTIAL).save_pretrained(tmp_path)

    class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel):
        base_model_prefix = GranitePreTrainedModel.base_model_prefix

    assert same_weights(model, GraniteForSequenceClassification.from_pretrained(tmp_path))


def test_a_built_checkpoint_without_its_head(tmp_path):
    RewardModel(unlisted("granite", num_labels=1), tiny_tokenizer()).save_pretrained(tmp_path)
    drop_weights(tmp_path / "model.safetensors", "score.weight")
    with pytest.raises(CheckpointError, match=r"every weight of GraniteFor.*lacks score.weight. Such weights would be"):
        RewardModel.from_pretrained(tmp_path)


def test_classes_that_transformers_has_are_not_built():
    model_class = classifier_class(GPT2Config())
    assert model_class is MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[GPT2Config]
    assert classifier_class(AutoConfig.for_model("granite")) is classifier_class(AutoConfig.for_model("granite"))
    with pytest.raises(CheckpointError, match="Expected an architecture that .* causal language model, but 'vit' is"):
        classifier_class(AutoConfig.for_model("vit"))


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path):
    T5Config(architectures=["T5ForSequenceClassification"], num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match="Expected a decoder-only reward model, but .* is an encoder-decoder"):
        RewardModel.from_pretrained(tmp_path)


def test_a_batch_needs_a_pad_token_on_a_backbone_without_cache():
    model = unlisted("mamba", num_labels=1, pad_token_id=None)
    with pytest.raises(ValueError, match="no padding token"):
        model(IDS.expand(2, -1))


def test_configurations_that_know_no_pad_token():
    config = AutoConfig.for_model("codegen", **UNLISTED["codegen"], num_labels=1)
    language_model = RewardModel(AutoModelForCausalLM.from_config(config), config=RewardModelConfig(kind="vocabulary"))
    model = classifier_class(config)(config)
    assert language_model.pad_token_id is None and RewardModel(model).pad_token_id is None
    assert model(IDS).logits.shape == (1, 1)


def drop_weights(file, *names):
    weights = load_file(file)
    for name in names:
        del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


# Tied weights


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_are_not_missing(tie, tmp_path):
    model = tiny_vocabulary_model("gpt2", vocab_size=300, tie_word_embeddings=tie)
    config = RewardModelConfig(kind="vocabulary")
    RewardModel(model, tiny_tokenizer(), config=config).save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.score_tokens(IDS), RewardModel(model, config=config).score_tokens(IDS))


# Adapters


def lora(base, folder, *, task="SEQ_CLS", targets="all-linear"):
    """A LoRA adapter whose weights, and head if it has one, are far from zero."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(base, peft.LoraConfig(task_type=task, r=4, target_modules=targets)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    return adapted


@pytest.fixture(params=["llama", "granite"])
def base(request, tmp_path):
    """The folder of a language model, with and without a sequence classifier in transformers."""
    if request.param == "llama":
        model = tiny_base_model(vocab_size=300)
    else:
        model = AutoModelForCausalLM.from_config(unlisted("granite").config)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def classifier_of(base, **options):
    config = AutoConfig.from_pretrained(base, num_labels=1)
    return classifier_class(config).from_pretrained(base, config=config, **options)


@pytest.fixture
def adapter(base, tmp_path):
    reward_model = RewardModel(lora(classifier_of(base), tmp_path), tiny_tokenizer(), config=PARTIAL)
    reward_model.save_pretrained(tmp_path / "adapter")
    return reward_model


def test_an_adapter_survives_saving(adapter, tmp_path):
    assert not (tmp_path / "adapter" / "config.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = RewardModel.from_pretrained(tmp_path / "adapter")
    assert loaded.config == PARTIAL
    assert torch.allclose(loaded.score_tokens(IDS), adapter.score_tokens(IDS), atol=1e-6)
    check_scorer(CausalScorer(loaded), ReferenceScorer(loaded), rounds=1)


def test_an_adapter_of_peft_alone(adapter, tmp_path):
    """As anybody's training leaves it: without this library's file, and without a tokenizer."""
    adapter.model.save_pretrained(tmp_path / "plain")
    with pytest.warns(UserWarning, match="rewards of prefixes are untrained"):
        loaded = RewardModel.from_pretrained(tmp_path / "plain")
    assert torch.allclose(loaded.score_tokens(IDS), adapter.score_tokens(IDS), atol=1e-6)
    assert loaded.tokenizer is not None


def test_an_adapter_without_its_head(adapter, tmp_path):
    drop_weights(tmp_path / "adapter" / "adapter_model.safetensors", "base_model.model.score.weight")
    with pytest.raises(
        CheckpointError, match=r"adapter' to hold every weight .* that .*base' does not, .* score.weight"
    ):
        RewardModel.from_pretrained(tmp_path / "adapter")


def test_an_adapter_on_a_reward_model_need_not_bring_a_head(tmp_path):
    model = tiny_reward_model(vocab_size=300)
    RewardModel(model, tiny_tokenizer()).save_pretrained(tmp_path / "rm")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    adapted = RewardModel(
        lora(base, tmp_path, task=None, targets=["q_proj", "v_proj"]), tiny_tokenizer(), config=PARTIAL
    )
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = RewardModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded.head.weight, model.score.weight)
    assert torch.allclose(loaded.score_tokens(IDS), adapted.score_tokens(IDS), atol=1e-6)


@pytest.mark.parametrize("kind", ["vocabulary", "log_ratio"])
def test_an_adapter_on_a_language_model(kind, base, tmp_path):
    adapted = lora(AutoModelForCausalLM.from_pretrained(base), tmp_path, task="CAUSAL_LM")
    reward_model = RewardModel(adapted, tiny_tokenizer(), config=RewardModelConfig(kind=kind))
    reward_model.save_pretrained(tmp_path / "marked")
    adapted.save_pretrained(tmp_path / "unsaid")
    with pytest.raises(CheckpointError, match=r"of task type SEQ_CLS, .* \(CAUSAL_LM\). If .* pass kind='vocabulary'"):
        RewardModel.from_pretrained(tmp_path / "unsaid")
    for loaded in (
        RewardModel.from_pretrained(tmp_path / "marked"),
        RewardModel.from_pretrained(tmp_path / "unsaid", kind=kind),
    ):
        assert loaded.kind == kind
        assert torch.allclose(loaded.score_tokens(IDS), reward_model.score_tokens(IDS), atol=1e-5)


def test_an_adapter_of_the_other_task(adapter, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"of task type CAUSAL_LM, .* 'vocabulary' .* of SEQ_CLS. .*kind='causal'"
    ):
        RewardModel.from_pretrained(tmp_path / "adapter", kind="vocabulary")


def test_an_adapter_in_half_precision(adapter, tmp_path):
    loaded = RewardModel.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert torch.allclose(loaded.score_tokens(IDS), adapter.score_tokens(IDS), atol=0.2)


def test_an_adapter_on_a_base_that_is_quantised_when_loaded(adapter, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    options = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig()), "dtype": torch.float32}
    loaded = RewardModel.from_pretrained(tmp_path / "adapter", **options)
    attention = loaded.backbone.layers[0].self_attn
    assert type(attention.q_proj.base_layer.weight) is not torch.nn.Parameter
    assert torch.equal(loaded.head.modules_to_save["default"].weight, adapter.head.modules_to_save["default"].weight)
    assert torch.allclose(loaded.score_tokens(IDS), adapter.score_tokens(IDS), atol=0.05)
    check_scorer(CausalScorer(loaded), ReferenceScorer(loaded), rounds=1)


def test_an_adapter_with_tokens_of_its_own(adapter, tmp_path):
    """The embeddings of tokens that were added for it would be random."""
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    tokenizer.add_tokens(["<|judge|>", "<|end|>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    if len(tokenizer) <= 300:
        tokenizer.add_tokens([f"<|{number}|>" for number in range(301 - len(tokenizer))])
        tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"adapter' to hold every weight .* it lacks model.embed_tokens.weight"):
        RewardModel.from_pretrained(tmp_path / "adapter")


def test_learned_prompts_are_refused():
    peft = pytest.importorskip("peft", reason="adapters need peft")
    prompts = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    with pytest.raises(RewardModelError, match="Expected an adapter inside the model's layers, such as LoRA, but got"):
        RewardModel(peft.get_peft_model(tiny_reward_model(), prompts))


# Arguments of loading


def test_code_of_a_repository_is_not_run_on_demand_either():
    with pytest.raises(InvalidArgumentError, match="Expected to load 'org/rm' without code of its own, but got"):
        RewardModel.from_pretrained("org/rm", trust_remote_code=True)


def test_other_arguments_reach_transformers(tmp_path):
    RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer(), config=PARTIAL).save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, attn_implementation="eager", local_files_only=True)
    assert loaded.backbone.config._attn_implementation == "eager"

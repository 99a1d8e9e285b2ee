"""Reward models that are quantised, or spread over devices, when they are loaded."""

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from rgtg_logits import CausalScorer, ReferenceScorer, RewardModel, RewardModelConfig
from rgtg_logits.testing import check_scorer, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

TRAINED = Path(__file__).parents[1] / "model_cards" / "tiny-imdb-partial-rm"
RESPONSES = [
    "The film was a delight from the first scene to the last, and the cast is wonderful.",
    "I hated every minute of this terrible, boring movie.",
    "It starts well but the plot goes nowhere and the ending is awful.",
]


def torchao(bits, **arguments):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    if bits == 8:
        return TorchAoConfig(quantization.Int8WeightOnlyConfig(), **arguments)
    granularity = quantization.PerGroup(32)
    return TorchAoConfig(quantization.IntxWeightOnlyConfig(torch.int4, granularity), **arguments)


def bitsandbytes(bits, **arguments):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **{"llm_int8_threshold": 0.0, **arguments})
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **arguments)


METHODS = {
    "torchao-8": (partial(torchao, 8), torch.float32),
    "torchao-4": (partial(torchao, 4), torch.float32),
    "bitsandbytes-8": (partial(bitsandbytes, 8), torch.float32),
    # Its 4-bit kernels on a CPU compute in bfloat16 whatever dtype is requested.
    "bitsandbytes-4": (partial(bitsandbytes, 4), torch.bfloat16),
}


@pytest.fixture(scope="module")
def full():
    return RewardModel.from_pretrained(TRAINED, dtype=torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_quantised_rewards(method, full):
    make, dtype = METHODS[method]
    reward_model = RewardModel.from_pretrained(TRAINED, quantization_config=make(), dtype=dtype)
    assert type(reward_model.head.weight) is torch.nn.Parameter and reward_model.head.weight.dtype == dtype
    linear = reward_model.backbone.layers[0].mlp.up_proj
    assert type(linear) is not torch.nn.Linear or type(linear.weight) is not torch.nn.Parameter, "nothing was quantised"
    prompts = ["<|endoftext|>"] * len(RESPONSES)
    quantised, expected = reward_model.score(prompts, RESPONSES), full.score(prompts, RESPONSES)
    assert torch.allclose(quantised, expected, atol=0.02 if method.endswith("8") else 0.15)
    # Rewards in bfloat16 are a few hundredths apart.
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    check_scorer(CausalScorer(reward_model), ReferenceScorer(reward_model), rounds=1, tolerance=tolerance)


@pytest.mark.parametrize(
    "make",
    [
        partial(torchao, 8, modules_to_not_convert=["model.layers.0.self_attn.q_proj"]),
        partial(bitsandbytes, 4, llm_int8_skip_modules=["model.layers.0.self_attn.q_proj"]),
        lambda: bitsandbytes(8, llm_int8_skip_modules=["model.layers.0.self_attn.q_proj"]).to_dict(),
    ],
)
def test_the_head_keeps_its_precision_whatever_else_does(make, full):
    given = make()
    before = dict(given if isinstance(given, dict) else given.to_dict())
    reward_model = RewardModel.from_pretrained(TRAINED, quantization_config=given, dtype=torch.float32)
    assert torch.equal(reward_model.head.weight, full.head.weight)
    attention = reward_model.backbone.layers[0].self_attn
    assert (
        type(attention.q_proj.weight) is torch.nn.Parameter and type(attention.k_proj.weight) is not torch.nn.Parameter
    )
    assert dict(given if isinstance(given, dict) else given.to_dict()) == before, "the caller's object was changed"


def test_a_quantised_language_model_keeps_its_logits_layer(tmp_path):
    config = RewardModelConfig(kind="vocabulary")
    RewardModel(tiny_vocabulary_model(vocab_size=300), tiny_tokenizer(), config=config).save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(
        tmp_path, quantization_config=torchao(8, modules_to_not_convert=["model.layers.0.self_attn.q_proj"])
    )
    assert type(loaded.model.lm_head.weight) is torch.nn.Parameter
    assert type(loaded.model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_checkpoint_survives_saving(bits, tmp_path):
    options = {"quantization_config": bitsandbytes(bits), "dtype": torch.bfloat16}
    reward_model = RewardModel.from_pretrained(TRAINED, **options)
    reward_model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    ids = torch.randint(2, 300, (2, 9))
    assert torch.equal(loaded.score_tokens(ids), reward_model.score_tokens(ids))


def test_tokens_that_change_each_others_rewards():
    load = partial(RewardModel.from_pretrained, TRAINED, dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"quantised by LLM.int8\(\), .* depends on the other rows of its batch. Pass"):
        mixing = load(quantization_config=bitsandbytes(8, llm_int8_threshold=6.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*LLM.int8")
        apart = load(quantization_config=bitsandbytes(8))
    # Layer by layer, because behind several of them rounding in front of one may come out as another integer.
    for reward_model, mixes in ((mixing, True), (apart, False)):
        layers = [part for part in reward_model.model.modules() if type(part).__name__ == "Linear8bitLt"]
        assert len(layers) == 7 * reward_model.model.config.num_hidden_layers
        for layer in layers:
            tokens = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
            tokens[0, 5] = 20.0
            alone = torch.cat([layer(token[None]) for token in tokens])
            assert torch.allclose(alone, layer(tokens), atol=1e-5) != mixes


# Devices

OFFLOADED = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto", OFFLOADED], ids=["cpu", "auto", "offloaded"])
@pytest.mark.parametrize("kind", ["causal", "vocabulary"])
def test_device_maps(kind, device_map, tmp_path):
    pytest.importorskip("accelerate", reason="device maps need accelerate")
    model = (tiny_reward_model if kind == "causal" else tiny_vocabulary_model)(vocab_size=300)
    expected = RewardModel(model, tiny_tokenizer(), config=RewardModelConfig(kind=kind))
    expected.save_pretrained(tmp_path / "rm")
    if device_map is OFFLOADED:
        device_map = {**OFFLOADED, "model.rotary_emb": "cpu", "score" if kind == "causal" else "lm_head": "disk"}
    loaded = RewardModel.from_pretrained(tmp_path / "rm", device_map=device_map, offload_folder=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in loaded.model.parameters()) == isinstance(device_map, dict) * (
        len(device_map) > 1
    )
    ids = torch.randint(2, 300, (2, 9))
    assert loaded.device == torch.device("cpu")
    assert torch.allclose(loaded.score_tokens(ids), expected.score_tokens(ids), atol=1e-5)
    if kind == "causal":
        check_scorer(CausalScorer(loaded), ReferenceScorer(loaded), rounds=1)

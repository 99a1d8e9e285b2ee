"""Reward models whose weights are laid out beforehand for a processor's matrix instructions."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rgtg_logits import (
    CausalScorer,
    LogRatioScorer,
    PartialRewardLogitsProcessor,
    ReferenceScorer,
    RetokenizingScorer,
    RewardModel,
    RewardModelConfig,
    VocabularyScorer,
)
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.reward_model.prepacked import _Prepacked, prepacked
from rgtg_logits.testing import (
    PAD,
    TINY,
    VOCAB_SIZE,
    check_scorer,
    tiny_base_model,
    tiny_reward_model,
    tiny_tokenizer,
    tiny_vocabulary_model,
)


def layers(module):
    return [one for one in module.modules() if isinstance(one, _Prepacked)]


def states(reward_model, seed=0):
    rows = torch.randint(2, VOCAB_SIZE, (2, 7), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return reward_model.hidden_states(rows, None, None)[0]


@pytest.mark.parametrize("model_type", TINY)
def test_the_laws(model_type):
    reward_model = RewardModel(tiny_reward_model(model_type))
    check_scorer(CausalScorer(reward_model, prepack=True), ReferenceScorer(reward_model), rounds=2)


@pytest.mark.parametrize("options", [{"strategy": "expand"}, {"strategy": "recompute"}, {"max_tokens_per_forward": 3}])
def test_the_laws_with_every_strategy(options):
    reward_model = RewardModel(tiny_reward_model())
    check_scorer(CausalScorer(reward_model, prepack=True, **options), ReferenceScorer(reward_model), rounds=2)


@pytest.mark.parametrize(("kind", "scorer"), [("vocabulary", VocabularyScorer), ("log_ratio", LogRatioScorer)])
def test_the_laws_of_language_models(kind, scorer):
    reward_model = RewardModel(tiny_vocabulary_model(), config=RewardModelConfig(kind=kind))
    check_scorer(scorer(reward_model, prepack=True), ReferenceScorer(reward_model), rounds=2)


def test_another_tokenizer():
    rm_tokenizer, base = tiny_tokenizer(kind="llama3"), tiny_tokenizer()
    reward_model = RewardModel(tiny_reward_model(vocab_size=len(rm_tokenizer)), rm_tokenizer)
    plain, packed = (RetokenizingScorer(reward_model, base, prepack=prepack) for prepack in (False, True))
    check_scorer(packed, plain, vocab_size=len(base), pad_token_id=base.pad_token_id, rounds=2)


def takes_bfloat16():
    """Whether this processor has the instructions."""
    try:
        prepacked(nn.Linear(4, 4, dtype=torch.bfloat16))
    except InvalidArgumentError as error:
        assert "Leave prepack out, or load the reward model in float32" in str(error)
        return False
    return True


@pytest.mark.skipif(not takes_bfloat16(), reason="This processor has no instructions for it.")
def test_bfloat16_is_multiplied_by_the_same_library_anyway():
    reward_model = RewardModel(tiny_reward_model().to(torch.bfloat16))
    check_scorer(CausalScorer(reward_model, prepack=True), CausalScorer(reward_model), rounds=2, tolerance=0.05)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_every_plain_layer_is_laid_out_and_the_model_stays_as_it_was(model_type):
    reward_model = RewardModel(tiny_reward_model(model_type))
    before, expected = copy.deepcopy(reward_model.model.state_dict()), states(reward_model)
    packed = reward_model.prepacked()
    plain = [one for one in reward_model.backbone.modules() if type(one) in (nn.Linear, Conv1D)]
    assert len(plain) >= 8 and len(layers(packed._forward._module)) == len(plain)
    assert torch.allclose(states(packed), expected, atol=1e-5)
    # The model given multiplies as it did, has no other weights, and shares all that it has.
    assert not layers(reward_model.model) and torch.equal(states(reward_model), expected)
    after = reward_model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    shared = {id(parameter) for parameter in packed._forward._module.parameters()}
    assert shared == {id(parameter) for parameter in reward_model.backbone.parameters()}


@pytest.mark.parametrize("strategy", ["tree_attention", "expand", "recompute"])
def test_each_forward_multiplies_by_what_is_laid_out(monkeypatch, strategy):
    reward_model, multiply, products = RewardModel(tiny_reward_model()), _Prepacked.forward, []

    def count(layer, states):
        products.append(layer)
        return multiply(layer, states)

    scorer = CausalScorer(reward_model, strategy=strategy, prepack=True)
    monkeypatch.setattr(_Prepacked, "forward", count)
    rows = torch.randint(2, VOCAB_SIZE, (1, 5))
    scorer.score(rows, torch.ones_like(rows), rows[:, :3])
    # Of the prompt and the candidates at once, or one after the other.
    assert (
        len(products) == {"tree_attention": 1, "expand": 2, "recompute": 1}[strategy] * 14 and len(set(products)) == 14
    )


def test_hooks_of_the_model_see_its_twin():
    reward_model, calls = RewardModel(tiny_reward_model()), []
    packed = reward_model.prepacked()
    reward_model.backbone.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    states(packed)
    assert calls == [1]


def _step(layer):
    with torch.no_grad():
        layer.weight.add_(0.1)


def _load(layer):
    layer.load_state_dict({"weight": layer.weight.detach() + 0.1})


def _replace(layer):
    layer.weight = nn.Parameter(layer.weight.detach() + 0.1)


def _point_elsewhere(layer):
    layer.weight.data = layer.weight.detach() + 0.1


@pytest.mark.parametrize("change", [_step, _load, _replace, _point_elsewhere])
def test_changed_weights_are_laid_out_anew(change):
    reward_model = RewardModel(tiny_reward_model())
    packed = reward_model.prepacked()
    before = states(packed)
    change(reward_model.backbone.layers[0].mlp.up_proj)
    assert not torch.allclose(states(packed), before, atol=1e-2)
    assert torch.allclose(states(packed), states(reward_model), atol=1e-5)


def test_another_type_later():
    reward_model = RewardModel(tiny_reward_model())
    packed = reward_model.prepacked()
    reward_model.model.to(torch.bfloat16)
    if not takes_bfloat16():
        with pytest.raises(InvalidArgumentError, match="processor with instructions for the type of the weights"):
            states(packed)
        return
    assert torch.allclose(states(packed).float(), states(reward_model).float(), atol=0.05)


def test_a_layer_that_moves_away_is_run_as_it_is():
    layer = nn.Linear(4, 3)
    twin = prepacked(layer)
    layer.to("meta")
    assert twin(torch.zeros(2, 4, device="meta")).device.type == "meta"


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        reward_model = RewardModel(tiny_reward_model())
    check_scorer(CausalScorer(reward_model, prepack=True), ReferenceScorer(reward_model), rounds=1)


def test_layers_that_stand_in_two_places_are_copied_once():
    layer = nn.Linear(4, 4)
    twin = prepacked(nn.Sequential(layer, nn.ReLU(), layer))
    assert twin[0] is twin[2] and isinstance(twin[0], _Prepacked) and twin[0].weight is layer.weight


def test_adapters():
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    reward_model = RewardModel(peft.get_peft_model(tiny_reward_model(), config))
    scorer = CausalScorer(reward_model, prepack=True)
    check_scorer(scorer, ReferenceScorer(reward_model), rounds=2)
    module = scorer._engine._strategy.reward_model._forward._module
    assert isinstance(module.layers[0].self_attn.q_proj.base_layer, _Prepacked)


def test_whole_generations():
    base, reward_model = tiny_base_model(), RewardModel(tiny_reward_model())
    prompts = torch.randint(2, VOCAB_SIZE, (2, 6))
    prompts[1, :2] = PAD
    answers = []
    for prepack in (False, True):
        processor = PartialRewardLogitsProcessor(reward_model, top_k=8, pad_token_id=PAD, prepack=prepack)
        torch.manual_seed(3)
        answers.append(
            base.generate(
                prompts, attention_mask=infer_attention_mask(prompts, PAD), do_sample=True, top_k=0, max_new_tokens=12,
                num_return_sequences=2, pad_token_id=PAD, logits_processor=[processor],
            )
        )  # fmt: skip
    assert torch.equal(*answers)


def test_what_cannot_be_laid_out_is_refused():
    model = tiny_reward_model()
    with pytest.raises(InvalidArgumentError, match="Expected compile or prepack, but got both"):
        CausalScorer(RewardModel(model), compile=True, prepack=True)
    with pytest.raises(InvalidArgumentError, match="Expected compile or prepack"):
        PartialRewardLogitsProcessor(model, compile=True, prepack=True)
    with pytest.raises(InvalidArgumentError, match="Expected a torch with oneDNN .* got: .*[dD]ouble"):
        CausalScorer(RewardModel(copy.deepcopy(model).double()), strategy="tree_attention", prepack=True)
    with pytest.raises(InvalidArgumentError, match="Expected linear layers .* Embedding has none"):
        prepacked(nn.Embedding(3, 4))
    with pytest.raises(InvalidArgumentError, match="on the CPU .* some of it is on meta"):
        prepacked(nn.Linear(3, 4, device="meta"))
    scorer = CausalScorer(RewardModel(model))
    with pytest.raises(InvalidArgumentError, match="prepack to be left out for a Scorer"):
        PartialRewardLogitsProcessor(scorer, prepack=True)


def test_quantised_layers_are_run_as_they_are():
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    model = tiny_reward_model()
    kept = model.model.layers[0].mlp.up_proj
    others = lambda one, _: type(one) is nn.Linear and one is not kept  # noqa: E731
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig(), filter_fn=others)
    reward_model = RewardModel(model)
    scorer = CausalScorer(reward_model, prepack=True)
    assert len(layers(scorer._engine._strategy.reward_model._forward._module)) == 1
    check_scorer(scorer, ReferenceScorer(reward_model), rounds=1)

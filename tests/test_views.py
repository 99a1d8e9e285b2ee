"""Views of a reward model: the same weights, with another attention or a config of their own."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.errors import InvalidArgumentError, RewardModelError
from rgtg_logits.reward_model import positions
from rgtg_logits.reward_model.forward import BackboneForward, ClassifierForward, LanguageModelForward
from rgtg_logits.testing import TINY, VOCAB_SIZE, tiny_reward_model, tiny_vocabulary_model

NAME = "counted_by_tests"
ROWS = torch.tensor([[7, 3, 9, 11, 4, 6], [5, 8, 20, 13, 2, 9]])
MASK = torch.ones_like(ROWS)
CALLS = []


def counted_attention(module, *args, **kwargs):
    CALLS.append(module.training)
    return sdpa_attention_forward(module, *args, **kwargs)


AttentionInterface.register(NAME, counted_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def states(reward_model, **more):
    CALLS.clear()
    with torch.no_grad():
        return reward_model.hidden_states(ROWS, MASK, positions(MASK), **more)[0]


def vocabulary_model(**config):
    return RewardModel(tiny_vocabulary_model(**config), config=RewardModelConfig(kind="vocabulary"))


def backbone():
    return vocabulary_model().split_output_layer()[0]


KINDS = {
    "classifier": (lambda: RewardModel(tiny_reward_model()), ClassifierForward),
    "language model": (vocabulary_model, LanguageModelForward),
    "backbone": (backbone, BackboneForward),
    "prepacked classifier": (lambda: RewardModel(tiny_reward_model()).prepacked(), ClassifierForward),
    "prepacked backbone": (lambda: backbone().prepacked(), BackboneForward),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_attention_on_the_same_kind_of_forward(kind):
    make, forward = KINDS[kind]
    reward_model = make()
    model = reward_model.model.train()
    config = copy.deepcopy(model.config)
    before = states(reward_model)
    view = reward_model.with_attention(NAME)
    assert type(view._forward) is type(reward_model._forward) is forward
    torch.testing.assert_close(states(view), before, atol=1e-5, rtol=1e-5)
    assert len(CALLS) == model.config.num_hidden_layers and not any(CALLS)
    assert view.kind == reward_model.kind and view.text_config._attn_implementation == NAME
    if reward_model.kind == "causal":
        torch.testing.assert_close(view.rewards(states(view)), reward_model.rewards(before), atol=1e-5, rtol=1e-5)
    assert model.training and model.config.to_dict() == config.to_dict()
    assert model.config._attn_implementation == config._attn_implementation
    states(reward_model)
    assert CALLS == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_follows_the_weights_and_shares_them(kind):
    reward_model = KINDS[kind][0]()
    view = reward_model.with_attention("eager")
    before = states(view)
    with torch.no_grad():
        for weight in reward_model.model.parameters():
            weight.mul_(1.3)
    assert {id(weight) for weight in view.model.parameters()} == {id(w) for w in reward_model.model.parameters()}
    assert (states(view) - before).abs().max() > 1e-3
    torch.testing.assert_close(states(view), states(reward_model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_with_its_own_config_keeps_the_forward(kind):
    make, forward = KINDS[kind]
    reward_model = make()
    view = reward_model.with_own_config()
    assert type(view._forward) is forward
    assert torch.equal(states(view), states(reward_model))
    view.text_config._attn_implementation = NAME
    states(view)
    assert CALLS and reward_model.text_config._attn_implementation != NAME
    states(reward_model)
    assert CALLS == []


def test_an_adapter_takes_part_in_a_view():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny_reward_model(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False)
    )
    reward_model = RewardModel(model.eval())
    view = reward_model.with_attention(NAME)
    torch.testing.assert_close(states(view), states(reward_model), atol=1e-5, rtol=1e-5)
    assert CALLS == []
    with model.disable_adapter():
        assert (states(view) - states(reward_model)).abs().max() > 1e-4
        torch.testing.assert_close(states(reward_model.with_attention(NAME)), states(reward_model))


def test_an_attention_that_nobody_registered_and_a_layer_that_cannot_change():
    reward_model = RewardModel(tiny_reward_model())
    with pytest.raises(InvalidArgumentError, match="the name of an attention of transformers, but got 'telepathy'"):
        reward_model.with_attention("telepathy")
    layer = reward_model.model.model.layers[0].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)
    with pytest.raises(RewardModelError, match="the forward of its LlamaAttention was replaced"):
        reward_model.with_attention(NAME)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [[0], [2, 5], [5, 1, 1], [-1, 0], [3, 2, 1, 0, 5, 4], [1] * 8, []])
def test_the_states_of_chosen_tokens_alone(kind, last):
    reward_model = KINDS[kind][0]()
    every = states(reward_model)
    index = torch.tensor(last, dtype=torch.long)
    torch.testing.assert_close(states(reward_model, last=index), every[:, index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", [name for name in TINY if name != "llama"])
def test_chosen_states_of_other_architectures(model_type):
    reward_model = vocabulary_model(model_type=model_type)
    index = torch.tensor([1, 4])
    assert states(reward_model, last=index).shape == (2, 2, VOCAB_SIZE)
    torch.testing.assert_close(states(reward_model, last=index), states(reward_model)[:, index], atol=1e-5, rtol=1e-5)

"""Rewards of logits are read without the logits of a whole vocabulary, where that is the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.train.reward_reader import RewardReader

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2),
    "gemma2": Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=0.1),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_next", [False, True])
def test_rewards_and_gradients_are_those_of_the_logits(name, max_next):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    layer = model.get_output_embeddings()
    layer.weight.data *= 10  # So that a cap would show.
    sizes = []
    layer.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[1]))
    reader = RewardReader(model, "vocabulary", 50, max_next=max_next)
    sizes.clear()
    ids = torch.randint(2, 50, (3, 7))
    mask = (torch.arange(7)[None] < torch.tensor([7, 5, 4])[:, None]).long()
    prefixes, _ = reader.read(model, ids, mask, torch.ones(3))
    # Capped logits are more than the layer on the states, and the largest of them has to be known to be found.
    assert sizes == [7 if max_next or name == "gemma2" else 1]
    assert (prefixes.max_next is None) != max_next
    wanted = RewardModel(model, config=RewardModelConfig(kind="vocabulary")).score_tokens(ids, mask)
    torch.testing.assert_close(prefixes.rewards, wanted)

    weights = torch.randn(prefixes.rewards.shape)
    found = torch.autograd.grad((prefixes.rewards * weights).sum(), list(model.parameters()))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    exact = torch.autograd.grad((logits * (weights * mask)[:, 1:]).sum(), list(model.parameters()))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)

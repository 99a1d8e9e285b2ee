"""Models that read in both directions are refused where they are loaded."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    Gemma3TextConfig,
    ModernBertConfig,
    RobertaConfig,
)

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.errors import RewardModelError, RGTGError
from rgtg_logits.reward_model.causality import check_causality
from rgtg_logits.testing import TINY, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 1,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
ENCODERS = [BertConfig, DebertaV2Config, ModernBertConfig, RobertaConfig]


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", ENCODERS)
def test_encoders_of_one_label_are_refused(config, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config(vocab_size=len(tiny_tokenizer()), **SIZES)).eval()
    with pytest.raises(RGTGError, match="rgtg pairs --reward|causal"):
        RewardModel.from_pretrained(saved(model, tmp_path))


def test_a_decoder_that_reads_in_both_directions_is_refused(tmp_path):
    """As those that are made for embeddings."""
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    for both in (False, True):
        torch.manual_seed(0)
        config = Gemma3TextConfig(vocab_size=len(tiny_tokenizer()), use_bidirectional_attention=both, **sizes)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        folder = saved(model, tmp_path / str(both))
        if not both:
            assert RewardModel.from_pretrained(folder).kind == "causal"
            continue
        with pytest.raises(
            RewardModelError, match=r"Expected a causal .* reads in both directions.*rgtg pairs --reward"
        ):
            RewardModel.from_pretrained(folder)


def test_something_between_the_head_and_the_output_is_refused(tmp_path):
    model = tiny_reward_model()
    forward = model.forward

    def scaled(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = output.logits * 2 + 1
        return output

    model.forward = scaled
    with pytest.raises(RewardModelError, match="Expected the model's own output to be its scalar head"):
        check_causality(RewardModel(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", TINY)
def test_decoders_pass_and_stay_as_they_are(model_type, dtype):
    model = tiny_reward_model(model_type).to(dtype).train()
    before = copy.deepcopy(model.state_dict())
    check_causality(RewardModel(model))
    assert model.training
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    check_causality(RewardModel(tiny_vocabulary_model(model_type), config=RewardModelConfig(kind="vocabulary")))

"""Reward models whose layers are in different precisions."""

import contextlib

import pytest
import torch

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.errors import RewardModelError
from rgtg_logits.scorers.engine.probe import check_head
from rgtg_logits.testing import tiny_reward_model

ROW = torch.tensor([[7, 3, 9, 11, 4]])
CANDIDATES = torch.tensor([[10, 20, 30]])
HALVES = [torch.bfloat16, torch.float16]


def mixed(half=torch.bfloat16):
    model = tiny_reward_model().to(half)
    model.score.float()
    return model


def by_hand(model):
    """The head, in float32, on the last state of each text."""
    weight = model.score.weight.float()
    with torch.no_grad():
        texts = [torch.cat([ROW[0], token[None]])[None] for token in CANDIDATES[0]]
        return torch.stack([(model.model(text).last_hidden_state[0, -1].float() * weight[0]).sum() for text in texts])


def rewards(scorer):
    return scorer.score(ROW, torch.ones_like(ROW), CANDIDATES)[0]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("half", HALVES)
def test_a_float32_head_reads_states_in_half_precision(half, mode):
    model = getattr(mixed(half), mode)()
    hooks = len(model.score._forward_pre_hooks)
    scorer = CausalScorer(RewardModel(model))
    torch.testing.assert_close(rewards(scorer), by_hand(model), atol=0.02, rtol=0.02)
    scored = RewardModel(model).score_tokens(torch.cat([ROW, CANDIDATES[:, :1]], dim=1))[0, -1]
    torch.testing.assert_close(scored, by_hand(model)[0], atol=1e-5, rtol=1e-5)
    assert len(model.score._forward_pre_hooks) == hooks and model.training == (mode == "train")


@pytest.mark.parametrize("half", HALVES)
def test_a_head_in_half_precision_on_a_float32_backbone(half):
    model = tiny_reward_model()
    model.score.to(half)
    torch.testing.assert_close(rewards(CausalScorer(RewardModel(model))), by_hand(model), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("made_under", [False, True])
@pytest.mark.parametrize("used_under", [False, True])
@pytest.mark.parametrize("make", [mixed, tiny_reward_model], ids=["mixed", "float32"])
def test_autocast_around_construction_or_use(make, made_under, used_under):
    def autocast(enabled):
        return torch.autocast("cpu", torch.bfloat16) if enabled else contextlib.nullcontext()

    model = make()
    with autocast(made_under):
        processor = PartialRewardLogitsProcessor(model, top_k=5)
    with autocast(used_under):
        guided = processor(ROW, torch.randn(1, 61, generator=torch.Generator().manual_seed(0)))
        assert guided.isfinite().sum() == 5
        found = rewards(processor.scorer)
    torch.testing.assert_close(found, by_hand(model), atol=0.05, rtol=0.05)


def test_a_head_that_an_adapter_brings():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    model = peft.get_peft_model(tiny_reward_model().to(torch.bfloat16), config).eval()
    head = model.base_model.model.score
    head.modules_to_save["default"].float()
    with torch.no_grad():
        head.modules_to_save["default"].weight.mul_(2)
    reward_model = RewardModel(model)
    check_head(reward_model, ROW[0])
    adapted = rewards(CausalScorer(reward_model))
    with model.disable_adapter():
        plain = rewards(CausalScorer(reward_model))
    torch.testing.assert_close(adapted, 2 * plain, atol=0.02, rtol=0.02)


def test_a_backbone_of_several_types_names_the_remedy():
    model = tiny_reward_model()
    model.model.layers.bfloat16()
    with pytest.raises(RewardModelError, match=r"weights .* are in bfloat16 and float32.*torch.autocast"):
        CausalScorer(RewardModel(model))
    with torch.autocast("cpu", torch.bfloat16):
        CausalScorer(RewardModel(model))

"""Language models whose next-token logits are read as rewards."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError, InvalidArgumentError, RewardModelError
from rgtg_logits.reward_model import positions
from rgtg_logits.testing import (
    TINY,
    VOCAB_SIZE,
    tiny_base_model,
    tiny_reward_model,
    tiny_tokenizer,
    tiny_vocabulary_model,
)

VOCABULARY, LOG_RATIO = RewardModelConfig(kind="vocabulary"), RewardModelConfig(kind="log_ratio")


@pytest.mark.parametrize("model_type", TINY)
@torch.no_grad()
def test_states_are_the_models_own_logits(model_type):
    model = tiny_vocabulary_model(model_type)
    reward_model = RewardModel(model, config=VOCABULARY)
    ids = torch.randint(2, VOCAB_SIZE, (2, 12))
    mask = torch.ones_like(ids)
    states, cache = reward_model.hidden_states(ids, mask, positions(mask))
    assert torch.allclose(states, model(ids).logits, atol=1e-6) and cache is None
    assert reward_model.num_next_tokens == reward_model.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.parametrize("kind", ["causal", "vocabulary"])
@torch.no_grad()
def test_the_states_of_the_last_tokens_alone(model_type, kind):
    make = tiny_reward_model if kind == "causal" else tiny_vocabulary_model
    reward_model = RewardModel(make(model_type), config=RewardModelConfig(kind=kind))
    ids = torch.randint(2, VOCAB_SIZE, (2, 9))
    mask = torch.ones_like(ids)
    every, _ = reward_model.hidden_states(ids, mask, positions(mask))
    for last in (1, 4, 9):
        some, _ = reward_model.hidden_states(ids, mask, positions(mask), last=last)
        assert some.shape[1] == last and torch.allclose(some, every[:, -last:], atol=1e-6)


@torch.no_grad()
def test_states_behind_a_cache():
    reward_model = RewardModel(tiny_vocabulary_model("gemma2", sliding_window=64), config=VOCABULARY)
    ids = torch.randint(2, VOCAB_SIZE, (2, 9))
    mask = torch.ones_like(ids)
    whole, _ = reward_model.hidden_states(ids, mask, positions(mask))
    _, cache = reward_model.hidden_states(
        ids[:, :6], mask[:, :6], positions(mask)[:, :6], DynamicCache(), use_cache=True
    )
    rest, _ = reward_model.hidden_states(ids[:, 6:], mask, positions(mask)[:, 6:], cache, use_cache=True, last=2)
    assert torch.allclose(rest, whole[:, -2:], atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "gemma2"])
@torch.no_grad()
def test_the_reward_of_a_prefix_is_read_from_the_logits_before_its_last_token(model_type):
    model = tiny_vocabulary_model(model_type)
    ids = torch.randint(2, VOCAB_SIZE, (1, 8))
    logits = RewardModel(model, config=VOCABULARY).score_tokens(ids)[0]
    sums = RewardModel(model, config=LOG_RATIO).score_tokens(ids)[0]
    assert logits[0] == 0 and sums[0] == 0
    total = 0.0
    for length in range(1, 8):
        behind = model(ids[:, :length]).logits[0, -1].double()
        token = ids[0, length]
        total += float(behind.log_softmax(-1)[token])
        assert float(logits[length]) == pytest.approx(float(behind[token]), abs=1e-4)
        assert float(sums[length]) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("config", [VOCABULARY, LOG_RATIO], ids=lambda config: config.kind)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_reward_and_scores_zero(config, side):
    reward_model = RewardModel(tiny_vocabulary_model("gpt2"), config=config)
    ids, pad = torch.randint(2, VOCAB_SIZE, (2, 7)), torch.zeros(2, 3, dtype=torch.long)
    parts = [pad, ids] if side == "left" else [ids, pad]
    mask = torch.cat([part * 0 + (part is ids) for part in parts], dim=1)
    rewards = reward_model.score_tokens(torch.cat(parts, dim=1), mask)
    assert torch.allclose(rewards[mask.bool()].reshape(2, 7), reward_model.score_tokens(ids), atol=1e-5)
    assert (rewards[mask == 0] == 0).all()


@pytest.mark.parametrize("kind", ["vocabulary", "log_ratio"])
def test_finished_texts(kind):
    model, tokenizer = tiny_vocabulary_model(vocab_size=300), tiny_tokenizer()
    reward_model = RewardModel(model, tokenizer, config=RewardModelConfig(kind=kind))
    scores = reward_model.score(["the film", "x"], [" was good and long", " y"])
    for text, score in zip(["the film was good and long", "x y"], scores, strict=True):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        assert float(score) == pytest.approx(float(reward_model.score_tokens(ids)[0, -1]), abs=1e-4)


@pytest.mark.parametrize("config", [VOCABULARY, RewardModelConfig(kind="log_ratio", reference="org/reference")])
def test_the_checkpoint_is_an_ordinary_language_model(config, tmp_path):
    reward_model = RewardModel(tiny_vocabulary_model(vocab_size=300), tiny_tokenizer(), config=config)
    reward_model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config.rgtg == config.to_dict()
    assert RewardModel(plain).config == config
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.config == config
    assert torch.equal(loaded.score(["the film"], [" was"]), reward_model.score(["the film"], [" was"]))


def test_a_checkpoint_that_does_not_say_its_kind(tmp_path):
    model = tiny_vocabulary_model(vocab_size=300)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"it is LlamaForCausalLM, which has no .*kind='vocabulary'.*'log_ratio'"):
        RewardModel.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = RewardModel.from_pretrained(tmp_path, kind="log_ratio")
    assert loaded.kind == "log_ratio"
    ids = torch.randint(2, 300, (1, 6))
    assert torch.equal(loaded.score_tokens(ids), RewardModel(model, config=LOG_RATIO).score_tokens(ids))


def test_the_callers_kind_wins(tmp_path):
    config = RewardModelConfig(kind="log_ratio", objective="dpo", reference="org/reference")
    RewardModel(tiny_vocabulary_model(vocab_size=300), tiny_tokenizer(), config=config).save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, kind="vocabulary")
    assert loaded.config == RewardModelConfig(kind="vocabulary", objective="dpo")


def test_kinds_that_do_not_fit():
    with pytest.raises(InvalidArgumentError, match="Expected kind to be one of causal, vocabulary, log_ratio, but got"):
        RewardModel.from_pretrained("org/rm", kind="telepathic")
    with pytest.raises(InvalidArgumentError, match="Expected a reference model for the kind 'log_ratio' alone"):
        RewardModelConfig(kind="vocabulary", reference="org/reference")
    with pytest.raises(RewardModelError, match="Expected a …ForCausalLM model, .* got LlamaForSequenceClassification"):
        RewardModel(tiny_reward_model(), config=VOCABULARY)
    with pytest.raises(RewardModelError, match="Expected a reward model with a scalar head, but .* 'vocabulary'"):
        RewardModel(tiny_base_model(), config=VOCABULARY).rewards(torch.zeros(1, 32))
    with pytest.raises(RewardModelError, match="Expected a reward model of kind 'vocabulary' or 'log_ratio', but"):
        _ = RewardModel(tiny_reward_model()).num_next_tokens


def test_a_classifier_checkpoint_is_no_language_model(tmp_path):
    RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"to be a …ForCausalLM checkpoint, .* 'vocabulary' .* kind='causal'"):
        RewardModel.from_pretrained(tmp_path, kind="vocabulary")

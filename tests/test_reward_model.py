import warnings

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, RewardModelConfig
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import EOS, TINY, VOCAB_SIZE, tiny_reward_model, tiny_tokenizer


@pytest.mark.parametrize("model_type", TINY)
@torch.no_grad()
def test_the_reward_of_every_prefix_is_the_models_own_logit(model_type):
    model = tiny_reward_model(model_type)
    ids = torch.randint(2, VOCAB_SIZE, (1, 12))
    rewards = RewardModel(model).score_tokens(ids)
    for length in range(1, 13):
        logit = model(input_ids=ids[:, :length]).logits[0, 0]
        assert float(rewards[0, length - 1]) == pytest.approx(float(logit), abs=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_reward_and_scores_zero(model_type, side):
    reward_model = RewardModel(tiny_reward_model(model_type))
    ids, pad = torch.randint(2, VOCAB_SIZE, (2, 7)), torch.zeros(2, 3, dtype=torch.long)
    parts = [pad, ids] if side == "left" else [ids, pad]
    mask = torch.cat([part * 0 + (part is ids) for part in parts], dim=1)
    rewards = reward_model.score_tokens(torch.cat(parts, dim=1), mask)
    assert torch.allclose(rewards[mask.bool()].reshape(2, 7), reward_model.score_tokens(ids), atol=1e-5)
    assert (rewards[mask == 0] == 0).all()


@pytest.fixture
def reward_model():
    config = RewardModelConfig(objective="partial_bt")
    return RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer(), config=config)


def test_finished_texts_are_closed_with_the_end_token(reward_model):
    prompts, responses = ["the film", "a good", "x"], [" was good and long", "", " y"]
    scores = reward_model.score(prompts, responses, batch_size=2)
    for prompt, response, score in zip(prompts, responses, scores, strict=True):
        ids = torch.tensor([reward_model.tokenizer(prompt + response)["input_ids"] + [EOS]])
        assert float(score) == pytest.approx(float(reward_model.score_tokens(ids)[0, -1]), abs=1e-5)
    assert reward_model.score([], []).shape == (0,)


def test_texts_need_a_tokenizer_and_pairs(reward_model):
    with pytest.raises(InvalidArgumentError, match="Expected a reward model with a tokenizer"):
        RewardModel(tiny_reward_model()).score(["a"], ["b"])
    with pytest.raises(InvalidArgumentError, match="got 2 prompts and 1 responses"):
        reward_model.score(["a", "b"], ["c"])


def test_save_and_load_keeps_everything(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path / "rm")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = RewardModel.from_pretrained(tmp_path / "rm")
    assert loaded.config == reward_model.config
    assert torch.equal(loaded.score(["the film"], [" was"]), reward_model.score(["the film"], [" was"]))
    assert [path.name for path in tmp_path.iterdir()] == ["rm"], "a partial folder was left behind"
    PartialRewardLogitsProcessor(str(tmp_path / "rm"))


def test_the_checkpoint_is_an_ordinary_one(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("the film was")["input_ids"]])
    with torch.no_grad():
        assert float(plain(ids).logits) == pytest.approx(float(reward_model.score_tokens(ids)[0, -1]), abs=1e-6)
    assert plain.config.rgtg == {"version": 1, "kind": "causal", "objective": "partial_bt"}
    assert not list(tmp_path.glob("*.bin"))


def test_a_failed_save_leaves_the_old_checkpoint(reward_model, tmp_path, monkeypatch):
    reward_model.save_pretrained(tmp_path / "rm")
    before = {path.name: path.read_bytes() for path in (tmp_path / "rm").iterdir()}

    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reward_model.tokenizer, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space left"):
        reward_model.save_pretrained(tmp_path / "rm")
    assert {path.name: path.read_bytes() for path in (tmp_path / "rm").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["rm"]


def test_saving_over_another_checkpoint_leaves_no_mixture(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    (tmp_path / "optimizer.pt").write_text("not part of it")
    with torch.no_grad():
        reward_model.head.weight.mul_(2)
    for size, whole in (("20KB", False), (None, True)):
        reward_model.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "model.safetensors").exists() == whole
        assert bool(list(tmp_path.glob("model-*.safetensors")) + list(tmp_path.glob("*.index.json"))) != whole
        loaded = RewardModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.head.weight, reward_model.head.weight)
    assert (tmp_path / "optimizer.pt").exists()


def test_a_plain_checkpoint_is_taken_for_a_full_sequence_model_with_one_warning(tmp_path):
    tiny_reward_model(vocab_size=300).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="rewards of prefixes are untrained") as caught:
        loaded = RewardModel.from_pretrained(tmp_path)
    assert len([item for item in caught if "untrained" in str(item.message)]) == 1
    assert loaded.config.objective is None


def test_unknown_keys_of_a_later_version_are_ignored():
    assert RewardModelConfig.from_dict({"version": 2, "kind": "causal", "colour": "blue"}).version == 2


def test_half_precision_keeps_the_path():
    model = tiny_reward_model().to(torch.bfloat16)
    processor = PartialRewardLogitsProcessor(model, top_k=4)
    assert processor.scorer.strategy == "tree_attention"
    scores = processor(torch.tensor([[5, 6, 7]]), torch.randn(1, VOCAB_SIZE))
    assert scores.dtype == torch.float32 and (scores > -torch.inf).sum() == 4

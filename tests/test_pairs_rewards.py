"""Judges of answers: functions, reward models of every kind, classifiers."""

import json

import pytest
import torch
from test_pairs_parts import CHAT, CHATML, SIZE, TEXTS, prompts
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError, InvalidArgumentError, RewardModelError
from rgtg_logits.sampling import load_reward
from rgtg_logits.sampling.judges import RewardModelJudge
from rgtg_logits.testing import (
    PAD,
    tiny_base_model,
    tiny_config,
    tiny_reward_model,
    tiny_tokenizer,
    tiny_vocabulary_model,
)

ANSWERS = [" good", " bad and the end was bad"]


def long_words(asked, answers):
    return [float(max(map(len, answer.split()), default=0)) for answer in answers]


def too_few(asked, answers):
    return [0.0]


NOT_A_FUNCTION = 3


def test_a_function_by_its_import_path():
    judge = load_reward("test_pairs_rewards:long_words")
    assert judge(prompts(), ANSWERS) == [4.0, 3.0]
    with pytest.raises(InvalidArgumentError, match=r"test_pairs_rewards:too_few to return 2 rewards"):
        load_reward("test_pairs_rewards:too_few")(prompts(), ANSWERS)


@pytest.mark.parametrize("kind", ["causal", "vocabulary", "log_ratio"])
def test_a_reward_model_scores_as_it_does(kind, tmp_path):
    model = tiny_reward_model(vocab_size=SIZE) if kind == "causal" else tiny_vocabulary_model(vocab_size=SIZE)
    RewardModel(model, tiny_tokenizer(), config=RewardModelConfig(kind=kind)).save_pretrained(tmp_path / "rm")
    rewards = load_reward(str(tmp_path / "rm"), dtype="float32")(prompts(prompt_prefix="<|endoftext|>"), ANSWERS)
    wanted = RewardModel.from_pretrained(tmp_path / "rm").score(["<|endoftext|>" + text for text in TEXTS], ANSWERS)
    assert rewards == pytest.approx(wanted.tolist(), abs=1e-5) and abs(rewards[0] - rewards[1]) > 1e-3


def test_a_policy_is_judged_against_its_reference(tmp_path):
    reference = tiny_vocabulary_model(vocab_size=SIZE, seed=2)
    RewardModel(reference, tiny_tokenizer(), config=RewardModelConfig(kind="log_ratio")).save_pretrained(
        tmp_path / "ref"
    )
    config = RewardModelConfig(kind="log_ratio", reference=str(tmp_path / "ref"))
    policy = RewardModel(tiny_vocabulary_model(vocab_size=SIZE), tiny_tokenizer(), config=config)
    own, other = (model.score(TEXTS, ANSWERS) for model in (policy, RewardModel.from_pretrained(tmp_path / "ref")))
    assert RewardModelJudge(policy)(prompts(), ANSWERS) == pytest.approx((own - other).tolist(), abs=1e-4)


def test_a_reward_model_reads_chats_by_its_own_template():
    own = tiny_tokenizer(chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    reader = RewardModel(tiny_reward_model(vocab_size=SIZE), own)
    asked = prompts([CHAT], tiny_tokenizer(chat_template=CHATML))
    row = torch.tensor([own("user: the film\nassistant: good\n")["input_ids"]])
    assert RewardModelJudge(reader)(asked, ["good"]) == pytest.approx(
        [float(reader.score_tokens(row)[0, -1])], abs=1e-5
    )
    with pytest.raises(RewardModelError, match="Expected a reward model with a chat template"):
        RewardModelJudge(RewardModel(reader.model, tiny_tokenizer()))(asked, ["good"])


def test_texts_too_long_for_the_reward_model():
    short = RewardModel(tiny_reward_model(vocab_size=SIZE, max_position_embeddings=10), tiny_tokenizer())
    first, second = RewardModelJudge(short)(prompts(), ANSWERS)
    assert first == pytest.approx(float(short.score(TEXTS[:1], ANSWERS[:1]))) and second is None
    assert RewardModelJudge(short)(prompts()[1:], ANSWERS[1:]) == [None]


def save_classifier(folder, labels, *, encoder, **changes):
    changes = {"vocab_size": SIZE, "id2label": dict(enumerate(labels)), "pad_token_id": PAD, **changes}
    if encoder:
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**size, **changes)).eval()
        torch.nn.init.normal_(model.classifier.weight)
    else:
        model = AutoModelForSequenceClassification.from_config(tiny_config("llama", **changes)).eval()
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
def logits(model):
    rows = [
        torch.tensor([tiny_tokenizer()(text + answer)["input_ids"]])
        for text, answer in zip(TEXTS, ANSWERS, strict=True)
    ]
    return torch.cat([model(row).logits for row in rows])


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("label", ["fine", "1"])
def test_log_odds_of_a_classifier(tmp_path, encoder, label):
    model = save_classifier(tmp_path, ["bad", "fine", "odd"], encoder=encoder)
    share = logits(model).double().softmax(-1)[:, 1]
    rewards = load_reward(str(tmp_path), label_name=label)(prompts(), ANSWERS)
    assert rewards == pytest.approx((share / (1 - share)).log().tolist(), abs=1e-4)


def test_labels_that_do_not_exclude_each_other(tmp_path):
    model = save_classifier(tmp_path, ["rude", "long"], encoder=True, problem_type="multi_label_classification")
    share = logits(model).double().sigmoid()[:, 0]
    rewards = load_reward(str(tmp_path), label_name="rude")(prompts(), ANSWERS)
    assert rewards == pytest.approx((share / (1 - share)).log().tolist(), abs=1e-4)


def test_models_with_one_label(tmp_path):
    encoder = save_classifier(tmp_path / "encoder", ["reward"], encoder=True)
    assert load_reward(str(tmp_path / "encoder"))(prompts(), ANSWERS) == pytest.approx(logits(encoder)[:, 0].tolist())
    save_classifier(tmp_path / "decoder", ["reward"], encoder=False)
    judge = load_reward(str(tmp_path / "decoder"), dtype="float32")
    assert isinstance(judge, RewardModelJudge)  # So the end of the text is judged, too.


def test_texts_too_long_for_a_classifier(tmp_path):
    save_classifier(tmp_path, ["reward"], encoder=True, max_position_embeddings=8)
    rewards = load_reward(str(tmp_path))(prompts(), ANSWERS)
    assert isinstance(rewards[0], float) and rewards[1] is None


@pytest.mark.parametrize(
    ("name", "label", "error", "message"),
    [
        ("no_such_module:function", None, InvalidArgumentError, r"No module named 'no_such_module'.* on PYTHONPATH"),
        ("test_pairs_rewards:no_such", None, InvalidArgumentError, r"has no attribute 'no_such'. Write it as"),
        ("test_pairs_rewards:NOT_A_FUNCTION", None, InvalidArgumentError, r"but it is int. Name a function"),
        ("test_pairs_rewards:long_words", "fine", InvalidArgumentError, r"got 'fine' for a function. Leave"),
        ("three", None, InvalidArgumentError, r"tells several labels apart, 'bad' \(0\), .* Pass --label_name"),
        ("three", "nice", InvalidArgumentError, r"but got 'nice'. Pass --label_name"),
        ("one", "0", InvalidArgumentError, r"got '0' for a classifier with one label"),
        ("nothing", None, CheckpointError, r"or an existing folder, but .*nothing' is neither"),
        ("language", None, CheckpointError, r"which has no reward head. Train one"),
        ("headless", "1", CheckpointError, r"lacks classifier.bias, classifier.weight, which would be random"),
    ],
)  # fmt: skip
def test_rewards_that_cannot_be_loaded(tmp_path, name, label, error, message):
    save_classifier(tmp_path / "three", ["bad", "fine", "odd"], encoder=True)
    save_classifier(tmp_path / "one", ["reward"], encoder=True)
    bare = save_classifier(tmp_path / "headless", ["bad", "fine"], encoder=True)
    bare.bert.save_pretrained(tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(
        json.dumps({**config, "architectures": ["BertForSequenceClassification"]})
    )
    tiny_base_model(vocab_size=SIZE).save_pretrained(tmp_path / "language")
    with pytest.raises(error, match=message):
        load_reward(name if ":" in name else str(tmp_path / name), label_name=label)

"""Which rows are trained on, how long ones are cut, and in which formats data may come."""

from __future__ import annotations

import copy
import json
import logging

import pytest
from conftest import make_answers, make_pairs
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import tiny_tokenizer
from rgtg_logits.tokenization import common_prefix_length
from rgtg_logits.train import PartialRewardTrainer
from rgtg_logits.train.collators import DataCollatorForRewardLabels
from rgtg_logits.train.completions import answer_tokens
from rgtg_logits.train.length_limit import LengthLimit
from rgtg_logits.train.preprocessing import RowCounts

TEMPLATE = (
    "{% if tools %}{{ tools | length }} {% endif %}"
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
BOS = 100


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def chat(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = TEMPLATE
    return chat


# Cutting


@pytest.mark.parametrize(
    ("prompt", "answer", "limit", "left", "kept"),
    [
        (4, 3, 8, 4, 3),  # short enough
        (4, 9, 8, 4, 4),  # the answer's end goes
        (6, 9, 8, 6, 2),  # until a quarter is left
        (7, 9, 8, 6, 2),  # then the prompt's beginning
        (90, 9, 8, 6, 2),
        (90, 1, 8, 7, 1),  # a short answer needs no quarter
        (8, 1, 8, 7, 1),
        (0, 9, 8, 0, 8),
        (5, 9, 1, 0, 1),
    ],
)
@pytest.mark.parametrize("bos", [None, BOS])
def test_what_is_cut(prompt: int, answer: int, limit: int, left: int, kept: int, bos: int | None) -> None:
    ids = [bos or 1, *range(2, prompt + 1)][:prompt] + [1000 + step for step in range(answer)]

    (cut,), lost = LengthLimit(limit, True, bos).cut([ids], prompt)

    assert len(cut) == left + kept == min(len(ids), limit)
    assert prompt - lost == left
    assert cut[left:] == ids[prompt:][:kept]
    if lost and left and bos:
        assert cut[:left] == [BOS, *ids[prompt - left + 1 : prompt]]
    else:
        assert cut[:left] == ids[prompt - left : prompt] if left else cut[:left] == []


def test_both_texts_of_a_pair_lose_the_same() -> None:
    prompt = list(range(20))
    (good, bad), lost = LengthLimit(12, True, 0).cut([[*prompt, 50, 51, 52, 53, 54], [*prompt, 60]], 20)
    assert (good, bad) == ([0, *range(12, 20), 50, 51, 52], [0, *range(12, 20), 60])
    assert lost == 11


def test_no_limit() -> None:
    texts = [list(range(500))]
    assert LengthLimit(None, True, None).cut(texts, 3) == (texts, 0)
    assert not LengthLimit(None, False, None).exceeded(texts)


@pytest.mark.parametrize("objective", ["partial_bt", "value", "full_bt"])
def test_long_rows_in_training_and_evaluation(base: str, make_config, objective: str) -> None:
    """A prefix is worth training on; evaluation and objectives on finished answers need whole ones."""
    if objective == "value":
        row = {"prompt": "the film was " * 30, "completion": "good " * 30, "reward": 1.0}
        data = Dataset.from_list([*make_answers(3, seed=0), row])
    else:
        row = {"prompt": "the film was " * 30, "chosen": "good " * 30, "rejected": "bad"}
        data = Dataset.from_list([*make_pairs(3, seed=0), row])
    config = make_config(objective=objective, max_length=40)
    trainer = PartialRewardTrainer(base, config, train_dataset=data, eval_dataset=data)

    left_out = RowCounts(kept=3, too_long=1)
    assert trainer.row_counts["eval"] == left_out
    assert trainer.row_counts["train"] == (left_out if objective == "full_bt" else RowCounts(kept=4, cut=1))
    longest = trainer.train_dataset[-1]
    if objective == "value":
        assert (len(longest["input_ids"]), longest["start"]) == (40, 30)
    elif objective == "partial_bt":
        assert common_prefix_length(longest["chosen_ids"], longest["rejected_ids"]) == 30
        assert len(longest["chosen_ids"]) == 40
    trainer.train()
    trainer.evaluate()


# Labelled rows


def test_the_tokens_of_an_answer(tokenizer) -> None:
    ids, start = answer_tokens({"prompt": "the film was", "completion": " good"}, tokenizer)
    assert ids == [*tokenizer("the film was good")["input_ids"], tokenizer.eos_token_id]
    assert start == len(tokenizer("the film was")["input_ids"])
    closed = answer_tokens({"prompt": "the film was", "completion": " good<|endoftext|>"}, tokenizer)
    assert closed == (ids, start)


def test_an_answer_may_share_a_token_with_the_prompt(tokenizer) -> None:
    ids, start = answer_tokens({"prompt": "the film was go", "completion": "od"}, tokenizer)
    assert ids == [*tokenizer("the film was good")["input_ids"], tokenizer.eos_token_id]
    assert start == common_prefix_length(ids, tokenizer("the film was go")["input_ids"])
    assert start < len(tokenizer("the film was go")["input_ids"])


def test_an_answer_without_a_prompt() -> None:
    plain, begins = tiny_tokenizer(), tiny_tokenizer(adds_bos=True)
    assert answer_tokens({"prompt": "", "completion": "good"}, plain)[1] == 0
    ids, start = answer_tokens({"prompt": "", "completion": "good"}, begins)
    assert (ids[0], start) == (begins.bos_token_id, 1)


def test_the_tokens_of_a_conversation(chat) -> None:
    row = {"prompt": user("film"), "completion": assistant("good")}
    ids, start = answer_tokens(row, chat)
    opened = "user : film<|endoftext|>assistant :"
    assert chat.decode(ids) == opened + " good<|endoftext|>"
    assert chat.decode(ids[:start]) == opened
    tools = [{"type": "function", "function": {"name": "look"}}]
    for given in (tools, json.dumps(tools)):
        assert chat.decode(answer_tokens({**row, "tools": given}, chat)[0]).startswith("1 user :")
    whole = {"prompt": [], "completion": user("film") + assistant("good")}
    assert answer_tokens(whole, chat) == (ids, 0)


def test_a_batch_of_answers() -> None:
    rows = [{"input_ids": [5, 6, 7], "start": 1, "reward": 1}, {"input_ids": [8], "start": 0, "reward": -0.5}]
    batch = DataCollatorForRewardLabels(0, 4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["start"].tolist() == [1, 0]
    assert batch["reward"].tolist() == [1.0, -0.5]


def test_answers_that_cannot_be_used_are_counted(base: str, make_config, caplog) -> None:
    good = {"prompt": "the film was", "completion": " good", "reward": 1.0}
    rows = [
        good,
        good | {"reward": float("nan")},
        good | {"reward": float("inf")},
        good | {"reward": None},
        good | {"prompt": None},
        good | {"completion": ""},
        good | {"completion": None},
    ]
    with caplog.at_level(logging.WARNING):
        trainer = PartialRewardTrainer(base, make_config(objective="value"), train_dataset=Dataset.from_list(rows))
    trainer.train()
    assert trainer.row_counts["train"] == RowCounts(kept=1, empty=2, unusable=4)
    assert "train data: 1 rows kept (0 cut at max_length), 6 left out: 2 empty, 0 one sided" in caplog.text


def test_streamed_rows_that_cannot_be_used(base: str, make_config, caplog) -> None:
    answers = [*make_answers(4, seed=0), {"prompt": "a", "completion": "", "reward": 1.0}]
    pairs = [*make_pairs(4, seed=0), {"prompt": "a", "chosen": "b", "rejected": None}]
    for objective, rows in (("value", answers), ("partial_bt", pairs)):

        def draw(rows=rows):
            yield from rows * 2

        caplog.clear()
        with caplog.at_level(logging.INFO):
            trainer = PartialRewardTrainer(
                base, make_config(objective=objective), train_dataset=IterableDataset.from_generator(draw)
            )
        trainer.train()
        assert "streamed, so rows that cannot be used will be left out without being counted" in caplog.text
        assert len(list(trainer.train_dataset)) == 8
        assert trainer.row_counts == {}


# Formats


def train(base: str, config, rows, **options) -> PartialRewardTrainer:
    data = rows if isinstance(rows, (Dataset, IterableDataset)) else Dataset.from_list(rows)
    trainer = PartialRewardTrainer(base, config, train_dataset=data, **options)
    trainer.train()
    assert trainer.state.global_step == 2
    return trainer


def test_transcripts(base: str, make_config, tokenizer) -> None:
    """As in Anthropic's hh-rlhf: whole conversations as texts, whose common beginning is the prompt."""
    rows = [
        {
            "chosen": f"\n\nHuman: a film {index}?\n\nAssistant: the good film",
            "rejected": f"\n\nHuman: a film {index}?\n\nAssistant: the bad film",
        }
        for index in range(4)
    ]
    trainer = train(base, make_config(), rows)
    row = trainer.train_dataset[0]
    start = common_prefix_length(row["chosen_ids"], row["rejected_ids"])
    assert tokenizer.decode(row["chosen_ids"][:start]) == "\n\nHuman: a film 0?\n\nAssistant: the"
    assert tokenizer.decode(row["chosen_ids"]) == rows[0]["chosen"] + tokenizer.eos_token


@pytest.mark.parametrize("prompt", ["messages", "none", "text", "tools"])
def test_conversations_of_pairs(base: str, make_config, chat, prompt: str) -> None:
    rows = []
    for index in range(4):
        question = user(f"film {index}")
        begun = [] if prompt in ("messages", "tools") else question
        row = {"chosen": begun + assistant("good"), "rejected": begun + assistant("bad")}
        given = {"messages": question, "tools": question, "text": f"film {index}"}.get(prompt)
        row |= {} if given is None else {"prompt": given}
        rows.append(row | ({"tools": json.dumps([{"name": "look"}])} if prompt == "tools" else {}))
    trainer = train(base, make_config(), rows, processing_class=chat)
    text = chat.decode(trainer.train_dataset[0]["chosen_ids"])
    begin = "1 " if prompt == "tools" else ""
    assert text == begin + "user : film 0<|endoftext|>assistant : good<|endoftext|>"


def test_a_conversation_without_an_answer_is_empty(base: str, make_config, chat) -> None:
    rows = [
        {"prompt": user("film"), "chosen": assistant("good"), "rejected": assistant(text)} for text in ("bad", "", "")
    ]
    rows.append({"prompt": [], "chosen": assistant("good"), "rejected": assistant("bad")})
    trainer = train(base, make_config(), rows, processing_class=chat)
    assert trainer.row_counts["train"] == RowCounts(kept=1, one_sided=2, unusable=1)


@pytest.mark.parametrize("names", ["{}_ids", "{}_input_ids"])
@pytest.mark.filterwarnings("ignore:Detected legacy dataset columns")
def test_tokenised_pairs(base: str, make_config, names: str) -> None:
    pairs = [([5, 6], [5, 7]), ([8, 9], [8]), ([5], [5]), ([5], []), ([], [])]
    rows = [{names.format("chosen"): good, names.format("rejected"): bad} for good, bad in pairs]
    trainer = train(base, make_config(), rows)
    assert trainer.row_counts["train"] == RowCounts(kept=2, identical=1, one_sided=1, empty=1)


def test_labels_of_many_types(base: str, make_config, tokenizer) -> None:
    texts = ["good", "bad", "the end"]
    tables = [
        Dataset.from_dict({"text": texts, "label": [True, False, True]}),
        Dataset.from_dict(
            {"text": texts, "label": [1, 0, 1]},
            features=Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])}),
        ),
        Dataset.from_dict({"completion": texts, "reward": [1.0, 0.0, 1.0], "label": [9, 9, 9]}),
        Dataset.from_dict(
            {"input_ids": [tokenizer(text)["input_ids"] + [1] for text in texts], "start": [0] * 3, "reward": [1, 0, 1]}
        ),
        Dataset.from_dict({"text": texts, "label": [1.0, 0.0, 1.0]}).to_iterable_dataset(),
    ]
    expected = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    for table in tables:
        rows = list(train(base, make_config(objective="value"), table).train_dataset)
        assert [row["input_ids"] for row in rows] == expected
        assert [row["reward"] for row in rows] == [1.0, 0.0, 1.0]


def test_a_set_that_is_evaluated_later_is_prepared(base: str, make_config) -> None:
    trainer = PartialRewardTrainer(base, make_config(objective="value"), train_dataset=make_answers(4, seed=0))
    raw, several = make_answers(3, seed=1), {"one": make_answers(3, seed=1), "two": make_answers(2, seed=2)}
    metrics, both = trainer.evaluate(raw), trainer.evaluate(several)
    assert metrics["eval_loss"] == pytest.approx(both["eval_one_loss"], rel=1e-6)
    assert "eval_two_prefix_correlation_50" in both


@pytest.mark.parametrize("objective", ["value", "partial_bt"])
def test_the_data_of_another_objective(make_config, objective: str) -> None:
    labels, pairs = make_answers(2, seed=0), make_pairs(2, seed=0)
    wrong = pairs if objective == "value" else labels
    message = {
        "value": r"columns 'completion' or 'text', and 'reward' or 'label' .* but got 'prompt', 'chosen', 'rejected'\. "
        "Use other data, or choose one of the objectives partial_bt, full_bt, farma, arm",
        "partial_bt": r"columns 'chosen' and 'rejected' .* but got 'prompt', 'completion', 'reward'\. "
        "Use other data, or choose one of the objectives value, soft_value, cumulative",
    }
    for data in (wrong, wrong.to_iterable_dataset()):
        with pytest.raises(InvalidArgumentError, match=message[objective]):
            PartialRewardTrainer("org/not-loaded", make_config(objective=objective), train_dataset=data)
    good = {"train_dataset": labels if objective == "value" else pairs, "eval_dataset": {"held": wrong}}
    with pytest.raises(InvalidArgumentError, match="Expected the held data to have the columns"):
        PartialRewardTrainer("org/not-loaded", make_config(objective=objective), **good)
    with pytest.raises(InvalidArgumentError, match=r"but got 'words'\. Use other data, or rename its columns"):
        PartialRewardTrainer(
            "org/not-loaded", make_config(objective=objective), train_dataset=Dataset.from_dict({"words": ["good"]})
        )


@pytest.mark.parametrize("rows", [{"text": [], "label": []}, {"text": ["", None], "label": [1.0, 2.0]}])
def test_no_answer_is_left(base: str, make_config, rows) -> None:
    with pytest.raises(InvalidArgumentError, match="Expected the train data to hold non-empty answers with a reward"):
        PartialRewardTrainer(base, make_config(objective="value"), train_dataset=Dataset.from_dict(rows))


def test_an_evaluation_set_called_train(base: str, make_config) -> None:
    """It does not take the place of the data trained on, and is not cut."""
    trainer = PartialRewardTrainer(
        base, make_config(), train_dataset=make_pairs(4, seed=0), eval_dataset={"train": make_pairs(3, seed=1)}
    )
    assert trainer.row_counts["train"].kept == 4

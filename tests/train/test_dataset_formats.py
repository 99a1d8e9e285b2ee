"""Well-known preference sets, from tiny files with their real columns, and the rows that they become by hand."""

from __future__ import annotations

import copy
import json
import logging

import pytest
from datasets import Dataset

from rgtg_logits.data_formats import NAMES, plan_reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.train import PartialRewardTrainer
from rgtg_logits.train.dataset_columns import DataChoice
from rgtg_logits.train.length_limit import LengthLimit
from rgtg_logits.train.preprocessing import DatasetPreparation

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
Q, GOOD, BAD, END = "Why rain?", "Clouds.", "No idea.", "<|endoftext|>"


@pytest.fixture
def chat(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = TEMPLATE
    return chat


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def chat_text(*turns):
    return "".join(f"[{role}]{text}{END}" for role, text in turns)


ASKED = ("user", Q)
PAIR = (chat_text(ASKED, ("assistant", GOOD)), chat_text(ASKED, ("assistant", BAD)))


def prepared(rows, tokenizer, data="pairs", **choice):
    """Texts trained on (for labels with the part before the answer, and the reward), and the counts."""
    objective = OBJECTIVES["partial_bt" if data == "pairs" else "value"]
    preparation = DatasetPreparation(objective, "train", LengthLimit(None, True, None), None, DataChoice(**choice))
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    if data == "pairs":
        found = preparation.pairs(dataset, tokenizer, lambda rows: rows)
        texts = [tuple(tokenizer.decode(row[f"{name}_ids"]) for name in ("chosen", "rejected")) for row in found]
    else:
        found = preparation.labels(dataset, tokenizer)
        texts = [
            (tokenizer.decode(row["input_ids"][: row["start"]]), tokenizer.decode(row["input_ids"][row["start"] :]),
             row["reward"]) for row in found
        ]  # fmt: skip
    return texts, preparation.counts(found), found


def oasst(identity, parent, text, role, rank=None, quality=None):
    labels = {"name": ["spam", "quality"], "value": [0.0, quality], "count": [3, 3]}
    return {
        "message_id": identity, "parent_id": parent, "text": text, "role": role, "lang": "en", "rank": rank,
        "labels": labels,
    }  # fmt: skip


TREE = [
    oasst("q", None, Q, "prompter"),
    oasst("a", "q", GOOD, "assistant", 0, 0.75),
    oasst("b", "q", BAD, "assistant", 1, 0.25),
]
PKU = {
    "prompt": Q, "response_0": BAD, "response_1": GOOD, "is_response_0_safe": True, "is_response_1_safe": False,
    "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip
WEBGPT = {
    "question": {"dataset": "own", "id": "1", "full_text": Q}, "quotes_0": {"title": [], "extract": []},
    "answer_0": BAD, "tokens_0": {"prefix": [1], "completion": [2]}, "score_0": -0.5,
    "quotes_1": {"title": [], "extract": []}, "answer_1": GOOD, "tokens_1": {"prefix": [1], "completion": [2]},
    "score_1": 0.5,
}  # fmt: skip
TURNS = [user(Q), assistant(GOOD)], [user(Q), assistant(BAD)]
ULTRAFEEDBACK = {
    "source": "own", "instruction": Q, "models": ["m", "n"], "correct_answers": ["None"],
    "completions": [
        {"model": "m", "response": BAD, "fine-grained_score": 2.0, "overall_score": 9.0, "critique": "x"},
        {"model": "n", "response": GOOD, "fine-grained_score": 4.5, "overall_score": 1.0, "critique": "x"},
    ],
}  # fmt: skip
HELPSTEER = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
CHATS = [
    ("preference", {"chosen": TURNS[0], "rejected": TURNS[1], "source": "own"}),
    ("tulu", {
        "id": "1", "source": "own", "prompt": Q, "chosen": TURNS[0], "rejected": TURNS[1], "chosen_rating": 5.0,
        "rejected_rating": 1.0,
    }),
    ("ultrafeedback_binarized", {
        "prompt": Q, "prompt_id": "1", "chosen": TURNS[0], "rejected": TURNS[1], "messages": TURNS[0],
        "score_chosen": 8.0, "score_rejected": 3.0,
    }),
    ("ultrafeedback", ULTRAFEEDBACK),
    ("pku_saferlhf", PKU),
    ("shp", {
        "post_id": "1", "domain": "x", "history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0,
        "score_A": 2, "score_B": 5,
    }),
    ("webgpt", WEBGPT),
    ("offsetbias", {
        "instruction": Q, "type": "length", "output_1": BAD, "output_2": GOOD, "label": 2, "response1_model": "a",
        "response2_model": "b", "id": "1",
    }),
    ("arena", {
        "question_id": "1", "model_a": "a", "model_b": "b", "winner": "model_b", "judge": "j",
        "conversation_a": TURNS[1], "conversation_b": TURNS[0], "turn": 1, "language": "English",
    }),
    ("arena_55k", {
        "id": 1, "model_a": "a", "model_b": "b", "prompt": json.dumps([Q]), "response_a": json.dumps([BAD]),
        "response_b": json.dumps([GOOD]), "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0,
    }),
    ("ultrainteract", {
        "task": "Math", "dataset": "own", "trajectory": [{"from": "user", "value": Q}], "chosen": GOOD,
        "rejected": BAD, "id": "1", "parent_id": "0",
    }),
    ("argilla", {
        "source": "own", "instruction": Q, "chosen": GOOD, "rejected": BAD, "chosen-rating": 4.5,
        "rejected-rating": 2.0,
    }),
    ("sharegpt", {
        "conversations": [{"from": "human", "value": Q}], "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    }),
    ("preference", {
        "chosen": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}],
        "rejected": [{"from": "human", "value": Q}, {"from": "gpt", "value": BAD}],
    }),
    ("preference", {"prompt": Q, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}),
    ("preference", {"prompt": [user(Q)], "chosen": GOOD, "rejected": BAD}),
    ("preference", {"prompt": [user(Q)], "chosen": TURNS[0], "rejected": TURNS[1]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row"), CHATS)
def test_chats(chat, name, row) -> None:
    reading = plan_reading([row], list(row), data="pairs", name="train")
    assert reading is not None and reading.format.name == name
    assert prepared([row] * 2, chat)[0] == [PAIR] * 2
    assert prepared([row], chat, dataset_format=name)[0] == [PAIR]


def test_a_system_message(chat, tokenizer) -> None:
    row = {"system": "Be brief.", "question": Q, "chosen": GOOD, "rejected": BAD}
    expected = chat_text(("system", "Be brief."), ASKED, ("assistant", GOOD))
    assert prepared([row], chat)[0][0][0] == expected
    # Without a chat template, the texts follow one another.
    assert prepared([row], tokenizer)[0][0][0] == f"Be brief.\n\n{Q}\n\n{GOOD}{END}"
    begun = [{"role": "system", "content": "Be brief."}, assistant(GOOD)]
    row = {"prompt": Q, "chosen": begun, "rejected": [*begun[:1], assistant(BAD)]}
    assert prepared([row], chat)[0][0][0] == expected


def test_the_safer_answer(chat) -> None:
    assert prepared([PKU], chat, dataset_format="pku_saferlhf_safer")[0] == [PAIR[::-1]]


def test_transcripts(tokenizer) -> None:
    begin = f"\n\nHuman: {Q}\n\nAssistant: "
    pair = (f"{begin}{GOOD}{END}", f"{begin}{BAD}{END}")
    row = {"chosen": begin + GOOD, "rejected": begin + BAD}
    assert prepared([row], tokenizer)[0] == prepared([row], tokenizer, dataset_format="hh_rlhf")[0] == [pair]
    answers = [{"answer": BAD, "model": "m", "rank": 2.0}, {"answer": GOOD, "model": "n", "rank": 1.0}]
    third = [{"answer": "Rain.", "model": "o", "rank": 2.0}]
    nectar = {"prompt": begin, "answers": answers + third, "turns": 1, "num_responses": 3, "good_natured": True}
    texts, counts, _ = prepared([nectar], tokenizer)
    assert texts == [pair, (pair[0], f"{begin}Rain.{END}")]
    assert (counts.kept, counts.tied) == (2, 1)
    # The whole texts beside their prompt.
    rows = [{"prompt": begin, "chosen": begin + GOOD, "rejected": begin + BAD}] * 2
    assert prepared(rows, tokenizer)[0] == [pair] * 2


def test_summaries(tokenizer, chat) -> None:
    info = {"id": "1", "post": "It rained.", "title": "Rain", "subreddit": "rain", "site": None, "article": None}
    summaries = [{"text": BAD, "policy": "p", "note": None}, {"text": GOOD, "policy": "q", "note": None}]
    row = {"info": info, "summaries": summaries, "choice": 1, "worker": "w", "batch": "b", "split": "train"}
    prompt = "SUBREDDIT: r/rain\n\nTITLE: Rain\n\nPOST: It rained.\n\nTL;DR:"
    assert prepared([row], tokenizer)[0] == [(f"{prompt} {GOOD}{END}", f"{prompt} {BAD}{END}")]
    assert prepared([row], chat)[0][0][0] == chat_text(("user", prompt), ("assistant", GOOD))
    graded = {"info": info, "summary": {"text": GOOD, "policy": "p", "axes": {"overall": 6}}, "worker": "w"}
    ((begin, rest, reward),) = prepared([graded], tokenizer, "labels")[0]
    assert (begin + rest, reward) == (f"{prompt} {GOOD}{END}", 6.0)


def test_strength_is_a_margin(chat) -> None:
    row = {
        "domain": "general", "language": "english", "context": [user(Q)], "response1": BAD, "response2": GOOD,
        "overall_preference": 2, "individual_preference": [{"score": 2, "reasoning": "x"}],
    }  # fmt: skip
    turned = row | {"response1": GOOD, "response2": BAD, "overall_preference": -3}
    texts, counts, found = prepared([row | {"overall_preference": 0}, row, turned], chat)
    assert (texts, counts.tied, found["margin"][:]) == ([PAIR, PAIR], 1, [2.0, 3.0])


def test_ties_are_left_out_and_counted(chat) -> None:
    for row, column, tie in [
        (dict(CHATS[8][1]), "winner", "tie (bothbad)"),
        (WEBGPT, "score_0", 0.5),
        (dict(CHATS[1][1]), "rejected_rating", 5.0),
    ]:
        texts, counts, _ = prepared([row | {column: tie}, row], chat)
        assert (texts, counts.tied, counts.kept) == ([PAIR], 1, 1)


@pytest.mark.parametrize("rows", [
    [{"prompt": Q, "response": BAD, "helpfulness": 1, **HELPSTEER},
     {"prompt": Q, "response": GOOD, "helpfulness": 3, **HELPSTEER}],
    TREE,
])  # fmt: skip
def test_rows_made_of_several(chat, rows) -> None:
    """Also where the rows of one prompt are apart, and in another order."""
    for order in (rows, rows[::-1]):
        assert prepared(order, chat)[0] == [PAIR]
    answers = sorted(prepared(rows, chat, "labels")[0], key=lambda row: row[2])
    opened = chat_text(ASKED) + "[assistant]"
    low, high = (1.0, 3.0) if "helpfulness" in rows[0] else (0.25, 0.75)
    assert answers == [(opened, BAD + END, low), (opened, GOOD + END, high)]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    preparation = DatasetPreparation(OBJECTIVES["partial_bt"], "train", LengthLimit(None, True, None))
    with pytest.raises(InvalidArgumentError, match=r"made of several, but they are streamed\. Leave out"):
        preparation.pairs(stream, chat, lambda rows: rows)


def test_a_tree_without_its_root(chat) -> None:
    orphans = [oasst("c", "gone", GOOD, "assistant", 0), oasst("d", "gone", BAD, "assistant", 1)]
    texts, counts, _ = prepared([*TREE, *orphans], chat)
    assert (texts, counts.unusable) == ([PAIR], 1)


def test_rewards(chat) -> None:
    opened = chat_text(ASKED) + "[assistant]"
    expected = [(opened, BAD + END, 2.0), (opened, GOOD + END, 4.5)]
    assert prepared([ULTRAFEEDBACK], chat, "labels")[0] == expected
    assert [row[2] for row in prepared([WEBGPT], chat, "labels")[0]] == [-0.5, 0.5]
    kto = {"prompt": [user(Q)], "completion": [assistant(GOOD)], "label": True}
    assert prepared([kto], chat, "labels")[0] == [(opened, GOOD + END, 1.0)]
    # A text beside messages.
    assert "".join(prepared([kto | {"prompt": Q}], chat, "labels")[0][0][:2]) == PAIR[0]


def test_toxicity(tokenizer) -> None:
    rows = [
        {"id": "1", "comment_text": "a film", "toxic": 1, "insult": 0},
        {"id": "2", "comment_text": "fine", "toxic": 0, "insult": 0},
    ]
    assert prepared(rows, tokenizer, "labels")[0] == [("", f"a film{END}", 0.0), ("", f"fine{END}", 1.0)]
    bias = {"id": 1, "comment_text": "a film", "target": 0.25, "severe_toxicity": 0.0}
    civil = {"text": "a film", "toxicity": 0.25, "severe_toxicity": 0.0, "insult": 0.1}
    for row in (bias, civil):
        assert prepared([row], tokenizer, "labels")[0] == [("", f"a film{END}", 0.75)]
    # A label without a name is taken as it is.
    assert prepared([{"text": "a film", "label": 0.25}], tokenizer, "labels")[0] == [("", f"a film{END}", 0.25)]


STEPS = [
    {"prompt": Q, "completions": ["Step 1: one.", "Step 2: two."], "labels": [True, False]},
    {
        "input": f"{Q} Step 1: one. ки\nStep 2: two. ки", "label": f"{Q} Step 1: one. +\nStep 2: two. -",
        "task": "GSM8K",
    },
    {
        "question": {"problem": Q, "ground_truth_answer": "1"},
        "label": {
            "steps": [
                {"completions": [{"text": "Step 1: one.", "rating": 1, "flagged": False}], "chosen_completion": 0},
                {"completions": [{"text": "Step 2: two.", "rating": 0, "flagged": False}], "chosen_completion": None},
            ],
            "finish_reason": "solution",
        },
    },
]  # fmt: skip


@pytest.mark.parametrize("row", STEPS, ids=["trl", "math_shepherd", "prm800k"])
def test_steps(chat, tokenizer, row) -> None:
    """The reward of a step is that of its own prefixes; only the last step ends the text."""
    opened = chat_text(ASKED) + "[assistant]"
    texts = prepared([row], chat, "labels")[0]
    assert texts == [(opened, "Step 1: one.", 1.0), (f"{opened}Step 1: one.\n", f"Step 2: two.{END}", 0.0)]
    texts = prepared([row], tokenizer, "labels")[0]
    assert [(begin + rest, reward) for begin, rest, reward in texts] == [
        (f"{Q}\n\nStep 1: one.", 1.0),
        (f"{Q}\n\nStep 1: one.\nStep 2: two.{END}", 0.0),
    ]
    assert texts[1][1].strip() == f"Step 2: two.{END}"


# Questions


def test_rows_may_differ(chat) -> None:
    """Each row by itself: with and without a prompt, as a text and within the conversation."""
    whole = {"chosen": TURNS[0], "rejected": TURNS[1]}
    alone = {"chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
    rows = [
        {"prompt": None, **whole}, {"prompt": Q, **whole}, {"prompt": Q, **alone}, {"prompt": None, **alone},
        {"prompt": "", **alone}, {"prompt": "Another?", **whole},
    ]  # fmt: skip
    for order in (rows, rows[::-1]):
        texts, counts, _ = prepared(order, chat)
        assert texts == [PAIR] * 3
        assert (counts.unusable, counts.mismatched) == (2, 1)


def test_columns_map_any_set(chat, tokenizer) -> None:
    row = {"frage": Q, "gut": " good", "schlecht": " bad"}
    words = ["prompt=frage", "chosen=gut", "rejected=schlecht"]
    for columns in (words, dict(word.split("=") for word in words)):
        assert prepared([row], tokenizer, columns=columns)[0] == [(f"{Q} good{END}", f"{Q} bad{END}")]
    for words, message in [
        (["question"], r"Expected columns such as prompt=question, .* but got 'question'"),
        (["chosen="], "but got 'chosen='"),
        (["prompt=none"], r"to have the column 'none', which --columns names, but got 'frage', 'gut'"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            prepared([row], tokenizer, columns=words)


def test_texts_that_are_not_read(tokenizer, caplog) -> None:
    rows = [{"topic": Q, "chosen": f"{word} good", "rejected": f"no {word}"} for word in ("it", "film", "plot")]
    message = (
        r"do not begin with one, .*of the columns 'topic' none is read\. .*--columns prompt=topic, or .* prompt=\."
    )
    with pytest.raises(InvalidArgumentError, match=message):
        prepared(rows, tokenizer)
    with caplog.at_level(logging.WARNING):
        assert prepared(rows, tokenizer, columns=["prompt="])[0][0] == (f"it good{END}", f"no it{END}")
    assert "texts in the columns 'topic' are not read" in caplog.text
    assert prepared(rows, tokenizer, columns=["prompt=topic"])[0][0][0] == f"{Q}it good{END}"
    label = {"topic": Q, "completion": "good", "reward": 1.0}
    with pytest.raises(InvalidArgumentError, match="of the columns 'topic' none is read"):
        prepared([label], tokenizer, "labels")


def test_formats_that_do_not_fit(tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match=r"dataset_format to be auto or one of ultrafeedback.* but got 'hh'"):
        prepared([{"chosen": GOOD, "rejected": BAD}], tokenizer, dataset_format="hh")
    with pytest.raises(InvalidArgumentError, match=r"the columns 'history', .* of the format 'shp', but got 'chosen'"):
        prepared([{"chosen": GOOD, "rejected": BAD}], tokenizer, dataset_format="shp")
    with pytest.raises(InvalidArgumentError, match="choose one of the objectives partial_bt"):
        prepared([PKU], tokenizer, "labels")
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize(("value", "holds"), [(["Because."], "list of str"), (5, "int")])
def test_values_that_are_no_texts(tokenizer, value, holds) -> None:
    row = {"prompt": Q, "chosen": value, "rejected": value}
    with pytest.raises(InvalidArgumentError, match=f"column 'chosen' of row 0 of the train data .* but got {holds}"):
        prepared([row], tokenizer)


def test_no_chat_template(tokenizer) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"a chat template, because the data hold messages.*--chat_template_"
    ):
        prepared([CHATS[0][1]], tokenizer)


def test_the_trainer_reads_them(base: str, make_config, tokenizer) -> None:
    rows = Dataset.from_list([PKU] * 4)
    trainer = PartialRewardTrainer(base, make_config(dataset_format="pku_saferlhf_safer"), train_dataset=rows)
    trainer.train()
    assert tokenizer.decode(trainer.train_dataset[0]["chosen_ids"]) == f"{Q}\n\n{BAD}{END}"

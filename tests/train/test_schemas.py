"""Random schemas: the texts trained on hold the prompt and the answer once each, or there is a clear error."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.testing import tiny_tokenizer
from rgtg_logits.train.length_limit import LengthLimit
from rgtg_logits.train.preprocessing import DatasetPreparation

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>{% endfor %}"
FORMS = ("text", "text", "messages", "sharegpt", "whole", "whole sharegpt", "null")
PROMPTS = ("text", "messages", "sharegpt", "null", "empty", "absent")
QUESTIONS = ("prompt", "prompt", "question", "topic")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = TEMPLATE + "{% if add_generation_prompt %}<assistant>{% endif %}"
    return tokenizer


def written(form: str, role: str, text: str, question: str):
    """A text in one of the forms that columns have."""
    names = ("role", "content") if "sharegpt" not in form else ("from", "value")
    roles = {"user": "human", "assistant": "gpt"} if "sharegpt" in form else {}
    turns = [("user", question)] if "whole" in form else []
    turns = [dict(zip(names, (roles.get(each, each), said), strict=True)) for each, said in [*turns, (role, text)]]
    return {"text": text, "null": None, "empty": ""}.get(form, turns)


@st.composite
def schemas(draw):
    """Columns and rows: one form for each column, and nulls and empty values in single rows."""
    data = draw(st.sampled_from(["pairs", "labels"]))
    answers = ("chosen", "rejected") if data == "pairs" else (draw(st.sampled_from(["completion", "text"])),)
    forms = {name: draw(st.sampled_from(FORMS)) for name in answers}
    question = draw(st.sampled_from(QUESTIONS))
    asked = draw(st.sampled_from(PROMPTS))
    rows = []
    for index in range(draw(st.integers(1, 4))):
        texts = {"question": f"q{index}q", **{name: f"{name[0]}{index}{name[0]}" for name in answers}}
        row = {}
        if asked != "absent":
            form = draw(st.sampled_from([asked] * 5 + ["null"]))
            row[question] = written(form, "user", texts["question"], "")
        for name in answers:
            form = draw(st.sampled_from([forms[name]] * 6 + ["null"]))
            row[name] = written(form, "assistant", texts[name], texts["question"])
        if data == "labels":
            row["reward"] = draw(st.sampled_from([0.0, 1.0, 1.0, 0.5, None]))
        if draw(st.booleans()):
            row["source"] = "own"
        rows.append((row, texts))
    columns = draw(st.permutations(sorted({name for row, _ in rows for name in row})))
    table = [{name: row.get(name) for name in columns} for row, _ in rows]
    return data, answers, table, [texts for _, texts in rows]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas())
def test_prompt_and_answer_once_or_an_error(tokenizer, schema) -> None:
    data, answers, table, texts = schema
    objective = OBJECTIVES["partial_bt" if data == "pairs" else "value"]
    preparation = DatasetPreparation(objective, "train", LengthLimit(None, True, None))
    try:
        dataset = Dataset.from_list(table)
        if data == "pairs":
            found = preparation.pairs(dataset, tokenizer, lambda rows: rows)
            names = ("chosen_ids", "rejected_ids")
        else:
            found = preparation.labels(dataset, tokenizer)
            names = ("input_ids",)
    except InvalidArgumentError as error:
        assert str(error).startswith("Expected ") and "but" in str(error)
        return
    counts = preparation.counts(found)
    assert counts.kept + counts.left_out == len(table)
    trained = Counter()
    for row in found:
        whole = [tokenizer.decode(row[name]) for name in names]
        (index,) = [index for index, each in enumerate(texts) if each[answers[0]] in whole[0]]
        trained[index] += 1
        for name, text in zip(answers, whole, strict=True):
            assert text.count(texts[index][name]) == 1
            # A question that is there, in a column or in the conversation, is there once. Only a whole text may stand
            # beside another column of texts, which is named.
            is_whole = "text" in answers and "topic" in table[index]
            if not is_whole and texts[index]["question"] in str(table[index]):
                assert text.count(texts[index]["question"]) == 1
    assert max(trained.values()) == 1

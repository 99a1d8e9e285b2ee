"""Rows of well-known data sets as preference pairs, or as answers with a reward each.

A converter takes a row and yields the rows that it becomes, or the reason why there is none: "tied", "unusable".
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

from rgtg_logits.data_formats.messages import Messages, assistant, plain_value, user

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterator["dict[str, Any] | str"]

TLDR = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
"""The prompt of a summary, as its authors wrote it."""
_STEP_END = "ки"


def question(text: str | None, system: str | None = None) -> Messages:
    """The messages of a question; none if there is no text."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, user(text)] if text else []


def pair(prompt: Any, chosen: str | None, rejected: str | None, margin: float | None = None) -> dict[str, Any]:
    """A pair of answers to a prompt in messages."""
    row = {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    return row if margin is None else {**row, "margin": float(margin)}


def label(prompt: Any, answer: str | None, reward: Any) -> dict[str, Any]:
    """An answer to a prompt in messages, with its reward."""
    return {"prompt": prompt, "completion": [assistant(answer)], "reward": reward}


def ranked_pairs(prompt: Any, answers: Sequence[tuple[str | None, Any]]) -> Rows:
    """All pairs of answers, the one with the higher score chosen; ties are left out."""
    for (one, high), (other, low) in combinations(answers, 2):
        if high is None or low is None:
            yield "unusable"
        elif high == low:
            yield "tied"
        else:
            yield pair(prompt, one, other) if high > low else pair(prompt, other, one)


def chosen_by(
    prompt: Callable[[Row], Any], first: str, second: str, preferred: Callable[[Row], int | None]
) -> Callable[[Row], Rows]:
    """Pairs of two columns, of which another one says which is preferred: 0, 1, or None for a tie.

    Args:
        prompt: The prompt of a row.
        first: Column of answer 0.
        second: Column of answer 1.
        preferred: Which answer a row prefers.
    """

    def convert(row: Row) -> Rows:
        index = preferred(row)
        answers = row[first], row[second]
        yield "tied" if index is None else pair(prompt(row), answers[index], answers[1 - index])

    return convert


def asked(column: str, system: str | None = None) -> Callable[[Row], Messages]:
    """The question in a column, perhaps behind a system message in another one."""
    return lambda row: question(row[column], row.get(system) if system else None)


def answered(prompt: Callable[[Row], Any], ratings: tuple[str, str] | None = None) -> Callable[[Row], Rows]:
    """Pairs of the columns `chosen` and `rejected`; equal ratings are ties."""

    def convert(row: Row) -> Rows:
        if ratings is not None and row[ratings[0]] is not None and row[ratings[0]] == row[ratings[1]]:
            yield "tied"
            return
        yield {
            "prompt": prompt(row),
            **{name: turns(row[name], name) for name in ("chosen", "rejected")},
        }

    return convert


def rated(prompt: Callable[[Row], Any], ratings: tuple[str, str]) -> Callable[[Row], Rows]:
    """Two answers with a reward each, from the columns `chosen` and `rejected` and their ratings."""

    def convert(row: Row) -> Rows:
        for name, rating in zip(("chosen", "rejected"), ratings, strict=True):
            yield {"prompt": prompt(row), "completion": turns(row[name], name), "reward": row[rating]}

    return convert


def turns(value: Any, name: str) -> Messages | None:
    """The messages in a column, of which a text is one of the assistant; None if there is nothing."""
    plain = plain_value(value, f"the column {name!r}")
    return [assistant(plain)] if isinstance(plain, str) else plain


def _ultrafeedback_scores(row: Row) -> list[tuple[str | None, Any]]:
    # The overall score has known faults; the mean over aspects has not.
    return [
        (each["response"], each.get("fine-grained_score", each.get("overall_score"))) for each in row["completions"]
    ]


def ultrafeedback_pairs(row: Row) -> Rows:
    """All pairs of the completions of a prompt, by their mean rating."""
    yield from ranked_pairs(question(row["instruction"]), _ultrafeedback_scores(row))


def ultrafeedback_labels(row: Row) -> Rows:
    """Each completion with its mean rating."""
    for answer, score in _ultrafeedback_scores(row):
        yield label(question(row["instruction"]), answer, score)


def helpsteer_labels(row: Row) -> Rows:
    """Each response with its helpfulness, from 0 to 4."""
    yield label(question(row["prompt"]), row["response"], row["helpfulness"])


def helpsteer_pairs(rows: Iterable[Row]) -> Rows:
    """Pairs of the responses to one prompt, by helpfulness. Needs all rows."""
    by_prompt: dict[str | None, list[tuple[str | None, Any]]] = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt"]].append((row["response"], row["helpfulness"]))
    for prompt, answers in by_prompt.items():
        yield from ranked_pairs(question(prompt), answers)


def helpsteer3_pairs(row: Row) -> Rows:
    """Pairs whose margin is the strength of the preference, from 1 to 3; the preference is negative for response 1."""
    strength = row["overall_preference"]
    if not strength:
        yield "unusable" if strength is None else "tied"
        return
    answers = [row["response1"], row["response2"]]
    chosen, rejected = answers[::-1] if strength > 0 else answers
    yield pair(turns(row["context"], "context"), chosen, rejected, abs(strength))


def nectar_pairs(row: Row) -> Rows:
    """All pairs of the ranked answers, 1 being the best rank; the prompt is a transcript, and stays a text."""
    for one, other in combinations(row["answers"], 2):
        if one["rank"] == other["rank"]:
            yield "tied"
            continue
        chosen, rejected = sorted((one, other), key=lambda each: float(each["rank"]))
        yield {"prompt": row["prompt"], "chosen": chosen["answer"], "rejected": rejected["answer"]}


def webgpt_pairs(row: Row) -> Rows:
    """The pair of the two answers, by their scores."""
    answers = [(row[f"answer_{index}"], row[f"score_{index}"]) for index in (0, 1)]
    yield from ranked_pairs(question(row["question"]["full_text"]), answers)


def webgpt_labels(row: Row) -> Rows:
    """Each answer with its score, from -1 to 1."""
    for index in (0, 1):
        yield label(question(row["question"]["full_text"]), row[f"answer_{index}"], row[f"score_{index}"])


def _summary_prompt(row: Row) -> Messages:
    info = row["info"]
    if info.get("post"):
        return question(TLDR.format(subreddit=info.get("subreddit"), title=info.get("title"), post=info["post"]))
    article = info.get("article")
    return question(f"Article: {article}\n\nTL;DR:") if article else []


def summary_pairs(row: Row) -> Rows:
    """The pair of the two summaries of a post."""
    texts = [each["text"] for each in row["summaries"]]
    choice = row["choice"]
    yield pair(_summary_prompt(row), texts[choice], texts[1 - choice]) if choice in (0, 1) else "unusable"


def summary_labels(row: Row) -> Rows:
    """A summary with its overall grade, from 1 to 7."""
    summary = row["summary"]
    yield label(_summary_prompt(row), summary["text"], (summary.get("axes") or {}).get("overall"))


def arena_pairs(row: Row) -> Rows:
    """Two conversations, of which one model's has won."""
    if row["winner"] not in ("model_a", "model_b"):
        yield "tied"
        return
    names = ("a", "b") if row["winner"] == "model_a" else ("b", "a")
    chosen, rejected = (turns(row[f"conversation_{name}"], f"conversation_{name}") for name in names)
    yield {"prompt": [], "chosen": chosen, "rejected": rejected}


def arena_turns_pairs(row: Row) -> Rows:
    """Two conversations as JSON lists of turns, of which one model's has won."""
    if row["winner_model_a"] == row["winner_model_b"]:
        yield "tied"
        return
    names = ("a", "b") if row["winner_model_a"] else ("b", "a")
    prompts = json.loads(row["prompt"])
    chosen, rejected = (_interleaved(prompts, json.loads(row[f"response_{name}"])) for name in names)
    yield {"prompt": [], "chosen": chosen, "rejected": rejected}


def _interleaved(prompts: Sequence[str | None], answers: Sequence[str | None]) -> Messages:
    return [turn for asking, answer in zip(prompts, answers, strict=True) for turn in (user(asking), assistant(answer))]


def _oasst_answers(rows: Iterable[Row]) -> Iterator[tuple[Messages, list[Row]]]:
    """Each message of a user in the trees, with the conversation up to it, and all answers to it."""
    by_id = {row["message_id"]: row for row in rows}
    answers = defaultdict(list)
    for row in by_id.values():
        if row["role"] == "assistant" and row["parent_id"] is not None:
            answers[row["parent_id"]].append(row)
    for parent, children in answers.items():
        thread: Messages = []
        node: str | None = parent
        while node is not None and node in by_id:
            message = by_id[node]
            thread.append(assistant(message["text"]) if message["role"] == "assistant" else user(message["text"]))
            node = message["parent_id"]
        # A thread whose root is missing is no conversation.
        yield ([] if node is not None else thread[::-1]), children


def oasst_pairs(rows: Iterable[Row]) -> Rows:
    """All pairs of the answers to one message, by their rank, 0 being the best. Needs all rows."""
    for thread, children in _oasst_answers(rows):
        ranks = [(row["text"], None if row["rank"] is None else -row["rank"]) for row in children]
        yield from ranked_pairs(thread, ranks)


def oasst_labels(rows: Iterable[Row]) -> Rows:
    """Each answer with its quality, from 0 to 1. Needs all rows."""
    for thread, children in _oasst_answers(rows):
        for row in children:
            labels = row["labels"] or {"name": [], "value": []}
            grades = dict(zip(labels["name"], labels["value"], strict=True))
            yield label(thread, row["text"], grades.get("quality"))


def toxicity_labels(text: str, column: str) -> Callable[[Row], Rows]:
    """A comment with one minus its toxicity as reward, because a higher reward is better."""

    def convert(row: Row) -> Rows:
        toxicity = row[column]
        yield {"prompt": "", "completion": row[text], "reward": None if toxicity is None else 1 - float(toxicity)}

    return convert


def step_labels(row: Row) -> Rows:
    """Steps with a label each, in the columns `completions` and `labels`."""
    yield from _steps(row["prompt"], row["completions"], row["labels"])


def math_shepherd_labels(row: Row) -> Rows:
    """Steps of a solution, each closed by a mark, beside the same text with + or - instead of the marks."""
    *pieces, rest = row["input"].split(_STEP_END)
    signs, position = [], 0
    for piece in pieces:
        position += len(piece)
        signs.append(row["label"][position : position + 1])
        position += 1
    begin = re.search(r"Step 1:", pieces[0]) if pieces else None
    if begin is None or rest.strip() or not set(signs) <= {"+", "-"}:
        yield "unusable"
        return
    steps = [pieces[0][begin.start() :], *pieces[1:]]
    yield from _steps(
        pieces[0][: begin.start()].strip(), [step.strip() for step in steps], [sign == "+" for sign in signs]
    )


def prm800k_labels(row: Row) -> Rows:
    """Every rated completion of each step, from -1 to 1, behind the steps that were chosen before."""
    before: list[str] = []
    steps = row["label"]["steps"]
    for number, step in enumerate(steps, 1):
        completions = step["completions"] or []
        ends = number == len(steps) and row["label"].get("finish_reason") == "solution"
        for completion in completions:
            yield _step(row["question"]["problem"], before, completion["text"], completion["rating"], finished=ends)
        chosen = step.get("human_completion")
        if step.get("chosen_completion") is not None:
            chosen = completions[step["chosen_completion"]]
        if chosen is None:
            return
        before.append(chosen["text"])


def _steps(problem: str | None, steps: Sequence[str], labels: Sequence[Any]) -> Rows:
    if len(steps) != len(labels):
        yield "unusable"
        return
    for index, (step, reward) in enumerate(zip(steps, labels, strict=True)):
        yield _step(problem, steps[:index], step, reward, finished=index == len(steps) - 1)


def _step(problem: str | None, before: Sequence[str], step: str, reward: Any, *, finished: bool) -> dict[str, Any]:
    """A step behind the ones before it: its reward is that of its own prefixes, and it ends the text only if last."""
    return {
        **label(question(problem), "\n".join([*before, step]) if step else "", reward),
        "given": "".join(f"{text}\n" for text in before),
        "finished": finished,
    }

"""The rewards of this example as functions of text, for options that take a reward, as in `--judge judges:gold`.

They read the sentiment models of make_data.py from the folder in the environment variable RGTG_REVIEWS, and have to be
on Python's path:

    export PYTHONPATH=examples/reviews RGTG_REVIEWS=runs/reviews
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from sentiment import SentimentModel

END_OF_TEXT = "<|endoftext|>"


def gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Log-odds, in nats, that prompt and response are a positive review, by the model that labels the training data."""
    return _sentiment("gold").log_odds(texts(prompts, responses)).tolist()


def judge(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Likewise by a model that was trained on none of the gold model's reviews, and labels nothing."""
    return _sentiment("judge").log_odds(texts(prompts, responses)).tolist()


def plain(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Plainness of style: minus the mean number of words per sentence of the response, in units of 5 words.

    A sentence ends with `.`, `!` or `?`; an unfinished one counts too, so that a response without any end is one long
    sentence. The prompt is left out, because no response can change it.
    """
    return [-len(text.split()) / max(1, len(_sentences(text))) / 5 for text in texts([""] * len(responses), responses)]


def reading_ease(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Reading ease of the response, a judge of plain style that labels nothing, in units of 10 points.

    Flesch's formula (A new readability yardstick, 1948): 206.835 − 1.015 · words per sentence − 84.6 · syllables per
    word, a syllable being a group of vowels other than a silent e at the end of a word. Without any word it is 0.
    """
    return [_reading_ease(text) / 10 for text in texts([""] * len(responses), responses)]


def texts(prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
    """Each prompt and response as one text, without the tokens that begin and end it."""
    return [(p + r).replace(END_OF_TEXT, "") for p, r in zip(prompts, responses, strict=True)]


def _sentences(text: str) -> list[str]:
    """The sentences of a text, as far as they contain a word."""
    return [part for part in re.split(r"[.!?]+", text) if re.search(r"\w", part)]


def _reading_ease(text: str) -> float:
    """Flesch's points of a text."""
    words = re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())
    if not words:
        return 0.0
    syllables = sum(_syllables(word) for word in words)
    return 206.835 - 1.015 * len(words) / max(1, len(_sentences(text))) - 84.6 * syllables / len(words)


def _syllables(word: str) -> int:
    without_silent_e = re.sub(r"(?<![aeiouyl])e$", "", word)
    return max(1, len(re.findall("[aeiouy]+", without_silent_e)))


@cache
def _sentiment(name: str) -> SentimentModel:
    folder = os.environ.get("RGTG_REVIEWS")
    if folder is None or not (Path(folder) / f"{name}.json").is_file():
        raise FileNotFoundError(
            f"Expected {name}.json in the folder that RGTG_REVIEWS names, but it is {folder!r}. "
            "Set it to the --output_dir of make_data.py."
        )
    return SentimentModel.from_dict(json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8")))

"""Model cards on disk: `facts.json`, and the `README.md` and pictures that are made from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import unified_diff
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rgtg_logits.card.facts import BaseCardFacts, CardFacts, ScoredExample
from rgtg_logits.card.plots import draw, stamp, wanted
from rgtg_logits.card.render import render_card
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.reward_model import RewardModel

logger = logging.getLogger(__name__)

FACTS = "facts.json"
CARD = "README.md"
_READERS: dict[str, Callable[[Any], CardFacts | BaseCardFacts]] = {
    "reward model": CardFacts.from_dict,
    "base model": BaseCardFacts.from_dict,
}


def write_card(folder: Path, facts: CardFacts | BaseCardFacts) -> None:
    """Writes `facts.json`, the pictures that have changed and the card; each file appears whole or not at all.

    Without matplotlib (the train extra has it), pictures that are not up to date are left out of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_facts(folder, facts)
    _draw(folder, facts)
    write_atomically(folder / CARD, _render(folder, facts))


def render_folder(folder: Path) -> None:
    """Makes the pictures and the card of a folder again from its `facts.json`, which stays as it is.

    Raises:
        InvalidArgumentError: If there is no `facts.json`, or it does not hold the facts of a card.
    """
    facts = read_facts(folder)
    _draw(folder, facts)
    write_atomically(folder / CARD, _render(folder, facts))


def card_differences(folder: Path) -> str:
    """What `render_folder` would change, as a diff; empty if the card is up to date. Writes nothing.

    Raises:
        InvalidArgumentError: If there is no `facts.json`, or it does not hold the facts of a card.
    """
    facts, card = read_facts(folder), folder / CARD
    there = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    lines = list(unified_diff(there, _render(folder, facts).splitlines(), str(card), "from the facts", lineterm=""))
    lines += [f"{folder / name} is missing or shows other facts." for name in _outdated(folder, facts)]
    return "\n".join(lines)


def score_example(folder: Path, prompt: str, answers: Sequence[str]) -> None:
    """Computes what the usage example on the card of a reward model prints, and writes it into `facts.json`.

    Args:
        folder: Holds the model and the facts of its card; the card is then to be made again.
        prompt: The prompt of the example.
        answers: Its answers, at least one.

    Raises:
        InvalidArgumentError: If there are no facts of a reward model, or no answer.
        CheckpointError: If there is no reward model in the folder.
    """
    facts = read_facts(folder)
    if not isinstance(facts, CardFacts) or not answers:
        raise InvalidArgumentError(
            f"Expected the facts of a reward model and answers to score, but got those of a {_sort(facts)} in {folder} "
            f"and {len(answers)} answers. Name the folder of a reward model, and one answer or more."
        )
    reward_model = RewardModel.from_pretrained(folder, dtype="float32")
    scores = tuple(reward_model.score([prompt] * len(answers), list(answers)).tolist())
    example = ScoredExample(prompt=prompt, answers=tuple(answers), scores=scores)
    _write_facts(folder, replace(facts, example=example))


def read_facts(folder: Path) -> CardFacts | BaseCardFacts:
    """Reads the facts of a card.

    Raises:
        InvalidArgumentError: If there are none, or they are not what `write_card` writes.
    """
    file = folder / FACTS
    if not file.is_file():
        raise InvalidArgumentError(
            f"Expected the facts of a model card in {file}, but there is no such file. Name the folder of a model that "
            "rgtg train wrote."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"Expected JSON in {file}, but got: {error}. Correct it.") from error
    sort = values.pop("card", None) if isinstance(values, dict) else None
    if sort not in _READERS:
        raise InvalidArgumentError(
            f"Expected {file} to be an object with 'card' as one of {', '.join(map(repr, _READERS))}, but got "
            f"{sort!r}. Add it."
        )
    try:
        return _READERS[sort](values)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"In {file}: {error}") from error


def _sort(facts: CardFacts | BaseCardFacts) -> str:
    return "reward model" if isinstance(facts, CardFacts) else "base model"


def _write_facts(folder: Path, facts: CardFacts | BaseCardFacts) -> None:
    text = json.dumps({"card": _sort(facts), **facts.to_dict()}, indent=2, ensure_ascii=False)
    write_atomically(folder / FACTS, text + "\n")


def _render(folder: Path, facts: CardFacts | BaseCardFacts) -> str:
    if isinstance(facts, BaseCardFacts):
        return render_card(facts)
    return render_card(facts, wanted(facts).keys() - _outdated(folder, facts))


def _outdated(folder: Path, facts: CardFacts | BaseCardFacts) -> list[str]:
    """Pictures that the facts give, but that are not there or show something else."""
    if isinstance(facts, BaseCardFacts):
        return []
    return [name for name, digest in wanted(facts).items() if stamp(folder / name) != digest]


def _draw(folder: Path, facts: CardFacts | BaseCardFacts) -> None:
    if isinstance(facts, BaseCardFacts):
        return
    names = _outdated(folder, facts)
    if names and find_spec("matplotlib") is None:
        logger.warning(
            "The card of %s has no %s, because matplotlib is missing. Run: pip install matplotlib, then rgtg card %s.",
            folder, ", ".join(names), folder,
        )  # fmt: skip
        return
    for name in names:
        draw(facts, name, folder / name)

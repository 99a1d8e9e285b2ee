"""Model cards on disk: `facts.json`, and the `README.md` and pictures that are rendered from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from difflib import unified_diff
from importlib.util import find_spec
from pathlib import Path

from rgtg_logits.card.facts import CardFacts, ScoredExample
from rgtg_logits.card.plots import draw, expected_digests, read_digest
from rgtg_logits.card.render import render_card
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.reward_model import RewardModel

logger = logging.getLogger(__name__)

FACTS = "facts.json"
CARD = "README.md"
_CARD_OF = "reward model"
"""Value of the key `card` in `facts.json`."""


def write_card(folder: Path, facts: CardFacts) -> None:
    """Writes `facts.json`, the outdated pictures and the card; each file appears whole or not at all.

    Without matplotlib (the train extra has it), outdated pictures are left out of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_facts(folder, facts)
    _draw(folder, facts)
    write_atomically(folder / CARD, _render(folder, facts))


def render_folder(folder: Path) -> None:
    """Renders the card of a folder and its outdated pictures again from `facts.json`, which stays as it is.

    Raises:
        InvalidArgumentError: If there is no `facts.json`, or it does not hold the facts of a card.
    """
    facts = read_facts(folder)
    _draw(folder, facts)
    write_atomically(folder / CARD, _render(folder, facts))


def card_differences(folder: Path) -> str:
    """Returns the changes that `render_folder` would make, as a diff; empty if there are none. Writes nothing.

    Raises:
        InvalidArgumentError: If there is no `facts.json`, or it does not hold the facts of a card.
    """
    facts = read_facts(folder)
    card = folder / CARD
    current = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    rendered = _render(folder, facts).splitlines()
    lines = list(unified_diff(current, rendered, str(card), "from the facts", lineterm=""))
    lines += [f"{folder / name} is missing or shows other facts." for name in _outdated_pictures(folder, facts)]
    return "\n".join(lines)


def score_example(folder: Path, prompt: str, answers: Sequence[str]) -> None:
    """Computes the scores in the usage example of a card, and writes them to `facts.json`.

    Args:
        folder: Folder of the model and of the facts of its card; the card has to be rendered again afterwards.
        prompt: The prompt of the example.
        answers: Its answers, at least one.

    Raises:
        InvalidArgumentError: If there are no facts of a reward model, or no answers.
        CheckpointError: If there is no reward model in the folder.
    """
    facts = read_facts(folder)
    if not answers:
        raise InvalidArgumentError(
            f"Expected answers to score for the card in {folder}, but got none. Give one answer or more."
        )
    reward_model = RewardModel.from_pretrained(folder, dtype="float32")
    scores = tuple(reward_model.score([prompt] * len(answers), list(answers)).tolist())
    example = ScoredExample(prompt=prompt, answers=tuple(answers), scores=scores)
    _write_facts(folder, replace(facts, example=example))


def read_facts(folder: Path) -> CardFacts:
    """Reads the facts of a card.

    Raises:
        InvalidArgumentError: If there are none, or they are not in the form that `write_card` writes.
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
    card_of = values.pop("card", None) if isinstance(values, dict) else None
    if card_of != _CARD_OF:
        raise InvalidArgumentError(
            f"Expected {file} to be an object with 'card' as {_CARD_OF!r}, but got {card_of!r}. Name the folder of a "
            "reward model, or add it."
        )
    try:
        return CardFacts.from_dict(values)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"In {file}: {error}") from error


def _write_facts(folder: Path, facts: CardFacts) -> None:
    text = json.dumps({"card": _CARD_OF, **facts.to_dict()}, indent=2, ensure_ascii=False)
    write_atomically(folder / FACTS, text + "\n")


def _render(folder: Path, facts: CardFacts) -> str:
    outdated = _outdated_pictures(folder, facts)
    return render_card(facts, [name for name in expected_digests(facts) if name not in outdated])


def _outdated_pictures(folder: Path, facts: CardFacts) -> list[str]:
    """Names of the pictures that the facts give, but that are missing or show other numbers."""
    return [name for name, digest in expected_digests(facts).items() if read_digest(folder / name) != digest]


def _draw(folder: Path, facts: CardFacts) -> None:
    names = _outdated_pictures(folder, facts)
    if names and find_spec("matplotlib") is None:
        logger.warning(
            "The card of %s has no %s, because matplotlib is missing. Run: pip install matplotlib, then rgtg card %s.",
            folder, ", ".join(names), folder,
        )  # fmt: skip
        return
    for name in names:
        draw(facts, name, folder / name)

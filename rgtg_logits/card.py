"""The model card: from facts to text.

Pure: knows no model, no network, no clock. What is not known is absent; nothing is invented.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from rgtg_logits.errors import InvalidArgumentError

TAGS = ("reward-model", "reward-guided-decoding", "rgtg-logits")
OBJECTIVES = ("partial_bt", "full_bt", "value", "soft_value", "cumulative", "farma", "arm")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured on one set of held-out pairs.

    Attributes:
        name: Its name, such as "eval".
        pairs: Number of pairs.
        step: Optimiser step after which it was measured.
        loss: The training objective on it, in nats per comparison.
        prefix_accuracy: From percent of the answer to the fraction of pairs judged right; 0.5 is chance.
    """

    name: str
    pairs: int
    prefix_accuracy: Mapping[int, float]
    step: int | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What is known about a reward model; None (or nothing) where nobody knows.

    Attributes:
        model_id: Hub id or name, as it stands in the usage example.
        objective: "partial_bt" or "full_bt".
        base_model: Hub id of the model it was trained from.
        dataset: Hub id or name of the preference pairs.
        dataset_on_hub: Whether `dataset` is a Hub id, and so belongs into the header.
        train_pairs: Pairs trained on.
        cut_pairs: Of these, pairs whose texts were cut at `max_length` tokens.
        left_out_pairs: Pairs not used: empty, identical or too long.
        max_length: Longest text in tokens.
        steps: Optimiser steps.
        evaluations: Measurements on held-out pairs.
        hyperparameters: Those that differ from the defaults of `PartialRewardConfig`.
        versions: From package to version.
        license: Licence identifier of the Hub.
        language: Language codes.
        tags: Tags besides those of this library.
        pad_is_eos: Whether padding and end of text are the same token.
        adapter: Whether the checkpoint is a PEFT adapter.
        notes: Paragraphs of Markdown that only a person can write, such as what the data are.
    """

    model_id: str
    objective: str
    base_model: str | None = None
    dataset: str | None = None
    dataset_on_hub: bool = False
    train_pairs: int | None = None
    cut_pairs: int | None = None
    left_out_pairs: int | None = None
    max_length: int | None = None
    steps: int | None = None
    evaluations: tuple[Evaluation, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pad_is_eos: bool = False
    adapter: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidArgumentError(
                f"Expected objective to be one of {', '.join(map(repr, OBJECTIVES))}, but got {self.objective!r}. "
                "Say what the model was trained on, or write its card by hand."
            )


@dataclass(frozen=True, kw_only=True)
class BaseCardFacts:
    """What is known about a base language model that was trained on for an example.

    Attributes:
        model_id: Hub id or name, as it stands in the usage example.
        base_model: Hub id of the model it was trained from.
        dataset: Hub id or name of the texts.
        dataset_on_hub: Whether `dataset` is a Hub id, and so belongs into the header.
        architecture: Class of the model.
        parameters: Number of weights.
        tokens: Tokens trained on.
        loss_before: Loss on held-out texts before the training, in nats per token.
        loss_after: The same after it.
        hyperparameters: Settings of the training.
        versions: From package to version.
        license: Licence identifier of the Hub.
        language: Language codes.
        tags: Tags.
        notes: Paragraphs of Markdown that only a person can write.
    """

    model_id: str
    base_model: str | None = None
    dataset: str | None = None
    dataset_on_hub: bool = False
    architecture: str | None = None
    parameters: int | None = None
    tokens: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def render_card(facts: CardFacts | BaseCardFacts) -> str:
    """Renders the card as Markdown with the YAML header that the Hub reads."""
    # Autoescaping is for HTML; StrictUndefined, because a misspelt fact should fail instead of vanishing.
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    name = "model_card.md.jinja" if isinstance(facts, CardFacts) else "base_model_card.md.jinja"
    template = environment.from_string((files("rgtg_logits") / "templates" / name).read_text(encoding="utf-8"))
    text = template.render(facts=facts, header=_header(facts))
    # Absent facts leave blank lines behind, which the template would have to count otherwise.
    return re.sub(r"\n{3,}", "\n\n", text)


def _header(facts: CardFacts | BaseCardFacts) -> str:
    own: dict[str, Any] = {"pipeline_tag": "text-generation", "tags": list(facts.tags) or None}
    if isinstance(facts, CardFacts):
        own = {"pipeline_tag": "text-classification", "tags": list(dict.fromkeys((*TAGS, *facts.tags)))}
        if facts.adapter and facts.base_model:
            own["base_model_relation"] = "adapter"
    data = ModelCardData(
        base_model=facts.base_model,
        datasets=facts.dataset if facts.dataset_on_hub else None,
        language=list(facts.language) or None,
        library_name="transformers",
        license=facts.license,
        **own,
    )
    return str(data.to_yaml()).strip()

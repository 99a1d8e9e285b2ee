"""The model card: from facts to text.

Pure: knows no model, no network, no clock. What is not known is absent; nothing is invented. Of pictures it is only
told which files there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from rgtg_logits.card.facts import (
    BaseCardFacts,
    CardFacts,
    DataFacts,
)
from rgtg_logits.card.words import PAPERS, READING
from rgtg_logits.objectives import OBJECTIVES

TAGS = ("reward-model", "reward-guided-decoding", "rgtg-logits")


class _Names(dict[str, str]):
    """Settings in words; one that is not known is called by its name."""

    def __missing__(self, name: str) -> str:
        return name


def render_card(facts: CardFacts | BaseCardFacts, pictures: Collection[str] = ()) -> str:
    """Renders the card as Markdown with the YAML header that the Hub reads.

    Args:
        facts: What is known.
        pictures: Names of the picture files beside the card (see `plots`); no other picture is referred to.
    """
    # Autoescaping is for HTML; StrictUndefined, because a misspelt fact should fail instead of vanishing.
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(seconds=_duration, data=_data, literal=_literal)
    if isinstance(facts, CardFacts):
        name, more = "model_card.md.jinja", _words(facts)
    else:
        name, more = "base_model_card.md.jinja", {}
    template = environment.from_string((files("rgtg_logits") / "templates" / name).read_text(encoding="utf-8"))
    text = template.render(facts=facts, header=_header(facts), pictures=pictures, **more)
    # Absent facts leave blank lines behind, which the template would have to count otherwise.
    return re.sub(r"\n{3,}", "\n\n", text)


def _words(facts: CardFacts) -> dict[str, Any]:
    """What the objective and the kind of checkpoint have to say on this card."""
    objective = OBJECTIVES[facts.objective]
    settings = _Names({name: f"{value:g}" for name, value in facts.settings.items()})
    beta, source = facts.suggested_beta, facts.beta_source
    if beta is None:
        beta, source = objective.suggested_beta, objective.card.beta_reason
    return {
        "objective": objective,
        "unit": facts.unit or objective.unit,
        "reading": READING[facts.kind],
        "meaning": objective.card.meaning.format_map(settings),
        "training": objective.card.training.format_map(settings),
        "limits": [limit.format_map(settings) for limit in objective.card.limits],
        "papers": [PAPERS[key] for key in objective.card.papers],
        "beta": beta,
        "beta_source": source,
    }


def _header(facts: CardFacts | BaseCardFacts) -> str:
    own: dict[str, Any] = {"pipeline_tag": "text-generation", "tags": list(facts.tags) or None}
    if isinstance(facts, CardFacts):
        own["tags"] = list(dict.fromkeys((*TAGS, *facts.tags)))
        if facts.kind == "causal":
            own["pipeline_tag"] = "text-classification"
        results = _results(facts, own["pipeline_tag"])
        if results:
            own |= {"eval_results": results, "model_name": facts.model_id}
        if facts.base_model is not None:
            own["base_model_relation"] = "adapter" if facts.adapter else "finetune"
    on_hub = facts.data is not None and facts.data.on_hub
    data = ModelCardData(
        base_model=facts.base_model,
        datasets=facts.data.name if facts.data is not None and on_hub else None,
        language=list(facts.language) or None,
        library_name="transformers",
        license=facts.license,
        **own,
    )
    return str(data.to_yaml()).strip()


def _results(facts: CardFacts, task: str) -> list[EvalResult]:
    """Measurements of this model on data of the Hub, which alone the Hub's index of results can name."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=item.data.name,
            dataset_name=item.data.name,
            dataset_config=item.data.configuration,
            dataset_split=item.data.split,
            dataset_revision=item.data.revision,
            metric_type="accuracy" if item.prefix_accuracy else "pearsonr",
            metric_name=f"{'Prefix accuracy' if item.prefix_accuracy else 'Correlation'} at {percent} % of the answer",
            metric_value=round(value, 4),
        )
        for item in facts.evaluations
        if item.data is not None and item.data.name is not None and item.data.on_hub and not item.baseline
        for percent, value in item.figures.items()
    ]


def _data(data: DataFacts) -> str:
    """Where data are from, as far as it is known."""
    parts = [f"`{data.name}`"] if data.name is not None else []
    for word in ("configuration", "split", "revision"):
        value = getattr(data, word)
        if value is not None:
            parts.append(f"{word} `{value}`")
    return ", ".join(parts)


def _literal(text: str) -> str:
    """A text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

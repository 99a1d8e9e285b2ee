"""The text of a model card, rendered from facts.

It needs no model, no network and no clock. Unknown facts are left out; nothing is invented.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from rgtg_logits.card.facts import CardFacts, DataFacts
from rgtg_logits.card.words import PAPERS, READING
from rgtg_logits.objectives import OBJECTIVES

TAGS = ("reward-model", "reward-guided-decoding", "rgtg-logits")


class _Settings(dict[str, str]):
    """Values of an objective's settings as text; the name of a setting stands for an unknown value."""

    def __missing__(self, name: str) -> str:
        return name


def render_card(facts: CardFacts, pictures: Collection[str] = ()) -> str:
    """Renders the card as Markdown with the YAML header that the Hub reads.

    Args:
        facts: The facts.
        pictures: Names of the picture files beside the card (see `plots`); the card refers to no others.
    """
    # Autoescaping is for HTML; StrictUndefined, because a misspelt fact should fail instead of vanishing.
    environment = Environment(
        loader=PackageLoader("rgtg_logits"), autoescape=False, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(seconds=_duration, source=_data_source, literal=_literal)
    template = environment.get_template("model_card.md.jinja")
    text = template.render(facts=facts, header=_header(facts), pictures=pictures, **_sentences(facts))
    # Unknown facts leave blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", text)


def _sentences(facts: CardFacts) -> dict[str, Any]:
    """Sentences that the objective and the kind of checkpoint add to this card."""
    objective = OBJECTIVES[facts.objective]
    settings = _Settings({name: f"{value:g}" for name, value in facts.settings.items()})
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
        "papers": [PAPERS[name] for name in objective.card.papers],
        "beta": beta,
        "beta_source": source,
    }


def _header(facts: CardFacts) -> str:
    """The YAML header of the card."""
    task = "text-classification" if facts.kind == "causal" else "text-generation"
    options: dict[str, Any] = {}
    results = _results(facts, task)
    if results:
        options |= {"eval_results": results, "model_name": facts.model_id}
    if facts.base_model is not None:
        options["base_model_relation"] = "adapter" if facts.adapter else "finetune"
    data = ModelCardData(
        base_model=facts.base_model,
        datasets=facts.data.name if facts.data is not None and facts.data.on_hub else None,
        language=list(facts.language) or None,
        library_name="transformers",
        license=facts.license,
        pipeline_tag=task,
        tags=list(dict.fromkeys((*TAGS, *facts.tags))),
        **options,
    )
    return str(data.to_yaml()).strip()


def _results(facts: CardFacts, task: str) -> list[EvalResult]:
    """Evaluations of this model on data sets of the Hub, the only ones that the Hub's index of results can refer to."""
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


def _data_source(data: DataFacts) -> str:
    """The source of data, as far as it is known."""
    parts = [f"`{data.name}`"] if data.name is not None else []
    for name in ("configuration", "split", "revision"):
        value = getattr(data, name)
        if value is not None:
            parts.append(f"{name} `{value}`")
    return ", ".join(parts)


def _literal(text: str) -> str:
    """A text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"

"""The facts that a model card is made from, each absent where it is unknown.

They are plain values: no model, no network and no clock is needed to read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model import KINDS


class _Strict:
    """Base of all facts: reading from JSON refuses unknown keys and converts nothing but whole numbers to floats."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True)
class DataFacts(_Strict):
    """A data set, and the number of its rows that were used, cut and left out.

    Attributes:
        name: Hub id, or another name.
        on_hub: Whether `name` is a Hub id, and so belongs in the header.
        configuration: Configuration of it on the Hub.
        split: Split of it on the Hub.
        revision: Commit of it on the Hub.
        rows: Rows used: pairs, or answers with a reward each.
        cut: Number of these whose texts were cut at `max_length` tokens.
        left_out: Rows not used, from the reason to their number.
    """

    name: str | None = None
    on_hub: bool = False
    configuration: str | None = None
    split: str | None = None
    revision: str | None = None
    rows: int | None = None
    cut: int | None = None
    left_out: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class PrefixEvaluation(_Strict):
    """Accuracy on prefixes of held-out pairs, or correlation on prefixes of held-out answers with a reward each.

    Attributes:
        name: Name of the held-out set, such as "eval".
        pairs: Number of pairs, for `prefix_accuracy`.
        texts: Number of answers, for `correlation`.
        prefix_accuracy: From percent of the answer to the fraction of pairs judged right; 0.5 is chance.
        correlation: From percent of the answer to Pearson's correlation of the score with the reward of the answer.
        standard_error: From the same percents to the standard error of that accuracy or correlation.
        step: Optimiser step after which it was measured.
        loss: Training loss on the set.
        data: Where the rows are from.
        baseline: Whether another model was measured, for comparison.

    Raises:
        InvalidArgumentError: If it holds no figures, both kinds of figures, or standard errors at other positions.
    """

    name: str
    pairs: int | None = None
    texts: int | None = None
    prefix_accuracy: Mapping[int, float] = field(default_factory=dict)
    correlation: Mapping[int, float] = field(default_factory=dict)
    standard_error: Mapping[int, float] = field(default_factory=dict)
    step: int | None = None
    loss: float | None = None
    data: DataFacts | None = None
    baseline: bool = False

    def __post_init__(self) -> None:
        of_pairs = self.pairs is not None and bool(self.prefix_accuracy)
        of_texts = self.texts is not None and bool(self.correlation)
        if of_pairs == of_texts or len(self.figures) != len(self.prefix_accuracy) + len(self.correlation):
            raise InvalidArgumentError(
                f"Expected the evaluation {self.name!r} to hold prefix_accuracy with pairs, or correlation with texts, "
                f"but got pairs={self.pairs}, prefix_accuracy={dict(self.prefix_accuracy)}, texts={self.texts}, "
                f"correlation={dict(self.correlation)}. Make one evaluation for each kind of figure."
            )
        if not set(self.standard_error) <= set(self.figures):
            raise InvalidArgumentError(
                f"Expected standard errors of {self.name!r} at {sorted(self.figures)} percent, but got them at "
                f"{sorted(self.standard_error)}. Leave out those without a figure."
            )

    @property
    def figures(self) -> Mapping[int, float]:
        """The accuracy or correlation at each percent of the answer."""
        return self.prefix_accuracy or self.correlation


@dataclass(frozen=True, kw_only=True)
class RewardDistribution(_Strict):
    """Scores of held-out prefixes, in the model's own unit.

    Attributes:
        prefixes: Number of prefixes.
        mean: Their mean.
        standard_deviation: Their standard deviation.
        quantiles: From percent (5, 25, 50, 75, 95) to the score that this share of them does not exceed.
        source: Description of the prefixes.
    """

    prefixes: int
    mean: float
    standard_deviation: float
    quantiles: Mapping[int, float] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class GuidedPoint(_Strict):
    """Reward and divergence of generation guided with one strength.

    Attributes:
        beta: Guidance strength, in nats per unit of the score; 0 is none.
        reward: Mean reward of the texts.
        kl: Divergence of the guided policy from the base model.
        reward_interval: Confidence interval of the reward, lower end first.
        kl_interval: The same of the divergence.
    """

    beta: float
    reward: float
    kl: float
    reward_interval: tuple[float, float] | None = None
    kl_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Guidance(_Strict):
    """Reward against divergence, measured by generating on held-out prompts.

    Attributes:
        points: One for each strength.
        reward: What the reward is and its unit, for the axis of a figure.
        kl: Unit of the divergence: "nats per token" or "nats per answer".
        prompts: Number of prompts.
        confidence: Of the intervals, in percent.
        base_model: Name of the model that was guided.
        setting: How texts were sampled.
    """

    points: tuple[GuidedPoint, ...]
    reward: str
    kl: str
    prompts: int | None = None
    confidence: int | None = None
    base_model: str | None = None
    setting: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredExample(_Strict):
    """Answers to one prompt with the scores that the model gave them when the card was made.

    Attributes:
        prompt: The prompt.
        answers: The answers.
        scores: Score of each by `RewardModel.score`, computed in float32.
    """

    prompt: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.scores) or not self.answers:
            raise InvalidArgumentError(
                f"Expected a score for each answer of the example, but got {len(self.answers)} answers and "
                f"{len(self.scores)} scores. Score them again."
            )


@dataclass(frozen=True, kw_only=True)
class CardFacts(_Strict):
    """Facts about a reward model; None or empty where unknown.

    Attributes:
        model_id: Hub id or name, as it stands in the usage example.
        objective: Training objective, such as "partial_bt"; see `rgtg_logits.objectives`.
        kind: How a score is read: "causal", "vocabulary" or "log_ratio"; see `RewardModelConfig`.
        unit: Unit of a score, where it is known more exactly than from the objective.
        settings: Numbers in the objective's loss by name, such as `beta` of "soft_value".
        base_model: Hub id of the model that it was trained from.
        data: Training data.
        max_length: Longest text in training, in tokens.
        steps: Optimiser steps.
        evaluations: Measurements on held-out data.
        rewards: Its scores of held-out prefixes.
        guidance: Reward against divergence of generation guided by it.
        suggested_beta: A guidance strength to begin with, in nats per unit of the score.
        beta_source: Reason for that strength.
        example: Texts and scores of the usage example.
        hyperparameters: Training arguments that differ from the defaults of `PartialRewardConfig`.
        hardware: Name of one device that it was trained on.
        processes: Number of training processes, one device each.
        training_seconds: Wall time of the training run.
        versions: From package to version.
        license: Licence identifier of the Hub.
        language: Language codes.
        tags: Tags besides those of this library.
        pad_is_eos: Whether padding and end of text are the same token.
        adapter: Whether the checkpoint is a PEFT adapter.
        notes: Paragraphs of Markdown that only a person can write, such as a description of the data.
        limits: Sentences about limits, likewise.

    Raises:
        InvalidArgumentError: If there is no such objective or kind, or a suggested strength without its source.
    """

    model_id: str
    objective: str
    kind: str = "causal"
    unit: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None
    data: DataFacts | None = None
    max_length: int | None = None
    steps: int | None = None
    evaluations: tuple[PrefixEvaluation, ...] = ()
    rewards: RewardDistribution | None = None
    guidance: Guidance | None = None
    suggested_beta: float | None = None
    beta_source: str | None = None
    example: ScoredExample | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    hardware: str | None = None
    processes: int | None = None
    training_seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pad_is_eos: bool = False
    adapter: bool = False
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (("objective", self.objective, OBJECTIVES), ("kind", self.kind, KINDS)):
            if value not in known:
                raise InvalidArgumentError(
                    f"Expected {name} to be one of {', '.join(map(repr, known))}, but got {value!r}. "
                    "Name the objective and the kind that it was trained with, or write its card by hand."
                )
        if (self.suggested_beta is None) != (self.beta_source is None):
            raise InvalidArgumentError(
                f"Expected a suggested strength together with its source, but got suggested_beta={self.suggested_beta} "
                f"and beta_source={self.beta_source!r}. Say where the strength is from, or leave both out."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the known facts as JSON values, without unknown ones.

        Raises:
            InvalidArgumentError: If a number is NaN or infinite, which JSON cannot express.
        """
        values = asdict(self, dict_factory=known_fields)
        try:
            json.dumps(values, allow_nan=False)
        except ValueError as error:
            raise InvalidArgumentError(
                "Expected finite numbers among the facts, but got NaN or infinity. Leave that fact out."
            ) from error
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CardFacts:
        """Reads the output of `to_dict`.

        Raises:
            InvalidArgumentError: If a fact is unknown by name, missing, or of another type than it should be.
        """
        try:
            # As JSON text, because strict reading then still takes lists for tuples and digits for the keys of figures.
            return TypeAdapter(cls).validate_json(json.dumps(values))
        except ValidationError as error:
            raise InvalidArgumentError(" ".join(map(_describe_problem, error.errors()))) from error


def known_fields(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the fields of facts without unknown (None, false or empty) ones: a `dict_factory` for `asdict`."""
    return {name: value for name, value in fields if not (value is None or value is False or value in ({}, ()))}


def _describe_problem(problem: Mapping[str, Any]) -> str:
    """One error of pydantic as a sentence that names the fact, such as 'guidance.points[0].beta'."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "value_error":
        # Raised by the `__post_init__` of some facts.
        return str(problem["ctx"]["error"])
    if problem["type"] == "unexpected_keyword_argument":
        return f"Expected the names of known facts, but got {path!r}. Correct or remove it."
    if problem["type"] == "missing":
        return f"Expected the fact {path!r}, but it is missing. Add it."
    requirement = problem["msg"].removeprefix("Input should be ")
    return f"Expected {path!r} to be {requirement}, but got {problem['input']!r}. Correct it in the facts."

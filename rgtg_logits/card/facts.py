"""What a model card is made from: facts, each absent where nobody knows it.

Pure: knows no model, no network, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rgtg_logits.card.plain import from_plain, to_plain
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model import KINDS


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data set, and what became of its rows.

    Attributes:
        name: Hub id, or what people call it.
        on_hub: Whether `name` is a Hub id, and so belongs into the header.
        configuration: Configuration of it on the Hub.
        split: Split of it on the Hub.
        revision: Commit of it on the Hub.
        rows: Rows used: pairs, or answers with a reward each.
        cut: Of these, rows whose texts were cut at `max_length` tokens.
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
class Evaluation:
    """What was measured on one set of held-out pairs, or of held-out answers with a reward each.

    Attributes:
        name: Its name, such as "eval".
        pairs: Number of pairs, of which there is a `prefix_accuracy`.
        texts: Number of answers, of which there is a `correlation`.
        prefix_accuracy: From percent of the answer to the fraction of pairs judged right; 0.5 is chance.
        correlation: From percent of the answer to Pearson's correlation of the score with the reward of the answer.
        standard_error: From the same percents to the standard error of the one or the other.
        step: Optimiser step after which it was measured.
        loss: The training objective on it.
        data: Where the rows are from.
        baseline: Whether another model was measured, for comparison.

    Raises:
        InvalidArgumentError: If it holds no figure, figures of both sorts, or standard errors of other positions.
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
                f"correlation={dict(self.correlation)}. Make one evaluation of each sort of figure."
            )
        if not set(self.standard_error) <= set(self.figures):
            raise InvalidArgumentError(
                f"Expected standard errors of {self.name!r} at {sorted(self.figures)} percent, but got them at "
                f"{sorted(self.standard_error)}. Leave out those without a figure."
            )

    @property
    def figures(self) -> Mapping[int, float]:
        """What was measured at each percent of the answer."""
        return self.prefix_accuracy or self.correlation


@dataclass(frozen=True, kw_only=True)
class RewardDistribution:
    """Scores of held-out prefixes, in the model's own unit.

    Attributes:
        prefixes: How many.
        mean: Their mean.
        standard_deviation: Their standard deviation.
        quantiles: From percent (5, 25, 50, 75, 95) to the score that this share of them does not exceed.
        source: Which prefixes.
    """

    prefixes: int
    mean: float
    standard_deviation: float
    quantiles: Mapping[int, float] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class GuidedPoint:
    """What came of guidance with one strength.

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
class Guidance:
    """Reward against divergence, measured by generating on held-out prompts.

    Attributes:
        points: One for each strength.
        reward: What the reward is and its unit, for the axis of a figure.
        kl: Unit of the divergence: "nats per token" or "nats per answer".
        prompts: Number of prompts.
        confidence: Of the intervals, in percent.
        base_model: Name of the model that was guided.
        setting: How texts were drawn.
    """

    points: tuple[GuidedPoint, ...]
    reward: str
    kl: str
    prompts: int | None = None
    confidence: int | None = None
    base_model: str | None = None
    setting: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredExample:
    """Answers to one prompt with the scores that the model gave them when the card was made.

    Attributes:
        prompt: The prompt.
        answers: The answers.
        scores: What `RewardModel.score` returned for each, computed in float32.
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
class CardFacts:
    """What is known about a reward model; None (or nothing) where nobody knows.

    Attributes:
        model_id: Hub id or name, as it stands in the usage example.
        objective: What it was trained on, such as "partial_bt"; see `rgtg_logits.objectives`.
        kind: How a score is read: "causal", "vocabulary" or "log_ratio"; see `RewardModelConfig`.
        unit: Unit of a score, where it can be told more exactly than by the objective.
        settings: The objective's own numbers by name, such as `beta` of "soft_value".
        base_model: Hub id of the model it was trained from.
        data: What it was trained on.
        max_length: Longest text in training, in tokens.
        steps: Optimiser steps.
        evaluations: Measurements on held-out data.
        rewards: Its scores of held-out prefixes.
        guidance: What guided generation with it gave.
        suggested_beta: A guidance strength to begin with, in nats per unit of the score.
        beta_source: Where that is from.
        example: What the usage example prints.
        hyperparameters: Those that differ from the defaults of `PartialRewardConfig`.
        hardware: What it was trained on, one device of it.
        processes: Number of processes, one device each.
        training_seconds: Wall time of the training run.
        versions: From package to version.
        license: Licence identifier of the Hub.
        language: Language codes.
        tags: Tags besides those of this library.
        pad_is_eos: Whether padding and end of text are the same token.
        adapter: Whether the checkpoint is a PEFT adapter.
        notes: Paragraphs of Markdown that only a person can write, such as what the data are.
        limits: Sentences of the same sort.

    Raises:
        InvalidArgumentError: If there is no such objective or kind, or a suggested strength from nowhere.
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
    evaluations: tuple[Evaluation, ...] = ()
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
                    "Say what the model was trained on and how it is read, or write its card by hand."
                )
        if (self.suggested_beta is None) != (self.beta_source is None):
            raise InvalidArgumentError(
                f"Expected a suggested strength together with its source, but got suggested_beta={self.suggested_beta} "
                f"and beta_source={self.beta_source!r}. Say where the strength is from, or leave both out."
            )

    def to_dict(self) -> dict[str, Any]:
        """The known facts as JSON values; unknown ones are left out."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CardFacts:
        """Reads what `to_dict` returned.

        Raises:
            InvalidArgumentError: If a fact is unknown by name, missing, or of another type than it should be.
        """
        return from_plain(cls, values, "the facts")


@dataclass(frozen=True, kw_only=True)
class BaseCardFacts:
    """What is known about a base language model that was trained on for an example.

    Attributes:
        model_id: Hub id or name, as it stands in the usage example.
        base_model: Hub id of the model it was trained from.
        data: The texts.
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
    data: DataFacts | None = None
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

    def to_dict(self) -> dict[str, Any]:
        """The known facts as JSON values; unknown ones are left out."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaseCardFacts:
        """Reads what `to_dict` returned.

        Raises:
            InvalidArgumentError: If a fact is unknown by name, missing, or of another type than it should be.
        """
        return from_plain(cls, values, "the facts")

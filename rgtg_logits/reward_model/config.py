"""The dict `rgtg` in the `config.json` of a checkpoint: how its rewards are read, and how it was trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rgtg_logits.errors import CheckpointError, InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES

KINDS = ("causal", "vocabulary", "log_ratio")
"""Ways to read rewards from a model; see `RewardModelConfig`."""


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """The contents of `config.rgtg`.

    Attributes:
        version: Version of this dict.
        kind: How a reward is read. "causal": by a scalar head on the state of each token. "vocabulary": the logit of
            token v after a prefix is the reward of prefix + v (as FaRMA trains it, arXiv 2502.04517). "log_ratio": each
            token adds its log-probability to the reward (GenARM, arXiv 2410.08193; the implicit reward of DPO, arXiv
            2305.18290).
        objective: Name of the training objective, such as "partial_bt" (Bradley-Terry on every prefix pair, arXiv
            2406.07780) or "full_bt" (on whole sequences only); see `rgtg_logits.objectives`. None if unknown.
        reference: For "log_ratio" alone: Hub id or folder of the reference model of a DPO pair, whose log-probability
            is subtracted; None for the log-probability alone.
        unit: The unit of a reward, in words.
        beta: The objective's own strength, if it has one. Of "soft_value": that of the KL-regularised optimum that its
            rewards lead to, in nats per unit of the data's rewards. Of "arm": nats of preference per nat of
            log-probability.
        reward_mean: Mean of the rewards of prefixes of held-out answers, in `unit`.
        reward_std: Their standard deviation.
        scale: A reward is `scale` times the head's output …
        offset: … plus this. Other than 1 and 0 where the maker of a model gave its head a bias, or normalises its
            rewards (OpenRLHF), which transformers' class of classifiers has no place for.

    Raises:
        InvalidArgumentError: If there is no such kind, or a reference is given for a kind that uses none.
    """

    version: int = 1
    kind: str = "causal"
    objective: str | None = None
    reference: str | None = None
    unit: str | None = None
    beta: float | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"Expected kind to be one of {', '.join(KINDS)}, but got {self.kind!r}.")
        if self.reference is not None and self.kind != "log_ratio":
            raise InvalidArgumentError(
                f"Expected a reference model for the kind 'log_ratio' alone, but got {self.reference!r} for "
                f"{self.kind!r}. Leave reference out."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RewardModelConfig:
        """Reads the dict; keys that a later version added are ignored."""
        kind = values.get("kind", "causal")
        if kind not in KINDS:
            raise CheckpointError(
                f"Expected config.rgtg['kind'] to be one of {', '.join(KINDS)}, but it is {kind!r}. "
                "The checkpoint was made for another version of rgtg_logits: upgrade the library."
            )
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict[str, Any]:
        """The dict that goes into `config.json`, without values that are None or change nothing."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if (self.scale, self.offset) == (1.0, 0.0):
            del values["scale"], values["offset"]
        return values

    @property
    def suggested_beta(self) -> float | None:
        """A guidance strength to start from, in nats per unit of reward; None if there is nothing to derive it from.

        Exactly 1 for "soft_value", whose rewards are logarithms of the weights of the KL-regularised optimum. 1 for
        "arm", which multiplies the base model's probabilities by its own (arXiv 2410.08193, eq. 9). Otherwise one over
        the spread of rewards on held-out prefixes: a prefix that is better than the mean by one standard deviation gets
        e times the odds. That is no optimum, but the order of magnitude at which guidance begins to matter.
        """
        objective = OBJECTIVES.get(self.objective or "")
        if objective is not None and objective.suggested_beta is not None:
            return objective.suggested_beta
        return 1.0 / self.reward_std if self.reward_std else None


def read_config(stored: dict[str, Any] | None, kind: str | None) -> RewardModelConfig:
    """Reads `config.rgtg`, if there is one, and replaces its kind by that of the caller, if given.

    Raises:
        CheckpointError: If the checkpoint's kind is unknown.
        InvalidArgumentError: If the caller's kind is unknown.
    """
    config = RewardModelConfig() if stored is None else RewardModelConfig.from_dict(stored)
    return config if kind in (None, config.kind) else replace(config, kind=kind, reference=None)

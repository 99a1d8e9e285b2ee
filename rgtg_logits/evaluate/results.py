"""The results of an evaluation: plain values, stored as `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


def policy_title(name: str, beta: float) -> str:
    """Name of a method at a strength in tables; without guidance (0) the name alone."""
    return f"{name}, beta {beta:g}" if beta else name


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval, from a bootstrap over the prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """Rewards of the answers of a policy by one judge.

    Attributes:
        reward: Mean reward.
        difference: Mean difference to the baseline, paired by prompt; None for the baseline itself.
        win_rate: Share of answers whose reward is higher than that of the baseline's answer, with ties counted half;
            None for the baseline itself.
    """

    reward: Estimate
    difference: Estimate | None = None
    win_rate: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """Rewards, divergence, diversity and cost of a policy.

    Attributes:
        name: The method.
        curve: The curve it belongs to.
        beta: Guidance strength in nats per unit of reward.
        greedy: Whether it takes the most probable token.
        answers: Number of answers.
        judges: Rewards by each judge.
        kl: KL(policy ‖ base model) of an answer in nats: exact at each token, summed over its tokens.
        cut: The part of `kl` due to truncation to the candidates; the remainder is the KL to the truncated base model.
        kl_per_token: Sum of `kl` over all answers, divided by their tokens.
        log_ratio: log π(answer) − log π_base(answer) in nats, a check of `kl`, which is its expectation.
        perplexity: exp of the mean −log π_base per token of the answers.
        distinct: Share of different 1-, 2- and 3-grams of tokens in an answer, mean over answers.
        self_bleu: BLEU of an answer against the others to the same prompt (0 to 100); None with one answer each.
        length: Tokens of an answer, with its end-of-text token.
        ended: Share of answers that ended before the longest length.
        guide_forwards: Forwards of reward models per token of a row; all rows of a batch share a forward.
        guide_tokens: Tokens processed by reward models per token of a row.
        ms_per_token: Milliseconds per token of a row, with the batch size of the run.
    """

    name: str
    curve: str
    beta: float
    greedy: bool
    answers: int
    judges: Mapping[str, JudgeResult]
    kl: Estimate
    cut: Estimate
    kl_per_token: Estimate
    log_ratio: Estimate
    perplexity: Estimate
    distinct: tuple[float, float, float]
    self_bleu: float | None
    length: float
    ended: float
    guide_forwards: float
    guide_tokens: float
    ms_per_token: float

    @property
    def title(self) -> str:
        """Name in tables and messages."""
        return policy_title(self.name, self.beta)


@dataclass(frozen=True, kw_only=True)
class EqualKL:
    """Comparison of two curves at equal divergence from the base model.

    Attributes:
        judge: Name of the judge.
        first: Name of a curve.
        second: Name of the other curve.
        kl: Divergences at which they are compared, in nats of an answer.
        first_reward: Reward of the first curve at each divergence.
        second_reward: Reward of the second curve at each divergence.
        difference: First reward minus second reward.
        overall: Mean of these differences.
    """

    judge: str
    first: str
    second: str
    kl: tuple[float, ...]
    first_reward: tuple[float, ...]
    second_reward: tuple[float, ...]
    difference: tuple[Estimate, ...]
    overall: Estimate


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, and the first answer of every policy to it."""

    prompt: str
    answers: tuple[tuple[str, str, Mapping[str, float]], ...]
    """Title of the policy, its answer, and its reward by each judge."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """All results of an evaluation.

    Attributes:
        settings: Settings of the evaluation; of local paths only the last part.
        versions: From package to version.
        prompts: Number of prompts answered.
        prompts_left_out: Prompts that were not answered, by reason.
        baseline: Name of the method that the others are compared with.
        policies: One result for each policy.
        comparisons: Comparisons of curves at equal divergence.
        samples: A few prompts with the first answer of every policy.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    prompts: int
    prompts_left_out: Mapping[str, int]
    baseline: str
    policies: tuple[PolicyResult, ...]
    comparisons: tuple[EqualKL, ...]
    samples: tuple[Sample, ...]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        return asdict(self)

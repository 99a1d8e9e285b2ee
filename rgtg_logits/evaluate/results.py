"""What an evaluation found: plain values, which `results.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


def policy_title(name: str, beta: float) -> str:
    """What people call a method at a strength; 0 is no guidance, so there is nothing to say of it."""
    return f"{name}, beta {beta:g}" if beta else name


class Estimate(NamedTuple):
    """A value and its 95 % interval, which is that of a bootstrap over the prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """What one judge says of the answers of a policy.

    Attributes:
        reward: Mean reward.
        difference: Mean difference to the baseline, prompt by prompt; None for the baseline itself.
        win_rate: Share of prompts (and answers) whose reward is higher than the baseline's, ties counted half; None for
            the baseline itself.
    """

    reward: Estimate
    difference: Estimate | None = None
    win_rate: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """What a policy does to texts, and what it costs.

    Attributes:
        name: The method.
        curve: The curve that it lies on.
        beta: Its strength.
        greedy: Whether it takes the most probable token.
        judges: What each judge says.
        kl: KL(policy ‖ base model) of an answer in nats: summed over its tokens, exact at each.
        cut: What of it the cut to the candidates costs by itself; the rest is the KL to a base model cut like that.
        kl_per_token: `kl`, of all answers, over their tokens.
        log_ratio: log π(answer) − log π_base(answer) in nats, whose expectation `kl` is, for a check.
        perplexity: exp of the nats per token that the answers cost under the base model.
        distinct: Share of different 1-, 2- and 3-grams of tokens in an answer, mean over answers.
        self_bleu: BLEU of an answer against the others to the same prompt (0 to 100); None with one answer each.
        length: Tokens of an answer, the one that ends it included.
        ended: Share of answers that ended before they were cut.
        guide_forwards: Forwards of reward models per token of a row; a batch goes through one forward together.
        guide_tokens: Tokens that reward models read per token of a row.
        ms_per_token: Milliseconds per token of a row, in batches as large as were used.
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
        """What people call it."""
        return policy_title(self.name, self.beta)


@dataclass(frozen=True, kw_only=True)
class EqualKL:
    """Two curves where both have the same divergence from the base model.

    Attributes:
        judge: Who judges.
        first: A curve.
        second: Another.
        kl: Where they are compared: nats of an answer.
        first_reward: Reward of the first there.
        second_reward: Reward of the second there.
        difference: First less second.
        overall: The mean of these differences.
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
    """One prompt, and what every policy answered first."""

    prompt: str
    answers: tuple[tuple[str, str, Mapping[str, float]], ...]
    """Title of the policy, its answer, and what the judges say."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """Everything that an evaluation found.

    Attributes:
        settings: What was asked for; of local paths only the last part.
        versions: From package to version.
        prompts: How many prompts were answered.
        baseline: The method that others are compared with.
        policies: One result for each policy.
        comparisons: Curves at equal divergence.
        samples: A few prompts with all answers.
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
        """As JSON values."""
        return asdict(self)

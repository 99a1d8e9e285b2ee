"""Statistics of records: means with bootstrap intervals, paired differences, curves at equal divergence.

The bootstrap is a cluster bootstrap: it resamples prompts, each with all answers to it, because prompts were sampled
independently and answers to one prompt were not (Efron & Tibshirani 1993, chapters 8 and 13: percentile intervals).
Differences are paired: every policy has the same prompts in each resample, so that the difficulty of a prompt cancels.
An array of a policy has a row for each prompt and a column for each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.evaluate.diversity import self_bleu
from rgtg_logits.evaluate.records import reward_column
from rgtg_logits.evaluate.results import EqualKL, Estimate, JudgeResult, PolicyResult

LEVELS = (0.025, 0.975)
"""Quantiles of the resamples at the ends of an interval."""
REACHED = 0.99
"""Share of the resamples in which a curve must reach a divergence to be compared there."""


class _Policy(NamedTuple):
    """The records of a policy, sorted by prompt and seed."""

    records: pd.DataFrame

    @property
    def title(self) -> str:
        first = self.records.iloc[0]
        return f"{first['method']}, beta {first['beta']:g}"

    def values(self, column: str) -> Float[np.ndarray, "prompts seeds"]:
        """A column of the records; NaN where there is no answer."""
        prompts, rows = np.unique(self.records["prompt"], return_inverse=True)
        seeds, columns = np.unique(self.records["seed"], return_inverse=True)
        table = np.full((len(prompts), len(seeds)), np.nan)
        table[rows, columns] = self.records[column]
        return table

    def rewards(self, judge: str) -> Float[np.ndarray, "prompts seeds"]:
        """Rewards by a judge; NaN where there is no answer, or one that is too long for the judge."""
        values = self.values(reward_column(judge))
        _check_any_reward(values, judge, self.title)
        return values


def summarise(
    records: pd.DataFrame, judges: Sequence[str], *, baseline: str, resamples: int, seed: int
) -> tuple[PolicyResult, ...]:
    """Rewards, divergence, diversity and cost of each policy, in the order in which policies first appear.

    Rewards, divergences and lengths are means over prompts of the mean over the answers to a prompt; values per token
    are ratios of sums over all answers. Answers without a reward (NaN, too long for a judge) are left out of the means
    of that judge, and so are prompts without any reward; a difference needs a reward for both policies. Answer i wins
    or loses against the baseline's answer i; if the two policies have different numbers of answers to a prompt (a
    greedy policy has one), all pairs of their answers to a prompt count.

    The cost of a batch is shared equally by its answers, of which there are `batch_rows`.

    Args:
        records: Records as in `rgtg_logits.evaluate.records`, of all policies and processes.
        judges: Names of the judges.
        baseline: Name of the method that others are compared with, at the first of its strengths.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        One result for each method and strength.

    Raises:
        InvalidArgumentError: If records are missing or repeated, or the baseline has none.
        NonFiniteRewardError: If a reward is infinite, or a policy has no answer with a reward by some judge.
    """
    policies = _split(records, judges)
    of_baseline = [policy for (method, _), policy in policies.items() if method == baseline]
    if not of_baseline:
        raise InvalidArgumentError(
            f"Expected records of the baseline {baseline!r}, but there are only those of "
            f"{', '.join(dict.fromkeys(method for method, _ in policies))}. Name one of these."
        )
    reference = of_baseline[0]
    weights = _bootstrap_weights(records, resamples, seed)
    return tuple(_result(policy, reference, judges, weights) for policy in policies.values())


def at_equal_kl(
    records: pd.DataFrame, judge: str, first: str, second: str, *, resamples: int, seed: int, points: int = 8
) -> EqualKL | None:
    """Compares the rewards of two curves at equal divergence from the base model.

    A curve is the linear interpolation of its policies (methods and strengths), ordered by divergence, which need not
    be the order of their strengths. It starts at its weakest policy; a strength of 0 lets it start at the unguided one.
    Greedy policies are left out: greedy decoding falls into repetitions, which are probable, so guidance can lower its
    divergence, and the reward is no function of it. Each bootstrap resample has its own divergences and rewards.

    The curves are compared at the midpoints of `points` equal parts of the range that both reach in the sample and in
    nearly every resample, so `overall` approximates the mean difference over that range (midpoint rule). In the few
    resamples where a curve does not reach as far, it keeps its last reward. A curve of one policy (a fine-tuned model,
    best of n) is compared with the other curve at the divergence of that policy in each resample.

    Args:
        records: Records as in `summarise`.
        judge: Name of the judge.
        first: Name of a curve.
        second: Name of the curve that is subtracted from it.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
        points: Number of divergences to compare at.

    Returns:
        The comparison; None if the curves do not overlap, or one has greedy policies only. Two curves of one policy
        overlap if their divergences are equal, which those of best of n by two rewards can be.

    Raises:
        InvalidArgumentError: If a curve has no records, or records are missing or repeated.
        NonFiniteRewardError: If a reward is infinite, or a policy has no answer with a reward by the judge.
    """
    policies = list(_split(records, [judge]).values())
    weights = _bootstrap_weights(records, resamples, seed)
    first_curve = _curve(policies, first, judge, weights)
    second_curve = _curve(policies, second, judge, weights)
    kl = _common_kl([first_curve, second_curve], points)
    if kl is None:
        return None
    first_rewards = first_curve.at(kl)
    second_rewards = second_curve.at(kl)
    differences = first_rewards - second_rewards
    return EqualKL(
        judge=judge,
        first=first,
        second=second,
        kl=tuple(kl[0].tolist()),
        first_reward=tuple(first_rewards[0].tolist()),
        second_reward=tuple(second_rewards[0].tolist()),
        difference=tuple(_estimate(draws) for draws in differences.T),
        overall=_estimate(differences.mean(1)),
    )


class _Curve(NamedTuple):
    """A curve in the sample (row 0) and in each resample, with the policies of each row sorted by divergence."""

    kl: Float[np.ndarray, "draws policies"]
    reward: Float[np.ndarray, "draws policies"]

    def at(self, kl: Float[np.ndarray, "draws points"]) -> Float[np.ndarray, "draws points"]:
        """Rewards at given divergences, one row for each resample, by linear interpolation."""
        rows = zip(kl, self.kl, self.reward, strict=True)
        return np.stack([np.interp(at, known_kl, reward) for at, known_kl, reward in rows])


def _curve(policies: Sequence[_Policy], name: str, judge: str, weights: np.ndarray) -> _Curve:
    members = [policy for policy in policies if policy.records.iloc[0]["curve"] == name]
    if not members:
        known = dict.fromkeys(policy.records.iloc[0]["curve"] for policy in policies)
        raise InvalidArgumentError(
            f"Expected records of the curve {name!r}, but there are only those of {', '.join(known)}. Name one of "
            "these."
        )
    sampled = [policy for policy in members if not policy.records["greedy"].any()]
    kl = np.array([_means(policy.values("kl"), weights) for policy in sampled]).T.reshape(len(weights), -1)
    reward = np.array([_means(policy.rewards(judge), weights) for policy in sampled]).T.reshape(kl.shape)
    # Sorted in each resample, because policies of nearly the same divergence may change places.
    order = np.argsort(kl, axis=1)
    return _Curve(np.take_along_axis(kl, order, 1), np.take_along_axis(reward, order, 1))


def _common_kl(curves: Sequence[_Curve], points: int) -> Float[np.ndarray, "draws points"] | None:
    """Divergences that both curves reach in the sample and in nearly every resample; None if there are none."""
    short, long = sorted((curve.kl for curve in curves), key=lambda kl: kl.shape[1])
    if short.shape[1] == 0:
        return None
    if short.shape[1] == 1:
        # A single policy is compared at its own divergence.
        inside = (long[:, :1] <= short) & (short <= long[:, -1:])
        return short if inside[0] and inside.mean() >= REACHED else None
    # Both ends are reached by both curves in the sample and in nearly every resample, without extrapolation.
    low = max(max(kl[0, 0], np.quantile(kl[:, 0], REACHED)) for kl in (short, long))
    high = min(min(kl[0, -1], np.quantile(kl[:, -1], 1 - REACHED)) for kl in (short, long))
    midpoints = low + (high - low) * (np.arange(points) + 0.5) / points
    return np.tile(midpoints, (len(short), 1)) if low < high else None


def _result(policy: _Policy, reference: _Policy, judges: Sequence[str], weights: np.ndarray) -> PolicyResult:
    records = policy.records
    first = records.iloc[0]
    tokens = records["tokens"]
    share = 1 / records["batch_rows"]
    return PolicyResult(
        name=first["method"],
        curve=first["curve"],
        beta=float(first["beta"]),
        greedy=bool(first["greedy"]),
        answers=len(records),
        judges={judge: _judge_result(policy, reference, judge, weights) for judge in judges},
        kl=_estimate(_means(policy.values("kl"), weights)),
        cut=_estimate(_means(policy.values("cut"), weights)),
        kl_per_token=_estimate(_per_token(policy, "kl", weights)),
        log_ratio=_estimate(_means(policy.values("log_ratio"), weights)),
        perplexity=_estimate(np.exp(_per_token(policy, "nll", weights))),
        distinct=(
            float(records["distinct_1"].mean()),
            float(records["distinct_2"].mean()),
            float(records["distinct_3"].mean()),
        ),
        self_bleu=_self_bleu(records),
        length=float(tokens.mean()),
        ended=float(records["ended"].mean()),
        guide_forwards=float((records["batch_guide_forwards"] * share).sum() / (records["batch_steps"] * share).sum()),
        guide_tokens=float((records["batch_guide_tokens"] * share).sum() / tokens.sum()),
        ms_per_token=float(1000 * (records["batch_seconds"] * share).sum() / tokens.sum()),
    )


def _judge_result(policy: _Policy, reference: _Policy, judge: str, weights: np.ndarray) -> JudgeResult:
    rewards = policy.rewards(judge)
    baseline = reference.rewards(judge)
    reward = _estimate(_means(rewards, weights))
    if policy is reference:
        return JudgeResult(reward=reward)
    # Paired differences: prompt by prompt, before anything is averaged.
    differences = _prompt_means(rewards) - _prompt_means(baseline)
    _check_any_reward(differences, judge, f"both {policy.title} and {reference.title} to the same prompt")
    # With equal numbers of answers, answer i meets answer i, which has the same random numbers.
    if rewards.shape == baseline.shape:
        pairs = rewards - baseline
    else:
        pairs = (rewards[:, :, None] - baseline[:, None, :]).reshape(len(rewards), -1)
    wins = np.where(np.isnan(pairs), np.nan, (np.sign(pairs) + 1) / 2)
    return JudgeResult(
        reward=reward,
        difference=_estimate(_means(differences[:, None], weights)),
        win_rate=_estimate(_means(wins, weights)),
    )


def _self_bleu(records: pd.DataFrame) -> float | None:
    """Mean over prompts of the self-BLEU of the answers; None if no prompt has two answers."""
    answers = [list(texts) for _, texts in records.groupby("prompt")["answer"] if len(texts) > 1]
    return sum(self_bleu(texts) for texts in answers) / len(answers) if answers else None


def _split(records: pd.DataFrame, judges: Sequence[str]) -> dict[tuple[str, float], _Policy]:
    """The records of each policy, sorted, so that rounding does not depend on the order of the records."""
    _check(records, judges)
    policies = {}
    prompts = records["prompt"].nunique()
    for (method, beta), rows in records.groupby(["method", "beta"], sort=False):
        answered = rows["prompt"].nunique()
        if answered < prompts:
            raise InvalidArgumentError(
                f"Expected answers of every policy to the same {prompts} prompts, but {method}, beta {beta:g}, has "
                f"answered {answered} of them. Finish the run first."
            )
        policies[method, beta] = _Policy(rows.sort_values(["prompt", "seed"]))
    return policies


def _check(records: pd.DataFrame, judges: Sequence[str]) -> None:
    columns = [reward_column(judge) for judge in judges]
    missing = sorted(set(columns) - set(records.columns))
    if missing:
        raise InvalidArgumentError(
            f"Expected records with the columns {', '.join(columns)}, but {', '.join(missing)} is not there. Judge the "
            "answers first."
        )
    repeated = int(records.duplicated(["method", "beta", "prompt", "seed"]).sum())
    if repeated:
        raise InvalidArgumentError(
            f"Expected one record for each method, beta, prompt and seed, but got {repeated} more. Leave out the "
            "repeated records."
        )
    for judge, column in zip(judges, columns, strict=True):
        if np.isinf(records[column].to_numpy(float)).any():
            raise NonFiniteRewardError(
                f"Expected finite rewards, or NaN for a text that is too long, but the judge {judge!r} gave an "
                "infinite one. Correct the judge."
            )


def _check_any_reward(rewards: np.ndarray, judge: str, policy: str) -> None:
    if np.isnan(rewards).all():
        raise NonFiniteRewardError(
            f"Expected the judge {judge!r} to read at least one answer of {policy}, but all of these rewards are NaN. "
            "Use a judge that reads longer texts, or shorter prompts and answers."
        )


def _bootstrap_weights(records: pd.DataFrame, resamples: int, seed: int) -> Float[np.ndarray, "draws prompts"]:
    """How often each prompt counts: once in the sample (row 0), multinomially in each resample (cluster bootstrap)."""
    prompts = records["prompt"].nunique()
    # A resample with replacement is known by its counts, which are multinomial; means are then matrix products.
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.vstack([np.ones(prompts), drawn])


def _estimate(draws: Float[np.ndarray, " draws"]) -> Estimate:
    """The value in the sample with a percentile interval; resamples without any value (NaN) are left out."""
    low, high = np.nanquantile(draws[1:], LEVELS)
    return Estimate(float(draws[0]), float(low), float(high))


def _means(values: Float[np.ndarray, "prompts answers"], weights: np.ndarray) -> Float[np.ndarray, " draws"]:
    """The mean over prompts of the mean over answers, ignoring NaN, in the sample and each resample."""
    means = _prompt_means(values)
    known = ~np.isnan(means)
    return _ratio(np.where(known, means, 0.0), known, weights)


def _prompt_means(values: Float[np.ndarray, "prompts answers"]) -> Float[np.ndarray, " prompts"]:
    """The mean over answers, ignoring NaN; NaN if all are."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(1), known.sum(1))


def _per_token(policy: _Policy, column: str, weights: np.ndarray) -> Float[np.ndarray, " draws"]:
    """The sum of a column over all answers, divided by their tokens, in the sample and each resample."""
    total = np.nansum(policy.values(column), axis=1)
    tokens = np.nansum(policy.values("tokens"), axis=1)
    return _ratio(total, tokens, weights)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " draws"]:
    """Ratio estimator: the weighted sum of one value per prompt, divided by that of another."""
    # One product, so that both sums are rounded alike.
    sums = weights @ np.stack([numerator, denominator], 1)
    return _divide(sums[:, 0], sums[:, 1])


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)

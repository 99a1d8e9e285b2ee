"""From records to findings: means with bootstrap intervals, paired differences, curves at equal divergence.

Prompts are what was sampled, so prompts are what the bootstrap resamples, with all answers to them (Efron & Tibshirani
1993, chapters 8 and 13: percentile intervals). Every policy meets the same resampled prompts, so that whatever makes a
prompt easy cancels in differences. An array of a policy has a row for each prompt and a column for each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.evaluate.records import reward_column
from rgtg_logits.evaluate.results import EqualKL, Estimate, JudgeResult, PolicyResult
from rgtg_logits.evaluate.texts import self_bleu

LEVELS = (0.025, 0.975)
NEARLY_ALL = 0.99
"""Share of the resamples in which a curve must reach a divergence to be compared there."""


class _Policy(NamedTuple):
    """A policy's records, those of one prompt together."""

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
        """What a judge says; NaN where it cannot read the answer, too."""
        values = self.values(reward_column(judge))
        _check_read(values, judge, self.title)
        return values


def summarise(
    records: pd.DataFrame, judges: Sequence[str], *, baseline: str, resamples: int, seed: int
) -> tuple[PolicyResult, ...]:
    """What each policy does and costs; the order of the records changes nothing but the order of the results.

    Rewards, divergences and lengths are means over prompts of the mean over the answers to a prompt; what is per token
    is a sum over all answers over their tokens. Answers that a judge cannot read (NaN) are left out of its means;
    prompts of which it can read no answer are left out, of differences if that is so for either policy. Answer i wins
    or loses against the baseline's answer i; if one of the two policies has more answers to each prompt than the other
    (greedy ones have one), all pairs of answers to a prompt count.

    What a batch cost is shared equally by the answers that came of it, `batch_rows` of them.

    Args:
        records: As in `rgtg_logits.evaluate.records`, all policies and processes together.
        judges: Names of the judges.
        baseline: Name of the method that others are compared with; of several strengths, the first.
        resamples: How many times prompts are resampled.
        seed: Of the bootstrap.

    Returns:
        One result for each method and strength, in the order in which they first appear.

    Raises:
        InvalidArgumentError: If records are missing or there twice, or none are of the baseline.
        NonFiniteRewardError: If a reward is infinite, or a judge can read no answer of a policy.
    """
    policies = _split(records, judges)
    reference = next((policy for (method, _), policy in policies.items() if method == baseline), None)
    if reference is None:
        raise InvalidArgumentError(
            f"Expected records of the baseline {baseline!r}, but there are only those of "
            f"{', '.join(dict.fromkeys(method for method, _ in policies))}. Name one of these."
        )
    weights = _weights(records, resamples, seed)
    return tuple(_result(policy, reference, judges, weights) for policy in policies.values())


def at_equal_kl(
    records: pd.DataFrame, judge: str, first: str, second: str, *, resamples: int, seed: int, points: int = 8
) -> EqualKL | None:
    """Compares the rewards of two curves where both have the same divergence from the base model.

    A curve goes through its policies (methods and strengths) in the order of their divergence, which need not be that
    of their strengths, and is linear in between. It begins at its weakest policy, so list a strength of 0 to begin at
    the unguided one. Greedy policies are left out: repetition is probable, so guidance can lower their divergence, and
    the reward is no function of it. In each resample of the prompts, both the divergences and the rewards of all
    policies are computed anew.

    The curves are compared in the middle of each of `points` equal parts of the range that both reach, in the sample
    and in nearly every resample; `overall` is hence about the mean gap over that range. In the few resamples that do
    not reach so far, a curve keeps its last reward. Of a curve with one policy (a fine-tuned model, best of n), the
    policy is compared with the other curve at its own divergence, which is another one in each resample.

    Args:
        records: As in `summarise`.
        judge: Whose rewards.
        first: A curve.
        second: The curve that is taken from it.
        resamples: How many times prompts are resampled.
        seed: Of the bootstrap.
        points: At how many divergences to compare.

    Returns:
        The comparison; None if the curves do not overlap, or one has greedy policies only. Two curves of one policy
        overlap if their divergences are the same, as those of the best of n by two rewards can be.

    Raises:
        InvalidArgumentError: If a curve has no records, or records are missing or there twice.
        NonFiniteRewardError: If a reward is infinite, or the judge can read no answer of a policy.
    """
    policies = list(_split(records, [judge]).values())
    weights = _weights(records, resamples, seed)
    curves = [_curve(policies, name, judge, weights) for name in (first, second)]
    kl = _common_kl(curves, points)
    if kl is None:
        return None
    rewards = [curve.at(kl) for curve in curves]
    gaps = rewards[0] - rewards[1]
    return EqualKL(
        judge=judge,
        first=first,
        second=second,
        kl=tuple(kl[0].tolist()),
        first_reward=tuple(rewards[0][0].tolist()),
        second_reward=tuple(rewards[1][0].tolist()),
        difference=tuple(map(_estimate, gaps.T)),
        overall=_estimate(gaps.mean(1)),
    )


class _Curve(NamedTuple):
    """A curve in the sample (row 0) and in each resample, its policies sorted by their divergence there."""

    kl: Float[np.ndarray, "draws policies"]
    reward: Float[np.ndarray, "draws policies"]

    def at(self, kl: Float[np.ndarray, "draws points"]) -> Float[np.ndarray, "draws points"]:
        """Rewards at these divergences, which may be others in each resample."""
        return np.stack([np.interp(*row) for row in zip(kl, self.kl, self.reward, strict=True)])


def _curve(policies: Sequence[_Policy], name: str, judge: str, weights: np.ndarray) -> _Curve:
    on_it = [policy for policy in policies if policy.records.iloc[0]["curve"] == name]
    if not on_it:
        found = dict.fromkeys(policy.records.iloc[0]["curve"] for policy in policies)
        raise InvalidArgumentError(
            f"Expected records of the curve {name!r}, but there are only those of {', '.join(found)}. Name one of "
            "these."
        )
    drawn = [policy for policy in on_it if not policy.records["greedy"].any()]
    kl = np.array([_means(policy.values("kl"), weights) for policy in drawn]).T.reshape(len(weights), -1)
    reward = np.array([_means(policy.rewards(judge), weights) for policy in drawn]).T.reshape(kl.shape)
    order = np.argsort(kl, axis=1)
    return _Curve(np.take_along_axis(kl, order, 1), np.take_along_axis(reward, order, 1))


def _common_kl(curves: Sequence[_Curve], points: int) -> Float[np.ndarray, "draws points"] | None:
    """Divergences that both curves reach in the sample and in nearly every resample; None if there are none."""
    short, long = sorted((curve.kl for curve in curves), key=lambda kl: kl.shape[1])
    if short.shape[1] == 0:
        return None
    if short.shape[1] == 1:
        inside = (long[:, :1] <= short) & (short <= long[:, -1:])
        return short if inside[0] and inside.mean() >= NEARLY_ALL else None
    low = max(max(kl[0, 0], np.quantile(kl[:, 0], NEARLY_ALL)) for kl in (short, long))
    high = min(min(kl[0, -1], np.quantile(kl[:, -1], 1 - NEARLY_ALL)) for kl in (short, long))
    middles = low + (high - low) * (np.arange(points) + 0.5) / points
    return np.tile(middles, (len(short), 1)) if low < high else None


def _result(policy: _Policy, reference: _Policy, judges: Sequence[str], weights: np.ndarray) -> PolicyResult:
    records, first = policy.records, policy.records.iloc[0]
    tokens, share = records["tokens"], 1 / records["batch_rows"]
    return PolicyResult(
        name=first["method"],
        curve=first["curve"],
        beta=float(first["beta"]),
        greedy=bool(first["greedy"]),
        answers=len(records),
        judges={judge: _judged(policy, reference, judge, weights) for judge in judges},
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


def _judged(policy: _Policy, reference: _Policy, judge: str, weights: np.ndarray) -> JudgeResult:
    rewards, others = policy.rewards(judge), reference.rewards(judge)
    reward = _estimate(_means(rewards, weights))
    if policy is reference:
        return JudgeResult(reward=reward)
    gaps = _prompt_means(rewards) - _prompt_means(others)
    _check_read(gaps, judge, f"both {policy.title} and {reference.title} to the same prompt")
    if rewards.shape == others.shape:
        pairs = rewards - others
    else:
        pairs = (rewards[:, :, None] - others[:, None, :]).reshape(len(rewards), -1)
    wins = np.where(np.isnan(pairs), np.nan, (np.sign(pairs) + 1) / 2)
    return JudgeResult(
        reward=reward,
        difference=_estimate(_means(gaps[:, None], weights)),
        win_rate=_estimate(_means(wins, weights)),
    )


def _self_bleu(records: pd.DataFrame) -> float | None:
    """Mean over prompts of the self-BLEU of the answers; prompts with one answer are left out."""
    answers = [list(texts) for _, texts in records.groupby("prompt")["answer"] if len(texts) > 1]
    return sum(map(self_bleu, answers)) / len(answers) if answers else None


def _split(records: pd.DataFrame, judges: Sequence[str]) -> dict[tuple[str, float], _Policy]:
    """The records of each policy, sorted, so that rounding does not depend on their order."""
    _check(records, judges)
    ordered = {
        key: rows.sort_values(["prompt", "seed"]) for key, rows in records.groupby(["method", "beta"], sort=False)
    }
    prompts = records["prompt"].nunique()
    for (method, beta), rows in ordered.items():
        answered = rows["prompt"].nunique()
        if answered < prompts:
            raise InvalidArgumentError(
                f"Expected answers of every policy to the same {prompts} prompts, but {method}, beta {beta:g}, has "
                f"answered {answered} of them. Finish the run first."
            )
    return {key: _Policy(rows) for key, rows in ordered.items()}


def _check(records: pd.DataFrame, judges: Sequence[str]) -> None:
    columns = [reward_column(judge) for judge in judges]
    missing = sorted(set(columns) - set(records.columns))
    if missing:
        raise InvalidArgumentError(
            f"Expected records with the columns {', '.join(columns)}, but {', '.join(missing)} is not there. Judge the "
            "answers first."
        )
    twice = int(records.duplicated(["method", "beta", "prompt", "seed"]).sum())
    if twice:
        raise InvalidArgumentError(
            f"Expected one record for each method, beta, prompt and seed, but got {twice} more. Leave out the records "
            "that are there twice."
        )
    for judge, column in zip(judges, columns, strict=True):
        if np.isinf(records[column].to_numpy(float)).any():
            raise NonFiniteRewardError(
                f"Expected finite rewards, or NaN for a text that cannot be read, but the judge {judge!r} gave an "
                "infinite one. Mend the judge."
            )


def _check_read(rewards: np.ndarray, judge: str, whose: str) -> None:
    if np.isnan(rewards).all():
        raise NonFiniteRewardError(
            f"Expected the judge {judge!r} to read at least one answer of {whose}, but all of these rewards are NaN. "
            "Use a judge that reads longer texts, or shorter prompts and answers."
        )


def _weights(records: pd.DataFrame, resamples: int, seed: int) -> Float[np.ndarray, "draws prompts"]:
    """How often each prompt counts: once in the sample itself (row 0), at random in each resample."""
    prompts = records["prompt"].nunique()
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.vstack([np.ones(prompts), drawn])


def _estimate(draws: Float[np.ndarray, " draws"]) -> Estimate:
    """The value in the sample, with quantiles of the resamples; those that hold nothing to average are left out."""
    low, high = np.nanquantile(draws[1:], LEVELS)
    return Estimate(float(draws[0]), float(low), float(high))


def _means(values: Float[np.ndarray, "prompts answers"], weights: np.ndarray) -> Float[np.ndarray, " draws"]:
    """The mean over prompts of the mean over answers, without what is NaN, in each draw."""
    means = _prompt_means(values)
    known = ~np.isnan(means)
    return _ratio(np.where(known, means, 0.0), known, weights)


def _prompt_means(values: Float[np.ndarray, "prompts answers"]) -> Float[np.ndarray, " prompts"]:
    """The mean over answers without those that are NaN; NaN if all are."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(1), known.sum(1))


def _per_token(policy: _Policy, column: str, weights: np.ndarray) -> Float[np.ndarray, " draws"]:
    """A column summed over all answers, over their tokens, in each draw."""
    return _ratio(np.nansum(policy.values(column), axis=1), np.nansum(policy.values("tokens"), axis=1), weights)


def _ratio(above: np.ndarray, below: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " draws"]:
    """The weighted sum of one value per prompt over that of another, in each draw."""
    return _divide(*(weights @ np.stack([above, below], 1)).T)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where nothing is below."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)

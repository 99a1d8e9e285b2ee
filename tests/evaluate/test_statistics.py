"""Means, intervals and comparisons, against truths that are known and twins that are slow."""

import itertools
import math
import statistics as plain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.evaluate.records import Record

pd = pytest.importorskip("pandas")
pytest.importorskip("sacrebleu")

from rgtg_logits.evaluate.statistics import at_equal_kl, summarise  # noqa: E402


def rows(method, rewards, *, kl=None, tokens=None, **others):
    """Records of a policy, of which an array of rewards has a row for each prompt and a column for each seed."""
    rewards = np.asarray(rewards, float)
    prompt, seed = np.divmod(np.arange(rewards.size), rewards.shape[1])
    tokens = np.full(rewards.shape, 4) if tokens is None else np.asarray(tokens)
    kl = np.zeros(rewards.shape) if kl is None else np.broadcast_to(kl, rewards.shape)
    columns = {
        "method": method, "curve": method, "beta": 0.0, "greedy": False, "prompt": prompt, "seed": seed,
        "prompt_text": "x", "answer": "y", "tokens": tokens.ravel(), "ended": True,
        "kl": kl.ravel(), "log_ratio": kl.ravel(), "nll": tokens.ravel() * 0.5,
        "cut": kl.ravel() / 2,
        "distinct_1": 0.5, "distinct_2": 0.75, "distinct_3": 1.0,
        "batch_rows": rewards.size, "batch_steps": 4, "batch_seconds": 1.0,
        "batch_guide_forwards": 0, "batch_guide_tokens": 0, "reward_gold": rewards.ravel(),
    }  # fmt: skip
    assert set(columns) == {*Record.__annotations__, "reward_gold"}
    return pd.DataFrame({**columns, **others})


def summary(records, baseline="base", judges=("gold",), resamples=100, seed=0):
    found = summarise(records, judges, baseline=baseline, resamples=resamples, seed=seed)
    return {(result.name, result.beta): result for result in found}


def gold(records, policy, **options):
    return summary(records, **options)[policy].judges["gold"]


def random_records(rng, *, prompts=7, seeds=3, unreadable=0.0):
    """A baseline, a curve of three strengths and one of two, and a greedy policy with one answer to each prompt."""
    parts = []
    for method, beta, count in [("base", 0, seeds), ("A", 1, seeds), ("A", 2, seeds), ("A", 4, seeds), ("B", 1, seeds),
                                ("B", 3, seeds), ("greedy", 1, 1)]:  # fmt: skip
        rewards = rng.normal(size=(prompts, count)).round(1) + beta
        rewards[rng.random(rewards.shape) < unreadable] = np.nan
        kl, tokens = rng.gamma(2, size=rewards.shape) + beta, rng.integers(1, 9, rewards.shape)
        made = rows(method, rewards, kl=kl, tokens=tokens, beta=float(beta), greedy=method == "greedy")
        made["nll"] = made["tokens"] * rng.gamma(2, size=rewards.size)
        made["cut"] = made["kl"] * rng.random(rewards.size)
        made["log_ratio"] = made["kl"] + rng.normal(size=rewards.size)
        made["distinct_2"] = rng.random(rewards.size)
        made["answer"] = [" ".join(rng.choice(list("abc"), 3)) for _ in range(rewards.size)]
        parts.append(made)
    return pd.concat(parts, ignore_index=True)


# A twin of every estimate: resampled prompts one after another, answers in lists.


def twin_draws(prompts, resamples, seed):
    """Prompts of the sample, and of each resample; the counts are the only thing that the twins share."""
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return [
        list(range(prompts)),
        *([prompt for prompt in range(prompts) for _ in range(row[prompt])] for row in counts),
    ]


def twin_interval(statistic, draws):
    values = [statistic(draw) for draw in draws]
    known = [value for value in values[1:] if value is not None]
    return values[0], *np.quantile(known, [0.025, 0.975])


def mean(values):
    known = [value for value in values if value is not None and not math.isnan(value)]
    return plain.fmean(known) if known else None


class Twin:
    def __init__(self, records):
        self.by_policy = {}
        for line in records.to_dict("records"):
            policy = self.by_policy.setdefault((line["method"], line["beta"]), {})
            policy.setdefault(line["prompt"], {})[line["seed"]] = line

    def column(self, policy, prompt, column):
        lines = self.by_policy[policy][prompt]
        return [lines[seed][column] for seed in sorted(lines)]

    def mean(self, policy, column):
        return lambda draw: mean([mean(self.column(policy, prompt, column)) for prompt in draw])

    def per_token(self, policy, column):
        return lambda draw: (
            sum(sum(self.column(policy, prompt, column)) for prompt in draw)
            / sum(sum(self.column(policy, prompt, "tokens")) for prompt in draw)
        )

    def difference(self, policy, baseline):
        def gap(prompt):
            ours, theirs = (mean(self.column(name, prompt, "reward_gold")) for name in (policy, baseline))
            return None if ours is None or theirs is None else ours - theirs

        return lambda draw: mean([gap(prompt) for prompt in draw])

    def win_rate(self, policy, baseline):
        def wins(prompt):
            ours, theirs = (self.column(name, prompt, "reward_gold") for name in (policy, baseline))
            pairs = (
                zip(ours, theirs, strict=True) if len(ours) == len(theirs) else [(a, b) for a in ours for b in theirs]
            )
            known = [(a, b) for a, b in pairs if not math.isnan(a) and not math.isnan(b)]
            return mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in known])

        return lambda draw: mean([wins(prompt) for prompt in draw])

    def reward_at(self, policies, kl, draw):
        """Linear interpolation, written out."""
        points = sorted((self.mean(p, "kl")(draw), self.mean(p, "reward_gold")(draw)) for p in policies)
        if kl <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in itertools.pairwise(points):
            if kl <= right:
                return low + (high - low) * (kl - left) / (right - left)
        return points[-1][1]


@pytest.mark.parametrize("unreadable", [0.0, 0.3])
def test_equals_the_slow_twin(unreadable):
    records = random_records(np.random.default_rng(1), unreadable=unreadable)
    twin, draws = Twin(records), twin_draws(7, 100, 5)
    found = summary(records, seed=5)
    assert list(found) == list(twin.by_policy)
    for policy, result in found.items():
        judged = result.judges["gold"]
        compared = [
            (result.kl, twin.mean(policy, "kl")),
            (result.log_ratio, twin.mean(policy, "log_ratio")),
            (result.cut, twin.mean(policy, "cut")),
            (result.kl_per_token, twin.per_token(policy, "kl")),
            (judged.reward, twin.mean(policy, "reward_gold")),
            (judged.difference, twin.difference(policy, ("base", 0.0))),
            (judged.win_rate, twin.win_rate(policy, ("base", 0.0))),
        ]
        for estimate, statistic in compared[: 4 if policy == ("base", 0.0) else 6]:
            assert estimate == pytest.approx(twin_interval(statistic, draws))
        nll = twin.per_token(policy, "nll")
        assert result.perplexity == pytest.approx(twin_interval(lambda draw, nll=nll: math.exp(nll(draw)), draws))


def test_equal_kl_equals_the_slow_twin():
    records = random_records(np.random.default_rng(2), prompts=12)
    twin, draws = Twin(records), twin_draws(12, 200, 3)
    found = at_equal_kl(records, "gold", "A", "B", resamples=200, seed=3, points=4)
    curves = [[("A", 1.0), ("A", 2.0), ("A", 4.0)], [("B", 1.0), ("B", 3.0)]]
    for number, kl in enumerate(found.kl):
        first, second = (twin.reward_at(curve, kl, draws[0]) for curve in curves)
        assert (found.first_reward[number], found.second_reward[number]) == pytest.approx((first, second))
        gap = lambda draw, kl=kl: twin.reward_at(curves[0], kl, draw) - twin.reward_at(curves[1], kl, draw)  # noqa: E731
        assert found.difference[number] == pytest.approx(twin_interval(gap, draws))
    overall = twin_interval(
        lambda draw: mean([twin.reward_at(curves[0], k, draw) - twin.reward_at(curves[1], k, draw) for k in found.kl]),
        draws,
    )
    assert found.overall == pytest.approx(overall)
    ends = np.array([[[twin.mean(p, "kl")(draw) for p in (curve[0], curve[-1])] for curve in curves] for draw in draws])
    low, high = np.quantile(ends[:, :, 0], 0.99, axis=0).max(), np.quantile(ends[:, :, 1], 0.01, axis=0).min()
    assert found.kl == pytest.approx([low + (high - low) * part for part in (1 / 8, 3 / 8, 5 / 8, 7 / 8)])


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_records_changes_nothing(random):
    records = random_records(np.random.default_rng(4), unreadable=0.2)
    order = random.sample(range(len(records)), len(records))
    shuffled = records.iloc[order]
    assert summary(shuffled) == summary(records)
    compare = {"resamples": 100, "seed": 1}
    assert at_equal_kl(shuffled, "gold", "A", "B", **compare) == at_equal_kl(records, "gold", "A", "B", **compare)


def test_the_names_of_prompts_and_seeds_change_nothing():
    """Prompts are rows of a data set of which some were left out."""
    records = random_records(np.random.default_rng(4))
    renamed = records.assign(prompt=records["prompt"] * 3 + 11, seed=records["seed"] + 2)
    assert summary(renamed) == summary(records)


# Truths.


def within(estimate, truth):
    return estimate.low <= truth <= estimate.high


def test_intervals_hold_the_truth_in_95_of_100_cases():
    """Of 200 experiments; 0.90 to 0.985 are three standard deviations below and two above.

    Prompts differ more than answers to one, so that intervals from resampled answers would be far too narrow: of the
    mean reward they would hold the truth in 65 of 100 cases.
    """
    rng, held = np.random.default_rng(0), {"reward": 0, "difference": 0, "win_rate": 0, "kl_per_token": 0}
    for number in range(200):
        easy = rng.normal(size=(60, 1))
        base, policy = easy + 0.3 * rng.normal(size=(60, 4)), easy + 0.2 + 0.3 * rng.normal(size=(60, 4))
        long = rng.integers(1, 30, (60, 4))
        kl = long * (0.5 + 0.2 * rng.normal(size=(60, 1)))
        result = summary(
            pd.concat([rows("base", base), rows("A", policy, kl=kl, tokens=long)]), seed=number, resamples=300
        )["A", 0.0]
        judged = result.judges["gold"]
        held["reward"] += within(judged.reward, 0.2)
        held["difference"] += within(judged.difference, 0.2)
        held["win_rate"] += within(judged.win_rate, plain.NormalDist(0.2, math.sqrt(0.18)).cdf(0) * -1 + 1)
        held["kl_per_token"] += within(result.kl_per_token, 0.5)
    assert all(0.90 <= count / 200 <= 0.985 for count in held.values()), held


def test_intervals_at_equal_kl_hold_the_truth_in_95_of_100_cases():
    """Rewards that are linear in the divergence, so that interpolating them is right.

    Of 120 experiments; 0.90 to 0.995 are two and a half standard deviations below and two above.
    """
    rng, held, alone = np.random.default_rng(1), 0, 0
    for number in range(120):
        easy = rng.normal(size=(60, 1))
        parts = []
        for name, beta, gap in [("A", 1, 0.3), ("A", 2, 0.3), ("A", 4, 0.3), ("B", 1, 0), ("B", 4, 0), ("C", 2, 0.3)]:
            kl = beta * (1 + 0.2 * rng.normal(size=(60, 2)))
            rewards = easy + gap + 2 * kl + 0.3 * rng.normal(size=(60, 2))
            parts.append(rows(name, rewards, kl=kl, beta=float(beta)))
        records = pd.concat(parts)
        held += within(at_equal_kl(records, "gold", "A", "B", resamples=300, seed=number).overall, 0.3)
        alone += within(at_equal_kl(records, "gold", "C", "B", resamples=300, seed=number).overall, 0.3)
    assert 0.90 <= held / 120 <= 0.995 and 0.90 <= alone / 120 <= 0.995, (held, alone)


def test_differences_are_paired_by_prompt():
    """A constant gap between prompts that differ much is known without doubt; the rewards themselves are not."""
    easy = np.random.default_rng(0).normal(size=(30, 2))
    judged = gold(pd.concat([rows("base", easy), rows("A", easy + 0.5)]), ("A", 0.0))
    assert judged.difference == pytest.approx((0.5, 0.5, 0.5))
    assert judged.win_rate == (1, 1, 1)
    assert judged.reward.high - judged.reward.low > 0.3


def test_ties_are_half_a_win_and_answers_meet_their_like():
    base = [[0, 3], [0, 0]]
    policy = [[1, 2], [0, 1]]
    judged = gold(pd.concat([rows("base", base), rows("A", policy)]), ("A", 0.0))
    assert judged.win_rate.value == (1 + 0 + 0.5 + 1) / 4
    assert judged.difference.value == ((1.5 - 1.5) + (0.5 - 0)) / 2


@pytest.mark.parametrize("baseline", ["base", "greedy"])
def test_one_answer_meets_all_of_several(baseline):
    records = pd.concat([rows("base", [[0, 1, 2, 3], [0, 0, 0, 0]]), rows("greedy", [[2], [1]])])
    other = "greedy" if baseline == "base" else "base"
    judged = gold(records, (other, 0.0), baseline=baseline)
    rate = ((1 + 1 + 0.5 + 0) / 4 + 1) / 2
    assert judged.win_rate.value == (rate if other == "greedy" else 1 - rate)
    assert judged.difference.value == (0.75 if other == "greedy" else -0.75)


def test_the_baseline_is_compared_with_nobody_and_its_other_strengths_with_its_first():
    records = pd.concat([rows("A", [[0], [1]], beta=2.0), rows("A", [[1], [2]], beta=1.0)])
    found = summary(records, baseline="A")
    assert found["A", 2.0].judges["gold"].difference is None and found["A", 2.0].judges["gold"].win_rate is None
    assert found["A", 1.0].judges["gold"].difference == (1, 1, 1)


def test_several_judges():
    records = pd.concat([rows("base", [[0], [1]]), rows("A", [[1], [2]])])
    records["reward_star"] = -records["reward_gold"]
    judges = summary(records, judges=("gold", "star"))["A", 0.0].judges
    assert list(judges) == ["gold", "star"]
    assert (judges["gold"].difference.value, judges["star"].difference.value) == (1, -1)
    assert (judges["gold"].win_rate.value, judges["star"].win_rate.value) == (1, 0)


# What a judge cannot read.


def test_unreadable_answers_are_left_out():
    nan = float("nan")
    records = pd.concat([rows("base", [[0, 2], [4, 4], [7, 7]]), rows("A", [[nan, 3], [6, 8], [nan, nan]])])
    judged = gold(records, ("A", 0.0))
    assert judged.reward.value == (3 + 7) / 2
    assert judged.difference.value == ((3 - 1) + (7 - 4)) / 2
    assert judged.win_rate.value == 1
    assert all(math.isfinite(value) for value in (*judged.reward, *judged.difference, *judged.win_rate))


def test_a_judge_that_reads_nothing_is_an_error():
    nan = float("nan")
    records = pd.concat([rows("base", [[0], [1]]), rows("A", [[nan], [nan]])])
    with pytest.raises(NonFiniteRewardError, match="'gold' to read at least one answer of A, beta 0"):
        summary(records)
    records = pd.concat([rows("base", [[0], [nan]]), rows("A", [[nan], [1]])])
    with pytest.raises(NonFiniteRewardError, match="both A, beta 0 and base, beta 0 to the same prompt"):
        summary(records)
    with pytest.raises(NonFiniteRewardError, match="infinite"):
        summary(rows("base", [[0], [float("-inf")]]))


# Texts and costs.


def test_lengths_and_variety():
    records = pd.concat([rows("base", [[0, 0], [0, 0]], tokens=[[1, 3], [5, 7]]), rows("greedy", [[0], [0]])])
    records["ended"] = [True, False, True, True, True, False]
    records["answer"] = ["a b", "a b", "c", "d", "e", "f"]
    found = summary(records)
    base, greedy = found["base", 0.0], found["greedy", 0.0]
    assert (base.answers, greedy.answers) == (4, 2)
    assert (base.length, base.ended, greedy.ended) == (4, 0.75, 0.5)
    assert base.distinct == (0.5, 0.75, 1.0)
    assert base.self_bleu == pytest.approx((100 + 0) / 2) and greedy.self_bleu is None
    assert base.perplexity.value == pytest.approx(math.exp(0.5))


def test_what_a_batch_cost_is_counted_once():
    """Three answers from a batch with 10 steps, 2 from one with 4."""
    records = rows("A", [[0], [0], [0], [0], [0]], tokens=[[10], [5], [3], [4], [4]])
    records["batch_rows"] = [3, 3, 3, 2, 2]
    records["batch_steps"] = [10, 10, 10, 4, 4]
    records["batch_seconds"] = [6.0, 6.0, 6.0, 0.5, 0.5]
    records["batch_guide_forwards"] = [20, 20, 20, 1, 1]
    records["batch_guide_tokens"] = [900, 900, 900, 140, 140]
    result = summary(records, baseline="A")["A", 0.0]
    assert result.guide_forwards == pytest.approx((20 + 1) / (10 + 4))
    assert result.guide_tokens == pytest.approx((900 + 140) / 26)
    assert result.ms_per_token == pytest.approx(1000 * (6.0 + 0.5) / 26)


# Curves.


def curve(name, strengths, reward, *, prompts=40, spread=0.05, **others):
    """A curve through policies whose divergence is their strength, on average."""
    rng = np.random.default_rng(len(name))
    parts = []
    for strength in strengths:
        kl = strength * (1 + spread * rng.normal(size=(prompts, 2)))
        rewards = reward(strength) + spread * rng.normal(size=(prompts, 2))
        parts.append(rows(name, rewards, kl=kl, beta=float(strength), **others))
    return pd.concat(parts)


def compare(records, first="A", second="B", **options):
    return at_equal_kl(records, "gold", first, second, **{"resamples": 300, "seed": 0, **options})


def test_concave_curves():
    """√KL and half of it, at strengths of their own; the gap is √KL / 2 but for what lies between a chord and its arc.

    Between divergences a < b that error is less than (b − a)² / 8 · max|f''| ≤ 0.13 for these strengths.
    """
    first = curve("A", [0, 0.25, 1, 2.25, 4, 6.25, 9], math.sqrt)
    second = curve("B", [0.5, 1, 2, 3, 5, 7], lambda kl: math.sqrt(kl) / 2)
    found = compare(pd.concat([first, second]))
    assert len(found.kl) == 8 and found.kl == tuple(sorted(found.kl))
    assert 0.5 < found.kl[0] < 1.0 and 6.0 < found.kl[-1] < 7.0
    for kl, gap, a, b in zip(found.kl, found.difference, found.first_reward, found.second_reward, strict=True):
        assert gap.value == pytest.approx(math.sqrt(kl) / 2, abs=0.13) and a - b == pytest.approx(gap.value)
        assert 0 < gap.low < gap.value < gap.high
    assert found.overall.value == pytest.approx(plain.fmean(gap.value for gap in found.difference))
    assert (found.judge, found.first, found.second) == ("gold", "A", "B")
    back = compare(pd.concat([first, second]), "B", "A")
    assert back.overall == pytest.approx((-found.overall.value, -found.overall.high, -found.overall.low))


def test_a_reward_that_falls_again_and_strengths_out_of_order():
    """Reward hacking, and a curve whose divergence falls with its strength."""
    records = pd.concat([curve("A", [1, 2, 3], lambda kl: -abs(kl - 2)), curve("B", [1, 2, 3], lambda kl: 0.0)])
    records["beta"] = -records["beta"]
    found = compare(records, points=5)
    assert [gap.value for gap in found.difference] == pytest.approx([-abs(kl - 2) for kl in found.kl], abs=0.1)


def test_curves_apart_are_not_compared():
    records = pd.concat([curve("A", [1, 2, 3], math.sqrt), curve("B", [4, 5], math.sqrt)])
    assert compare(records) is None
    assert compare(records, "B", "A") is None


def test_curves_that_overlap_by_chance_only_are_not_compared():
    """Their ends are as near as their means are uncertain."""
    records = pd.concat([curve("A", [1, 2], math.sqrt, spread=0.5), curve("B", [1.99, 3], math.sqrt, spread=0.5)])
    assert compare(records) is None


def test_one_policy_meets_a_curve_at_its_own_divergence():
    records = pd.concat([curve("A", [1, 2, 4], lambda kl: 2 * kl), curve("B", [3], lambda kl: 5.0)])
    found = compare(records)
    kl = records[records["method"] == "B"]["kl"].mean()
    assert found.kl == pytest.approx((kl,))
    assert found.overall == found.difference[0]
    assert found.overall.value == pytest.approx(2 * kl - 5, abs=0.15)
    assert compare(records, "B", "A").overall.value == pytest.approx(-found.overall.value)


def test_one_policy_beyond_the_curve_or_alone_is_not_compared():
    one = [curve("B", [5], math.sqrt), curve("C", [4], math.sqrt, spread=0.3), curve("D", [2], math.sqrt)]
    records = pd.concat([curve("A", [1, 2, 4], math.sqrt), *one])
    assert compare(records) is None
    assert compare(records, "A", "C") is None
    assert compare(records, "B", "D") is None
    assert compare(records, "A", "D") is not None


def test_two_policies_of_the_same_divergence_are_compared():
    """The best of 4 draws from the whole base model, by two rewards."""
    kl = math.log(4) - 3 / 4
    records = pd.concat([rows("A", [[1, 2], [3, 5], [2, 2]], kl=kl), rows("B", [[0, 1], [2, 4], [1, 1]], kl=kl)])
    found = compare(records)
    assert found.kl == pytest.approx((kl,))
    assert found.overall == pytest.approx((1, 1, 1))


def test_greedy_policies_lie_on_no_curve():
    drawn = pd.concat([curve("A", [1, 2, 4], math.sqrt), curve("B", [1, 2, 4], math.sqrt)])
    greedy = curve("A", [3], lambda kl: 99.0, greedy=True).assign(method="A greedy")
    assert compare(pd.concat([drawn, greedy])) == compare(drawn)
    assert compare(pd.concat([drawn, greedy.assign(curve="only greedy")]), "A", "only greedy") is None


def test_methods_of_one_family_are_one_curve():
    best = [curve("of 4", [1], lambda kl: 2.0), curve("of 16", [2], lambda kl: 4.0)]
    records = pd.concat([*(part.assign(curve="best") for part in best), curve("A", [0, 3], lambda kl: 0.0)])
    found = compare(records, "best", "A")
    assert len(found.kl) == 8
    assert [gap.value for gap in found.difference] == pytest.approx([2 * kl for kl in found.kl], abs=0.15)


# What is wrong with records.


def test_wrong_records_are_refused():
    records = pd.concat([rows("base", [[0], [1]]), rows("A", [[1], [2]])])
    with pytest.raises(InvalidArgumentError, match="baseline 'none', but there are only those of base, A"):
        summary(records, baseline="none")
    with pytest.raises(InvalidArgumentError, match="reward_star is not there"):
        summary(records, judges=("gold", "star"))
    with pytest.raises(InvalidArgumentError, match="2 more"):
        summary(pd.concat([records, rows("A", [[1], [2]])]))
    with pytest.raises(InvalidArgumentError, match="same 2 prompts, but A, beta 0, has answered 1 of them"):
        summary(records.iloc[:-1])
    with pytest.raises(InvalidArgumentError, match="curve 'none', but there are only those of base, A"):
        compare(records, "A", "none")

"""The theory, checked by enumeration: each statement in several random worlds, truncated to the top-k and whole."""

import math

import pytest
import torch
from tabular import BETAS, CUTS, ROUNDING, drawn, random_rewards, supported, worst

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.exact import (
    World,
    arm,
    bradley_terry,
    bradley_terry_loss,
    conditional_mean,
    expected_reward,
    full_bt,
    guided_policy,
    kl_divergence,
    optimal_log_probs,
    optimal_policy,
    partial_bt,
    prefix_log_probs,
    prefix_policies,
    rlhf_objective,
    sequence_log_probs,
    soft_value,
    total_variation,
    value,
    win_weights,
)


@pytest.fixture(params=CUTS)
def world(request):
    return drawn(request.param)


def centred(entry):
    return entry - entry.mean()


# The world


def test_a_world_is_a_distribution_over_texts(world):
    probability = sequence_log_probs(world.policy).exp()
    assert probability.sum().item() == pytest.approx(1, abs=ROUNDING)
    texts = {tuple(row[:length]) for row, length, p in zip(
        world.sequences().tolist(), world.lengths().tolist(), probability.flatten().tolist(), strict=True
    ) if p > 0}  # fmt: skip
    # Each text occurs once: end-of-text tokens are its only continuation.
    assert len(texts) == int((probability > 0).sum())
    if world.eos is not None:
        assert all(world.eos not in text[:-1] for text in texts)
        assert len({len(text) for text in texts}) > 1


def test_truncation_keeps_the_most_probable_tokens_in_proportion():
    world = World.random(4, 3, seed=5)
    for step, cut in zip(world.policy, world.truncated(2).policy, strict=True):
        assert (supported(cut).sum(-1) == 2).all()
        kept = step.masked_fill(~supported(cut), float("-inf"))
        torch.testing.assert_close(cut, kept - kept.logsumexp(-1, keepdim=True), rtol=0, atol=ROUNDING)
        assert (step[supported(cut)].min() >= step[~supported(cut)].min()).all()
        assert (kept.amax(-1) == step.amax(-1)).all()


def test_a_seed_is_a_world():
    one, same, other = (World.random(3, 4, eos=0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.reward, same.reward) and all(map(torch.equal, one.policy, same.policy))
    assert not torch.equal(one.reward, other.reward)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: World(w.policy[:1], w.reward), "one entry of the policy per token"),
        (lambda w: World(w.policy, w.reward.float()), "torch.float64"),
        (lambda w: World(w.policy, w.reward / 0), "finite rewards"),
        (lambda w: World(tuple(step + 1 for step in w.policy), w.reward), "add up to 1"),
        (lambda w: World(w.policy, w.reward, eos=1), "nothing but token 1"),
        (lambda w: World.random(3, 0), "horizon of 1 or more"),
        (lambda w: World.random(3, 2, eos=3), "eos to be one of the tokens"),
        (lambda w: w.truncated(0), "top_k to be 1 or more"),
        (lambda w: soft_value(w, 0.0), "more than 0"),
        (lambda w: arm(w, math.inf), "more than 0"),
        (lambda w: bradley_terry(torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double()), "no finite optimum"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make(World.random(2, 2))


# §1: soft value and optimum


@pytest.mark.parametrize("beta", BETAS)
def test_the_steps_of_the_optimum_multiply_to_the_optimum(world, beta):
    steps = sequence_log_probs(optimal_policy(world, beta))
    assert (steps.exp() - optimal_log_probs(world, beta).exp()).abs().max() < 1e-14
    assert total_variation(steps, optimal_log_probs(world, beta)) < 1e-14


@pytest.mark.parametrize("beta", BETAS)
def test_nothing_is_better_than_the_optimum(world, beta):
    best = soft_value(world, beta)[0]
    log_z = (sequence_log_probs(world.policy) + beta * world.reward).flatten().logsumexp(0)
    assert best.item() == pytest.approx(log_z.item() / beta, abs=ROUNDING)
    star = optimal_log_probs(world, beta)
    assert rlhf_objective(world, star, beta).item() == pytest.approx(best.item(), abs=ROUNDING)
    for seed in range(3):
        other = sequence_log_probs(guided_policy(world, random_rewards(world, seed), beta))
        missing = best - rlhf_objective(world, other, beta)
        assert missing.item() == pytest.approx(kl_divergence(other, star).item() / beta, abs=1e-12)
        assert missing > 1e-6


def test_the_soft_value_is_the_log_of_a_mean_of_exponentials(world):
    means = conditional_mean(world.policy, (2.0 * world.reward).exp())
    log_means = tuple(mean.log() / 2.0 for mean in means)
    assert worst(soft_value(world, 2.0), log_means, prefix_log_probs(world.policy)) < ROUNDING


# §2: the paper


@pytest.mark.parametrize("beta", BETAS)
def test_full_sequences_determine_no_rewards_of_prefixes(world, beta):
    # Rewards with one and the same loss guide to any policy over all but the last token.
    target = guided_policy(world, random_rewards(world, 7), 2.0)
    ratio = tuple((q - p).masked_fill(~supported(p), 0.0) / beta for q, p in zip(target, world.policy, strict=True))
    rewards = (*((torch.zeros(()).double()), *ratio)[:-1], world.reward)
    for step, expected in zip(guided_policy(world, rewards, beta)[:-1], target[:-1], strict=True):
        assert (step.exp() - expected.exp()).abs().max() < 1e-14
    wins = win_weights(world)
    assert bradley_terry_loss(wins, rewards[-1].flatten()) == bradley_terry_loss(wins, world.reward.flatten())


def test_two_reward_models_with_the_same_loss_guide_to_opposite_rewards(world):
    losses, outcomes = [], []
    for sign in (1.0, -1.0):
        # The loss determines only the guidance of the last token; before it, the best prefixes are chosen or the worst.
        rewards = (*(sign * 50.0 * entry for entry in value(world)[:-1]), world.reward)
        losses.append(bradley_terry_loss(win_weights(world), rewards[-1].flatten()))
        outcomes.append(expected_reward(world, sequence_log_probs(guided_policy(world, rewards, 1.0))).item())
    base = value(world)[0].item()
    assert losses[0] == losses[1] < math.log(2)
    assert outcomes[1] < base < outcomes[0] and outcomes[0] - outcomes[1] > 0.5


@pytest.mark.parametrize("beta", BETAS)
def test_any_guided_policy_is_a_ratio_of_two_rlhf_policies(world, beta):
    rewards = random_rewards(world)
    by_length = prefix_policies(world, rewards, beta)
    for step, shorter, longer in zip(guided_policy(world, rewards, beta), by_length[:-1], by_length[1:], strict=True):
        reached = supported(shorter)
        ratio = (longer - shorter[..., None])[reached]
        # The ratio is not normalised, because each of the two is normalised over all prefixes of its length.
        ratio = ratio.exp() / ratio.exp().sum(-1, keepdim=True)
        last_token = longer[reached].exp() / longer[reached].exp().sum(-1, keepdim=True)
        assert (ratio - step[reached].exp()).abs().max() < 1e-14
        assert (last_token - step[reached].exp()).abs().max() < 1e-14


def test_partial_bt_at_the_last_length_is_the_reward(world):
    reached = supported(sequence_log_probs(world.policy))
    expected = centred(world.reward[reached])
    for tie_finished in (False, True):
        rewards = partial_bt(world, tie_finished=tie_finished)[-1][reached]
        if not tie_finished or world.eos is None:
            assert (centred(rewards) - expected).abs().max() < 1e-10
    assert (centred(full_bt(world)[reached]) - expected).abs().max() < 1e-10


def test_partial_bt_predicts_how_often_each_prefix_wins(world):
    # The equation of the theory: Σ_b (W[a,b] + W[b,a]) sigmoid(r(a) − r(b)) = Σ_b W[a,b] for every prefix a.
    for i, entry in enumerate(partial_bt(world)):
        prefixes, completions = world.vocab**i, world.vocab ** (world.horizon - i)
        wins = win_weights(world).view(prefixes, completions, prefixes, completions).sum((1, 3))
        scores = entry.flatten()
        predicted = ((wins + wins.T) * (scores[:, None] - scores).sigmoid()).sum(1)
        assert (predicted - wins.sum(1)).abs().max() < 1e-15
        reached = prefix_log_probs(world.policy)[i].exp()
        assert abs(float((reached * entry).sum())) < ROUNDING


def test_tied_finished_texts_have_one_reward_at_every_length():
    world = World.random(3, 4, eos=0, seed=3)
    _, one, two, _, four = partial_bt(world, tie_finished=True)
    assert one[0] == two[0, 0] == four[0, 0, 0, 0] and two[1, 0] == four[1, 0, 0, 0]
    loss = [_comparisons(world, entry) for entry in (partial_bt(world, tie_finished=True), _nudged(world))]
    assert loss[0] < loss[1]


def _nudged(world):
    """The tied optimum with a small change to one reward, at every length where it occurs."""
    table = [entry.clone() for entry in partial_bt(world, tie_finished=True)]
    for i in range(2, world.horizon + 1):
        table[i][(1, *(0,) * (i - 1))] += 1e-4
    return tuple(table)


def _comparisons(world, table):
    """The sum of the loss over all comparisons of all pairs, pair by pair."""
    wins, lengths, sequences = win_weights(world), world.lengths().tolist(), world.sequences().tolist()
    total = 0.0
    for a, (left, left_length) in enumerate(zip(sequences, lengths, strict=True)):
        for b, (right, right_length) in enumerate(zip(sequences, lengths, strict=True)):
            for i in range(1, max(left_length, right_length) + 1):
                difference = table[i][tuple(left[:i])] - table[i][tuple(right[:i])]
                total += float(wins[a, b]) * math.log1p(math.exp(-float(difference)))
    return total


def test_partial_bt_with_small_rewards_is_the_expected_reward(world):
    errors = []
    for scale in (1e-2, 1e-3):
        small = World(world.policy, scale * world.reward, world.eos)
        means = tuple((entry - value(world)[0]) for entry in value(world))
        rescaled = tuple(entry / scale for entry in partial_bt(small))
        errors.append(worst(rescaled, means, prefix_log_probs(world.policy)))
    assert errors[1] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)  # The remaining error is of second order.


def test_partial_bt_with_large_rewards_depends_only_on_who_wins(world):
    scores = []
    for scale in (1e3, 1e4):
        wins = win_weights(World(world.policy, scale * world.reward, world.eos))
        by_first = wins.view(world.vocab, -1, world.vocab, wins.shape[0] // world.vocab).sum((1, 3))
        scores.append(bradley_terry(by_first))
    assert (scores[1] - scores[0]).abs().max() < 1e-2  # The rewards differ by thousands.


def test_partial_bt_depends_on_the_sampling_policy():
    world = World.random(3, 3, seed=2)
    sampler = guided_policy(world, random_rewards(world), 1.0)
    other = World(sampler, world.reward)
    for got, expected in zip(partial_bt(world, sampler), partial_bt(other), strict=True):
        assert torch.equal(got, expected)
    assert (partial_bt(world, sampler)[1] - partial_bt(world)[1]).abs().max() > 1e-3
    assert all(map(torch.equal, value(world, sampler), value(other)))


@pytest.mark.parametrize("beta", BETAS)
def test_guidance_is_exact_if_and_only_if_the_reward_is_the_soft_value(world, beta):
    values, star = soft_value(world, beta), optimal_log_probs(world, beta)
    shifts = random_rewards(world)
    shifted = (values[0], *(entry + shift[..., None] for entry, shift in zip(values[1:], shifts[:-1], strict=True)))
    assert kl_divergence(star, sequence_log_probs(guided_policy(world, shifted, beta))).abs() < 1e-13
    # Rewards that guide to the optimum are its log-ratio, which is the soft value up to a constant per parent.
    for best, base, entry in zip(optimal_policy(world, beta), world.policy, values[1:], strict=True):
        difference = (best - base) / beta - entry
        largest = difference.masked_fill(~supported(base), float("-inf")).amax(-1)
        smallest = difference.masked_fill(~supported(base), float("inf")).amin(-1)
        assert (largest - smallest).max() < 1e-12
    bent = list(values)
    for token in range(world.vocab):
        if world.policy[0][token] > float("-inf"):
            bent[1] = values[1].clone()
            bent[1][token] += 0.1
            assert kl_divergence(star, sequence_log_probs(guided_policy(world, tuple(bent), beta))) > 1e-6

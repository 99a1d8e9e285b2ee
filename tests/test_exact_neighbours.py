"""The theory of other prefix rewards, checked by enumeration; see `test_exact`."""

import pytest
import torch
from tabular import BETAS, CUTS, ROUNDING, drawn, random_rewards, supported, worst

from rgtg_logits.exact import (
    World,
    arm,
    best_value,
    cumulative,
    dpo_ratio,
    guided_policy,
    kl_divergence,
    optimal_log_probs,
    optimal_policy,
    partial_bt,
    prefix_log_probs,
    sequence_log_probs,
    soft_value,
    total_variation,
    value,
)


@pytest.fixture(params=CUTS)
def world(request):
    return drawn(request.param)


def centred(entry):
    return entry - entry.mean()


def distance(world, rewards, beta):
    """KL divergence of the guided policy from the optimum, in nats."""
    guided = sequence_log_probs(guided_policy(world, rewards, beta))
    return kl_divergence(optimal_log_probs(world, beta), guided)


# §3: the neighbours


def test_the_expected_reward_is_right_to_first_order(world):
    gaps = [distance(world, value(world), beta).item() for beta in (0.04, 0.02)]
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.15)


def test_regressions_on_the_final_reward_have_their_minimum_where_enumeration_says(world):
    probability, lengths = sequence_log_probs(world.policy).exp().flatten(), world.lengths().double()
    weights = {value: lambda t: 1.0, cumulative: lambda t: 2 * t / (lengths * (lengths + 1))}
    for minimiser, weight in weights.items():
        for i, optimum in enumerate(minimiser(world)):
            entry = optimum.clone().requires_grad_()
            rewards = entry.flatten()[torch.arange(len(lengths)) // world.vocab ** (world.horizon - i)]
            # A finished text has no more prefixes.
            errors = weight(i) * (lengths >= i) * (rewards - world.reward.flatten()) ** 2
            (gradient,) = torch.autograd.grad((probability * errors).sum(), entry)
            assert gradient.abs().max() < ROUNDING
    difference = worst(value(world), cumulative(world), prefix_log_probs(world.policy))
    assert difference < ROUNDING if world.eos is None else difference > 1e-3


def test_the_best_completion_is_the_limit_of_the_soft_value(world):
    gaps = [worst(soft_value(world, beta), best_value(world), prefix_log_probs(world.policy)) for beta in (1e2, 1e3)]
    assert gaps[1] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.3)
    for soft, best in zip(soft_value(world, 1.0), best_value(world), strict=True):
        assert (best >= soft - ROUNDING).all()


@pytest.mark.parametrize("beta_r", [0.5, 1.0, 2.0])
def test_log_probabilities_trained_on_pairs_multiply_to_the_optimum_but_do_not_sample_it(world, beta_r):
    beta = 1.0
    log_policy = arm(world, beta_r)
    reached = supported(sequence_log_probs(world.policy))
    assert log_policy[-1][reached].exp().sum().item() == pytest.approx(1, abs=ROUNDING)
    # The reward of a pair is beta_r times their difference.
    expected = centred(world.reward[reached])
    assert (centred(beta_r * log_policy[-1][reached]) - expected).abs().max() < ROUNDING
    for shorter, longer, step in zip(log_policy[:-1], log_policy[1:], world.policy, strict=True):
        next_tokens = longer.masked_fill(~supported(step), float("-inf"))
        assert (next_tokens.logsumexp(-1) - shorter).abs().max() < ROUNDING
    star = optimal_log_probs(world, beta)
    product = sequence_log_probs(world.policy) + beta * beta_r * log_policy[-1]
    assert total_variation(product.flatten().log_softmax(0), star.flatten()) < 1e-14
    sampled = sequence_log_probs(guided_policy(world, log_policy, beta * beta_r))
    assert kl_divergence(star, sampled) > 1e-3


@pytest.mark.parametrize("beta", BETAS)
def test_an_exact_dpo_pair_holds_the_soft_value(world, beta):
    values = soft_value(world, beta)
    expected = tuple(entry - values[0] for entry in values)
    assert worst(dpo_ratio(world, beta), expected, prefix_log_probs(world.policy)) < 1e-13
    star = optimal_log_probs(world, beta)
    assert kl_divergence(star, sequence_log_probs(guided_policy(world, dpo_ratio(world, beta), beta))).abs() < 1e-13


def right_when_finished(world):
    """The theory's random prefix rewards: random, but right on full sequences."""
    return (*random_rewards(world)[:-1], world.reward)


NEIGHBOURS = {
    "partial BT": (partial_bt, (0.0009, 0.041, 1.09)),
    "expected reward": (value, (0.0004, 0.041, 1.16)),
    "best completion": (best_value, (0.022, 0.153, 0.40)),
    "arm": (arm, (0.011, 0.082, 0.41)),
    "at random": (right_when_finished, (0.083, 0.85, 5.4)),
}
"""Mean KL from the optimum to the guided policy over 40 random worlds at the three betas, as written in the theory."""


def test_the_neighbours_are_as_far_from_the_optimum_as_the_theory_says():
    # Texts of equal length. The theory's worlds are other draws, so its figures have a standard error of their own.
    worlds = [World.random(3, 4, seed=seed) for seed in range(80)]
    means = {}
    for name, (prefix_rewards, written) in NEIGHBOURS.items():
        tables = [prefix_rewards(world) for world in worlds]
        distances = torch.tensor([
            [distance(world, rewards, beta) for beta in BETAS]
            for world, rewards in zip(worlds, tables, strict=True)
        ])  # fmt: skip
        means[name] = distances.mean(0)
        rounding = torch.tensor([0.00005, 0.0005, 0.005])
        error = distances.std(0) * (1 / 40 + 1 / len(worlds)) ** 0.5 + rounding
        assert ((means[name] - torch.tensor(written)).abs() < 3 * error).all(), (name, means[name], error)
    weak = sorted(means, key=lambda name: means[name][0])
    strong = sorted(means, key=lambda name: means[name][-1])
    assert weak == ["expected reward", "partial BT", "arm", "best completion", "at random"]
    assert set(strong[:2]) == {"arm", "best completion"} and strong[-1] == "at random"


def test_the_counterexample():
    policy = (
        torch.tensor([0.5, 0.5]).double().log(),
        torch.tensor([[0.1, 0.9], [0.1, 0.9]], dtype=torch.float64).log(),
    )
    world = World(policy, torch.tensor([[3.0, -3.0], [0.0, 0.0]]).double())

    def preference(table):
        return (table[1][0] - table[1][1]).item()

    assert preference(partial_bt(world)) == pytest.approx(-1.83, abs=0.005)
    assert preference(value(world)) == pytest.approx(-2.40, abs=1e-6)
    assert preference(soft_value(world, 1.0)) == pytest.approx(0.72, abs=0.005)
    assert preference(best_value(world)) == 3.0
    assert optimal_policy(world, 1.0)[0].exp()[0] > 0.5
    assert guided_policy(world, partial_bt(world), 1.0)[0].exp()[0] < 0.5


# §4: the soft value, learned


@pytest.mark.parametrize("beta", BETAS)
def test_the_linex_loss_has_its_minimum_at_the_soft_value(world, beta):
    values = soft_value(world, beta)
    for i, (log_probs, entry) in enumerate(zip(prefix_log_probs(world.policy), values, strict=True)):
        reached = supported(log_probs).flatten()
        shape = (world.vocab**i, -1)
        # A row for each prefix, with its completions.
        probability = sequence_log_probs(world.policy).view(shape)[reached].softmax(-1)
        minimum = minimum_of_linex(probability, beta * world.reward.view(shape)[reached])
        assert (minimum - beta * entry.flatten()[reached]).abs().max() < 1e-6


def minimum_of_linex(probability, rewards):
    """The v of every row that minimises the LINEX loss E[exp(r − v) − (r − v) − 1], found numerically."""
    minimum = torch.zeros(len(probability), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [minimum], max_iter=1000, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        difference = rewards - minimum[:, None]
        loss = (probability * (difference.exp() - difference - 1)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return minimum.detach()

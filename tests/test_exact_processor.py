"""`generate` with the processor samples from the enumerated guided policy.

Base model and reward model are models of transformers that look up tables. There is a reward model of each kind: a
sequence classifier, a language model whose logits are rewards, and one or two whose log-probabilities are. It is read
through `RewardModel`, the probe and the cache.
"""

from itertools import product

import pytest
import torch
from tabular import SIZES, TabularClassifier, TabularLM, TabularRewardLM, TabularScorer, random_rewards

from rgtg_logits import CausalScorer, LogRatioScorer, PartialRewardLogitsProcessor, RewardModel, VocabularyScorer
from rgtg_logits.exact import (
    World,
    arm,
    dpo_ratio,
    guided_policy,
    optimal_log_probs,
    optimal_policy,
    partial_bt,
    prefix_log_probs,
    sequence_log_probs,
    soft_value,
    value,
)
from rgtg_logits.reward_model.model import RewardModelConfig

NEVER = -1e4
"""A logit whose probability underflows to 0 in any precision."""


def language_model(world, steps, kind):
    absent = 0.0 if kind == "vocabulary" else NEVER
    return RewardModel(TabularRewardLM(world, steps, absent), config=RewardModelConfig(kind=kind))


def pair(world, rewards):
    """A policy whose log-ratio to the base policy is the rewards, but for a constant per parent."""
    policy = language_model(world, guided_policy(world, rewards, 1.0), "log_ratio")
    return LogRatioScorer(policy, language_model(world, world.policy, "log_ratio"))


SCORERS = {
    "table": TabularScorer,
    "causal": lambda world, rewards: CausalScorer(RewardModel(TabularClassifier(world, rewards))),
    "causal, expand": lambda w, rewards: CausalScorer(RewardModel(TabularClassifier(w, rewards)), strategy="expand"),
    "causal, recompute": lambda w, rewards: CausalScorer(
        RewardModel(TabularClassifier(w, rewards)), strategy="recompute"
    ),
    "vocabulary": lambda w, rewards: VocabularyScorer(language_model(w, rewards[1:], "vocabulary")),
    "log_ratio": lambda w, rewards: LogRatioScorer(language_model(w, rewards[1:], "log_ratio")),
    "log_ratio, pair": pair,
}
"""Scorers made from the rewards of all prefixes; all but the first read models of transformers."""


@pytest.fixture(params=SCORERS)
def scorer(request):
    return SCORERS[request.param]


def close(got, expected, world):
    """Checks log-probabilities of next tokens: those of the world, and -inf for the two extra tokens of the model."""
    # In float32, the last digit of a sum of rewards and logits of about 10 is 1e-6.
    torch.testing.assert_close(got[..., : world.vocab], expected.float(), rtol=2e-7, atol=1e-6)
    assert (got[..., world.vocab :] == float("-inf")).all()


def histories(world):
    """All prefixes that a token is sampled for."""
    prefixes = (prefix for length in range(world.horizon) for prefix in product(range(world.vocab), repeat=length))
    return [prefix for prefix in prefixes if world.eos not in prefix]


def sample(world, processor, count):
    """`count` rows of sampled tokens without the start token, and the scores of every step."""
    model = TabularLM(world)
    torch.manual_seed(0)
    output = model.generate(
        **model.prompts([()]), num_return_sequences=count, max_new_tokens=world.horizon, do_sample=True, top_k=0,
        use_cache=False, logits_processor=[processor], output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = output.sequences[:, 1:]
    if world.eos is not None:
        tokens = tokens.masked_fill(tokens == model.config.pad_token_id, world.eos)
    return tokens, output.scores


@pytest.mark.parametrize("size", SIZES)
def test_the_probe_finds_that_the_cache_is_exact(size):
    world = World.random(**SIZES[size], seed=4)
    for name in ("causal", "vocabulary", "log_ratio", "log_ratio, pair"):
        assert SCORERS[name](world, random_rewards(world)).strategy == "masked_tree_attention"


@pytest.mark.parametrize("size", SIZES)
def test_models_have_the_rewards_of_the_table(size):
    world = World.random(**SIZES[size], seed=4)
    rewards = random_rewards(world)
    rows = torch.nn.functional.pad(world.sequences(), (1, 0), value=world.vocab)
    scores = RewardModel(TabularClassifier(world, rewards)).score_tokens(rows)
    for i, entry in enumerate(rewards):
        assert torch.equal(scores[:, i], entry.flatten()[_prefix_indices(world, i)].float())
    scores = language_model(world, rewards[1:], "vocabulary").score_tokens(rows)
    for i, entry in enumerate(rewards[1:], start=1):
        assert torch.equal(scores[:, i], entry.flatten()[_prefix_indices(world, i)].float())


def _prefix_indices(world, length):
    """Index in a flattened table of the prefix of every sequence."""
    return torch.arange(world.vocab**world.horizon) // world.vocab ** (world.horizon - length)


@pytest.mark.parametrize("top_k", [1, 2, 20])
@pytest.mark.parametrize("size", SIZES)
def test_generate_draws_every_token_from_the_guided_policy(size, top_k, scorer):
    world, beta = World.random(**SIZES[size], seed=4), 1.5
    rewards = random_rewards(world, 1)
    model, prefixes = TabularLM(world), histories(world)
    output = model.generate(
        **model.prompts(prefixes), max_new_tokens=1, do_sample=True, top_k=0, use_cache=False,
        logits_processor=[PartialRewardLogitsProcessor(scorer(world, rewards), beta=beta, top_k=top_k)],
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    expected = guided_policy(world.truncated(top_k), rewards, beta)
    for prefix, scores in zip(prefixes, output.scores[0], strict=True):
        close(scores, expected[len(prefix)][prefix], world)


@pytest.mark.parametrize("size", SIZES)
def test_histories_in_any_order_and_batch_find_the_guided_policy(size, scorer):
    # One processor for all batches: each has other rows, of other lengths, than the cache of the last step.
    world, beta, top_k = World.random(**SIZES[size], seed=5), 1.5, 2
    rewards, model, prefixes = random_rewards(world, 2), TabularLM(world), histories(world)
    processor = PartialRewardLogitsProcessor(scorer(world, rewards), beta=beta, top_k=top_k)
    expected = guided_policy(world.truncated(top_k), rewards, beta)
    for batch in torch.randperm(len(prefixes), generator=torch.Generator().manual_seed(0)).split(5):
        chosen = [prefixes[i] for i in batch]
        rows = model.prompts(chosen)
        batch_scores = processor(rows["input_ids"], model(**rows).logits[:, -1])
        for prefix, scores in zip(chosen, batch_scores, strict=True):
            close(scores, expected[len(prefix)][prefix], world)


@pytest.mark.parametrize("top_k", [2, 20])
@pytest.mark.parametrize("size", SIZES)
def test_every_step_of_generate_draws_from_the_guided_policy(size, top_k, scorer):
    world, beta = World.random(**SIZES[size], seed=6), 0.5
    cut, rewards = world.truncated(top_k), random_rewards(world, 3)
    processor = PartialRewardLogitsProcessor(scorer(world, rewards), beta=beta, top_k=top_k)
    tokens, steps = sample(world, processor, 400)
    expected, sampled = guided_policy(cut, rewards, beta), set()
    for i, scores in enumerate(steps):
        prefixes = tokens[:, :i]
        active = torch.ones(len(tokens)).bool() if world.eos is None else (prefixes != world.eos).all(1)
        close(scores[active], expected[i][tuple(prefixes[active].T)].expand(int(active.sum()), -1), world)
        sampled |= set(map(tuple, prefixes[active].tolist()))
    reachable = [
        prefix for prefix in histories(world) if prefix_log_probs(cut.policy)[len(prefix)][prefix] > -torch.inf
    ]
    assert 0.6 * len(reachable) < len(sampled) <= len(reachable)


OPTIMA = {
    "causal": partial_bt,
    "causal, recompute": value,
    "vocabulary": soft_value,
    "log_ratio": arm,
    "log_ratio, pair": dpo_ratio,
}
"""A possible training optimum of each kind of model; the soft value and the log-ratio are for a strength of 1."""


@pytest.mark.parametrize("top_k", [2, 20])
@pytest.mark.parametrize("size", ["no end", "ends"])
@pytest.mark.parametrize("name", OPTIMA)
def test_samples_of_generate_are_those_of_the_guided_policy(name, size, top_k):
    world, beta = World.random(**SIZES[size], seed=6), 1.0
    cut, optimal = world.truncated(top_k), name in ("vocabulary", "log_ratio, pair")
    # To be optimal for the truncated policy, rewards have to be the soft value of that policy.
    rewards = OPTIMA[name](cut, beta) if optimal else OPTIMA[name](world)
    processor = PartialRewardLogitsProcessor(SCORERS[name](world, rewards), beta=beta, top_k=top_k)
    tokens, _ = sample(world, processor, 20_000)
    indices = (tokens * world.vocab ** torch.arange(world.horizon - 1, -1, -1)).sum(1)
    counts = indices.bincount(minlength=world.reward.numel()).double()
    expected = optimal_log_probs(cut, beta) if optimal else sequence_log_probs(guided_policy(cut, rewards, beta))
    assert chi_square_p_value(counts, expected.exp().flatten()) > 1e-4
    # The test has the power to reject: neither the base policy nor guidance of twice the strength gives these samples.
    for other in (cut.policy, guided_policy(cut, rewards, 2 * beta)):
        assert chi_square_p_value(counts, sequence_log_probs(other).exp().flatten()) < 1e-9


@pytest.mark.parametrize("top_k", [2, 20])
@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
def test_an_exact_dpo_pair_guides_to_the_optimum(beta, top_k):
    world = World.random(**SIZES["ends"], seed=8).truncated(top_k)
    best = optimal_policy(world, beta)
    policy, reference = (language_model(world, steps, "log_ratio") for steps in (best, world.policy))
    # The reward is the log-ratio in nats, whose strength is 1 whatever beta it was trained with.
    processor = PartialRewardLogitsProcessor(LogRatioScorer(policy, reference), beta=1.0, top_k=top_k)
    model, prefixes = TabularLM(world), histories(world)
    rows = model.prompts(prefixes)
    for prefix, scores in zip(prefixes, processor(rows["input_ids"], model(**rows).logits[:, -1]), strict=True):
        close(scores, best[len(prefix)][prefix], world)


def chi_square_p_value(counts, probability):
    """The p-value of Pearson's chi-squared test of counts against probabilities."""
    expected = probability * counts.sum()
    assert counts[expected == 0].sum() == 0
    # The approximation by a continuous distribution needs about five expected counts, so rarer entries are pooled.
    rare = expected < 5
    counts, expected = (torch.cat([values[~rare], values[rare].sum()[None]]) for values in (counts, expected))
    used = expected > 0
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    return torch.special.gammaincc((used.sum().double() - 1) / 2, statistic / 2).item()

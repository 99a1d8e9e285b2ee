"""Through generate, on a world as a model of transformers: the processor samples from the enumerated policy."""

from itertools import product

import pytest
import torch
from tabular import SIZES, TabularLM, TabularScorer, random_rewards

from rgtg_logits import PartialRewardLogitsProcessor
from rgtg_logits.exact import World, guided, optimal_sequences, sequence_log_probs, soft_value, value


def processor(world, rewards, beta, top_k):
    return PartialRewardLogitsProcessor(TabularScorer(world, rewards), beta=beta, top_k=top_k)


@pytest.mark.parametrize("top_k", [2, 20])
@pytest.mark.parametrize("size", SIZES)
def test_generate_draws_every_token_from_the_guided_policy(size, top_k):
    world, beta = World.random(**SIZES[size], seed=4), 1.5
    rewards = random_rewards(world, 1)
    model = TabularLM(world)
    every = (prefix for i in range(world.horizon) for prefix in product(range(world.vocab), repeat=i))
    prefixes = [prefix for prefix in every if world.eos not in prefix]
    output = model.generate(
        **model.prompts(prefixes), max_new_tokens=1, do_sample=True, top_k=0, use_cache=False,
        logits_processor=[processor(world, rewards, beta, top_k)], output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    wanted = guided(world.truncated(top_k), rewards, beta)
    for prefix, scores in zip(prefixes, output.scores[0], strict=True):
        expected = wanted[len(prefix)][prefix].float()
        # Scores are float32, of which a log-probability of -10 has its last digit at 1e-6.
        torch.testing.assert_close(scores[: world.vocab], expected, rtol=2e-7, atol=1e-6)
        assert (scores[world.vocab :] == float("-inf")).all()


@pytest.mark.parametrize("size", ["no end", "ends"])
def test_samples_of_generate_are_those_of_the_guided_policy(size):
    world, beta, count = World.random(**SIZES[size], seed=6), 1.0, 20_000
    rewards = soft_value(world, beta)
    model = TabularLM(world)
    torch.manual_seed(0)
    rows = model.generate(
        **model.prompts([()]), num_return_sequences=count, max_new_tokens=world.horizon, do_sample=True, top_k=0,
        use_cache=False, logits_processor=[processor(world, rewards, beta, world.vocab)],
    )  # fmt: skip
    tokens = rows[:, 1:]
    if world.eos is not None:
        tokens = tokens.masked_fill(tokens == model.config.pad_token_id, world.eos)
    place = (tokens * world.vocab ** torch.arange(world.horizon - 1, -1, -1)).sum(1)
    seen = place.bincount(minlength=world.reward.numel()).double()
    assert chi_square_tail(seen, optimal_sequences(world, beta).exp().flatten()) > 1e-4
    # The test would notice: neither the base policy nor the expected reward gives these samples.
    for other in (world.policy, guided(world, value(world), 2 * beta)):
        assert chi_square_tail(seen, sequence_log_probs(other).exp().flatten()) < 1e-9


def chi_square_tail(seen, probability):
    """How probable counts at least as far from the expected ones are (Pearson)."""
    expected = probability * seen.sum()
    assert seen[expected == 0].sum() == 0
    # The approximation by a continuous distribution is usual from five expected counts on; rarer ones are put together.
    rare = expected < 5
    seen, expected = (torch.cat([counts[~rare], counts[rare].sum()[None]]) for counts in (seen, expected))
    used = expected > 0
    statistic = ((seen - expected)[used] ** 2 / expected[used]).sum()
    return torch.special.gammaincc((used.sum().double() - 1) / 2, statistic / 2).item()

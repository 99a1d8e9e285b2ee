"""Each objective, on endless data and with a table for a model, leads to the optimum that enumeration finds.

The data are all texts of a small world, or all pairs of them, weighted with their probabilities; texts that end early
make rows of unequal length.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rgtg_logits import exact
from rgtg_logits.exact import World
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.prefix_accuracy import pair_lengths
from rgtg_logits.train.objectives import LOSSES, LabelBatch, LossSettings, LossTerms, PairBatch, PrefixRewards

WORLDS = {"no end": {"vocab": 3, "horizon": 3}, "ends": {"vocab": 3, "horizon": 4, "eos": 0}}
ERROR = 1e-3
NOTHING = 777.0
"""What a model says of padding, and of the prompt alone."""


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return World.random(**WORLDS[request.param], seed=11)


class Texts:
    """The texts of a world as rows of a batch: one token of prompt in front, padded on the right."""

    def __init__(self, world: World) -> None:
        probability = exact.sequence_log_probs(world.policy).exp().flatten()
        kept = probability > 0
        self.world, self.probability = world, probability[kept]
        self.rewards, lengths = world.reward.flatten()[kept], world.lengths()[kept]
        prompt, padding = world.vocab, world.vocab + 1
        tokens = torch.nn.functional.pad(world.sequences()[kept], (1, 0), value=prompt)
        self.mask = (torch.arange(world.horizon + 1) <= lengths[:, None]).long()
        self.tokens = tokens.masked_fill(self.mask == 0, padding)
        self.lengths = lengths + 1
        # Texts are numbered as in a heap: with token v, text n becomes n · vocab + 1 + v. Exact tables have this order.
        self.numbers = torch.zeros_like(tokens)
        for t in range(1, world.horizon + 1):
            self.numbers[:, t] = self.numbers[:, t - 1] * world.vocab + 1 + tokens[:, t]
        self.answer = self.mask.bool() & (self.tokens != prompt)

    def labelled(self) -> LabelBatch:
        return LabelBatch(self.lengths, torch.ones_like(self.lengths), self.rewards)

    def pairs(self) -> tuple[Tensor, PairBatch, Tensor]:
        """Which texts are paired (chosen, then rejected), what the objective is told of them, and their weights."""
        chosen, rejected = (~torch.eye(len(self.tokens)).bool()).nonzero().T
        rows = torch.cat([chosen, rejected])
        preferred = (self.rewards[chosen] - self.rewards[rejected]).sigmoid()
        weights = self.probability[chosen] * self.probability[rejected] * preferred
        return rows, PairBatch(*pair_lengths(self.tokens[rows], self.mask[rows])), weights

    def split(self, vector: Tensor) -> exact.Table:
        """A number for each text as a table by length."""
        sizes = [self.world.vocab**i for i in range(self.world.horizon + 1)]
        return tuple(part.view((self.world.vocab,) * i) for i, part in enumerate(vector.split(sizes)))

    def occurring(self, *, length: int | None = None) -> Tensor:
        """Numbers of the texts that occur, their beginnings included; all, or those of a length."""
        kept = self.answer if length is None else self.answer & (torch.arange(self.world.horizon + 1) == length)
        return self.numbers[kept].unique()

    def finished(self) -> Tensor:
        return self.numbers.gather(1, self.lengths[:, None] - 1)[:, 0]


Read = Callable[[Texts, Tensor], PrefixRewards]


def causal(texts: Texts, table: Tensor) -> PrefixRewards:
    """A number for each text."""
    return PrefixRewards(table[texts.numbers].masked_fill(~texts.answer, NOTHING))


def vocabulary(texts: Texts, table: Tensor) -> PrefixRewards:
    """A row for each text and in it a number for each next token, as a language model's head gives them."""
    next_tokens = table[1:].view(-1, texts.world.vocab)
    parents = texts.numbers[:, :-1].clamp(max=len(next_tokens) - 1)
    rewards = next_tokens[parents].gather(2, (texts.tokens[:, 1:] % texts.world.vocab)[..., None])[..., 0]
    rewards = torch.nn.functional.pad(rewards, (1, 0)).masked_fill(~texts.answer, NOTHING)
    best = next_tokens[texts.numbers.clamp(max=len(next_tokens) - 1)].amax(-1)
    return PrefixRewards(rewards, best)


def policy(texts: Texts, table: Tensor) -> PrefixRewards:
    """Summed log-probabilities of a table of logits."""
    next_tokens = table[1:].view(-1, texts.world.vocab).log_softmax(-1).flatten()
    log_probs = next_tokens[(texts.numbers - 1).clamp(min=0)].masked_fill(~texts.answer, 0.0)
    return PrefixRewards(log_probs.cumsum(1).masked_fill(~texts.answer, NOTHING))


READERS: dict[str, Read] = {"causal": causal, "vocabulary": vocabulary, "log_ratio": policy}


def start(texts: Texts) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = sum(texts.world.vocab**i for i in range(texts.world.horizon + 1))
    return torch.randn(size, generator=generator, dtype=torch.float64)


def expected_loss(name: str, texts: Texts, read: Callable[[Tensor], PrefixRewards], weights: LossSettings) -> Callable:
    """The loss of a table over all texts or all pairs."""
    objective = OBJECTIVES[name]
    if objective.data == "labels":
        rows, facts, share = slice(None), texts.labelled(), texts.probability
    else:
        rows, facts, share = texts.pairs()

    def loss(table: Tensor) -> Tensor:
        prefixes = read(table)
        prefixes = PrefixRewards(prefixes.rewards[rows], None if prefixes.max_next is None else prefixes.max_next[rows])
        terms: LossTerms = LOSSES[name].terms(prefixes, facts, weights)
        assert torch.equal(terms.mask.sum(1), LOSSES[name].count(facts))
        return (share[:, None] * terms.losses).sum()

    return loss


def minimise(loss: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    table = table.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [table], max_iter=3000, max_eval=6000, tolerance_grad=1e-11, tolerance_change=0.0, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(table)
        value.backward()
        return value

    optimizer.step(closure)
    return table.detach()


def train(name: str, kind: str, texts: Texts, **weights: float) -> Tensor:
    loss = expected_loss(name, texts, lambda table: READERS[kind](texts, table), LossSettings(**weights))
    return minimise(loss, start(texts))


def flat(table: exact.Table) -> Tensor:
    return torch.cat([entry.flatten() for entry in table])


def error(got: Tensor, wanted: Tensor, numbers: Tensor, *, free: bool = False) -> float:
    """The largest difference over some texts; but for a constant if that is free."""
    difference = (got - wanted)[numbers]
    return float((difference - difference.mean() if free else difference).abs().max())


@pytest.mark.parametrize("kind", OBJECTIVES["partial_bt"].kinds)
def test_partial_bt_is_the_solution_over_all_prefix_pairs(world: World, kind: str) -> None:
    texts = Texts(world)
    found = train("partial_bt", kind, texts)
    wanted = flat(exact.partial_bt(world, tie_finished=True))
    # Lengths hang together by finished texts alone, so without them a constant is free for each.
    lengths = [None] if world.eos is not None else range(1, world.horizon + 1)
    for length in lengths:
        assert error(found, wanted, texts.occurring(length=length), free=True) < ERROR


def test_full_bt_is_the_reward_of_finished_texts_and_leaves_the_others_as_they_were(world: World) -> None:
    texts = Texts(world)
    found = train("full_bt", "causal", texts)
    finished = texts.finished()
    wanted = start(texts)
    wanted[finished] = texts.rewards
    assert error(found, wanted, finished, free=True) < ERROR
    others = torch.ones_like(found).bool().index_fill(0, finished, False)
    assert torch.equal(found[others], start(texts)[others])


@pytest.mark.parametrize("kind", OBJECTIVES["value"].kinds)
def test_value_is_the_expected_reward(world: World, kind: str) -> None:
    texts = Texts(world)
    assert error(train("value", kind, texts), flat(exact.value(world)), texts.occurring()) < ERROR


@pytest.mark.parametrize("kind", OBJECTIVES["cumulative"].kinds)
def test_cumulative_is_the_expected_reward_when_long_texts_count_less(world: World, kind: str) -> None:
    texts = Texts(world)
    lengths = world.lengths().double().view(world.reward.shape)
    weight = 2 / (lengths * (lengths + 1))
    weighted, total = (exact.conditional_mean(world.policy, values) for values in (weight * world.reward, weight))
    wanted = flat(tuple(a / b for a, b in zip(weighted, total, strict=True)))
    found = train("cumulative", kind, texts)
    assert error(found, wanted, texts.occurring()) < ERROR
    plain = error(found, flat(exact.value(world)), texts.occurring())
    assert plain < ERROR if world.eos is None else plain > 10 * ERROR


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kind", OBJECTIVES["soft_value"].kinds)
def test_soft_value_makes_guidance_the_optimum(world: World, kind: str, beta: float) -> None:
    texts = Texts(world)
    values = exact.soft_value(world, beta)
    # The clip is out of the way: no text is that much better than its beginnings promise.
    clip = beta * float(texts.rewards.max() - min(float(entry.min()) for entry in values))
    found = train("soft_value", kind, texts, beta=beta, clip=max(clip, 5.0))
    assert error(found, beta * flat(values), texts.occurring()) < ERROR
    learned = exact.sequence_log_probs(exact.guided_policy(world, texts.split(found), 1.0))
    assert exact.kl_divergence(exact.optimal_log_probs(world, beta), learned) < 1e-6


def test_a_tight_clip_moves_the_soft_value_down() -> None:
    world = World.random(**WORLDS["ends"], seed=11)
    texts = Texts(world)
    wanted = flat(exact.soft_value(world, 1.0))
    clipped = train("soft_value", "causal", texts, clip=0.5)
    assert (clipped - wanted)[texts.occurring()].max() < ERROR
    assert (clipped - wanted)[texts.occurring()].min() < -0.01


def test_farma_is_the_best_completion(world: World) -> None:
    texts = Texts(world)
    loss = expected_loss("farma", texts, lambda table: vocabulary(texts, table), LossSettings())
    table = start(texts).requires_grad_()
    # The target moves with the table and has no gradient, so there is no one function for a line search to go down.
    optimizer = torch.optim.Adam([table], lr=0.2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.992)
    for _ in range(800):
        optimizer.zero_grad()
        loss(table).backward()
        optimizer.step()
        schedule.step()
    assert error(table.detach(), flat(exact.best_value(world)), texts.occurring(), free=True) < ERROR


@pytest.mark.parametrize("beta_r", [0.5, 1.0])
def test_arm_is_a_policy_whose_log_probability_is_the_reward(world: World, beta_r: float) -> None:
    texts = Texts(world)
    table = train("arm", "log_ratio", texts, arm_beta=beta_r)
    summed = policy(texts, table).rewards
    wanted = flat(exact.arm(world, beta_r))
    assert (summed - wanted[texts.numbers])[texts.answer].abs().max() < ERROR


def test_what_is_neither_answer_nor_text_is_not_trained(world: World) -> None:
    texts = Texts(world)
    occurring = torch.zeros_like(start(texts)).bool().index_fill(0, texts.occurring(), True)
    for objective in OBJECTIVES.values():
        if "causal" in objective.kinds:
            found = train(objective.name, "causal", texts)
            assert torch.equal(found[~occurring], start(texts)[~occurring])
            assert not torch.equal(found[occurring], start(texts)[occurring])


@pytest.mark.parametrize("td_lambda", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", ["value", "soft_value"])
def test_bootstrapping_leads_to_the_same_optimum(world: World, name: str, td_lambda: float) -> None:
    texts = Texts(world)
    weights = {"beta": 1.5, "clip": 50.0}
    loss = expected_loss(name, texts, lambda table: causal(texts, table), LossSettings(**weights, td_lambda=td_lambda))
    wanted = train(name, "causal", texts, **weights)
    occurring = texts.occurring()

    def slope(table: Tensor) -> Tensor:
        table = table.clone().requires_grad_()
        return torch.autograd.grad(loss(table), table)[0][occurring]

    assert slope(wanted).abs().max() < 1e-6
    assert slope(start(texts)).abs().max() > 1e-2
    # Not a minimum, because what is aimed at moves along: but following the slope leads there.
    table = start(texts)
    share = torch.zeros_like(table).index_add_(
        0, texts.numbers[texts.answer], texts.probability[:, None].expand_as(texts.answer)[texts.answer]
    )
    for _ in range(400):
        step = torch.zeros_like(table)
        step[occurring] = slope(table)
        table = table - (0.3 * step / share.clamp(min=1e-12)).clamp(-0.5, 0.5)
    assert error(table, wanted, occurring) < ERROR

"""How far a cached scorer is from an uncached one on the same questions, and how much of that is rounding.

A fast scorer is exact when its rewards are those of plain uncached forwards up to rounding. How large rounding is, is
measured on the model itself: the same uncached forward, in another batch shape, gives rewards that differ by rounding
and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rgtg_logits.candidates import Candidates
from rgtg_logits.check.uncached import padded
from rgtg_logits.guidance import guide
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.scorers import Scorer
from rgtg_logits.testing import check_scorer
from rgtg_logits.trace import Trace

ROUNDS = 2
"""Random histories."""
STEPS = 4
"""Steps of a guided text at which every reward is computed again."""


@dataclass(frozen=True)
class Scorers:
    """One reward model, asked in three ways.

    Attributes:
        fast: The scorer to check.
        plain: One uncached forward per candidate, which is right.
        reshaped: Uncached forwards in another batch shape, which differ from `plain` by rounding.
        dtype: The type in which the reward model computes.
    """

    fast: Scorer
    plain: Scorer
    reshaped: Scorer
    dtype: torch.dtype


@dataclass(frozen=True)
class RecordedRequest:
    """What a scorer was asked, and what it answered.

    Attributes:
        rows: The prefixes, padding included.
        attention_mask: 1 for text, 0 for padding.
        candidates: The next tokens.
        rewards: The answer.
        base: Log-probabilities of the base model cut to the candidates; None where no text was generated.
    """

    rows: Int[Tensor, "batch length"]
    attention_mask: Int[Tensor, "batch length"]
    candidates: Int[Tensor, "batch k"]
    rewards: Float[Tensor, "batch k"]
    base: Float[Tensor, "batch k"] | None = None

    def ask(self, scorer: Scorer) -> Float[Tensor, "batch k"]:
        """The same question to another scorer."""
        return scorer.score(self.rows, self.attention_mask, self.candidates)

    def rows_where(self, chosen: Tensor) -> RecordedRequest:
        """The question for some of the rows."""
        base = None if self.base is None else self.base[chosen]
        return RecordedRequest(
            self.rows[chosen], self.attention_mask[chosen], self.candidates[chosen], self.rewards[chosen], base
        )

    def running(self) -> RecordedRequest:
        """The question without rows that have finished."""
        return self.rows_where(self.attention_mask[:, -1].bool())


class Recorder(Scorer):
    """Passes questions on to a scorer and keeps them with the answers."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.vocab_size, self.pad_token_id = scorer, scorer.vocab_size, scorer.pad_token_id
        self.questions: list[RecordedRequest] = []

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Asks the scorer; see `Scorer.score`."""
        rewards = self.scorer.score(rows, attention_mask, candidates)
        self.questions.append(RecordedRequest(rows, attention_mask, candidates, rewards))
        return rewards

    def observe(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Lets the scorer know; see `Scorer.observe`."""
        self.scorer.observe(rows, attention_mask)


@dataclass(frozen=True)
class Exactness:
    """What two ways of asking the same differ by, in the reward model's unit; a constant per row is free.

    Attributes:
        worst: Largest difference seen.
        spread: Standard deviation of the rewards among the candidates of a row (median over rows).
        noise: Largest difference between uncached forwards in two batch shapes.
        tolerance: Largest difference that is taken for rounding.
        rewards: Number of rewards compared.
    """

    worst: float
    spread: float
    noise: float
    tolerance: float
    rewards: int

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding was seen."""
        return self.worst <= self.tolerance

    @property
    def ratio(self) -> float:
        """The largest difference as a fraction of the spread."""
        return self.worst / self.spread if self.spread else 0.0 if self.worst == 0 else inf


def difference(got: Float[Tensor, "batch k"], wanted: Float[Tensor, "batch k"]) -> float:
    """The largest difference between two answers, up to a constant per row."""
    return float(((got - got[:, :1]) - (wanted - wanted[:, :1])).abs().amax()) if got.numel() else 0.0


def tolerance(spread: float, scale: float, noise: float, dtype: torch.dtype) -> float:
    """The largest difference that is taken for rounding.

    It starts from 1e-4 of the spread or 4 units in the last place of the largest reward, whichever is more (the first
    in float32, the second in half precision), and grows with the noise of the model itself up to ten times that: more
    is a model that does not stand padding, and would excuse anything.

    Args:
        spread: See `Exactness`.
        scale: The largest absolute reward.
        noise: See `Exactness`.
        dtype: The type in which the reward model computes.
    """
    least = max(1e-4 * spread, 4 * torch.finfo(dtype).eps * scale)
    return min(max(4 * noise, least), 10 * least)


def judge(worst: float, noise: float, truths: Sequence[Float[Tensor, "batch k"]], dtype: torch.dtype) -> Exactness:
    """Judges a difference by the model's noise and by the right rewards of the rows at which it was seen."""
    rewards = torch.cat([answer.flatten() for answer in truths])
    spreads = torch.cat([answer.std(-1, correction=0) for answer in truths])
    spread, scale = float(spreads.median()), float(rewards.abs().max())
    return Exactness(worst, spread, noise, tolerance(spread, scale, noise, dtype), rewards.numel())


def random_histories(
    scorers: Scorers, *, vocab_size: int | None, pad_token_id: int, seed: int
) -> tuple[Exactness, str | None]:
    """Checks the laws of `Scorer` on random rows; also which law is broken, if one is."""
    plain = Recorder(scorers.plain)
    arguments: dict[str, Any] = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, "rounds": ROUNDS, "seed": seed}
    worst = check_scorer(scorers.fast, plain, **arguments, tolerance=inf)
    asked = [question.running() for question in plain.questions]
    noise = max(difference(question.ask(scorers.reshaped), question.rewards) for question in asked)
    exactness = judge(worst, noise, [question.rewards for question in asked], scorers.dtype)
    if exactness.exact:
        return exactness, None
    try:
        check_scorer(scorers.fast, scorers.plain, **arguments, tolerance=exactness.tolerance)
    except AssertionError as broken:
        return exactness, str(broken)
    return exactness, None


@torch.no_grad()
def write(
    base: PreTrainedModel,
    scorer: Scorer,
    prompts: Sequence[Sequence[int]],
    *,
    beta: float,
    top_k: int,
    new_tokens: int,
    pad_token_id: int,
    seed: int,
) -> list[RecordedRequest]:
    """Continues the prompts as one padded batch under guidance: what the scorer was asked at each step."""
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    rows = [[pad_token_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=base.device)
    recorder, trace = Recorder(scorer), Trace()
    processor = PartialRewardLogitsProcessor(
        recorder, beta=beta, top_k=top_k, pad_token_id=pad_token_id, attention_mask=mask, trace=trace
    )
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        base.generate(
            input_ids=torch.tensor(rows, device=base.device), attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
            temperature=1.0, max_new_tokens=new_tokens, pad_token_id=pad_token_id, logits_processor=[processor],
        )  # fmt: skip
    asked = zip(recorder.questions, trace.steps, strict=True)
    return [
        RecordedRequest(
            question.rows, question.attention_mask, question.candidates, question.rewards, step.base
        ).running()
        for question, step in asked
    ]


def spread_out(questions: Sequence[RecordedRequest], count: int) -> list[RecordedRequest]:
    """Some of the questions, the first and the last among them."""
    wanted = torch.linspace(0, len(questions) - 1, min(count, len(questions))).round().long().tolist()
    return [questions[index] for index in wanted if len(questions[index].rows)]


@dataclass(frozen=True)
class TextExactness:
    """The rewards of a guided text, compared with those of plain uncached forwards.

    Attributes:
        rewards: How they differ.
        variation: Total variation between the guided distributions of the two, in [0, 1]: the largest over the steps.
        mean_variation: The same on average.
        noise_variation: The largest between uncached forwards in two batch shapes.
        shift: Total variation between the guided distribution and the base model's cut to the candidates, on average.
    """

    rewards: Exactness
    variation: float
    mean_variation: float
    noise_variation: float
    shift: float


def compare_text(
    questions: Sequence[RecordedRequest], scorers: Scorers, *, beta: float, advance: Callable[[], None]
) -> TextExactness:
    """Computes every reward of some steps again, one uncached forward per candidate.

    Args:
        questions: Steps of a guided text.
        scorers: The ways to ask.
        beta: Guidance strength, for the distributions.
        advance: Called after each step.
    """
    truths, worst, noise, changes = list[Tensor](), 0.0, 0.0, list[Tensor]()
    for question in questions:
        plain, reshaped = question.ask(scorers.plain), question.ask(scorers.reshaped)
        worst = max(worst, difference(question.rewards, plain))
        noise = max(noise, difference(reshaped, plain))
        truths.append(plain)
        right, others = _guided(question, plain, beta), (question.rewards, reshaped, torch.zeros_like(plain))
        changes.append(torch.stack([(right - _guided(question, other, beta)).abs().sum(-1) / 2 for other in others]))
        advance()
    fast, rounding, shift = torch.cat(changes, dim=1)
    return TextExactness(
        judge(worst, noise, truths, scorers.dtype), float(fast.max()), float(fast.mean()), float(rounding.max()),
        float(shift.mean()),
    )  # fmt: skip


def compare_alone(questions: Sequence[RecordedRequest], scorer: Scorer) -> tuple[float, float]:
    """The largest difference between a row alone and in its batch, and between a row with and without padding."""
    batch, padding = 0.0, 0.0
    for question in questions:
        together = question.ask(scorer)
        for row in range(len(together)):
            one = question.rows_where(torch.tensor([row], device=question.rows.device))
            batch = max(batch, difference(one.ask(scorer), together[row : row + 1]))
            text = one.attention_mask[0].bool()
            bare = scorer.score(one.rows[:, text], one.attention_mask[:, text], one.candidates)
            more = scorer.score(padded(one.rows), padded(one.attention_mask), one.candidates)
            padding = max(padding, difference(more, bare))
    return batch, padding


def _guided(question: RecordedRequest, rewards: Tensor, beta: float) -> Tensor:
    assert question.base is not None
    return guide(Candidates(question.candidates, question.base), rewards, beta).exp()

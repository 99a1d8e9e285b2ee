"""Difference of a cached scorer from an uncached one on the same requests, and how much of it is rounding.

A cached scorer is exact when its rewards are those of plain uncached forwards up to rounding. The size of rounding is
measured on the model itself: the same uncached forward in another batch shape gives rewards that differ by rounding and
by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rgtg_logits.candidates import Candidates
from rgtg_logits.check.uncached import pad_left
from rgtg_logits.guidance import guide
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.scorers import Scorer
from rgtg_logits.testing import check_scorer
from rgtg_logits.trace import Trace

ROUNDS = 2
"""Number of random histories."""
STEPS = 4
"""Steps of a guided text at which every reward is computed again without a cache."""


@dataclass(frozen=True)
class ComparedScorers:
    """The scorer to check, and two uncached scorers of the same reward model.

    Attributes:
        cached: The scorer to check.
        reference: One uncached forward per candidate, which is right.
        reshaped: Uncached forwards in another batch shape, which differ from `reference` by rounding.
        dtype: The type in which the reward model computes.
    """

    cached: Scorer
    reference: Scorer
    reshaped: Scorer
    dtype: torch.dtype


@dataclass(frozen=True)
class RecordedRequest:
    """The arguments of one call of `Scorer.score`, and the rewards that it returned.

    Attributes:
        rows: The prefixes, padding included.
        attention_mask: 1 for text, 0 for padding.
        candidates: The next tokens.
        rewards: The rewards.
        base: Log-probabilities of the base model cut to the candidates; None where no text was generated.
    """

    rows: Int[Tensor, "batch length"]
    attention_mask: Int[Tensor, "batch length"]
    candidates: Int[Tensor, "batch k"]
    rewards: Float[Tensor, "batch k"]
    base: Float[Tensor, "batch k"] | None = None

    def repeat(self, scorer: Scorer) -> Float[Tensor, "batch k"]:
        """The rewards of the same request by another scorer."""
        return scorer.score(self.rows, self.attention_mask, self.candidates)

    def rows_where(self, chosen: Tensor) -> RecordedRequest:
        """The request for some of the rows."""
        base = None if self.base is None else self.base[chosen]
        return RecordedRequest(
            self.rows[chosen], self.attention_mask[chosen], self.candidates[chosen], self.rewards[chosen], base
        )

    def running(self) -> RecordedRequest:
        """The request without finished rows."""
        return self.rows_where(self.attention_mask[:, -1].bool())


class Recorder(Scorer):
    """Records every request to a scorer, with its rewards."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.vocab_size = scorer.vocab_size
        self.pad_token_id = scorer.pad_token_id
        self.known_tokens = scorer.known_tokens
        self.requests: list[RecordedRequest] = []

    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Calls the scorer; see `Scorer.score`."""
        rewards = self.scorer.score(rows, attention_mask, candidates)
        self.requests.append(RecordedRequest(rows, attention_mask, candidates, rewards))
        return rewards

    def observe(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Calls the scorer; see `Scorer.observe`."""
        self.scorer.observe(rows, attention_mask)


@dataclass(frozen=True)
class Exactness:
    """Difference of two scorers on the same requests, in the reward model's unit and up to a constant per row.

    Attributes:
        worst: Largest difference.
        spread: Standard deviation of the rewards among the candidates of a row (median over rows).
        noise: Largest difference between uncached forwards in two batch shapes.
        tolerance: Largest difference that passes for rounding.
        rewards: Number of rewards compared.
    """

    worst: float
    spread: float
    noise: float
    tolerance: float
    rewards: int

    @property
    def exact(self) -> bool:
        """Whether all differences pass for rounding."""
        return self.worst <= self.tolerance

    @property
    def ratio(self) -> float:
        """The largest difference as a fraction of the spread."""
        if self.spread:
            return self.worst / self.spread
        return 0.0 if self.worst == 0 else inf


def difference(rewards: Float[Tensor, "batch k"], reference: Float[Tensor, "batch k"]) -> float:
    """The largest difference between rewards, up to a constant per row."""
    if not rewards.numel():
        return 0.0
    return float(((rewards - rewards[:, :1]) - (reference - reference[:, :1])).abs().amax())


def tolerance(spread: float, scale: float, noise: float, dtype: torch.dtype) -> float:
    """The largest difference that passes for rounding.

    At least 1e-4 of the spread (which decides in float32) or 4 units in the last place of the largest reward (which
    decides in half precision). It grows with the noise of the model itself, up to ten times that: a model with more
    noise does not stand padding, and its noise would excuse anything.

    Args:
        spread: See `Exactness`.
        scale: The largest absolute reward.
        noise: See `Exactness`.
        dtype: The type in which the reward model computes.
    """
    least = max(1e-4 * spread, 4 * torch.finfo(dtype).eps * scale)
    return min(max(4 * noise, least), 10 * least)


def assess(worst: float, noise: float, references: Sequence[Float[Tensor, "batch k"]], dtype: torch.dtype) -> Exactness:
    """Compares a difference with the model's noise, and with the right rewards of the same rows."""
    rewards = torch.cat([each.flatten() for each in references])
    spreads = torch.cat([each.std(-1, correction=0) for each in references])
    spread = float(spreads.median())
    largest = float(rewards.abs().max())
    return Exactness(worst, spread, noise, tolerance(spread, largest, noise, dtype), rewards.numel())


def check_random_histories(
    scorers: ComparedScorers, *, vocab_size: int | None, pad_token_id: int, seed: int
) -> tuple[Exactness, str | None]:
    """Checks the laws of `Scorer` on random rows; returns the differences and the law that is broken, if any."""
    reference = Recorder(scorers.reference)
    arguments: dict[str, Any] = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, "rounds": ROUNDS, "seed": seed}
    worst = check_scorer(scorers.cached, reference, **arguments, tolerance=inf)
    requests = [request.running() for request in reference.requests]
    noise = max(difference(request.repeat(scorers.reshaped), request.rewards) for request in requests)
    exactness = assess(worst, noise, [request.rewards for request in requests], scorers.dtype)
    if exactness.exact:
        return exactness, None
    try:
        check_scorer(scorers.cached, scorers.reference, **arguments, tolerance=exactness.tolerance)
    except AssertionError as broken:
        return exactness, str(broken)
    return exactness, None


@torch.no_grad()
def record_generation(
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
    """Continues the prompts as one padded batch under guidance, and records the request of each step."""
    longest = max(map(len, prompts))
    rows = []
    mask_rows = []
    for prompt in prompts:
        padding = longest - len(prompt)
        rows.append([pad_token_id] * padding + list(prompt))
        mask_rows.append([0] * padding + [1] * len(prompt))
    mask = torch.tensor(mask_rows, device=base.device)
    recorder = Recorder(scorer)
    trace = Trace()
    processor = PartialRewardLogitsProcessor(
        recorder, beta=beta, top_k=top_k, pad_token_id=pad_token_id, attention_mask=mask, trace=trace
    )
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        base.generate(
            input_ids=torch.tensor(rows, device=base.device), attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
            temperature=1.0, max_new_tokens=new_tokens, pad_token_id=pad_token_id, logits_processor=[processor],
        )  # fmt: skip
    steps = zip(recorder.requests, trace.steps, strict=True)
    return [replace(request, base=step.base).running() for request, step in steps]


def evenly_spaced(requests: Sequence[RecordedRequest], count: int) -> list[RecordedRequest]:
    """Some of the requests, the first and the last among them; those without a running row are left out."""
    indices = torch.linspace(0, len(requests) - 1, min(count, len(requests))).round().long().tolist()
    return [requests[index] for index in indices if len(requests[index].rows)]


@dataclass(frozen=True)
class TextExactness:
    """Rewards and guided distributions along a guided text, compared with those of plain uncached forwards.

    Total variation is half the sum of absolute differences of two distributions, in [0, 1].

    Attributes:
        rewards: Difference of the rewards.
        variation: Largest total variation between the two guided distributions over the steps.
        mean_variation: Mean of the same.
        noise_variation: Largest total variation between uncached forwards in two batch shapes.
        shift: Mean total variation between the guided distribution and the base model's cut to the candidates.
    """

    rewards: Exactness
    variation: float
    mean_variation: float
    noise_variation: float
    shift: float


def compare_text(
    requests: Sequence[RecordedRequest], scorers: ComparedScorers, *, beta: float, advance: Callable[[], None]
) -> TextExactness:
    """Computes every reward of some steps again, one uncached forward per candidate.

    Args:
        requests: Steps of a guided text.
        scorers: The scorer to check and the uncached ones.
        beta: Guidance strength, for the distributions.
        advance: Called after each step.
    """
    worst = noise = 0.0
    references: list[Tensor] = []
    variations: dict[str, list[Tensor]] = {"cached": [], "reshaped": [], "unguided": []}
    for request in requests:
        reference = request.repeat(scorers.reference)
        reshaped = request.repeat(scorers.reshaped)
        worst = max(worst, difference(request.rewards, reference))
        noise = max(noise, difference(reshaped, reference))
        references.append(reference)
        right = _guided_distribution(request, reference, beta)
        others = {"cached": request.rewards, "reshaped": reshaped, "unguided": torch.zeros_like(reference)}
        for name, rewards in others.items():
            variations[name].append((right - _guided_distribution(request, rewards, beta)).abs().sum(-1) / 2)
        advance()
    cached = torch.cat(variations["cached"])
    return TextExactness(
        assess(worst, noise, references, scorers.dtype),
        variation=float(cached.max()),
        mean_variation=float(cached.mean()),
        noise_variation=float(torch.cat(variations["reshaped"]).max()),
        shift=float(torch.cat(variations["unguided"]).mean()),
    )


def compare_alone(requests: Sequence[RecordedRequest], scorer: Scorer) -> tuple[float, float]:
    """The largest difference between a row alone and in its batch, and between a row with and without padding."""
    in_batch = in_padding = 0.0
    for request in requests:
        together = request.repeat(scorer)
        for row in range(len(together)):
            one = request.rows_where(torch.tensor([row], device=request.rows.device))
            in_batch = max(in_batch, difference(one.repeat(scorer), together[row : row + 1]))
            text = one.attention_mask[0].bool()
            bare = scorer.score(one.rows[:, text], one.attention_mask[:, text], one.candidates)
            longer = scorer.score(pad_left(one.rows), pad_left(one.attention_mask), one.candidates)
            in_padding = max(in_padding, difference(longer, bare))
    return in_batch, in_padding


def _guided_distribution(request: RecordedRequest, rewards: Tensor, beta: float) -> Tensor:
    assert request.base is not None
    return guide(Candidates(request.candidates, request.base), rewards, beta).exp()

"""The formula: base log-probabilities plus beta times reward, renormalised over the candidates.

    log pi(v | x, y_<t)  =  log pi_ref(v | x, y_<t) + beta · r(x, y_<t, v) − log Z        v among the candidates

(Rashid et al., arXiv 2406.07780.) `pi_ref` may be given as logits or as log-probabilities, and the reward up to
a constant per row: both constants cancel in Z. `beta = 0` is the base model truncated to the candidates.

Truncation by itself costs divergence: −log of the probability that the candidates hold together, at every token, before
any reward is gained. The tail of the distribution, the tokens outside the candidate set, may be kept instead, with the
mean reward of the candidates c:

    log pi(v | x, y_<t)  =  log pi_ref(v | x, y_<t) + beta · r̄ − log Z                   v in the tail
    r̄  =  Σ_c pi_ref(c | x, y_<t) r(x, y_<t, c) / Σ_c pi_ref(c | x, y_<t)

Of all policies that treat the tokens of the tail alike, and so draw from pi_ref among them, the one with the largest
E[r] − KL(pi ‖ pi_ref) / beta gives them, together, the weight pi_ref(tail) · exp(beta · E_ref[r | tail]): the mean, not
the mean of exponentials, because nothing is chosen among them. r̄ is an estimate of that mean from the candidates.
`beta = 0` is then the base model itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.candidates import CandidateRule, Candidates
from rgtg_logits.columns import Column, column_on, holds, plain_setting, spread
from rgtg_logits.errors import InvalidArgumentError

RESTS = ("drop", "keep")
"""Treatments of the tail of the distribution, the tokens outside the candidate set: impossible, or kept unguided."""


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Settings of guidance, each one for all rows or with an entry for each row; columns are kept on the CPU.

    Attributes:
        beta: Guidance strength in nats per unit of reward, 0 or more; a number or a column [rows, 1].
        rule: The choice of candidates.
        rest: Treatment of the tail, "drop" or "keep"; one for all rows or a tuple with one for each.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    beta: float | Column
    rule: CandidateRule
    rest: str | Sequence[str] = "drop"

    def __post_init__(self) -> None:
        beta = plain_setting(self.beta)
        if not holds(beta, lambda strength: math.isfinite(strength) and strength >= 0):
            raise InvalidArgumentError(
                f"Expected beta to be a finite guidance strength of 0 or more, but got {self.beta!r}. "
                "Use 0 for no guidance; to lower a reward, change its sign in the reward model."
            )
        # A frozen dataclass allows no other way.
        object.__setattr__(self, "beta", beta.float() if isinstance(beta, Tensor) else float(beta or 0.0))
        object.__setattr__(self, "rest", _checked_rest(self.rest))

    @property
    def keeps_tail(self) -> bool | Tensor:
        """Whether the tail of the distribution stays possible; a column [rows, 1] where rows differ."""
        if isinstance(self.rest, str):
            return self.rest == "keep"
        return torch.tensor([[rest == "keep"] for rest in self.rest])

    def for_rows(self, rows: int) -> GuidanceSettings:
        """The settings for a number of rows; see `spread`.

        Raises:
            InvalidArgumentError: If the rows are no multiple of the entries of a setting.
        """
        rule = self.rule.for_rows(rows)
        if rule is self.rule and not isinstance(self.beta, Tensor) and isinstance(self.rest, str):
            return self
        rest = self.rest
        if not isinstance(rest, str):
            places = spread(torch.arange(len(rest)), rows)
            rest = tuple(rest[place] for place in places.tolist())
        return GuidanceSettings(beta=spread(self.beta, rows), rule=rule, rest=rest)

    def guided_rows(self) -> Tensor | None:
        """Indices of the rows whose strength is not 0; None if there are no columns that differ in this."""
        if not isinstance(self.beta, Tensor) or bool((self.beta > 0).all()):
            return None
        return (self.beta[:, 0] > 0).nonzero()[:, 0]


def guide(
    candidates: Candidates, rewards: Float[Tensor, "batch k"], beta: float | Float[Tensor, "..."]
) -> Float[Tensor, "batch k"]:
    """Guided log-probabilities of the candidates, in nats; -inf in unused slots.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: Reward of the prefix followed by each candidate, in the reward model's unit.
        beta: Guidance strength, in nats per unit of reward, 0 or more; one for all rows, or a tensor with one for each
            row, of shape [batch] or [batch, 1].
    """
    return normalise(_guided(candidates, rewards, beta)[0])


def guide_with_tail(
    candidates: Candidates,
    rewards: Float[Tensor, "batch k"],
    beta: float | Float[Tensor, "..."],
    scores: Float[Tensor, "batch vocab"],
) -> Float[Tensor, "batch vocab"]:
    """Guided log-probabilities of the whole vocabulary, in nats: the tail gets the mean reward of the candidates.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: Reward of the prefix followed by each candidate, in the reward model's unit.
        beta: Guidance strength, as in `guide`.
        scores: The base model's scores of all tokens; not edited. Those that are -inf stay so.
    """
    return normalise(_guided_with_tail(candidates, rewards, beta, scores)[0]).to(scores.dtype)


def guide_vocabulary(
    candidates: Candidates,
    rewards: Float[Tensor, "batch k"] | None,
    settings: GuidanceSettings,
    scores: Float[Tensor, "batch vocab"],
) -> Float[Tensor, "batch vocab"]:
    """Guided log-probabilities of the whole vocabulary, in nats, by each row's own settings.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: As in `guide`; None where they would change nothing: the base model's log-probabilities are returned,
            truncated to the candidates where the tail is dropped.
        settings: The settings of these rows.
        scores: The base model's scores of all tokens; not edited. Those that are -inf stay so.
    """
    keeps_tail = settings.keeps_tail
    if isinstance(keeps_tail, Tensor):
        whole = guide_vocabulary(candidates, rewards, _with_rest(settings, "keep"), scores)
        cut = guide_vocabulary(candidates, rewards, _with_rest(settings, "drop"), scores)
        return torch.where(keeps_tail.to(scores.device, non_blocking=True), whole, cut)
    if keeps_tail:
        return normalise(scores) if rewards is None else guide_with_tail(candidates, rewards, settings.beta, scores)
    guided = truncate(candidates) if rewards is None else guide(candidates, rewards, settings.beta)
    return scatter_to_vocabulary(candidates, guided, like=scores)


def log_normalizer(
    candidates: Candidates,
    rewards: Float[Tensor, "batch k"],
    settings: GuidanceSettings,
    scores: Float[Tensor, "batch vocab"],
) -> Float[Tensor, " batch"]:
    """The formula's log Z, in nats: log of the sum of pi_ref(v) · exp(beta · r(v)) over the tokens that stay possible.

    `pi_ref` is normalised over the whole vocabulary. -inf for a row without any possible token.
    """
    cut, best_reward = _guided(candidates, rewards, settings.beta)
    log_z = cut.logsumexp(-1, keepdim=True) + column_on(settings.beta, scores) * best_reward
    keeps_tail = settings.keeps_tail
    if isinstance(keeps_tail, Tensor) or keeps_tail:
        whole, mean = _guided_with_tail(candidates, rewards, settings.beta, scores)
        with_tail = whole.logsumexp(-1, keepdim=True) + column_on(settings.beta, scores) * mean
        where = (
            keeps_tail.to(scores.device, non_blocking=True)
            if isinstance(keeps_tail, Tensor)
            else torch.ones_like(log_z).bool()
        )
        log_z = torch.where(where, with_tail, log_z)
    total = scores.float().logsumexp(-1, keepdim=True)
    return (log_z - total).masked_fill(total == float("-inf"), float("-inf"))[:, 0]


def kl_to_base(
    log_probs: Float[Tensor, "batch vocab"], scores: Float[Tensor, "batch vocab"]
) -> Float[Tensor, " batch"]:
    """KL divergence of guided log-probabilities from the base model's whole distribution, in nats.

    0 for a row without any possible token.
    """
    change = log_probs.float() - scores.float().log_softmax(-1)
    return (log_probs.float().exp() * change).masked_fill(log_probs == float("-inf"), 0.0).sum(-1)


def _guided(
    candidates: Candidates, rewards: Tensor, beta: float | Tensor
) -> tuple[Float[Tensor, "batch k"], Float[Tensor, "batch 1"]]:
    """Log-probabilities of the candidates up to a constant, -inf in unused slots, and the reward taken off first."""
    unused = candidates.scores == float("-inf")
    rewards = rewards.to(candidates.scores.device, torch.float32)
    # Centred first, because beta times a large common reward would cancel the digits in which candidates differ.
    best_reward = rewards.masked_fill(unused, float("-inf")).amax(-1, keepdim=True)
    centred = (rewards - best_reward).masked_fill(unused, 0.0)
    guided = candidates.scores.float() + column_on(beta, rewards) * centred
    return guided.masked_fill(unused, float("-inf")), best_reward


def _guided_with_tail(
    candidates: Candidates, rewards: Tensor, beta: float | Tensor, scores: Tensor
) -> tuple[Float[Tensor, "batch vocab"], Float[Tensor, "batch 1"]]:
    """Log-probabilities of all tokens up to a constant, and the mean reward, which was taken off first."""
    unused = candidates.scores == float("-inf")
    rewards = rewards.to(scores.device, torch.float32).masked_fill(unused, 0.0)
    # Weighted by the base model's probabilities among the candidates.
    mean = (truncate(candidates).exp() * rewards).sum(-1, keepdim=True)
    guided = candidates.scores.float() + column_on(beta, rewards) * (rewards - mean)
    guided = guided.masked_fill(unused, float("-inf"))
    # An unused slot repeats the best token with -inf, so the maximum of both is taken.
    return scores.float().scatter_reduce(-1, candidates.ids, guided, reduce="amax", include_self=False), mean


def _with_rest(settings: GuidanceSettings, rest: str) -> GuidanceSettings:
    return GuidanceSettings(beta=settings.beta, rule=settings.rule, rest=rest)


def _checked_rest(rest: str | Sequence[str]) -> str | tuple[str, ...]:
    choices = [rest] if isinstance(rest, str) else rest
    if not isinstance(choices, (list, tuple)) or not choices or not all(each in RESTS for each in choices):
        raise InvalidArgumentError(
            f"Expected rest to be one of {', '.join(RESTS)}, but got {rest!r}. Use 'drop' to draw from the candidates "
            "alone, 'keep' to leave the other tokens possible; pass a list for one entry per row."
        )
    return rest if isinstance(rest, str) else tuple(choices)


def normalise(scores: Float[Tensor, "batch some"]) -> Float[Tensor, "batch some"]:
    """Normalises scores to log-probabilities; -inf stays -inf, also in a row of nothing else."""
    return scores.log_softmax(-1).masked_fill(scores == float("-inf"), float("-inf"))


def truncate(candidates: Candidates) -> Float[Tensor, "batch k"]:
    """Log-probabilities of the base model truncated to the candidates: guidance with beta = 0."""
    return normalise(candidates.scores.float())


def scatter_to_vocabulary(
    candidates: Candidates, log_probs: Float[Tensor, "batch k"], like: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Scatters the candidates' log-probabilities into rows of the vocabulary, -inf elsewhere."""
    # An unused slot repeats the best token with -inf, so the maximum of both is taken.
    empty = torch.full_like(like, float("-inf"))
    return empty.scatter_reduce(-1, candidates.ids, log_probs.to(like.dtype), reduce="amax")


def gather_candidates(candidates: Candidates, log_probs: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch k"]:
    """Gathers the candidates' log-probabilities, -inf in unused slots: the inverse of `scatter_to_vocabulary`."""
    unused = candidates.scores == float("-inf")
    return log_probs.gather(-1, candidates.ids).masked_fill(unused, float("-inf"))

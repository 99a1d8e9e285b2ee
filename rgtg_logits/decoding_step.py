"""One guided decoding step of any engine: prefixes and the base model's scores to guided log-probabilities.

Whoever draws tokens (`generate`, continuous batching, a serving engine, particles) has the token rows as they are now
and a matrix of scores, and differs in nothing else. The logits processor is a client of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.candidates import CandidateRule, Candidates
from rgtg_logits.columns import Column
from rgtg_logits.errors import InvalidArgumentError, PaddingError
from rgtg_logits.guidance import GuidanceSettings, gather_candidates, guide_vocabulary, kl_to_base, log_normalizer
from rgtg_logits.profiling import profiled
from rgtg_logits.scorers import Scorer

RewardsOf = Callable[[Int[Tensor, "asked k"], Int[Tensor, " asked"] | None], Float[Tensor, "asked k"] | None]
"""Gives the rewards of candidates of the rows with the given indices (on the CPU; None: all rows); None where no reward
is needed."""


@dataclass(frozen=True, eq=False)
class GuidedStep:
    """The result of one guided decoding step.

    Attributes:
        log_probs: Guided log-probabilities of the next token, in nats; -inf for tokens that cannot be drawn.
        candidates: The candidates of each row, with the base model's scores.
        rewards: The candidates' rewards, in the scorer's unit; 0 in rows of strength 0. None if the reward model was
            not asked, because all rewards would change nothing.
        scores: The base model's scores, as they were passed.
        settings: The settings of these rows.
    """

    log_probs: Float[Tensor, "rows vocab"]
    candidates: Candidates
    rewards: Float[Tensor, "rows k"] | None
    scores: Float[Tensor, "rows vocab"]
    settings: GuidanceSettings

    @cached_property
    def log_normalizer(self) -> Float[Tensor, " rows"]:
        """Log Z of each row, in nats: log of the sum of pi_ref(v) · exp(beta · r(v)) over the tokens left possible.

        `pi_ref` is the base model normalised over its whole vocabulary. It is what a particle's weight grows by. A
        reward that is fixed up to a constant per row (a log-ratio, say) fixes it up to beta times that constant.
        """
        rewards = torch.zeros_like(self.candidates.scores) if self.rewards is None else self.rewards
        return log_normalizer(self.candidates, rewards, self.settings, self.scores)

    @cached_property
    def kl(self) -> Float[Tensor, " rows"]:
        """KL divergence of each row's guided distribution from the base model's whole distribution, in nats."""
        return kl_to_base(self.log_probs, self.scores)

    def before_and_after(self) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"]]:
        """The candidates' log-probabilities without rewards and with them; -inf in unused slots."""
        base = guide_vocabulary(self.candidates, None, self.settings, self.scores)
        return gather_candidates(self.candidates, base), gather_candidates(self.candidates, self.log_probs)


def guided_step(
    scorer: Scorer,
    prefixes: Sequence[Any],
    scores: Float[Tensor, "rows vocab"],
    *,
    beta: float | Column = 1.0,
    top_k: int | Column = 20,
    top_p: float | Column | None = None,
    min_p: float | Column | None = None,
    rest: str | Sequence[str] = "drop",
) -> GuidedStep:
    """Guides the next token of sequences that have nothing in common: for engines, particles and loops of one's own.

    The scorer recognises what it has read before, whatever order the sequences come in; nothing else is remembered.
    Every setting is one for all rows, or has an entry for each row or for each prompt (which then covers equally many
    rows in succession). Rows of strength 0 cost no reward model call.

    Args:
        scorer: Gives the rewards.
        prefixes: The token ids of each sequence so far, prompt included and without padding: lists, arrays, or
            one-dimensional tensors.
        scores: The base model's logits or log-probabilities of the next token; not edited.
        beta: Guidance strength in nats per unit of reward, 0 or more.
        top_k: Number of candidates; see `CandidateRule`, also for the next two.
        top_p: Restrict the candidates to this share of the base model's probability.
        min_p: Restrict the candidates to those at least this fraction as probable as the best.
        rest: "drop" makes tokens that are no candidates impossible, "keep" gives them the candidates' mean reward.

    Returns:
        Log-probabilities, and per row log Z and the divergence from the base model.

    Raises:
        InvalidArgumentError: If prefixes and scores do not fit, or a setting is out of its range.
        PaddingError: If a prefix has no token.
        VocabularyError: If the reward model does not have a token.
        ContextLengthError: If a prefix is longer than the reward model can read.
        NonFiniteRewardError: If a reward is NaN or infinite.

    Example:
        ```python
        step = guided_step(scorer, [[5, 8, 2], [7]], logits, beta=torch.tensor([1.0, 4.0]), top_k=20)
        tokens = step.log_probs.exp().multinomial(1)
        ```
    """
    sequences = [_plain_prefix(prefix) for prefix in prefixes]
    if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point() or scores.shape[1] == 0:
        raise InvalidArgumentError(
            "Expected scores to be a tensor of floats of shape [rows, vocab], but got "
            f"{list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__}. Pass one row of logits "
            "for each prefix."
        )
    if len(sequences) != len(scores):
        raise InvalidArgumentError(
            f"Expected one prefix for each row of scores, but got {len(sequences)} prefixes and {len(scores)} rows. "
            "Pass both in the same order."
        )
    rule = CandidateRule(top_k=top_k, top_p=top_p, min_p=min_p)
    settings = GuidanceSettings(beta=beta, rule=rule, rest=rest).for_rows(len(scores))

    known_tokens = scorer.known_tokens
    if known_tokens is not None:
        for prefix in sequences if known_tokens.foreign else []:
            row = torch.as_tensor(prefix)[None]
            known_tokens.check_text(row, torch.ones_like(row))
        scores = known_tokens.mask(scores)

    def rewards_of(candidates: Tensor, rows: Tensor | None) -> Tensor:
        asked = sequences if rows is None else [sequences[row] for row in rows.tolist()]
        return scorer.score_sequences(asked, candidates)

    return take_step(scores, settings, chosen_candidates(scores, settings), rewards_of)


def take_step(
    scores: Float[Tensor, "rows vocab"], settings: GuidanceSettings, candidates: Candidates, rewards_of: RewardsOf
) -> GuidedStep:
    """Takes a step with rewards from wherever the rows are held: what all entrances share.

    Args:
        scores: The base model's scores; not edited.
        settings: Settings for these rows.
        candidates: The rows' candidates, by these settings.
        rewards_of: Gives the rewards.
    """
    rewards = _rewards(candidates, settings, rewards_of)
    log_probs = _log_probs(candidates, rewards, settings, scores)
    return GuidedStep(log_probs, candidates, rewards, scores, settings)


def chosen_candidates(scores: Float[Tensor, "rows vocab"], settings: GuidanceSettings) -> Candidates:
    """The candidates of each row."""
    candidates = settings.rule.select(scores)
    # A look is free on a CPU; for an accelerator the host would have to wait.
    return candidates.without_unused_slots() if scores.device.type == "cpu" and len(scores) else candidates


def _rewards(candidates: Candidates, settings: GuidanceSettings, rewards_of: RewardsOf) -> Tensor | None:
    """The rewards of the rows whose strength is not 0, and 0 in the others; None where all would change nothing."""
    if len(candidates.ids) == 0 or (not isinstance(settings.beta, Tensor) and settings.beta == 0):
        return None
    rows = settings.guided_rows()
    if rows is None:
        return rewards_of(candidates.ids, None)
    if len(rows) == 0:
        return None
    places = rows.to(candidates.ids.device, non_blocking=True)
    # Rows that are not asked about may have more candidates.
    widest = settings.rule.widest(rows)
    asked = Candidates(candidates.ids[places, :widest], candidates.scores[places, :widest])
    if asked.ids.device.type == "cpu":
        asked = asked.without_unused_slots()
    rewards = rewards_of(asked.ids, rows)
    if rewards is None:
        return None
    everything = torch.zeros(candidates.ids.shape, dtype=rewards.dtype, device=rewards.device)
    everything[rows.to(rewards.device), : rewards.shape[1]] = rewards
    return everything


@profiled("policy")
def _log_probs(
    candidates: Candidates, rewards: Tensor | None, settings: GuidanceSettings, scores: Tensor
) -> Float[Tensor, "rows vocab"]:
    return guide_vocabulary(candidates, rewards, settings, scores)


def _plain_prefix(prefix: Any) -> Sequence[int] | Tensor:
    """A prefix as a list or a one-dimensional tensor of token ids, with at least one."""
    is_list = isinstance(prefix, (list, tuple))
    if not is_list and hasattr(prefix, "__array__"):
        prefix = torch.as_tensor(prefix)
    is_tensor = isinstance(prefix, Tensor)
    is_integer = is_tensor and not (prefix.is_floating_point() or prefix.is_complex() or prefix.dtype == torch.bool)
    if not is_list and not (is_integer and prefix.ndim == 1):
        raise InvalidArgumentError(
            "Expected each prefix to be a list, an array or a one-dimensional tensor of token ids, but got "
            f"{list(prefix.shape) if is_tensor else type(prefix).__name__}. Pass one prefix for each row of scores."
        )
    if len(prefix) == 0:
        raise PaddingError(
            "Expected at least one token in every prefix, because the reward model has to read something, but one is "
            "empty. Begin the sequence with a token such as bos."
        )
    return prefix

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

import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.candidates import Candidates

RESTS = ("drop", "keep")
"""Treatments of the tail of the distribution, the tokens outside the candidate set: impossible, or kept unguided."""


def guide(candidates: Candidates, rewards: Float[Tensor, "batch k"], beta: float) -> Float[Tensor, "batch k"]:
    """Guided log-probabilities of the candidates, in nats; -inf in unused slots.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: Reward of the prefix followed by each candidate, in the reward model's unit.
        beta: Guidance strength, in nats per unit of reward, 0 or more.
    """
    unused = candidates.scores == float("-inf")
    rewards = rewards.to(candidates.scores.device, torch.float32)
    # Centred first, because beta times a large common reward would cancel the digits in which candidates differ.
    best_reward = rewards.masked_fill(unused, float("-inf")).amax(-1, keepdim=True)
    centred = (rewards - best_reward).masked_fill(unused, 0.0)
    return (candidates.scores.float() + beta * centred).log_softmax(-1).masked_fill(unused, float("-inf"))


def guide_with_tail(
    candidates: Candidates, rewards: Float[Tensor, "batch k"], beta: float, scores: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Guided log-probabilities of the whole vocabulary, in nats: the tail gets the mean reward of the candidates.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: Reward of the prefix followed by each candidate, in the reward model's unit.
        beta: Guidance strength, in nats per unit of reward, 0 or more.
        scores: The base model's scores of all tokens; not edited. Those that are -inf stay so.
    """
    unused = candidates.scores == float("-inf")
    rewards = rewards.to(scores.device, torch.float32).masked_fill(unused, 0.0)
    # Weighted by the base model's probabilities among the candidates.
    mean = (truncate(candidates).exp() * rewards).sum(-1, keepdim=True)
    guided = (candidates.scores.float() + beta * (rewards - mean)).masked_fill(unused, float("-inf"))
    # An unused slot repeats the best token with -inf, so the maximum of both is taken.
    values = scores.float().scatter_reduce(-1, candidates.ids, guided, reduce="amax", include_self=False)
    return normalise(values).to(scores.dtype)


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

"""The formula: base log-probabilities plus beta times reward, renormalised over the candidates.

    log pi(v | x, y_<t)  =  log pi_ref(v | x, y_<t) + beta · r(x, y_<t, v) − log Z        v among the candidates

(Rashid et al., arXiv 2406.07780.) `pi_ref` may be given as logits or as log-probabilities, and the reward up to
a constant per row: both constants cancel in Z. `beta = 0` is the base model cut to the candidates.

To cut costs divergence by itself: −log of the probability that the candidates hold together, at every token, before any
reward is gained. The other tokens may be kept instead, with the mean reward of the candidates c:

    log pi(v | x, y_<t)  =  log pi_ref(v | x, y_<t) + beta · r̄ − log Z                   v not among them
    r̄  =  Σ_c pi_ref(c | x, y_<t) r(x, y_<t, c) / Σ_c pi_ref(c | x, y_<t)

Of all policies that treat the tokens without a reward alike, and so draw from pi_ref among them, the one with the
largest E[r] − KL(pi ‖ pi_ref) / beta gives them, together, the weight pi_ref(rest) · exp(beta · E_ref[r | rest]): the
mean, not the mean of exponentials, because nothing is chosen among them. r̄ is what the candidates say of that mean.
`beta = 0` is then the base model itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.candidates import Candidates

RESTS = ("drop", "keep")
"""What may become of the tokens that are no candidates."""


def guide(candidates: Candidates, rewards: Float[Tensor, "batch k"], beta: float) -> Float[Tensor, "batch k"]:
    """Guided log-probabilities of the candidates, in nats; -inf in unused slots.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: Reward of the prefix followed by each candidate, in the reward model's unit.
        beta: Guidance strength, in nats per unit of reward, 0 or more.
    """
    unused = candidates.scores == float("-inf")
    rewards = rewards.to(candidates.scores.device, torch.float32)
    # Centred first, because beta times a large common reward would eat the digits that tell candidates apart.
    centred = (rewards - rewards.masked_fill(unused, float("-inf")).amax(-1, keepdim=True)).masked_fill(unused, 0.0)
    return (candidates.scores.float() + beta * centred).log_softmax(-1).masked_fill(unused, float("-inf"))


def guide_and_keep(
    candidates: Candidates, rewards: Float[Tensor, "batch k"], beta: float, scores: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Guided log-probabilities of the whole vocabulary, in nats: what is no candidate gets the mean reward.

    Args:
        candidates: The candidates and the base model's scores.
        rewards: Reward of the prefix followed by each candidate, in the reward model's unit.
        beta: Guidance strength, in nats per unit of reward, 0 or more.
        scores: The base model's scores of all tokens; not edited. Those that are -inf stay so.
    """
    unused = candidates.scores == float("-inf")
    rewards = rewards.to(scores.device, torch.float32).masked_fill(unused, 0.0)
    mean = (truncate(candidates).exp() * rewards).sum(-1, keepdim=True)
    guided = (candidates.scores.float() + beta * (rewards - mean)).masked_fill(unused, float("-inf"))
    # An unused slot repeats the best token, whose own value has to win.
    values = scores.float().scatter_reduce(-1, candidates.ids, guided, reduce="amax", include_self=False)
    return normalise(values).to(scores.dtype)


def normalise(scores: Float[Tensor, "batch some"]) -> Float[Tensor, "batch some"]:
    """Log-probabilities; -inf stays -inf, also in a row of nothing else."""
    return scores.log_softmax(-1).masked_fill(scores == float("-inf"), float("-inf"))


def truncate(candidates: Candidates) -> Float[Tensor, "batch k"]:
    """Log-probabilities of the base model cut to the candidates: guidance with beta = 0."""
    return normalise(candidates.scores.float())


def spread(
    candidates: Candidates, log_probs: Float[Tensor, "batch k"], like: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Puts the candidates' log-probabilities into a row of the vocabulary, -inf elsewhere."""
    # An unused slot repeats the best token, so it must not overwrite it: the first write wins through a maximum.
    empty = torch.full_like(like, float("-inf"))
    return empty.scatter_reduce(-1, candidates.ids, log_probs.to(like.dtype), reduce="amax")


def gathered(candidates: Candidates, log_probs: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch k"]:
    """The candidates' part of a row of the vocabulary, -inf in unused slots: the inverse of `spread`."""
    unused = candidates.scores == float("-inf")
    return log_probs.gather(-1, candidates.ids).masked_fill(unused, float("-inf"))

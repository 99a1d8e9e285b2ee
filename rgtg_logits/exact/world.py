"""A tabular world: a base policy and a reward over all sequences of a few tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import InvalidArgumentError

Table = tuple[Float[Tensor, "..."], ...]
"""A tensor of float64 for each length. A table over prefixes has horizon + 1 entries: entry i has i axes of the size of
the vocabulary, one for each token of a prefix of length i. A policy has `horizon` entries of log-probabilities in nats:
entry i has i axes for the prefix and one for the next token."""


@dataclass(frozen=True, eq=False)
class World:
    """All sequences of `horizon` tokens, with their probability under the base policy and their reward.

    An end-of-text token is an absorbing state, so texts are of unequal length: the sequence a, EOS, EOS stands for the
    text a, EOS. Sequences in which another token follows EOS have probability 0. The entries of tables for prefixes of
    probability 0 have no meaning, but are finite numbers or log-probabilities.

    Attributes:
        policy: Log-probabilities of the base policy, in nats.
        reward: Reward of every sequence, in any unit.
        eos: The token that ends a text; None if all texts are `horizon` tokens long.

    Raises:
        InvalidArgumentError: If shapes, types or probabilities are inconsistent.
    """

    policy: Table
    reward: Float[Tensor, "..."]
    eos: int | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_numbers()
        if self.eos is not None and not _equal(self.policy, _with_absorbing_eos(self.policy, self.eos)):
            raise InvalidArgumentError(
                f"Expected nothing but token {self.eos} (eos) behind token {self.eos}, but the policy lets another "
                "token follow. Give it probability 0 there, or leave eos out."
            )

    def _check_shapes(self) -> None:
        expected = _policy_shapes(self.vocab, self.horizon)
        shapes = [tuple(step.shape) for step in self.policy]
        if not expected or shapes != expected or tuple(self.reward.shape) != expected[-1]:
            raise InvalidArgumentError(
                "Expected one entry of the policy per token, entry i with i + 1 axes of the vocabulary's size, and a "
                f"reward of the shape of the last one, but got a policy of shapes {shapes} and a reward of shape "
                f"{tuple(self.reward.shape)}. Build the tables as rgtg_logits.exact.Table describes."
            )

    def _check_numbers(self) -> None:
        if any(tensor.dtype != torch.float64 for tensor in (*self.policy, self.reward)):
            raise InvalidArgumentError(
                f"Expected tensors of torch.float64, because results are exact but for rounding, but got a reward of "
                f"{self.reward.dtype} and a policy of {self.policy[0].dtype}. Convert them with .double()."
            )
        if not bool(self.reward.isfinite().all()):
            raise InvalidArgumentError(
                "Expected finite rewards, but got NaN or infinity. Give sequences that cannot occur any finite reward."
            )
        worst = max(float(step.logsumexp(-1).abs().max()) for step in self.policy)
        # NaN fails too.
        if not worst < 1e-9:
            raise InvalidArgumentError(
                "Expected the policy's probabilities to add up to 1 behind every prefix, but their logarithm is off by "
                f"{worst:.3g}. Normalise every entry with log_softmax(-1)."
            )

    @property
    def vocab(self) -> int:
        """Number of tokens, the end-of-text token included."""
        return self.reward.shape[0] if self.reward.dim() else 0

    @property
    def horizon(self) -> int:
        """Number of tokens of a sequence."""
        return self.reward.dim()

    @classmethod
    def random(
        cls, vocab: int, horizon: int, *, eos: int | None = None, seed: int = 0, reward_scale: float = 1.0
    ) -> World:
        """Draws a world with independent, normally distributed logits of the base policy and rewards.

        Args:
            vocab: Number of tokens, 2 or more.
            horizon: Number of tokens of a sequence; there are vocab ** horizon of them.
            eos: The token that ends a text, or None.
            seed: Seed of the draw, which is independent of torch's global generator.
            reward_scale: Standard deviation of the rewards; that of the logits is 1.

        Raises:
            InvalidArgumentError: If a value is out of its range.
        """
        if vocab < 2 or horizon < 1 or not (eos is None or 0 <= eos < vocab):
            raise InvalidArgumentError(
                "Expected a vocabulary of 2 or more tokens, a horizon of 1 or more, and eos to be one of the tokens or "
                f"None, but got vocab={vocab}, horizon={horizon}, eos={eos}. Typical are vocab=3, horizon=4, eos=0."
            )
        generator = torch.Generator().manual_seed(seed)
        shapes = _policy_shapes(vocab, horizon)
        logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        reward = reward_scale * torch.randn(shapes[-1], generator=generator, dtype=torch.float64)
        policy = tuple(step.log_softmax(-1) for step in logits)
        if eos is not None:
            policy = _with_absorbing_eos(policy, eos)
        return cls(policy, reward, eos)

    def truncated(self, top_k: int) -> World:
        """The same world with the base policy truncated to its `top_k` most probable next tokens, renormalised.

        Raises:
            InvalidArgumentError: If `top_k` is less than 1.
        """
        if top_k < 1:
            raise InvalidArgumentError(f"Expected top_k to be 1 or more tokens, but got {top_k}. Use the vocabulary.")
        return replace(self, policy=tuple(_mask_to_top_k(step, top_k).log_softmax(-1) for step in self.policy))

    def sequences(self) -> Int[Tensor, "sequences horizon"]:
        """All sequences, in the order of `reward.flatten()`."""
        return torch.cartesian_prod(*[torch.arange(self.vocab)] * self.horizon).reshape(-1, self.horizon)

    def lengths(self) -> Int[Tensor, " sequences"]:
        """Number of tokens of every sequence up to its first end-of-text token, which counts."""
        sequences = self.sequences()
        if self.eos is None:
            return torch.full((len(sequences),), self.horizon)
        is_unfinished = (sequences != self.eos).long().cumprod(1)
        return (is_unfinished.sum(1) + 1).clamp(max=self.horizon)


def check_beta(beta: float) -> None:
    """Checks a guidance strength.

    Raises:
        InvalidArgumentError: If it is not a finite number of more than 0.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InvalidArgumentError(
            f"Expected beta to be a finite number of more than 0, but got {beta!r}. At strength 0 the base policy is "
            "the optimum, and rgtg_logits.exact.value the limit of the soft value."
        )


def _policy_shapes(vocab: int, horizon: int) -> list[tuple[int, ...]]:
    return [(vocab,) * (length + 1) for length in range(horizon)]


def _equal(one: Table, other: Table) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _with_absorbing_eos(policy: Table, eos: int) -> Table:
    """The policy with `eos` as the only token behind every prefix that contains it."""
    only_eos = torch.full((policy[0].shape[0],), float("-inf"), dtype=policy[0].dtype)
    only_eos[eos] = 0.0
    is_finished = torch.zeros((), dtype=torch.bool)
    steps = []
    for step in policy:
        steps.append(torch.where(is_finished[..., None], only_eos, step))
        is_finished = is_finished[..., None] | (only_eos == 0.0)
    return tuple(steps)


def _mask_to_top_k(step: Float[Tensor, "... vocab"], top_k: int) -> Float[Tensor, "... vocab"]:
    """Log-probabilities of the most probable tokens, and -inf for the others."""
    log_probs, tokens = step.topk(min(top_k, step.shape[-1]), dim=-1)
    return torch.full_like(step, float("-inf")).scatter(-1, tokens, log_probs)

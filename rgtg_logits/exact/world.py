"""A base policy and a reward over all sequences of a few tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import InvalidArgumentError

Table = tuple[Float[Tensor, "..."], ...]
"""A quantity by length, in float64. A quantity of prefixes has horizon + 1 entries: entry i has i axes of the size of
the vocabulary, one for each token of a prefix of length i. A policy has `horizon` entries of log-probabilities in nats:
entry i has i axes for the prefix and one for the token that comes next."""


@dataclass(frozen=True, eq=False)
class World:
    """All sequences of `horizon` tokens, how probable the base policy makes them, and how good each is.

    With an end-of-text token, which follows itself, texts are of unequal length: the sequence a, EOS, EOS stands for
    the text a, EOS. Sequences in which another token follows EOS have probability 0; what tables hold for prefixes of
    probability 0 means nothing, but is a finite number or log-probability.

    Attributes:
        policy: Log-probabilities of the base policy, in nats.
        reward: Reward of every sequence, in its own unit.
        eos: The token that ends a text; None if all texts are `horizon` tokens long.

    Raises:
        InvalidArgumentError: If shapes, types or probabilities do not make a world.
    """

    policy: Table
    reward: Float[Tensor, "..."]
    eos: int | None = None

    def __post_init__(self) -> None:
        wanted = [(self.vocab,) * (i + 1) for i in range(self.horizon)]
        shapes = [tuple(step.shape) for step in self.policy]
        if not wanted or shapes != wanted or tuple(self.reward.shape) != wanted[-1]:
            raise InvalidArgumentError(
                "Expected one entry of the policy per token, entry i with i + 1 axes of the vocabulary's size, and a "
                f"reward of the shape of the last one, but got a policy of shapes {shapes} and a reward of shape "
                f"{tuple(self.reward.shape)}. Build the tables as rgtg_logits.exact.Table describes."
            )
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
        if not worst < 1e-9:
            raise InvalidArgumentError(
                "Expected the policy's probabilities to add up to 1 behind every prefix, but their logarithm is off by "
                f"{worst:.3g}. Normalise every entry with log_softmax(-1)."
            )
        if self.eos is not None and not all(map(torch.equal, self.policy, _ended(self.policy, self.eos))):
            raise InvalidArgumentError(
                f"Expected nothing but token {self.eos} (eos) behind token {self.eos}, but the policy lets another "
                "token follow. Give it probability 0 there, or leave eos out."
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
        """Draws a world: logits of the base policy and rewards are independent and normal.

        Args:
            vocab: Number of tokens, 2 or more.
            horizon: Number of tokens of a sequence; there are vocab ** horizon of them.
            eos: The token that ends a text, or None.
            seed: Seed of the draw, which depends on nothing else.
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
        shapes = [(vocab,) * (i + 1) for i in range(horizon)]
        draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (*shapes, shapes[-1])]
        policy = tuple(draw.log_softmax(-1) for draw in draws[:-1])
        return cls(policy if eos is None else _ended(policy, eos), reward_scale * draws[-1], eos)

    def truncated(self, top_k: int) -> World:
        """The same world with the base policy cut to its `top_k` most probable next tokens, renormalised.

        Raises:
            InvalidArgumentError: If `top_k` is less than 1.
        """
        if top_k < 1:
            raise InvalidArgumentError(f"Expected top_k to be 1 or more tokens, but got {top_k}. Use the vocabulary.")
        return replace(self, policy=tuple(_top(step, top_k).log_softmax(-1) for step in self.policy))

    def sequences(self) -> Int[Tensor, "sequences horizon"]:
        """All sequences, in the order of `reward.flatten()`."""
        return torch.cartesian_prod(*[torch.arange(self.vocab)] * self.horizon).reshape(-1, self.horizon)

    def lengths(self) -> Int[Tensor, " sequences"]:
        """Number of tokens of every sequence up to and with its first end-of-text token."""
        going = torch.ones_like(self.sequences()) if self.eos is None else (self.sequences() != self.eos).long()
        return (going.cumprod(1).sum(1) + 1).clamp(max=self.horizon)


def positive(beta: float) -> float:
    """Returns a strength as it is.

    Raises:
        InvalidArgumentError: If it is not a finite number of more than 0.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InvalidArgumentError(
            f"Expected beta to be a finite number of more than 0, but got {beta!r}. At strength 0 the base policy is "
            "the optimum, and rgtg_logits.exact.value the limit of the soft value."
        )
    return beta


def _ended(policy: Table, eos: int) -> Table:
    """The policy with nothing but `eos` behind every prefix that contains it."""
    only = torch.full((policy[0].shape[0],), float("-inf"), dtype=policy[0].dtype)
    only[eos] = 0.0
    finished = torch.zeros((), dtype=torch.bool)
    steps = []
    for step in policy:
        steps.append(torch.where(finished[..., None], only, step))
        finished = finished[..., None] | (only == 0.0)
    return tuple(steps)


def _top(step: Float[Tensor, "... vocab"], top_k: int) -> Float[Tensor, "... vocab"]:
    best, tokens = step.topk(min(top_k, step.shape[-1]), dim=-1)
    return torch.full_like(step, float("-inf")).scatter(-1, tokens, best)

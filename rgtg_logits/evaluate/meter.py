"""Measures what a policy does from inside `generate`: its divergence from the base model, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from transformers import Cache, LogitsProcessor

from rgtg_logits.instruments import Stopwatch
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.sampling import Draw, float64_device, possible


class BaseModelSession:
    """The base model beside another one that decodes: its logits of the next tokens, one forward per step.

    Args:
        base: The base model, read as a language model. Without a cache that it can make itself it reads the rows anew
            in every step.
    """

    def __init__(self, base: RewardModel) -> None:
        self.base = base
        self._caches = _makes_caches(base)

    def begin(self, attention_mask: Int[Tensor, "batch length"]) -> None:
        """Forgets the rows; the next ones begin with prompts of this mask."""
        self._mask, self._read = attention_mask, 0
        self._cache: Cache | None = None

    def next_logits(self, rows: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocab"]:
        """Logits behind rows that have grown since the last call; of finished rows they mean nothing."""
        self._mask = nn.functional.pad(self._mask, (0, rows.shape[1] - self._mask.shape[1]), value=1)
        new = slice(self._read, rows.shape[1])
        states, self._cache = self.base.hidden_states(
            rows[:, new], self._mask, positions(self._mask)[:, new], self._cache, use_cache=self._caches, last=1
        )
        self._read = rows.shape[1] if self._caches else 0
        return states[:, -1].float()


@torch.no_grad()
def _makes_caches(model: RewardModel) -> bool:
    try:
        model.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=model.device), None, None, use_cache=True)
    except TypeError:
        return False
    return True


class Meter:
    """Draws, and measures the divergence of what is drawn from the base model at each step, over unfinished rows.

    Attributes:
        first: Has to be the first of the processors. It takes the scores that it is shown for those of the base model,
            unless that runs beside.
        last: Has to be the last of them. What it is shown is the policy.
        kl: KL(policy ‖ base model) of each row in nats, over the whole vocabulary and summed over the steps.
        log_ratio: log π − log π_base of the tokens drawn, in nats.
        nll: −log π_base of the tokens drawn, in nats.
        cut: −log of the base model's probability of all tokens that the policy can draw, in nats.

    Args:
        draw: What draws.
        rows: How many rows there are.
        ends: The tokens that end a row.
        stopwatch: Is paused while this measures.
        beside: The base model, if another one decodes; has begun with the prompts.
    """

    def __init__(
        self,
        draw: Draw,
        *,
        rows: int,
        ends: Sequence[int],
        stopwatch: Stopwatch,
        beside: BaseModelSession | None = None,
    ) -> None:
        self.first, self.last = _Call(self._first), _Call(self._last)
        self.kl, self.log_ratio, self.nll, self.cut = (torch.zeros(rows, dtype=torch.float64) for _ in range(4))
        self._draw, self._stopwatch, self._beside = draw, stopwatch, beside
        self._ends = torch.tensor(ends, dtype=torch.long)
        self._running = torch.ones(rows, dtype=torch.bool)

    def _first(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._beside is None:
            self._base = scores
        else:
            with self._stopwatch.paused():
                self._base = self._beside.next_logits(input_ids)
        return scores

    def _last(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = self._draw(input_ids, scores)
        with self._stopwatch.paused():
            self._measure(scores, drawn.argmax(-1))
        return drawn

    def _measure(self, scores: Float[Tensor, "batch vocab"], token: Int[Tensor, " batch"]) -> None:
        ids = possible(scores)
        policy = _log_softmax(scores if ids is None else scores.gather(-1, ids))
        base, token = _log_softmax(self._base), token.to(policy.device)
        theirs = base.gather(1, token[:, None])[:, 0]
        if ids is None:
            ours = policy.gather(1, token[:, None])[:, 0]
        else:
            ids = ids.to(policy.device)
            ours = policy.masked_fill(ids != token[:, None], float("-inf")).amax(-1)
            base = base.gather(-1, ids)
        impossible = policy.isneginf()
        parts, cut = policy.exp() * (policy - base), torch.zeros_like(ours)
        if ids is not None or impossible.any():
            # Tokens of probability 0 add 0, but 0 · inf is not a number.
            parts = parts.masked_fill(impossible, 0.0)
            cut = -base.masked_fill(impossible, float("-inf")).logsumexp(-1)
        kl = parts.sum(-1)
        self.kl = self._added(self.kl, kl)
        self.log_ratio = self._added(self.log_ratio, ours - theirs)
        self.nll = self._added(self.nll, -theirs)
        self.cut = self._added(self.cut, cut)
        self._running = self._running.to(token.device) & ~torch.isin(token, self._ends.to(token.device))

    def _added(self, total: Float64[Tensor, " batch"], step: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
        return total.to(step.device) + step.masked_fill(~self._running.to(step.device), 0.0)


def _log_softmax(scores: Float[Tensor, "batch some"]) -> Float64[Tensor, "batch some"]:
    return float64_device(scores).log_softmax(-1, dtype=torch.float64)


class _Call(LogitsProcessor):
    """A processor from a function; `generate` wants exactly these two arguments."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._function = function

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Hands both on."""
        return self._function(input_ids, scores)

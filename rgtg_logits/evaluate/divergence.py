"""Exact divergence of a policy from the base model, measured inside `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from transformers import Cache, LogitsProcessor

from rgtg_logits.instruments import Stopwatch
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.sampling import InverseTransformProcessor, float64_device, support


class BaseModelSession:
    """Next-token logits of the base model while another model generates: one cached forward per step.

    Args:
        base: The base model as a language model. One that cannot create a cache processes whole rows in every step.
    """

    def __init__(self, base: RewardModel) -> None:
        self.base = base
        self._use_cache = _supports_cache(base)

    def start(self, attention_mask: Int[Tensor, "batch length"]) -> None:
        """Starts new rows, whose prompts have this attention mask."""
        self._mask = attention_mask
        self._cached_length = 0
        self._cache: Cache | None = None

    def next_logits(self, rows: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocab"]:
        """Logits of the token after each row, which has grown since the last call; meaningless for finished rows."""
        self._mask = nn.functional.pad(self._mask, (0, rows.shape[1] - self._mask.shape[1]), value=1)
        # Finished rows are read on with their padding, so that the cache has one length for all rows.
        new = slice(self._cached_length, rows.shape[1])
        states, self._cache = self.base.hidden_states(
            rows[:, new], self._mask, positions(self._mask)[:, new], self._cache, use_cache=self._use_cache, last=1
        )
        if self._use_cache:
            self._cached_length = rows.shape[1]
        return states[:, -1].float()


@torch.no_grad()
def _supports_cache(model: RewardModel) -> bool:
    # Tried out, because configurations do not say it reliably.
    try:
        model.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=model.device), None, None, use_cache=True)
    except TypeError:
        return False
    return True


class DivergenceMeter:
    """Samples tokens and sums the divergence of the policy from the base model over the steps of unfinished rows.

    Two logits processors see the scores of each step: the first one those of the base model, the last one those of the
    policy, after guidance, truncation and temperature. At each step the KL is exact, a sum over the whole vocabulary;
    the sum over the steps is the KL of the answer conditioned on what was sampled, whose expectation is the KL between
    the distributions of answers (chain rule; a Rao-Blackwellised estimate, unlike `log_ratio`).

    Attributes:
        first: The first processor. Records the scores of the base model, unless that has a session of its own.
        last: The last processor. Samples from the scores, which are the policy.
        kl: KL(policy ‖ base model) of each row in nats.
        log_ratio: log π − log π_base of the sampled tokens, in nats.
        nll: −log π_base of the sampled tokens, in nats.
        cut: −log of the base model's probability of all tokens that the policy can sample, in nats.

    Args:
        draw: Samples the tokens.
        rows: Number of rows.
        eos_token_ids: Tokens that end a row.
        stopwatch: Paused during measurements.
        base_session: The base model, if another model generates; started with the prompts.
    """

    def __init__(
        self,
        draw: InverseTransformProcessor,
        *,
        rows: int,
        eos_token_ids: Sequence[int],
        stopwatch: Stopwatch,
        base_session: BaseModelSession | None = None,
    ) -> None:
        self.first = _FunctionProcessor(self._record_base)
        self.last = _FunctionProcessor(self._draw_and_measure)
        self.kl = torch.zeros(rows, dtype=torch.float64)
        self.log_ratio = torch.zeros(rows, dtype=torch.float64)
        self.nll = torch.zeros(rows, dtype=torch.float64)
        self.cut = torch.zeros(rows, dtype=torch.float64)
        self._draw = draw
        self._stopwatch = stopwatch
        self._base_session = base_session
        self._eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.long)
        self._unfinished = torch.ones(rows, dtype=torch.bool)

    def _record_base(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._base_session is None:
            self._base_scores = scores
        else:
            with self._stopwatch.paused():
                self._base_scores = self._base_session.next_logits(input_ids)
        return scores

    def _draw_and_measure(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = self._draw(input_ids, scores)
        with self._stopwatch.paused():
            self._measure(scores, drawn.argmax(-1))
        return drawn

    def _measure(self, scores: Float[Tensor, "batch vocab"], token: Int[Tensor, " batch"]) -> None:
        # The KL needs the support of the policy alone, because tokens of probability 0 add 0. Candidates are some 20 of
        # 100,000 tokens, so this is where the time of the measurement goes.
        ids = support(scores)
        policy = _log_softmax(scores if ids is None else scores.gather(-1, ids))
        base = _log_softmax(self._base_scores)
        token = token.to(policy.device)
        base_of_token = base.gather(1, token[:, None])[:, 0]
        if ids is None:
            policy_of_token = policy.gather(1, token[:, None])[:, 0]
        else:
            # The sampled token is one of the support; all other columns are -inf, so the maximum is its own value.
            ids = ids.to(policy.device)
            policy_of_token = policy.masked_fill(ids != token[:, None], float("-inf")).amax(-1)
            base = base.gather(-1, ids)
        # Whatever the policy cannot sample: cut off by truncation, or ids that fill up a row.
        impossible = policy.isneginf()
        terms = policy.exp() * (policy - base)
        cut = torch.zeros_like(policy_of_token)
        if ids is not None or impossible.any():
            # 0 · inf is NaN.
            terms = terms.masked_fill(impossible, 0.0)
            cut = -base.masked_fill(impossible, float("-inf")).logsumexp(-1)
        self.kl = self._add(self.kl, terms.sum(-1))
        self.log_ratio = self._add(self.log_ratio, policy_of_token - base_of_token)
        self.nll = self._add(self.nll, -base_of_token)
        self.cut = self._add(self.cut, cut)
        ended = torch.isin(token, self._eos_token_ids.to(token.device))
        self._unfinished = self._unfinished.to(token.device) & ~ended

    def _add(self, total: Float64[Tensor, " batch"], step: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
        return total.to(step.device) + step.masked_fill(~self._unfinished.to(step.device), 0.0)


def _log_softmax(scores: Float[Tensor, "batch some"]) -> Float64[Tensor, "batch some"]:
    return float64_device(scores).log_softmax(-1, dtype=torch.float64)


class _FunctionProcessor(LogitsProcessor):
    """A logits processor from a function. Its `__call__` has the two parameters that `generate` looks for."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._function = function

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """The result of the function."""
        return self._function(input_ids, scores)

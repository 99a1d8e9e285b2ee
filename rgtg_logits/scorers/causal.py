"""Rewards of next tokens from a causal reward model, one cached forward per step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import (
    ContextLengthError,
    InvalidArgumentError,
    NonFiniteRewardError,
    PaddingError,
    VocabularyError,
)
from rgtg_logits.prefix import PADDING, Plan, PrefixTracker
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers._passes import PASSES, Pass, Step
from rgtg_logits.scorers._probe import choose_pass
from rgtg_logits.scorers.base import Scorer


@dataclass(frozen=True)
class _Last:
    """The last step.

    Attributes:
        keys: All rows, finished ones too.
        running: Which of them had not finished; None if none had.
        candidates: What the running rows were asked about; None if their states are gone from the cache.
        longest: Tokens of the longest prefix.
        steady: Whether every row continued its own.
    """

    keys: Int[Tensor, "batch length"]
    running: Int[Tensor, " running"] | None
    candidates: Int[Tensor, "running k"] | None
    longest: int
    steady: bool


class CausalScorer(Scorer):
    """Scores k candidates of every row in one forward over [new prefix tokens | k candidates], the prefix cached once.

    How the candidates share the prefix is decided when the scorer is made, by a numeric probe on the loaded model:

    - "siblings": through an attention mask, one copy of the prefix whatever k is (also "siblings_sliding" and
      "siblings_mixed", for models with windowed attention in all or in some layers);
    - "expand": each candidate on its own copy of the cache, for models that cannot do that (recurrent layers, ALiBi by
      slot); "expand_own", the same on a cache that only the model can make;
    - "recompute": no cache, for models that have none.

    All give the same rewards up to rounding. What is kept between calls is a memory of the last rows: other prompts,
    permuted, duplicated, dropped or rolled-back rows cost a recomputation of what changed and nothing else.

    Args:
        reward_model: The model; its token ids are taken to be those of the rows.
        path: One of the names above, or "auto" for the cheapest that is exact.
        speculate: Whether to take the ordinary step before looking at the rows, which keeps an accelerator busy; by
            default everywhere but on a CPU, where looking is free.

    Raises:
        RewardModelError: If the model is not causal, or no path is exact on it.
    """

    def __init__(self, reward_model: RewardModel, *, path: str = "auto", speculate: bool | None = None) -> None:
        if path != "auto" and path not in PASSES:
            raise InvalidArgumentError(f"Expected path to be 'auto' or one of {', '.join(PASSES)}, but got {path!r}.")
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size
        self.pad_token_id = reward_model.pad_token_id
        self.path = choose_pass(reward_model) if path == "auto" else path
        self._pass: Pass = PASSES[self.path](reward_model)
        self._speculates = reward_model.device.type != "cpu" if speculate is None else speculate
        self._tracker = PrefixTracker()
        self._last: _Last | None = None

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        self._tracker.forget()
        self._pass.restart()
        self._last = None

    def cache_bytes(self) -> int:
        """Memory that the cache of the last rows holds."""
        return self._pass.cache_bytes()

    @torch.no_grad()
    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate; see `Scorer.score`. One forward, however many candidates.

        An accelerator is waited for once in an ordinary step, at its end, and twice when rows change places.

        Raises:
            PaddingError: If a row is all padding.
            VocabularyError: If the reward model does not have a token.
            ContextLengthError: If a prefix and one candidate are longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        device = self.reward_model.device
        keys = torch.where(attention_mask.bool(), rows, PADDING).to(device)
        asked = candidates.to(device)
        try:
            rewards = self._guess(keys, asked)
            if rewards is None:
                rewards = self._answer(keys, asked)
        except BaseException:
            # Interrupted in the middle, the cache may no longer match the rows remembered.
            self.reset()
            raise
        return rewards.to(candidates.device)

    def _guess(self, keys: Tensor, candidates: Tensor) -> Tensor | None:
        """Speculates: takes the ordinary step before knowing that it is one, and looks afterwards.

        The ordinary step: every row is as it was plus one of the candidates it was last asked about. To look first
        would leave the device idle while the host reads the rows; one look at the end tells both whether the guess was
        right and whether the rewards are finite. A wrong guess costs one forward.
        """
        last, limit = self._last, self.reward_model.max_length
        if not self._speculates or not self._pass.can_take_back:
            return None
        if last is None or not last.steady or last.candidates is None:
            return None
        length = last.keys.shape[1]
        if keys.shape != (last.keys.shape[0], length + 1) or (limit is not None and last.longest + 2 > limit):
            return None
        ours, asked = (keys, candidates) if last.running is None else (keys[last.running], candidates[last.running])
        drawn = ours[:, -1:] == last.candidates.to(keys.device)
        known = asked.clamp(max=self.reward_model.vocab_size - 1)
        plan = Plan(None, length)
        step = Step(plan, ours, known, extends=True, drawn=drawn.int().argmax(-1))
        rewards = self.reward_model.rewards(self._pass.run(step))
        ordinary = (keys[:, :-1] == last.keys).all() & drawn.any(-1).all() & (asked == known).all()
        ordinary &= ((keys[:, -1] == PADDING) == (last.keys[:, -1] == PADDING)).all()
        guessed, finite = torch.stack([ordinary, rewards.isfinite().all()]).tolist()
        if not guessed:
            self._pass.take_back(length)
            self._last = replace(last, candidates=None)
            return None
        if not finite:
            raise self._not_finite(step)
        self._tracker.remember(ours)
        self._last = _Last(keys, last.running, asked, last.longest + 1, steady=True)
        return _whole(rewards, candidates, last.running)

    def _answer(self, keys: Tensor, candidates: Tensor) -> Tensor:
        """Looks at the rows, plans, and takes whatever step follows."""
        seen, asked = torch.cat([keys, candidates], dim=1).cpu().split([keys.shape[1], candidates.shape[1]], dim=1)
        longest = self._check(seen, asked)
        finished = seen[:, -1] == PADDING
        if finished.all():
            return torch.zeros(candidates.shape, device=candidates.device)
        running = (~finished).nonzero()[:, 0] if finished.any() else None
        if running is not None:
            seen, asked = seen[running], asked[running]
        plan = self._tracker.plan(seen)
        extends = plan.keep == self._tracker.length
        step = Step(
            plan, seen.to(keys.device), asked.to(keys.device), extends=extends, drawn=self._drawn(plan, seen, extends)
        )
        rewards = self.reward_model.rewards(self._pass.run(step))
        if not rewards.isfinite().all():
            raise self._not_finite(step)
        self._tracker.remember(seen)
        running = None if running is None else running.to(keys.device)
        self._last = _Last(keys, running, asked, longest, steady=plan.parents is None)
        return _whole(rewards, candidates, running)

    def _drawn(self, plan: Plan, seen: Tensor, extends: bool) -> Int[Tensor, " batch"] | None:
        """Which of its last candidates each row has grown by, if all have grown by one."""
        if not extends or self._last is None or self._last.candidates is None or seen.shape[1] != plan.keep + 1:
            return None
        siblings = self._last.candidates.cpu()
        same = seen[:, -1:] == (siblings if plan.parents is None else siblings[plan.parents])
        return same.int().argmax(-1).to(self.reward_model.device) if same.any(-1).all() else None

    def _check(self, keys: Tensor, candidates: Tensor) -> int:
        """The length of the longest prefix, if all can be read."""
        empty = (keys == PADDING).all(-1).nonzero()[:, 0].tolist()
        if empty:
            raise PaddingError(
                f"Expected text in every row, but row {empty[0]} holds only the padding token. If that token is also "
                "the start of your text (pad == bos), pass the prompts' attention_mask= to "
                "PartialRewardLogitsProcessor."
            )
        largest = max(int(keys.max()), int(candidates.max()))
        if largest >= self.reward_model.vocab_size:
            raise VocabularyError(
                f"Expected token ids below {self.reward_model.vocab_size}, the size of the reward model's vocabulary, "
                f"but got {largest}: the reward model does not share the base model's tokens. "
                "Pass tokenizer= (the base model's tokenizer) to PartialRewardLogitsProcessor, with a RewardModel that "
                "has its own."
            )
        limit = self.reward_model.max_length
        longest = int((keys != PADDING).sum(-1).max())
        if limit is not None and longest + 1 > limit:
            raise ContextLengthError(
                f"Expected prefixes of at most {limit} tokens, the context of the reward model, but a prefix and its "
                f"candidate have {longest + 1}. Shorten the prompt, generate fewer tokens, or use a reward model with "
                "a longer context."
            )
        return longest

    def _not_finite(self, step: Step) -> NonFiniteRewardError:
        """Looks for the guilty token by itself, because through the shared pass its NaN reaches its siblings."""
        row, token, reward = 0, int(step.candidates[0, 0]), float("nan")
        for row, slot in torch.cartesian_prod(*map(torch.arange, step.candidates.shape)).tolist():
            prefix = step.keys[row][step.keys[row] != PADDING]
            token = int(step.candidates[row, slot])
            text = torch.cat([prefix, step.candidates[row, slot : slot + 1]])[None]
            reward = float(self.reward_model.score_tokens(text)[0, -1])
            if not math.isfinite(reward):
                break
        return NonFiniteRewardError(
            f"Expected finite rewards, but the reward of row {row} with token {token} is {reward}. "
            "The reward model overflows or is damaged: load it in float32 or bfloat16, and check its weights."
        )


def _whole(rewards: Tensor, candidates: Tensor, running: Tensor | None) -> Tensor:
    """Puts the rewards of the running rows among those of the finished ones, which are 0."""
    if running is None:
        return rewards
    return torch.zeros(candidates.shape, device=rewards.device).index_copy(0, running, rewards)

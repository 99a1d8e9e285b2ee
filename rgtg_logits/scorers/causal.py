"""Rewards of next tokens from a causal reward model, one cached forward per step."""

from __future__ import annotations

import math

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
from rgtg_logits.prefix import PADDING, PrefixTracker
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers._passes import PASSES, Pass, Step
from rgtg_logits.scorers._probe import choose_pass
from rgtg_logits.scorers.base import Scorer


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

    Raises:
        RewardModelError: If the model is not causal, or no path is exact on it.
    """

    def __init__(self, reward_model: RewardModel, *, path: str = "auto") -> None:
        if path != "auto" and path not in PASSES:
            raise InvalidArgumentError(f"Expected path to be 'auto' or one of {', '.join(PASSES)}, but got {path!r}.")
        self.reward_model = reward_model
        self.vocab_size = reward_model.vocab_size
        self.pad_token_id = reward_model.pad_token_id
        self.path = choose_pass(reward_model) if path == "auto" else path
        self._pass: Pass = PASSES[self.path](reward_model)
        self._tracker = PrefixTracker()

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        self._tracker.forget()
        self._pass.restart()

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

        Raises:
            PaddingError: If a row is all padding.
            VocabularyError: If the reward model does not have a token.
            ContextLengthError: If a prefix and one candidate are longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        keys = torch.where(attention_mask.bool(), rows, PADDING).cpu()
        _check_not_empty(keys)
        running = keys[:, -1] != PADDING
        if not running.any():
            return torch.zeros(candidates.shape, device=candidates.device)
        if running.all():
            return self._score_running(keys, candidates)
        rewards = torch.zeros(candidates.shape, device=candidates.device)
        index = running.nonzero()[:, 0]
        rewards[index.to(candidates.device)] = self._score_running(keys[index], candidates[index.to(candidates.device)])
        return rewards

    def _score_running(self, keys: Int[Tensor, "batch length"], candidates: Tensor) -> Tensor:
        self._check(keys, candidates)
        plan = self._tracker.plan(keys)
        try:
            device = self.reward_model.device
            step = Step(plan, keys.to(device), candidates.to(device), extends=plan.keep == self._tracker.length)
            rewards = self.reward_model.rewards(self._pass.run(step)).to(candidates.device)
            if not rewards.isfinite().all():
                raise self._not_finite(step)
        except BaseException:
            # Interrupted in the middle, the cache may no longer match the rows remembered.
            self.reset()
            raise
        self._tracker.remember(keys)
        return rewards

    def _check(self, keys: Tensor, candidates: Tensor) -> None:
        largest = max(int(keys.max()), int(candidates.max()))
        if largest >= self.reward_model.vocab_size:
            raise VocabularyError(
                f"Expected token ids below {self.reward_model.vocab_size}, the size of the reward model's vocabulary, "
                f"but got {largest}: the reward model does not share the base model's tokens. "
                "Pass tokenizer= (the base model's tokenizer) to PartialRewardLogitsProcessor, with a RewardModel that "
                "has its own."
            )
        limit = self.reward_model.max_length
        longest = int((keys != PADDING).sum(-1).max()) + 1
        if limit is not None and longest > limit:
            raise ContextLengthError(
                f"Expected prefixes of at most {limit} tokens, the context of the reward model, but a prefix and its "
                f"candidate have {longest}. Shorten the prompt, generate fewer tokens, or use a reward model with a "
                "longer context."
            )

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


def _check_not_empty(keys: Tensor) -> None:
    empty = (keys == PADDING).all(-1).nonzero()[:, 0].tolist()
    if empty:
        raise PaddingError(
            f"Expected text in every row, but row {empty[0]} holds only the padding token. If that token is also the "
            "start of your text (pad == bos), pass the prompts' attention_mask= to PartialRewardLogitsProcessor."
        )

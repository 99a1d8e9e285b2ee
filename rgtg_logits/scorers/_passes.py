"""The ways of running a reward model over [new prefix tokens | k candidates].

A pass owns the cache of the last rows. It is told what changed (`Step`) and returns the last layer's state of every
candidate. Which pass fits a model is found by `_probe`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from rgtg_logits.prefix import PADDING, Plan
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.scorers._kv_cache import PrefixCache
from rgtg_logits.scorers._sibling_mask import sibling_mask


@dataclass(frozen=True)
class Step:
    """One question.

    Attributes:
        plan: How the rows follow from those of the last step.
        keys: The rows, `PADDING` where padded, on the model's device.
        candidates: The candidates, on the model's device.
        extends: Whether the plan keeps all of the last rows.
        drawn: Which of its last candidates each row has grown by, if each has grown by just one of them.
    """

    plan: Plan
    keys: Int[Tensor, "batch length"]
    candidates: Int[Tensor, "batch k"]
    extends: bool
    drawn: Int[Tensor, " batch"] | None = None

    @property
    def text(self) -> Int[Tensor, "batch length"]:
        """1 for text, 0 for padding."""
        return (self.keys != PADDING).long()

    @property
    def tokens(self) -> Int[Tensor, "batch length"]:
        """The rows with some valid token id in the place of padding."""
        return self.keys.clamp(min=0)


class Pass(ABC):
    """A way of running the model.

    Attributes:
        can_take_back: Whether tokens can be taken back from the cache after a step that was wrong.
    """

    can_take_back = False

    def __init__(self, reward_model: RewardModel) -> None:
        self.reward_model = reward_model

    @abstractmethod
    def restart(self) -> None:
        """Forgets the cache."""

    def take_back(self, length: int) -> None:
        """Undoes a step that only added tokens: the rows have `length` columns again."""
        raise TypeError(f"{type(self).__name__} cannot take tokens back.")

    def cache_bytes(self) -> int:
        """Memory that the cache holds; 0 without one that can tell."""
        cache = getattr(self, "_cache", None)
        return cache.memory() if isinstance(cache, PrefixCache) else 0

    @abstractmethod
    def run(self, step: Step) -> Float[Tensor, "batch k hidden"]:
        """The last layer's state of each candidate, each behind its own row's prefix alone."""


class SiblingPass(Pass):
    """All candidates in one forward behind one copy of the prefix, told apart by the attention mask.

    The candidate that is drawn need not be read again: its keys and values still lie behind the prefix, and are exactly
    those of the longer prefix, because it saw nothing but the prefix and itself.
    """

    can_take_back = True

    def __init__(self, reward_model: RewardModel, *, full: bool, sliding: bool) -> None:
        super().__init__(reward_model)
        self._full, self._sliding = full, sliding
        self.restart()

    def restart(self) -> None:
        self._cache = PrefixCache()

    def take_back(self, length: int) -> None:
        self._cache.truncate(length)

    def run(self, step: Step) -> Float[Tensor, "batch k hidden"]:
        keep = self._recall(step)
        length, k = step.keys.shape[1], step.candidates.shape[1]
        text = step.text
        position = positions(text)
        after = (position[:, -1:] + 1).expand(-1, k)
        hidden, _ = self.reward_model.hidden_states(
            torch.cat([step.tokens[:, keep:], step.candidates], dim=1),
            self._mask(text, k, queries=length - keep + k),
            torch.cat([position[:, keep:], after], dim=1),
            self._cache,
            use_cache=True,
        )
        # What lies behind the prefix now are the candidates; the one that is drawn is found there by the next step.
        self._cache.truncate(length)
        return hidden[:, -k:]

    def _recall(self, step: Step) -> int:
        """Brings the cache to what it shares with the rows now, and says how many columns that is."""
        keep = step.plan.keep
        if keep == 0:
            self.restart()
            return 0
        if step.plan.parents is not None:
            self._cache.reorder_cache(step.plan.parents)
        self._cache.truncate(keep)
        if step.drawn is None:
            return keep
        self._cache.adopt(keep + step.drawn)
        return keep + 1

    def _mask(self, text: Tensor, k: int, queries: int) -> Tensor | dict[str, Tensor]:
        build = partial(sibling_mask, text, k, queries, dtype=self.reward_model.dtype)
        masks = {}
        if self._full:
            masks["full_attention"] = build(window=None)
        if self._sliding:
            masks["sliding_attention"] = build(window=self.reward_model.sliding_window)
        return masks if len(masks) > 1 else next(iter(masks.values()))


class ExpandPass(Pass):
    """Each candidate on its own copy of the cache: exact wherever caching is, at k times the memory traffic.

    Args:
        own: Let the model make its cache, because it holds more than keys and values. Such a cache cannot be taken
            back, so a rewind starts over.
    """

    def __init__(self, reward_model: RewardModel, *, own: bool) -> None:
        super().__init__(reward_model)
        self._own = own
        self.restart()

    def restart(self) -> None:
        self._cache: Cache | None = None if self._own else PrefixCache()

    def run(self, step: Step) -> Float[Tensor, "batch k hidden"]:
        keep = self._recall(step)
        (batch, k), text = step.candidates.shape, step.text
        for start, end in self._chunks(keep, step.keys.shape[1]):
            new = positions(text)[:, start:end]
            _, self._cache = self._forward(step.tokens[:, start:end], text[:, :end], new, self._cache)
        cache = copy.deepcopy(self._cache)
        assert cache is not None
        cache.reorder_cache(torch.arange(batch, device=text.device).repeat_interleave(k))
        longer = torch.nn.functional.pad(text, (0, 1), value=1).repeat_interleave(k, dim=0)
        hidden, _ = self._forward(step.candidates.reshape(-1, 1), longer, positions(longer)[:, -1:], cache)
        return hidden.reshape(batch, k, -1)

    def _chunks(self, keep: int, length: int) -> list[tuple[int, int]]:
        # Recurrent layers continue from their state one token at a time; given several, they start from nothing.
        if self._own and keep > 0:
            return [(start, start + 1) for start in range(keep, length)]
        return [(keep, length)] if keep < length else []

    def _forward(self, tokens: Tensor, mask: Tensor, position: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        hidden, cache = self.reward_model.hidden_states(tokens, mask, position, cache, use_cache=True)
        if cache is None:
            raise TypeError("The model returns no cache.")
        return hidden, cache

    def _recall(self, step: Step) -> int:
        keep = step.plan.keep
        if keep == 0 or (self._own and not step.extends):
            self.restart()
            return 0
        cache = cast(Cache, self._cache)
        if step.plan.parents is not None:
            cache.reorder_cache(step.plan.parents.to(step.keys.device))
        if not step.extends:
            cast(PrefixCache, cache).truncate(keep)
        return keep


class RecomputePass(Pass):
    """No cache: all candidates of a row behind k copies of its prefix, without padding."""

    def restart(self) -> None:
        pass

    def run(self, step: Step) -> Float[Tensor, "batch k hidden"]:
        states = []
        for row, candidates in zip(step.keys, step.candidates, strict=True):
            prefix = row[row != PADDING].expand(candidates.shape[0], -1)
            tokens = torch.cat([prefix, candidates[:, None]], dim=1)
            mask = torch.ones_like(tokens)
            hidden, _ = self.reward_model.hidden_states(tokens, mask, positions(mask))
            states.append(hidden[:, -1])
        return torch.stack(states)


PASSES: dict[str, Callable[[RewardModel], Pass]] = {
    "siblings": partial(SiblingPass, full=True, sliding=False),
    "siblings_sliding": partial(SiblingPass, full=False, sliding=True),
    "siblings_mixed": partial(SiblingPass, full=True, sliding=True),
    "expand": partial(ExpandPass, own=False),
    "expand_own": partial(ExpandPass, own=True),
    "recompute": RecomputePass,
}
"""Every pass by its name, cheapest first."""

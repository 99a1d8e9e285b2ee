"""The ways of running a reward model over [new prefix tokens | branches].

A pass owns the cache of the last rows. It is told what changed (`Step`) and returns the last layer's state at the end
of every branch. Which pass fits a model is found by `_probe`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from typing_extensions import override

from rgtg_logits.padding import PADDING
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.scorers.engine.kv_cache import PrefixCache
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tracker import Plan
from rgtg_logits.scorers.engine.tree_mask import tree_mask

PIECE = 512
"""On a CPU, more columns than twice this are read in pieces of about as many."""


@dataclass(frozen=True)
class Step:
    """One question.

    Attributes:
        plan: How the rows follow from those of the last step.
        keys: The rows, `PADDING` where padded, on the model's device.
        branches: What may follow them, on the model's device.
        extends: Whether the plan keeps all of the last rows.
        drawn: Which of its last branches each row has grown by, if each has grown by just one token of them.
    """

    plan: Plan
    keys: Int[Tensor, "batch length"]
    branches: TokenTree
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


class Strategy(ABC):
    """A way of running the model.

    Args:
        reward_model: The model.
        max_tokens: Most tokens to run in one forward, so that memory is bounded; at least one per row are. None: all.
        compiled: The same model with a compiled forward, for passes whose steps keep their shape. None: not compiled.

    Attributes:
        can_take_back: Whether tokens can be taken back from the cache after a step that was wrong.
    """

    can_take_back = False

    def __init__(
        self, reward_model: RewardModel, max_tokens: int | None = None, compiled: RewardModel | None = None
    ) -> None:
        self.reward_model = reward_model
        self._max_tokens = max_tokens
        self._compiled = compiled
        self.restart()

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
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        """The state at the end of each branch, each behind its own row's prefix alone."""

    def _pieces(self, start: int, end: int, rows: int, widest: int | None = None) -> list[slice]:
        """Cuts `rows` rows of columns into pieces small enough for one forward, of at most `widest` columns."""
        width = widest or end - start
        if self._max_tokens is not None:
            width = min(width, max(1, self._max_tokens // rows))
        return [slice(first, min(first + width, end)) for first in range(start, end, max(1, width))]


class TreeAttention(Strategy):
    """All branches in one forward behind one copy of the prefix, told apart by the attention mask.

    The token that is drawn need not be read again: its keys and values still lie behind the prefix, and are exactly
    those of the longer prefix, because it saw nothing but the prefix and itself.
    """

    can_take_back = True

    def __init__(self, *arguments: Any, full: bool, sliding: bool) -> None:
        self._full, self._sliding = full, sliding
        super().__init__(*arguments)

    @override
    def restart(self) -> None:
        self._cache = PrefixCache(static=self._compiled is not None)

    @override
    def take_back(self, length: int) -> None:
        self._cache.truncate(length)

    @override
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        keep = self._recall(step)
        (batch, length), text, branches = step.keys.shape, step.text, step.branches
        after = text.sum(-1, keepdim=True) + branches.levels()
        position = torch.cat([positions(text), after], dim=1)
        tokens = torch.cat([step.tokens, branches.tokens], dim=1)
        pieces = self._pieces(keep, tokens.shape[1], batch, self._piece_width(tokens.shape[1] - keep))
        if self._compiled is not None and keep == length and len(pieces) == 1 and length > 0:
            return self._in_place(self._compiled, text, branches, position)
        states = []
        for piece in pieces:
            branching = max(0, piece.stop - max(piece.start, length))
            state, _ = self.reward_model.hidden_states(
                tokens[:, piece],
                self._mask(text, branches, position, piece),
                position[:, piece],
                self._cache,
                use_cache=True,
                last=max(1, branching),
            )
            if branching:
                states.append(state)
        # What lies behind the prefix now are the branches; the one that is drawn is found there by the next step.
        return _ends(torch.cat(states, dim=1) if len(states) > 1 else states[0], branches)

    def _piece_width(self, columns: int) -> int:
        """How many of the columns to read at once.

        With a mask of its own, attention computes what the mask rules out as well, of a long prompt half of all. A
        piece sees no column behind its own end. Small pieces would make a GPU wait for launches.
        """
        count = max(1, columns // PIECE) if self.reward_model.device.type == "cpu" else 1
        return -(-columns // count)

    def _in_place(
        self, compiled: RewardModel, text: Tensor, branches: TokenTree, position: Tensor
    ) -> Float[Tensor, "batch k state"]:
        """The step that reads nothing but branches, in shapes that stay the same, so that it is compiled once."""
        length, nodes = text.shape[1], branches.tokens.shape[1]
        piece = slice(length, length + nodes)
        with self._cache.in_place(length, nodes) as size:
            states, _ = compiled.hidden_states(
                _packed(branches.tokens),
                self._mask(text, branches, position, piece, size),
                _packed(position[:, piece]),
                self._cache,
                use_cache=True,
                last=nodes,
            )
        # A recorded graph writes its next result into the same memory.
        return _ends(states.clone(), branches)

    @profiled("cache")
    def _recall(self, step: Step) -> int:
        """Brings the cache to what it shares with the rows now, and says how many columns that is."""
        keep = step.plan.keep
        if keep == 0:
            self.restart()
            return 0
        if step.plan.parents is not None:
            self._cache.reorder_cache(step.plan.parents)
        if step.drawn is None:
            self._cache.truncate(keep)
            return keep
        self._cache.adopt(keep, keep + step.drawn)
        return keep + 1

    @profiled("attention mask")
    def _mask(
        self, text: Tensor, branches: TokenTree, position: Tensor, piece: slice, size: int | None = None
    ) -> Tensor | dict[str, Tensor]:
        build = partial(tree_mask, text, branches, position, piece, size=size, dtype=self.reward_model.dtype)
        masks = {}
        if self._full:
            masks["full_attention"] = build(window=None)
        if self._sliding:
            masks["sliding_attention"] = build(window=self.reward_model.sliding_window)
        return masks if len(masks) > 1 else next(iter(masks.values()))


def _packed(slice_: Int[Tensor, "batch some"]) -> Int[Tensor, "batch some"]:
    """The same with strides of its own shape: a compiled forward asks for equal strides even where there is one row."""
    return slice_.flatten().reshape(slice_.shape)


def _ends(nodes: Float[Tensor, "batch nodes state"], branches: TokenTree) -> Float[Tensor, "batch k state"]:
    """The states at the ends of the branches."""
    if branches.leaves is None:
        return nodes
    return nodes.gather(1, branches.leaves[..., None].expand(-1, -1, nodes.shape[-1]))


class ExpandedCache(Strategy):
    """Each branch on its own copy of the cache: exact wherever caching is, at k times the memory traffic.

    Args:
        own: Let the model make its cache, because it holds more than keys and values. Such a cache cannot be taken
            back, so a rewind starts over.
    """

    def __init__(self, *arguments: Any, own: bool) -> None:
        self._own = own
        super().__init__(*arguments)

    @override
    def restart(self) -> None:
        self._cache: Cache | None = None if self._own else PrefixCache()

    @override
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        keep = self._recall(step)
        (batch, length), text = step.keys.shape, step.text
        for piece in self._steps(keep, length, batch):
            new = positions(text)[:, piece]
            _, self._cache = self._forward(step.tokens[:, piece], text[:, : piece.stop], new, self._cache, last=1)
        paths, lengths = step.branches.paths()
        k, depth = paths.shape[1:]
        states = [self._branch(text, paths[:, piece], lengths[:, piece]) for piece in self._pieces(0, k, batch * depth)]
        return torch.cat(states, dim=1)

    def _branch(self, text: Tensor, paths: Tensor, lengths: Tensor) -> Float[Tensor, "batch k state"]:
        """Runs some of the branches, each on a copy of the cache that is thrown away."""
        batch, k, depth = paths.shape
        cache = copy.deepcopy(self._cache) if text.shape[1] else None if self._own else PrefixCache()
        if cache is not None and text.shape[1]:
            cache.reorder_cache(torch.arange(batch, device=text.device).repeat_interleave(k))
        longer = torch.nn.functional.pad(text, (0, depth), value=1).repeat_interleave(k, dim=0)
        tokens, start, states = paths.reshape(batch * k, depth), text.shape[1], []
        for piece in self._steps(start, start + depth, None):
            new = positions(longer)[:, piece]
            columns = slice(piece.start - start, piece.stop - start)
            width = columns.stop - columns.start
            state, cache = self._forward(tokens[:, columns], longer[:, : piece.stop], new, cache, last=width)
            states.append(state)
        along = torch.cat(states, dim=1)
        ends = (lengths.reshape(-1, 1, 1) - 1).expand(-1, -1, along.shape[-1])
        return along.gather(1, ends).reshape(batch, k, -1)

    def _steps(self, start: int, end: int, rows: int | None) -> list[slice]:
        # Recurrent layers continue from their state one token at a time; given several, they start from nothing.
        if self._own and start > 0:
            return [slice(column, column + 1) for column in range(start, end)]
        # Only what a later piece may attend to can be cut, which is nothing where a state starts from nothing.
        return self._pieces(start, end, rows) if rows and not self._own else [slice(start, end)] * (start < end)

    def _forward(
        self, tokens: Tensor, mask: Tensor, position: Tensor, cache: Cache | None, *, last: int
    ) -> tuple[Tensor, Cache]:
        states, cache = self.reward_model.hidden_states(tokens, mask, position, cache, use_cache=True, last=last)
        if cache is None:
            raise TypeError("The model returns no cache.")
        return states, cache

    @profiled("cache")
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


class Recompute(Strategy):
    """No cache: all branches of a row behind copies of its prefix, without padding."""

    @override
    def restart(self) -> None:
        pass

    @override
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        paths, lengths = step.branches.paths()
        states = paths.new_empty(0, dtype=self.reward_model.dtype)
        for row, key in enumerate(step.keys):
            prefix = key[key != PADDING]
            # TokenTree of one length at a time, so that no text is longer than it is.
            for length in lengths[row].unique().tolist():
                chosen = (lengths[row] == length).nonzero()[:, 0]
                for piece in self._pieces(0, len(chosen), len(prefix) + length):
                    ends = self._ends(prefix, paths[row, chosen[piece], :length])
                    if not states.numel():
                        states = ends.new_zeros(*lengths.shape, ends.shape[-1])
                    states[row, chosen[piece]] = ends
        return states

    def _ends(self, prefix: Tensor, paths: Tensor) -> Float[Tensor, "k state"]:
        tokens = torch.cat([prefix.expand(paths.shape[0], -1), paths], dim=1)
        mask = torch.ones_like(tokens)
        states, _ = self.reward_model.hidden_states(tokens, mask, positions(mask), last=1)
        return states[:, -1]


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "siblings": partial(TreeAttention, full=True, sliding=False),
    "siblings_sliding": partial(TreeAttention, full=False, sliding=True),
    "siblings_mixed": partial(TreeAttention, full=True, sliding=True),
    "expand": partial(ExpandedCache, own=False),
    "expand_own": partial(ExpandedCache, own=True),
    "recompute": Recompute,
}
"""Every pass by its name, cheapest first."""

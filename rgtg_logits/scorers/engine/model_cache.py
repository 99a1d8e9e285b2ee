"""A cache that only the model can make, because it holds more than keys and values: the states of recurrent layers."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache
from typing_extensions import override

from rgtg_logits.scorers.engine.sequence_memory import REMEMBERED_CALLS
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree


@dataclass(eq=False)
class _Family:
    """Sequences of equal length in one cache, and their continuations in another one.

    Attributes:
        texts: The sequences.
        cache: The cache with a row for each; None if they have no tokens.
        nodes: The tokens behind each sequence, one row of the expanded cache for each.
        expanded: The cache of the sequences with those tokens; None if it is not kept.
    """

    texts: list[np.ndarray]
    cache: Cache | None
    nodes: np.ndarray
    expanded: Cache | None

    @property
    def length(self) -> int:
        """Number of tokens of each sequence."""
        return len(self.texts[0])

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all sequences."""
        return self.length * len(self.texts)


@dataclass(frozen=True)
class _Source:
    """A remembered beginning: a row of one of the caches of a family."""

    family: _Family
    is_expanded: bool
    row: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.family.length + int(self.is_expanded)


class ModelCache(Strategy):
    """Each continuation on its own copy of a cache that the model makes itself.

    Such a cache cannot be rolled back, and its rows have one length. So sequences of equal length share one, and only
    whole remembered sequences are continued. The cache of the candidates is kept, in which the next token has been
    read already.
    """

    @override
    def reset(self) -> None:
        # The one that was used last comes last.
        self._families: list[_Family] = []
        self._new: list[tuple[list[int], _Family]] = []
        self._used: set[_Family] = set()
        self._needs: deque[int] = deque(maxlen=REMEMBERED_CALLS)

    @override
    def run(self, rows: Sequence[np.ndarray], token_tree: TokenTree) -> Float[Tensor, "batch k state"]:
        self._new = []
        sources = [self._source(row) for row in rows]
        self._used = {source.family for source in sources if source is not None}
        tokens, lengths = token_tree.continuations()
        states: Tensor | None = None
        for source, members in self._groups(rows, sources):
            index = torch.tensor(members, device=tokens.device)
            part = self._run_group([rows[row] for row in members], source, tokens[index], lengths[index], members)
            states = part.new_empty(len(rows), *part.shape[1:]) if states is None else states
            states[index] = part
        assert states is not None
        return states

    def _source(self, row: np.ndarray) -> _Source | None:
        """The longest remembered sequence that a row begins with."""
        best: _Source | None = None
        for family in reversed(self._families):
            for source in _beginnings(family, row):
                if best is None or source.length > best.length:
                    best = source
        return best

    def _groups(
        self, rows: Sequence[np.ndarray], sources: Sequence[_Source | None]
    ) -> Iterator[tuple[list[_Source] | None, list[int]]]:
        """Rows that go through the model together: of one length, from one cache."""
        groups: dict[object, list[int]] = defaultdict(list)
        for row, source in enumerate(sources):
            origin = None if source is None else (source.family, source.is_expanded)
            groups[origin, len(rows[row])].append(row)
        for members in groups.values():
            for chunk in self._chunks(0, len(members), len(rows[members[0]]) or 1):
                part = members[chunk]
                known = [source for row in part if (source := sources[row]) is not None]
                yield known or None, part

    def _run_group(
        self,
        rows: list[np.ndarray],
        sources: list[_Source] | None,
        tokens: Tensor,
        lengths: Tensor,
        members: list[int],
    ) -> Float[Tensor, "rows k state"]:
        cache = self._prefix_cache(rows, sources)
        batch, k, depth = tokens.shape
        chunks = self._chunks(0, k, batch * depth)
        results = []
        expanded: Cache | None = None
        for chunk in chunks:
            state, expanded = self._continue(cache, len(rows[0]), tokens[:, chunk], lengths[:, chunk])
            results.append(state)
        if depth > 1 or len(chunks) > 1:
            expanded = None
        family = _Family([row.copy() for row in rows], cache, tokens[:, :, 0].cpu().numpy(), expanded)
        self._new.append((members, family))
        return torch.cat(results, dim=1)

    def _prefix_cache(self, rows: list[np.ndarray], sources: list[_Source] | None) -> Cache | None:
        """The cache of some rows of one length."""
        cache: Cache | None = None
        start = 0
        if sources is not None:
            source = sources[0]
            family = source.family
            origin = family.expanded if source.is_expanded else family.cache
            cache = _selected(origin, [known.row for known in sources], self.reward_model.device)
            start = source.length
        input_ids = torch.from_numpy(np.stack(rows)).to(self.reward_model.device)
        for columns in _recurrent_chunks(start, input_ids.shape[1]):
            _, cache = self._forward(input_ids[:, columns], columns, cache)
        return cache

    def _continue(
        self, cache: Cache | None, start: int, tokens: Tensor, lengths: Tensor
    ) -> tuple[Float[Tensor, "batch k state"], Cache | None]:
        """Runs some of the continuations on an expanded copy of the cache."""
        batch, k, depth = tokens.shape
        rows = [row for row in range(batch) for _ in range(k)]
        expanded = None if cache is None else _selected(cache, rows, tokens.device)
        input_ids = tokens.reshape(batch * k, depth)
        states = []
        for columns in _recurrent_chunks(start, start + depth):
            part = slice(columns.start - start, columns.stop - start)
            state, expanded = self._forward(input_ids[:, part], columns, expanded)
            states.append(state)
        all_states = torch.cat(states, dim=1)
        # States behind the end of a shorter continuation belong to its padding.
        ends = (lengths.reshape(-1, 1, 1) - 1).expand(-1, -1, all_states.shape[-1])
        return all_states.gather(1, ends).reshape(batch, k, -1), expanded

    def _forward(self, input_ids: Tensor, columns: slice, cache: Cache | None) -> tuple[Tensor, Cache]:
        rows, new = input_ids.shape
        mask = torch.ones(rows, columns.stop, dtype=torch.long, device=input_ids.device)
        # Repeated and not expanded, because some models add to them in place.
        positions = torch.arange(columns.start, columns.stop, device=input_ids.device).repeat(rows, 1)
        states, cache = self.reward_model.hidden_states(input_ids, mask, positions, cache, use_cache=True, last=new)
        if cache is None:
            raise TypeError("The model returns no cache.")
        return states, cache

    @override
    def commit(self, rows: Sequence[np.ndarray], token_tree: TokenTree | None, failed: Collection[int] = ()) -> None:
        self._needs.append(sum(len(row) for row in rows))
        texts = [row.tobytes() for row in rows]
        for family in self._used:
            self._families.remove(family)
            # If all of its sequences have gone on, what they were is the beginning of what is remembered now.
            if not all(any(text.startswith(old.tobytes()) for text in texts) for old in family.texts):
                self._families.append(family)
        num_old = len(self._families)
        for members, family in self._new:
            if not set(members) & set(failed):
                self._families.append(family)
        self._new = []
        bound = 2 * max(self._needs) if self._cache_tokens is None else self._cache_tokens
        while num_old > 0 and sum(family.num_tokens for family in self._families) > bound:
            self._families.pop(0)
            num_old -= 1

    @override
    def cache_bytes(self) -> int:
        caches = [cache for family in self._families for cache in (family.cache, family.expanded)]
        return sum(tensor.nbytes for tensor in _tensors(caches))


def _beginnings(family: _Family, row: np.ndarray) -> Iterator[_Source]:
    """The sequences of a family that a row begins with."""
    length = family.length
    if length > len(row) or (length == 0 and family.expanded is None):
        return
    beginning = row[:length]
    for index, text in enumerate(family.texts):
        if not np.array_equal(text, beginning):
            continue
        if length and family.cache is not None:
            yield _Source(family, False, index)
        if family.expanded is not None and len(row) > length:
            nodes = family.nodes[index]
            for node in np.flatnonzero(nodes == row[length])[:1].tolist():
                yield _Source(family, True, index * len(nodes) + node)


def _selected(cache: Cache | None, rows: list[int], device: torch.device) -> Cache:
    """A copy of some rows of a cache."""
    # A whole copy first, because caches of models reorder themselves in place.
    selected = copy.deepcopy(cache)
    assert selected is not None
    selected.reorder_cache(torch.tensor(rows, device=device))
    return selected


def _recurrent_chunks(start: int, end: int) -> list[slice]:
    # Recurrent layers continue from their state one token at a time; given several, they start from nothing.
    if start > 0:
        return [slice(column, column + 1) for column in range(start, end)]
    return [slice(start, end)] if start < end else []


def _tensors(part: object) -> Iterator[Tensor]:
    """The tensors in a cache, whose classes differ from architecture to architecture."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict):
        for value in part.values():
            yield from _tensors(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _tensors(value)
    elif hasattr(part, "__dict__"):
        yield from _tensors(vars(part))

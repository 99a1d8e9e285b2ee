"""An expanded cache: each continuation behind its own copy of the prefix's cache, as beam search expands it."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache
from typing_extensions import override

from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import positions
from rgtg_logits.scorers.engine.kv_cache import PrefixCache
from rgtg_logits.scorers.engine.strategy import Step, Strategy


class ExpandedCache(Strategy):
    """Each continuation on its own copy of the cache: exact wherever caching is, at k times the memory traffic.

    Args:
        model_cache: Whether the model makes its cache itself, because it holds more than keys and values (the states of
            recurrent layers). Such a cache cannot be rolled back, so a rewind starts over.
    """

    def __init__(self, *arguments: Any, model_cache: bool) -> None:
        self._model_cache = model_cache
        super().__init__(*arguments)

    @override
    def reset(self) -> None:
        self._cache = self._empty_cache()

    def _empty_cache(self) -> Cache | None:
        return None if self._model_cache else PrefixCache()

    @override
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        cached = self._restore_cache(step)
        batch, length = step.padded_ids.shape
        attention_mask = step.attention_mask
        for chunk in self._prefix_chunks(cached, length, batch):
            _, self._cache = self._forward(
                step.input_ids[:, chunk],
                attention_mask[:, : chunk.stop],
                positions(attention_mask)[:, chunk],
                self._cache,
                last=1,
            )
        tokens, lengths = step.token_tree.continuations()
        k, depth = tokens.shape[1:]
        states = [
            self._continue(attention_mask, tokens[:, chunk], lengths[:, chunk])
            for chunk in self._chunks(0, k, batch * depth)
        ]
        return torch.cat(states, dim=1)

    def _continue(self, attention_mask: Tensor, tokens: Tensor, lengths: Tensor) -> Float[Tensor, "batch k state"]:
        """Runs some of the continuations on an expanded copy of the cache, which is thrown away."""
        batch, k, depth = tokens.shape
        start = attention_mask.shape[1]
        cache = self._expanded_cache(batch, k, attention_mask.device) if start else self._empty_cache()
        # Padding behind shorter continuations counts as text, because no token before it attends to it.
        longer_mask = torch.nn.functional.pad(attention_mask, (0, depth), value=1).repeat_interleave(k, dim=0)
        input_ids = tokens.reshape(batch * k, depth)
        states = []
        for chunk in self._tree_chunks(start, start + depth):
            columns = slice(chunk.start - start, chunk.stop - start)
            state, cache = self._forward(
                input_ids[:, columns],
                longer_mask[:, : chunk.stop],
                positions(longer_mask)[:, chunk],
                cache,
                last=columns.stop - columns.start,
            )
            states.append(state)
        all_states = torch.cat(states, dim=1)
        # States behind the end of a shorter continuation belong to its padding.
        ends = (lengths.reshape(-1, 1, 1) - 1).expand(-1, -1, all_states.shape[-1])
        return all_states.gather(1, ends).reshape(batch, k, -1)

    def _expanded_cache(self, batch: int, k: int, device: torch.device) -> Cache:
        """A copy of the cache with k copies of each row."""
        # A whole copy, because a forward writes into its cache, and recurrent states cannot be rolled back.
        cache = cast(Cache, copy.deepcopy(self._cache))
        cache.reorder_cache(torch.arange(batch, device=device).repeat_interleave(k))
        return cache

    def _prefix_chunks(self, start: int, end: int, rows: int) -> list[slice]:
        if self._model_cache:
            # The cache that only the model can make is made by one forward over the whole prefix.
            return self._recurrent_chunks(start, end)
        return self._chunks(start, end, rows)

    def _tree_chunks(self, start: int, end: int) -> list[slice]:
        return self._recurrent_chunks(start, end) if self._model_cache else [slice(start, end)]

    @staticmethod
    def _recurrent_chunks(start: int, end: int) -> list[slice]:
        # Recurrent layers continue from their state one token at a time; given several, they start from nothing.
        if start > 0:
            return [slice(column, column + 1) for column in range(start, end)]
        return [slice(start, end)] if start < end else []

    def _forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None, *, last: int
    ) -> tuple[Tensor, Cache]:
        states, cache = self.reward_model.hidden_states(
            input_ids, attention_mask, position_ids, cache, use_cache=True, last=last
        )
        if cache is None:
            raise TypeError("The model returns no cache.")
        return states, cache

    @profiled("cache")
    def _restore_cache(self, step: Step) -> int:
        """Brings the cache to the prefix that it shares with the rows now; returns its number of columns."""
        kept = step.plan.kept_length
        if kept == 0 or (self._model_cache and not step.extends):
            self.reset()
            return 0
        cache = cast(Cache, self._cache)
        if step.plan.source_rows is not None:
            cache.reorder_cache(step.plan.source_rows.to(step.padded_ids.device))
        if not step.extends:
            cast(PrefixCache, cache).truncate(kept)
        return kept

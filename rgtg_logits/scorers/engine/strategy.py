"""The contract of a strategy: how a reward model is run over [new tokens of the prefix | token tree]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.padding import PADDING
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine.kv_cache import PrefixCache
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tracker import CachePlan


@dataclass(frozen=True)
class Step:
    """The input of one step, on the model's device.

    Attributes:
        plan: How the rows follow from those of the previous step.
        padded_ids: Token ids of the rows, `PADDING` where padded.
        token_tree: Continuations of the rows.
        extends: Whether the plan keeps all columns of the previous rows.
        sampled_nodes: The node of the previous, flat tree by which each row has grown, if each has grown by one.
    """

    plan: CachePlan
    padded_ids: Int[Tensor, "batch length"]
    token_tree: TokenTree
    extends: bool
    sampled_nodes: Int[Tensor, " batch"] | None = None

    @property
    def attention_mask(self) -> Int[Tensor, "batch length"]:
        """1 for text, 0 for padding."""
        return (self.padded_ids != PADDING).long()

    @property
    def input_ids(self) -> Int[Tensor, "batch length"]:
        """The rows with a valid token id in the place of padding."""
        return self.padded_ids.clamp(min=0)


class Strategy(ABC):
    """Runs the model over steps, and owns the cache of the previous rows.

    Args:
        reward_model: The model.
        max_tokens: Largest number of tokens in one forward, to bound memory; at least one per row are run. None: all.
        compiled: The same model with a compiled forward, for strategies whose steps keep their shape. None: not
            compiled.

    Attributes:
        can_roll_back: Whether a step can be taken back from the cache after it turned out to be wrong.
    """

    can_roll_back = False

    def __init__(
        self, reward_model: RewardModel, max_tokens: int | None = None, compiled: RewardModel | None = None
    ) -> None:
        self.reward_model = reward_model
        self._max_tokens = max_tokens
        self._compiled = compiled
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forgets the cache."""

    def roll_back(self, length: int) -> None:
        """Undoes a step that only added tokens: the rows have `length` columns again."""
        raise TypeError(f"{type(self).__name__} cannot roll a step back.")

    def cache_bytes(self) -> int:
        """Memory that the cache holds; 0 for a cache that does not report it."""
        cache = getattr(self, "_cache", None)
        return cache.nbytes() if isinstance(cache, PrefixCache) else 0

    @abstractmethod
    def run(self, step: Step) -> Float[Tensor, "batch k state"]:
        """State of the last layer at the end of each continuation, each behind its own row's prefix alone."""

    def _chunks(self, start: int, end: int, rows: int, widest: int | None = None) -> list[slice]:
        """Splits columns of `rows` rows into chunks of at most `widest` columns that fit into one forward."""
        width = widest or end - start
        if self._max_tokens is not None:
            width = min(width, max(1, self._max_tokens // rows))
        return [slice(first, min(first + width, end)) for first in range(start, end, max(1, width))]

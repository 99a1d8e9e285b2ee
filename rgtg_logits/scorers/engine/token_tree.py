"""What may follow each row: k continuations that share the row, and perhaps their first tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """k continuations of each row as a tree of tokens; the root is the row.

    Attributes:
        tokens: The tokens of the tree, parents before children.
        parents: The node before each node, -1 for the row itself; None if each node hangs on the row.
        leaves: The node that ends each continuation; None if each node is one.
        above: Entry (b, i, j): whether node j is node i or lies on its way to the row; None if each is itself alone.
    """

    tokens: Int[Tensor, "batch nodes"]
    parents: Int[Tensor, "batch nodes"] | None = None
    leaves: Int[Tensor, "batch k"] | None = None
    above: Bool[Tensor, "batch nodes nodes"] | None = None

    @classmethod
    def grow(cls, continuations: Sequence[Sequence[Sequence[int]]]) -> TokenTree:
        """Merges the continuations of each row (one token or more each, k in every row) where they begin alike.

        Rows with fewer nodes than the largest tree are filled up with tokens that end nothing.
        """
        trees = [_merge(row) for row in continuations]
        nodes = max(len(tokens) for tokens, _, _ in trees)
        tokens, parents = torch.zeros(len(trees), nodes, dtype=torch.long), torch.full((len(trees), nodes), -1)
        for row, (ids, above, _) in enumerate(trees):
            tokens[row, : len(ids)] = torch.tensor(ids)
            parents[row, : len(ids)] = torch.tensor(above)
        return cls(tokens, parents, torch.tensor([leaves for _, _, leaves in trees]), _above(parents))

    @property
    def single(self) -> bool:
        """Whether every continuation is one token of its own."""
        return self.parents is None

    @property
    def depth(self) -> int:
        """Tokens of the longest continuation."""
        return 1 if self.parents is None else int(self.levels().max()) + 1

    def levels(self) -> Int[Tensor, "batch nodes"]:
        """How many nodes lie between each node and the row."""
        if self.parents is None:
            return torch.zeros_like(self.tokens)
        return self.visible().sum(-1) - 1

    def visible(self) -> Bool[Tensor, "#batch nodes nodes"]:
        """Which nodes each node sees: itself and those on its way to the row."""
        if self.above is not None:
            return self.above
        return torch.eye(self.tokens.shape[1], dtype=torch.bool, device=self.tokens.device)[None]

    def paths(self) -> tuple[Int[Tensor, "batch k depth"], Int[Tensor, "batch k"]]:
        """The tokens of each continuation, filled up at the end with its last one, and their number."""
        if self.parents is None or self.leaves is None:
            return self.tokens[..., None], torch.ones_like(self.tokens)
        node = self.leaves
        rows = torch.arange(node.shape[0], device=node.device)[:, None]
        backwards, lengths = [], torch.zeros_like(node)
        while bool((node >= 0).any()):
            backwards.append(node)
            lengths += (node >= 0).long()
            node = torch.where(node >= 0, self.parents[rows, node.clamp(min=0)], -1)
        ends = torch.stack(backwards, dim=-1)
        slots = (lengths[..., None] - 1 - torch.arange(ends.shape[-1], device=ends.device)).clamp(min=0)
        return self.tokens[rows[..., None], ends.gather(-1, slots)], lengths

    def columns(self) -> Int[Tensor, "batch columns"]:
        """Everything that tells the branches of two rows apart."""
        parts = (self.tokens, self.parents, self.leaves)
        return torch.cat([part for part in parts if part is not None], dim=1)

    def pick(self, rows: Int[Tensor, " some"]) -> TokenTree:
        """The branches of some rows."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> TokenTree:
        """The same on another device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenTree:
        rest = (None if part is None else change(part) for part in (self.parents, self.leaves, self.above))
        return TokenTree(change(self.tokens), *rest)


def _above(parents: Int[Tensor, "batch nodes"]) -> Bool[Tensor, "batch nodes nodes"]:
    """Itself and all nodes above each node; found once, on the CPU, because it takes a look for each level."""
    nodes = parents.shape[1]
    seen = torch.eye(nodes, dtype=torch.bool).repeat(parents.shape[0], 1, 1)
    rows, node = torch.arange(parents.shape[0])[:, None], parents
    # Each round climbs one level; a node that has arrived at the row stays there.
    while bool((node >= 0).any()):
        seen |= torch.nn.functional.one_hot(node.clamp(min=0), nodes).bool() & (node >= 0)[..., None]
        node = torch.where(node >= 0, parents[rows, node.clamp(min=0)], -1)
    return seen


def _merge(continuations: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Tokens, parents and leaves of one tree."""
    tokens: list[int] = []
    parents: list[int] = []
    leaves: list[int] = []
    children: dict[tuple[int, int], int] = {}
    for continuation in continuations:
        node = -1
        for token in continuation:
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = children[node, token]
        leaves.append(node)
    return tokens, parents, leaves

"""The token tree of tree attention: k continuations of each prefix, merged where they begin alike.

The data structure of Medusa (arXiv 2401.10774) and SpecInfer (arXiv 2305.09781). They verify draft tokens at its nodes;
here rewards are read there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """k continuations of each prefix of a batch as one tree per prefix, whose root is the prefix.

    The tree is flat, and the optional attributes are None, if every continuation is one token: a child of the prefix.

    Attributes:
        tokens: Token ids of the nodes, parents before children.
        parents: Index of each node's parent; -1 for children of the prefix.
        ends: Index of the last node of each continuation.
        ancestors: Entry (b, i, j) is true if node j is node i or an ancestor of it.
        node_counts: Number of nodes of each row, behind which others only fill the rectangle; None if all are nodes.
    """

    tokens: Int[Tensor, "batch nodes"]
    parents: Int[Tensor, "batch nodes"] | None = None
    ends: Int[Tensor, "batch k"] | None = None
    ancestors: Bool[Tensor, "batch nodes nodes"] | None = None
    node_counts: list[int] | None = None

    @classmethod
    def from_continuations(cls, continuations: Sequence[Sequence[Sequence[int]]]) -> TokenTree:
        """Builds the trees of k continuations per row, of one token or more each.

        Rows with fewer nodes than the largest tree are padded with nodes at which no continuation ends.
        """
        tries = [_build_trie(row) for row in continuations]
        nodes = max(len(trie.tokens) for trie in tries)
        # Padding nodes are children of the prefix, whose states are computed and ignored.
        tokens = torch.zeros(len(tries), nodes, dtype=torch.long)
        parents = torch.full((len(tries), nodes), -1)
        for row, trie in enumerate(tries):
            tokens[row, : len(trie.tokens)] = torch.tensor(trie.tokens)
            parents[row, : len(trie.parents)] = torch.tensor(trie.parents)
        ends = torch.tensor([trie.ends for trie in tries])
        return cls(tokens, parents, ends, _ancestors(parents), [len(trie.tokens) for trie in tries])

    @property
    def is_flat(self) -> bool:
        """Whether every continuation is one token."""
        return self.parents is None

    def counts(self) -> list[int]:
        """Number of nodes of each row."""
        batch, nodes = self.tokens.shape
        return [nodes] * batch if self.node_counts is None else self.node_counts

    @property
    def max_depth(self) -> int:
        """Number of tokens of the longest continuation."""
        return 1 if self.is_flat else int(self.depths().max()) + 1

    def depths(self) -> Int[Tensor, "batch nodes"]:
        """Number of nodes between each node and the prefix; 0 for children of the prefix."""
        if self.is_flat:
            return torch.zeros_like(self.tokens)
        return self.ancestor_mask().sum(-1) - 1

    def ancestor_mask(self) -> Bool[Tensor, "#batch nodes nodes"]:
        """Which nodes each node attends to: itself and its ancestors."""
        if self.ancestors is not None:
            return self.ancestors
        return torch.eye(self.tokens.shape[1], dtype=torch.bool, device=self.tokens.device)[None]

    def continuations(self) -> tuple[Int[Tensor, "batch k depth"], Int[Tensor, "batch k"]]:
        """Tokens of each continuation, padded on the right with its last one, and its number of tokens."""
        if self.parents is None or self.ends is None:
            return self.tokens[..., None], torch.ones_like(self.tokens)
        node = self.ends
        rows = torch.arange(node.shape[0], device=node.device)[:, None]
        reversed_nodes = []
        lengths = torch.zeros_like(node)
        # Climbs from the ends to the root; -1 stands for the root, where a continuation is complete.
        while bool((node >= 0).any()):
            reversed_nodes.append(node)
            lengths += (node >= 0).long()
            node = torch.where(node >= 0, self.parents[rows, node.clamp(min=0)], -1)
        climbed = torch.stack(reversed_nodes, dim=-1)
        # Reversed, from the prefix to the end.
        order = (lengths[..., None] - 1 - torch.arange(climbed.shape[-1], device=climbed.device)).clamp(min=0)
        return self.tokens[rows[..., None], climbed.gather(-1, order)], lengths

    def flattened(self) -> Int[Tensor, "batch columns"]:
        """The tree of each row as a row of integers: equal trees give equal rows."""
        parts = (self.tokens, self.parents, self.ends)
        return torch.cat([part for part in parts if part is not None], dim=1)

    def select(self, rows: Int[Tensor, " some"]) -> TokenTree:
        """The trees of some rows."""
        counts = self.node_counts
        return self._map(lambda part: part[rows], None if counts is None else [counts[row] for row in rows.tolist()])

    def to(self, device: torch.device) -> TokenTree:
        """The same trees on another device."""
        return self._map(lambda part: part.to(device), self.node_counts)

    def _map(self, change: Callable[[Tensor], Tensor], node_counts: list[int] | None) -> TokenTree:
        return TokenTree(
            tokens=change(self.tokens),
            parents=None if self.parents is None else change(self.parents),
            ends=None if self.ends is None else change(self.ends),
            ancestors=None if self.ancestors is None else change(self.ancestors),
            node_counts=node_counts,
        )


def _ancestors(parents: Int[Tensor, "batch nodes"]) -> Bool[Tensor, "batch nodes nodes"]:
    """Mask of each node's ancestors and itself; computed once, on the CPU, because each level needs a look."""
    batch, nodes = parents.shape
    mask = torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1)
    rows = torch.arange(batch)[:, None]
    node = parents
    # Each round climbs one level; a node that has arrived at the root stays there.
    while bool((node >= 0).any()):
        mask |= torch.nn.functional.one_hot(node.clamp(min=0), nodes).bool() & (node >= 0)[..., None]
        node = torch.where(node >= 0, parents[rows, node.clamp(min=0)], -1)
    return mask


@dataclass
class _Trie:
    """The tree of one row, in the attributes of `TokenTree`."""

    tokens: list[int]
    parents: list[int]
    ends: list[int]


def _build_trie(continuations: Sequence[Sequence[int]]) -> _Trie:
    trie = _Trie([], [], [])
    children: dict[tuple[int, int], int] = {}
    for continuation in continuations:
        node = -1
        for token in continuation:
            # Equal tokens below one node are one node, which is read once.
            if (node, token) not in children:
                children[node, token] = len(trie.tokens)
                trie.tokens.append(token)
                trie.parents.append(node)
            node = children[node, token]
        trie.ends.append(node)
    return trie

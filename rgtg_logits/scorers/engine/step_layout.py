"""The layout of a step: the new tokens of all rows as segments, and which of them attend together.

A segment is a run of new tokens of one row: of its prefix, or nodes of its tree. Segments of equal length that lie in
consecutive slots form a group, whose keys and values are one view of the arena's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.profiling import profiled
from rgtg_logits.scorers.engine.sequence_memory import Placement
from rgtg_logits.scorers.engine.slots import Arena
from rgtg_logits.scorers.engine.token_tree import TokenTree

PREFILL_CHUNK = 512
"""A prompt that needs a mask is read in segments of so many tokens, because a segment sees no column behind its end."""


class Segment(NamedTuple):
    """A run of new tokens of one row.

    Attributes:
        row: Index of the row.
        is_tree: Whether they are nodes of its tree.
        first: Index of the first in the row, or in the tree.
        width: Number of tokens.
        length: Number of tokens of the row.
        arena: The arena of the row's slot.
        slot: The index of the slot.
    """

    row: int
    is_tree: bool
    first: int
    width: int
    length: int
    arena: Arena
    slot: int

    @property
    def column(self) -> int:
        """The first column."""
        return self.length + self.first if self.is_tree else self.first


@dataclass(frozen=True)
class Group:
    """Segments of equal length in consecutive slots.

    Attributes:
        segments: The segments.
        start: Index of their first token in the stream of all tokens of the forward.
    """

    segments: list[Segment]
    start: int

    @property
    def arena(self) -> Arena:
        """The arena."""
        return self.segments[0].arena

    @property
    def count(self) -> int:
        """Number of tokens of each segment."""
        return self.segments[0].width

    @property
    def slots(self) -> slice:
        """The slots."""
        return slice(self.segments[0].slot, self.segments[-1].slot + 1)

    @property
    def stream(self) -> slice:
        """Where the tokens are in the stream."""
        return slice(self.start, self.start + self.count * len(self.segments))

    @cached_property
    def columns(self) -> list[int]:
        """The first column of each segment."""
        return [segment.column for segment in self.segments]

    @cached_property
    def is_aligned(self) -> bool:
        """Whether all segments have the same columns."""
        return min(self.columns) == max(self.columns)

    @cached_property
    def visible(self) -> int:
        """Number of columns that the last token of any segment sees at most."""
        return max(self.columns) + self.count

    @cached_property
    def _indices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def index(self, device: torch.device) -> tuple[Int[Tensor, "rows 1"], Int[Tensor, "rows count"]]:
        """Slots and columns of every token, for segments that are not aligned."""
        if device not in self._indices:
            slots = torch.arange(self.slots.start, self.slots.stop)[:, None]
            columns = torch.tensor(self.columns)[:, None] + torch.arange(self.count)
            self._indices[device] = slots.to(device), columns.to(device)
        return self._indices[device]

    @property
    def is_whole_prefix(self) -> bool:
        """Whether the segments begin at the beginning of their texts, so that each token sees just those before it."""
        return not self.segments[0].is_tree and self.segments[0].first == 0

    def split(self, states: Float[Tensor, "1 heads stream dim"]) -> Float[Tensor, "rows heads count dim"]:
        """The states of the group's tokens, one row for each segment."""
        part = states[0, :, self.stream]
        if len(self.segments) == 1:
            return part[None]
        return part.unflatten(1, (len(self.segments), self.count)).transpose(0, 1)

    def first_visible(self, window: int | None) -> int:
        """The first column that any token of the group sees."""
        if window is None:
            return 0
        positions = [min(segment.column, segment.length) for segment in self.segments]
        return max(0, min(positions) - window + 1)

    @profiled("attention mask")
    def mask(
        self, tree: TokenTree, window: int | None, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "#rows 1 count visible"]:
        """Additive attention mask over the columns from `first_visible` to `visible`.

        0 where attention is allowed, the most negative finite number where not. Finite, because a softmax over -inf
        alone is NaN. Additive, because eager attention takes a boolean mask wrong.
        """
        lowest = torch.finfo(dtype).min
        first = self.first_visible(window)
        if self.segments[0].is_tree:
            if self.is_aligned and tree.is_flat and window is None:
                return self._flat_mask(lowest, dtype, device)
            allowed = self._tree_allowed(tree, window, first, device)
        else:
            columns = torch.arange(first, self.visible, device=device)
            queries = torch.arange(self.columns[0], self.visible, device=device)[:, None]
            allowed = columns <= queries
            if window is not None:
                allowed &= columns > queries - window
            allowed = allowed[None]
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
        return mask.masked_fill_(~allowed, lowest)[:, None]

    def _flat_mask(self, lowest: float, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The mask of one-token continuations behind prefixes of one length: all of the prefix, and itself."""
        length, first = self.segments[0].length, self.segments[0].first
        mask = torch.zeros(self.count, self.visible, dtype=dtype, device=device)
        nodes = mask[:, length:]
        nodes.fill_(lowest)
        nodes[:, first:].fill_diagonal_(0)
        return mask[None, None]

    def _tree_allowed(self, tree: TokenTree, window: int | None, first: int, device: torch.device) -> Tensor:
        rows = torch.tensor([segment.row for segment in self.segments], device=device)
        lengths = torch.tensor([segment.length for segment in self.segments], device=device)[:, None]
        offset = self.segments[0].first
        queries = torch.arange(offset, offset + self.count, device=device)
        # Column of each key behind the end of its row's prefix; negative inside of it.
        behind = torch.arange(first, self.visible, device=device) - lengths
        if tree.is_flat:
            is_seen = behind[:, None] == queries[:, None]
        else:
            ancestors = tree.ancestor_mask().to(device)[rows][:, queries]
            node = behind.clamp(0, ancestors.shape[-1] - 1)[:, None].expand(-1, self.count, -1)
            is_seen = ancestors.gather(-1, node) & ((behind >= 0) & (behind < ancestors.shape[-1]))[:, None]
        allowed = is_seen | (behind < 0)[:, None]
        if window is not None:
            depths = tree.depths().to(device)[rows]
            key_position = torch.where(behind < 0, behind, depths.gather(-1, behind.clamp(0, depths.shape[-1] - 1)))
            # Relative to the end of the prefix, in tokens.
            allowed &= key_position[:, None] > depths[:, queries][:, :, None] - window
        return allowed


@dataclass(frozen=True)
class Layout:
    """One forward: its tokens one after the other, those of prefixes first.

    Attributes:
        groups: What attends together, in the order of the stream.
        num_nodes: Number of nodes at the end of the stream.
    """

    groups: list[Group]
    num_nodes: int

    def segments(self) -> list[Segment]:
        """All segments, in the order of the stream."""
        return [segment for group in self.groups for segment in group.segments]

    @cached_property
    def is_in_order(self) -> bool:
        """Whether the nodes are those of row after row."""
        rows = [part.row for part in self.segments() if part.is_tree]
        return rows == sorted(rows)

    def tokens(self, rows: Sequence[np.ndarray], tree: TokenTree) -> Int[Tensor, "1 stream"]:
        """The token ids."""
        parts = []
        segments = self.segments()
        texts = [rows[part.row][part.first : part.first + part.width] for part in segments if not part.is_tree]
        if texts:
            parts.append(torch.from_numpy(np.concatenate(texts)).to(tree.tokens.device))
        if self.num_nodes:
            parts.append(tree.tokens[self.node_index(tree.tokens.device)].flatten())
        return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None]

    def positions(self, tree: TokenTree) -> Int[Tensor, "1 stream"]:
        """The position of each token in its own text; that of a node is the one behind its ancestors."""
        device = tree.tokens.device
        parts = []
        for part in self.segments():
            if part.is_tree:
                # The depth in the tree is added below, because the tree may be on another device.
                parts.append(np.full(part.width, part.length))
            else:
                parts.append(np.arange(part.first, part.first + part.width))
        result = torch.from_numpy(np.concatenate(parts)).to(device)
        if self.num_nodes and not tree.is_flat:
            result[-self.num_nodes :] += tree.depths()[self.node_index(device)].flatten()
        return result[None]

    def node_index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and number of each node, in the order of the stream."""
        rows, nodes = self._host_node_index
        return rows.to(device), nodes.to(device)

    @cached_property
    def _host_node_index(self) -> tuple[Tensor, Tensor]:
        parts = [part for part in self.segments() if part.is_tree]
        widths = [part.width for part in parts]
        rows = np.repeat([part.row for part in parts], widths)
        nodes = np.concatenate([np.arange(part.first, part.first + part.width) for part in parts])
        return torch.from_numpy(rows), torch.from_numpy(nodes)


def make_layouts(
    lengths: Sequence[int],
    placements: Sequence[Placement],
    num_nodes: Sequence[int],
    *,
    max_tokens: int | None = None,
    masked: bool = False,
) -> list[Layout]:
    """Lays out a step in forwards of at most `max_tokens` tokens.

    Args:
        lengths: Number of tokens of each row.
        placements: Where the rows lie.
        num_nodes: Number of nodes of each row's tree.
        max_tokens: Largest number of tokens in one forward; None: all.
        masked: Whether prompts need a mask, so that long ones are read in segments.
    """
    arenas: dict[Arena, int] = {}
    for place in placements:
        arenas.setdefault(place.slot.arena, len(arenas))
    # In the order of slots, so that permuted rows still lie side by side.
    order = sorted(
        range(len(lengths)), key=lambda row: (arenas[placements[row].slot.arena], placements[row].slot.index)
    )
    segments = []
    for row in order:
        place = placements[row]
        if place.cached < lengths[row]:
            segments += _prefix_segments(row, place, lengths[row], masked=masked or place.cached > 0)
    for row in order:
        slot = placements[row].slot
        segments.append(Segment(row, True, 0, num_nodes[row], lengths[row], slot.arena, slot.index))
    return [_layout(part) for part in _forwards(segments, max_tokens)]


def _prefix_segments(row: int, place: Placement, length: int, *, masked: bool) -> list[Segment]:
    width = PREFILL_CHUNK if masked else length
    slot = place.slot
    return [
        Segment(row, False, first, min(width, length - first), length, slot.arena, slot.index)
        for first in range(place.cached, length, width)
    ]


def _forwards(segments: list[Segment], max_tokens: int | None) -> list[list[Segment]]:
    """Segments forward by forward, cut where a forward is full."""
    if max_tokens is None or sum(segment.width for segment in segments) <= max_tokens:
        return [segments]
    forwards: list[list[Segment]] = []
    room = 0
    for segment in segments:
        done = 0
        while done < segment.width:
            if room == 0:
                forwards.append([])
                room = max_tokens
            count = min(room, segment.width - done)
            forwards[-1].append(segment._replace(first=segment.first + done, width=count))
            room -= count
            done += count
    return forwards


def _layout(segments: list[Segment]) -> Layout:
    groups: list[Group] = []
    run: list[Segment] = []
    start = 0
    for segment in segments:
        if run and not _follows(run[-1], segment):
            groups.append(Group(run, start))
            start += run[0].width * len(run)
            run = []
        run.append(segment)
    groups.append(Group(run, start))
    return Layout(groups, sum(segment.width for segment in segments if segment.is_tree))


def _follows(before: Segment, segment: Segment) -> bool:
    """Whether a segment can attend together with the one before it."""
    return (
        before.arena is segment.arena
        and before.slot + 1 == segment.slot
        and before.width == segment.width
        and before.is_tree == segment.is_tree
        and before.first == segment.first
    )

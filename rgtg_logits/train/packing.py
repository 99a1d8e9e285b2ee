"""Both answers of a pair behind one copy of what they begin with: [prompt | chosen | rejected] in one row.

A mask hides the chosen answer from the rejected one, whose positions go on where the common part ends, so every token
is read as in a row of its own. The rewards are then put where they would be in padded rows, so that any loss can read
them. Of a pair with s tokens in common and answers of c and r tokens, s + c + r tokens are read instead of 2s + c + r
(and padding).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from rgtg_logits.train.data import PairLengths, pair_lengths

logger = logging.getLogger(__name__)

Read = Callable[..., Tensor]
"""Runs a model on the arguments that it is given, and returns the reward of each token."""


class PackedPairs(NamedTuple):
    """Pairs in shared rows.

    Attributes:
        input_ids: The common beginning, the rest of the chosen text, the rest of the rejected text, padding.
        position_ids: Position of each token in its text.
        visible: Which tokens (last axis) each token sees.
        columns: Where each token of the padded rows is: chosen texts first, then rejected ones; 0 for padding.
    """

    input_ids: Int[Tensor, "pairs width"]
    position_ids: Int[Tensor, "pairs width"]
    visible: Bool[Tensor, "pairs width width"]
    columns: Int[Tensor, "rows length"]


def pack(input_ids: Int[Tensor, "rows length"], lengths: PairLengths) -> PackedPairs:
    """Packs a batch of pairs.

    Args:
        input_ids: Chosen texts, then rejected ones, padded on the right.
        lengths: Number of tokens of both texts and of what they have in common.
    """
    chosen, rejected, start = (length[:, None] for length in lengths)
    width = int((chosen + rejected - start).max())
    column = torch.arange(width, device=input_ids.device)[None]
    in_rejected = column >= chosen
    position = torch.where(in_rejected, column - chosen + start, column)
    exists = column < chosen + rejected - start
    row = torch.arange(len(chosen), device=input_ids.device)[:, None] + in_rejected * len(chosen)
    position = position.masked_fill(~exists, 0)
    return PackedPairs(
        input_ids[row, position].masked_fill(~exists, 0),
        position,
        _visible(start, chosen, in_rejected, exists),
        _columns(input_ids.shape[1], chosen, rejected, start),
    )


def _visible(
    start: Int[Tensor, "pairs 1"],
    chosen: Int[Tensor, "pairs 1"],
    in_rejected: Bool[Tensor, "pairs width"],
    exists: Bool[Tensor, "pairs width"],
) -> Bool[Tensor, "pairs width width"]:
    column = torch.arange(exists.shape[1], device=exists.device)[None]
    in_chosen = (column >= start) & (column < chosen)
    causal = column <= column.T
    hidden = in_rejected[:, :, None] & in_chosen[:, None, :]
    # Padding sees itself, because a token that sees nothing has no attention at all (NaN).
    return causal & ~hidden & exists[:, None, :] | torch.eye(exists.shape[1], dtype=torch.bool, device=exists.device)


def _columns(
    length: int, chosen: Int[Tensor, "pairs 1"], rejected: Int[Tensor, "pairs 1"], start: Int[Tensor, "pairs 1"]
) -> Int[Tensor, "rows length"]:
    position = torch.arange(length, device=start.device)[None]
    of_chosen = position.expand(len(start), -1)
    of_rejected = torch.where(position < start, position, position + chosen - start)
    exists = torch.cat([position < chosen, position < rejected])
    return torch.cat([of_chosen, of_rejected]).masked_fill(~exists, 0)


def unpack(packed: Float[Tensor, "pairs width"], columns: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length"]:
    """Puts values of packed tokens where they are in padded rows; values at padding mean nothing."""
    return packed.repeat(2, 1).gather(1, columns)


def as_mask(
    visible: Bool[Tensor, "pairs width width"], attention: str, dtype: torch.dtype
) -> Shaped[Tensor, "pairs 1 width width"]:
    """The mask as an implementation of attention takes it: what is seen for "sdpa", numbers to add for "eager"."""
    if attention == "sdpa":
        return visible[:, None]
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


class SharedPrompts:
    """Reads pairs in shared rows where that gives the rewards of padded rows, which the first batch decides.

    Args:
        model: The model itself, not what distributes it: its attention and what it takes are looked at.
        half: Whether it computes in 16 bits, whose rounding is not taken for a difference.
    """

    def __init__(self, model: PreTrainedModel, *, half: bool = False) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.attention: str = config._attn_implementation
        self.dtype = model.dtype
        self.tolerance = 0.1 if half or self.dtype in (torch.float16, torch.bfloat16) else 1e-3
        self.window: int | None = getattr(config, "sliding_window", None)
        self._trusted: bool | None = None
        self._refuse(_missing(model, self.attention))

    def rewards(
        self, read: Read, input_ids: Tensor, attention_mask: Tensor, **options: Any
    ) -> Float[Tensor, "rows length"]:
        """The reward of every prefix, chosen texts first, then rejected ones.

        Args:
            read: Runs the model on the arguments that it is given, and returns the reward of each token.
            input_ids: Token ids of the texts, padded on the right.
            attention_mask: 1 for text, 0 for padding.
            options: Further arguments of the model.
        """
        read = partial(read, **options)
        lengths = pair_lengths(input_ids, attention_mask)
        padded = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not self._fits(lengths):
            return read(**padded)
        if self._trusted is None:
            self._check(read, padded, lengths)
        return self._packed(read, input_ids, lengths) if self._trusted else read(**padded)

    def _fits(self, lengths: PairLengths) -> bool:
        # Within its window, sliding attention is attention to everything.
        return self._trusted is not False and (
            self.window is None or int(torch.maximum(lengths.chosen, lengths.rejected).max()) <= self.window
        )

    def _packed(self, read: Read, input_ids: Tensor, lengths: PairLengths) -> Tensor:
        pairs = pack(input_ids, lengths)
        mask = as_mask(pairs.visible, self.attention, self.dtype)
        rewards = read(input_ids=pairs.input_ids, attention_mask=mask, position_ids=pairs.position_ids)
        return unpack(rewards, pairs.columns)

    def _check(self, read: Read, padded: dict[str, Tensor], lengths: PairLengths) -> None:
        """Compares the rewards of both ways on a batch, without dropout."""
        with _evaluating(self.model), torch.no_grad():
            wanted = read(**padded)
            try:
                got = self._packed(read, padded["input_ids"], lengths)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                self._refuse(f"it does not take such a mask ({type(error).__name__}: {error})")
                return
        text = padded["attention_mask"].bool()
        difference, scale = (got - wanted)[text].square().mean().sqrt(), wanted[text].std()
        self._trusted = bool(difference <= self.tolerance * scale)
        if not self._trusted:
            self._refuse(f"its rewards differ by {difference:.2g} where they spread by {scale:.2g}")

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            self._trusted = False
            logger.warning(
                "%s cannot read both answers of a pair behind one prompt, because %s. Each is read in a row of its "
                "own.",
                type(self.model).__name__, reason,
            )  # fmt: skip


def _missing(model: PreTrainedModel, attention: str) -> str | None:
    """Why shared rows cannot even be tried; None if they can."""
    if attention not in ("sdpa", "eager"):
        return f"its attention {attention!r} takes no mask of its own (use attn_implementation='sdpa')"
    if "position_ids" not in signature(model.base_model.forward).parameters:
        return "it takes no positions"
    return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

"""Shared-prefix packing: both answers of a pair behind one copy of their common prefix, [prompt | chosen | rejected].

A 4D attention mask hides the chosen answer from the rejected one, whose positions continue from the end of the common
prefix, so every token is read as in a row of its own. The rewards are then gathered into the layout of padded rows, so
that any loss can read them. Of a pair with s common tokens and answers of c and r tokens, s + c + r tokens are read
instead of 2s + c + r (and padding).
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

from rgtg_logits.prefix_accuracy import PairLengths, pair_lengths

logger = logging.getLogger(__name__)

RewardForward = Callable[..., Tensor]
"""Runs a model on keyword arguments, and returns the reward of each token."""


class PackedPairs(NamedTuple):
    """Pairs in shared rows.

    Attributes:
        input_ids: The common prefix, the rest of the chosen text, the rest of the rejected text, padding.
        position_ids: Position of each token in its own text.
        mask: Which tokens (last axis) each token attends to.
        gather_index: Packed column of each token of the padded rows, chosen texts first, then rejected ones; 0 for
            padding.
    """

    input_ids: Int[Tensor, "pairs width"]
    position_ids: Int[Tensor, "pairs width"]
    mask: Bool[Tensor, "pairs width width"]
    gather_index: Int[Tensor, "rows length"]


def pack(input_ids: Int[Tensor, "rows length"], lengths: PairLengths) -> PackedPairs:
    """Packs a batch of pairs.

    Args:
        input_ids: Chosen texts, then rejected ones, padded on the right.
        lengths: Number of tokens of both texts and of their common prefix.
    """
    chosen = lengths.chosen[:, None]
    start = lengths.start[:, None]
    packed_lengths = chosen + lengths.rejected[:, None] - start
    column = torch.arange(int(packed_lengths.max()), device=input_ids.device)[None]
    is_text = column < packed_lengths
    in_rejected = column >= chosen
    # Position ids of the rejected answer continue from the common prefix, as in a row of its own.
    position = torch.where(in_rejected, column - chosen + start, column).masked_fill(~is_text, 0)
    row = torch.arange(len(chosen), device=input_ids.device)[:, None] + in_rejected * len(chosen)
    return PackedPairs(
        input_ids=input_ids[row, position].masked_fill(~is_text, 0),
        position_ids=position,
        mask=_packed_mask(start, chosen, is_text),
        gather_index=_gather_index(input_ids.shape[1], lengths),
    )


def _packed_mask(
    start: Int[Tensor, "pairs 1"], chosen: Int[Tensor, "pairs 1"], is_text: Bool[Tensor, "pairs width"]
) -> Bool[Tensor, "pairs width width"]:
    """The causal mask without the attention of the rejected answer to the chosen one."""
    column = torch.arange(is_text.shape[1], device=is_text.device)[None]
    in_chosen = (column >= start) & (column < chosen)
    in_rejected = column >= chosen
    causal = column <= column.T
    # Both answers attend to the common prefix, and neither to the other one.
    hidden = in_rejected[:, :, None] & in_chosen[:, None, :]
    # Padding attends to itself, because softmax over nothing is NaN.
    itself = torch.eye(is_text.shape[1], dtype=torch.bool, device=is_text.device)
    return causal & ~hidden & is_text[:, None, :] | itself


def _gather_index(length: int, lengths: PairLengths) -> Int[Tensor, "rows length"]:
    """For each token of the padded rows, the column where it is in the packed row."""
    chosen = lengths.chosen[:, None]
    start = lengths.start[:, None]
    position = torch.arange(length, device=start.device)[None]
    of_chosen = position.expand(len(start), -1)
    of_rejected = torch.where(position < start, position, position + chosen - start)
    is_text = torch.cat([position < chosen, position < lengths.rejected[:, None]])
    return torch.cat([of_chosen, of_rejected]).masked_fill(~is_text, 0)


def unpack(
    packed: Float[Tensor, "pairs width"], gather_index: Int[Tensor, "rows length"]
) -> Float[Tensor, "rows length"]:
    """Gathers values of packed tokens into padded rows; values at padding mean nothing."""
    return packed.repeat(2, 1).gather(1, gather_index)


def to_4d_mask(
    mask: Bool[Tensor, "pairs width width"], attention: str, dtype: torch.dtype
) -> Shaped[Tensor, "pairs 1 width width"]:
    """The mask in the form of an attention implementation: boolean for "sdpa", additive for "eager"."""
    if attention == "sdpa":
        return mask[:, None]
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return additive.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]


class SharedPromptReader:
    """Reads rewards of pairs from shared rows if these give the rewards of padded rows, which the first batch decides.

    Args:
        model: The model itself, without wrappers that distribute it: its attention and its arguments are inspected.
        half: Whether it computes in 16 bits, whose rounding is not taken for a difference.
    """

    def __init__(self, model: PreTrainedModel, *, half: bool = False) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.attention: str = config._attn_implementation
        self.dtype = model.dtype
        self.tolerance = 0.1 if half or self.dtype in (torch.float16, torch.bfloat16) else 1e-3
        self.window: int | None = getattr(config, "sliding_window", None)
        self._verified: bool | None = None
        reason = _unsupported_reason(model, self.attention)
        if reason is not None:
            self._disable(reason)

    def rewards(
        self, forward: RewardForward, input_ids: Tensor, attention_mask: Tensor, **options: Any
    ) -> Float[Tensor, "rows length"]:
        """The reward of every prefix, chosen texts first, then rejected ones.

        Args:
            forward: Runs the model on keyword arguments, and returns the reward of each token.
            input_ids: Token ids of the texts, padded on the right.
            attention_mask: 1 for text, 0 for padding.
            options: Further arguments of the model.
        """
        forward = partial(forward, **options)
        lengths = pair_lengths(input_ids, attention_mask)
        padded = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not self._can_pack(lengths):
            return forward(**padded)
        if self._verified is None:
            self._verify(forward, padded, lengths)
        return self._packed(forward, input_ids, lengths) if self._verified else forward(**padded)

    def _can_pack(self, lengths: PairLengths) -> bool:
        if self._verified is False:
            return False
        # Within its window, sliding-window attention is full attention.
        longest = torch.maximum(lengths.chosen, lengths.rejected).max()
        return self.window is None or int(longest) <= self.window

    def _packed(self, forward: RewardForward, input_ids: Tensor, lengths: PairLengths) -> Tensor:
        pairs = pack(input_ids, lengths)
        mask = to_4d_mask(pairs.mask, self.attention, self.dtype)
        rewards = forward(input_ids=pairs.input_ids, attention_mask=mask, position_ids=pairs.position_ids)
        return unpack(rewards, pairs.gather_index)

    def _verify(self, forward: RewardForward, padded: dict[str, Tensor], lengths: PairLengths) -> None:
        """Compares the rewards of shared rows with those of padded rows on a batch."""
        # With dropout, two forwards of the same rows would differ.
        with _evaluating(self.model), torch.no_grad():
            expected = forward(**padded)
            try:
                packed = self._packed(forward, padded["input_ids"], lengths)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                self._disable(f"it does not take such a mask ({type(error).__name__}: {error})")
                return
        is_text = padded["attention_mask"].bool()
        difference = (packed - expected)[is_text].square().mean().sqrt()
        spread = expected[is_text].std()
        self._verified = bool(difference <= self.tolerance * spread)
        if not self._verified:
            self._disable(f"its rewards differ by {difference:.2g} where they spread by {spread:.2g}")

    def _disable(self, reason: str) -> None:
        self._verified = False
        logger.warning(
            "%s cannot read both answers of a pair behind one prompt, because %s. Each answer is read in a row of its "
            "own.",
            type(self.model).__name__, reason,
        )  # fmt: skip


def _unsupported_reason(model: PreTrainedModel, attention: str) -> str | None:
    """Why shared rows cannot even be tried; None if they can."""
    if attention not in ("sdpa", "eager"):
        return f"its attention {attention!r} takes no 4D mask (use attn_implementation='sdpa')"
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

"""Padding: which tokens of the rows that `generate` passes to a processor are text.

`generate` passes rows of token ids and nothing else: no mask, no step number, no prompt length. The attention mask is
read from the rows themselves, and nothing is guessed where a guess can be wrong: to read a finished row on costs time,
but to take text for padding gives wrong rewards.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rgtg_logits.errors import PaddingError
from rgtg_logits.profiling import profiled

PADDING = -1
"""Takes the place of padding in `padded_ids`, rows of token ids in which equal rows are equal prefixes."""

_REMEMBERED_CALLS = 4
"""Number of calls in which the beginnings of rows are looked up, so that as many threads can take turns."""
_FACTOR = 0x5851F42D4C957F2D
"""Base of the hash of rows, a polynomial modulo 2^64 (the multiplier of Knuth's MMIX generator)."""


@dataclass(frozen=True)
class PadToken:
    """The token that pads rows, and how sure that is.

    Attributes:
        id: The token; None if it is unknown.
        is_given: Whether the user named it: then it is believed.
        is_dedicated: Whether it neither begins nor ends texts, so that no text contains it.
        boundaries: Known tokens that begin or end texts, which may pad rows as well.
        ends: Known tokens that end texts.
    """

    id: int | None = None
    is_given: bool = False
    is_dedicated: bool = False
    boundaries: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()

    @property
    def leads(self) -> bool:
        """Whether a leading run of it is padding for certain."""
        return self.id is not None and (self.is_given or self.is_dedicated)


def infer_attention_mask(
    rows: Int[Tensor, "batch length"],
    pad_token_id: int,
    prompt_mask: Int[Tensor, "prompts prompt_length"] | None = None,
) -> Int[Tensor, "batch length"]:
    """Infers the attention mask of rows in which a token is known to pad and to be no text: 1 for text, 0 for padding.

    Padding is the leading run of the pad token in a row, or, in the prompt, the zeros of `prompt_mask`; and a run of
    two or more at the end. A row of nothing but the pad token is all padding. `PaddingReader` takes less for granted.

    Args:
        rows: Token ids as `generate` passes them.
        pad_token_id: The token that pads.
        prompt_mask: The mask of the prompts; each row of it covers the same number of rows (beams, return sequences).

    Raises:
        PaddingError: If `prompt_mask` does not fit the rows.
    """
    prompt_length = 0 if prompt_mask is None else prompt_mask.shape[1]
    mask = _mask_of_beginning(rows, pad_token_id, prompt_mask)
    if rows.shape[1] - prompt_length < 2:
        return mask
    # The run of pad tokens at the end of the answer, if it has two or more.
    trailing = (rows[:, prompt_length:] == pad_token_id).flip(-1).cumprod(-1).flip(-1)
    mask[:, prompt_length:] *= 1 - trailing * trailing[:, -2:-1]
    return mask


@dataclass(frozen=True, eq=False)
class TextMask:
    """Text and padding in the rows of one call.

    Attributes:
        mask: 1 for text, 0 for padding; a row whose last token is padding has finished.
        finished: Number of columns of padding behind each row's text.
        is_ambiguous: Whether padding cannot be distinguished from text; None if it can.
    """

    mask: Int[Tensor, "batch length"]
    finished: Int[Tensor, " batch"] | None = None
    is_ambiguous: Bool[Tensor, ""] | None = None


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of the past.

    Attributes:
        rows: Its rows.
        finished: Number of columns of padding behind each row's text.
        candidates: The candidates that were given for each row.
        keeps_tail: Rows in which other tokens were possible as well.
    """

    rows: Int[Tensor, "batch length"]
    finished: Int[Tensor, " batch"]
    candidates: Int[Tensor, "batch k"]
    keeps_tail: bool | Bool[Tensor, "batch 1"]

    @cached_property
    def hashes(self) -> Int[Tensor, " batch"]:
        """Hashes of the rows, for rows that have changed places."""
        return row_hashes(self.rows)

    def parents(self, rows: Int[Tensor, "now longer"]) -> tuple[Int[Tensor, " now"], Bool[Tensor, " now"]]:
        """For each row, the row of this call that it continues by one token, and whether there is one."""
        before = rows[:, :-1]
        places = torch.arange(len(rows), device=rows.device)
        # A look is free on a CPU.
        if rows.device.type == "cpu" and torch.equal(before, self.rows):
            return places, torch.ones_like(places, dtype=torch.bool)
        if before.shape == self.rows.shape:
            stays = (before == self.rows).all(-1)
        else:
            places, stays = torch.zeros_like(places), torch.zeros_like(places, dtype=torch.bool)
        # Beams change places.
        found = (row_hashes(before)[:, None] == self.hashes).int().argmax(-1)
        places = torch.where(stays, places, found)
        return places, (before == self.rows[places]).all(-1)


class PaddingReader:
    """Distinguishes text and padding in the rows of the calls of a processor.

    A row has finished only where that is proven: behind a token that ends texts, or by the pad token, it continues with
    a token that was not among the candidates given for it at the previous call; or, behind an end, with the pad token
    that the user named. It stays finished while that token repeats. Where the tail of the distribution is kept, tokens
    that are no candidates can be drawn, so that there only the pad token behind an end is proof.

    Nothing here waits for an accelerator.

    Args:
        token: The token that pads.
    """

    def __init__(self, token: PadToken) -> None:
        self._token = token
        self._calls: deque[_Call] = deque(maxlen=_REMEMBERED_CALLS)

    def fresh(self) -> PaddingReader:
        """A reader of other calls."""
        return PaddingReader(self._token)

    @profiled("padding mask")
    def read(
        self,
        rows: Int[Tensor, "batch length"],
        prompt_mask: Int[Tensor, "prompts prompt_length"] | None = None,
    ) -> TextMask:
        """Reads rows.

        Args:
            rows: Token ids as `generate` passes them.
            prompt_mask: The mask of the prompts, if the user gave it; each row of it covers the same number of rows.

        Raises:
            PaddingError: If `prompt_mask` does not fit the rows.
        """
        mask = _mask_of_beginning(rows, self._token.id if self._token.leads else None, prompt_mask)
        if len(rows) == 1:
            # One row is never padded behind its text, and in front only by a token that is known to pad.
            return TextMask(mask)
        known, finished = self._recall(rows)
        # A look is free on a CPU, and mostly shows that nothing has finished and nothing is new.
        is_on_cpu = rows.device.type == "cpu"
        if not (is_on_cpu and not bool(finished.any())):
            columns = torch.arange(rows.shape[1], 0, -1, device=rows.device)
            mask = mask.masked_fill(columns <= finished[:, None], 0)
        is_certain = prompt_mask is not None or self._token.is_given or rows.shape[1] < 2
        if is_certain or (is_on_cpu and bool(known.all())):
            return TextMask(mask, finished)
        return TextMask(mask, finished, self._may_be_padded(rows, mask) & ~known.all())

    def remember(
        self, rows: Tensor, text: TextMask, candidates: Int[Tensor, "batch k"], keeps_tail: bool | Tensor
    ) -> None:
        """Remembers a call, for the calls that continue it.

        Args:
            rows: Its rows.
            text: How they were read.
            candidates: The candidates that were given for each row.
            keeps_tail: Whether other tokens were possible as well, for all rows or as a column.
        """
        if text.finished is None:
            return
        if isinstance(keeps_tail, Tensor):
            keeps_tail = keeps_tail.to(rows.device, non_blocking=True)
        # A copy, because the caller may write the next token into the same memory.
        self._calls.append(_Call(rows.clone(), text.finished, candidates, keeps_tail))

    def check(self, rows: Tensor, text: TextMask) -> None:
        """Refuses rows in which padding cannot be distinguished from text; waits for an accelerator.

        Raises:
            PaddingError: If that is so.
        """
        if text.is_ambiguous is None or not bool(text.is_ambiguous):
            return
        if self._token.leads:
            reason = "none begins with the reward model's pad token, so that another token may pad"
        elif self._token.id is None:
            reason = "neither the processor nor the reward model names a pad token"
        else:
            reason = f"the pad token {self._token.id} begins or ends texts as well, so that it may be text"
        raise PaddingError(
            f"Expected to know which token pads, because the {len(rows)} rows of this batch may be padded on the "
            f"left, but {reason}. Pass the prompts' attention_mask=, pad_token_id= (the token that pads these rows), "
            "or tokenizer= (the base model's, with a pad token of its own) to PartialRewardLogitsProcessor."
        )

    def _recall(self, rows: Tensor) -> tuple[Bool[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Whether each row continues one of a remembered call, and its columns of padding behind the text."""
        known = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        finished = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        for call in reversed(self._calls):
            # Behind no token, nothing can have finished.
            if call.rows.shape[1] != rows.shape[1] - 1 or not call.rows.shape[1] or call.rows.device != rows.device:
                continue
            parents, is_parent = call.parents(rows)
            is_new = is_parent & ~known
            finished = torch.where(is_new, self._finished(rows, call, parents), finished)
            known = known | is_parent
            if rows.device.type == "cpu" and bool(known.all()):
                break
        return known, finished

    def _finished(self, rows: Tensor, call: _Call, parents: Tensor) -> Int[Tensor, " batch"]:
        """Columns of padding behind the text of rows that continue those of a call."""
        last, previous = rows[:, -1], rows[:, -2]
        before = call.finished[parents]
        goes_on = (before > 0) & (last == previous)
        outside = (call.candidates[parents] != last[:, None]).all(-1)
        is_pad = last == self._token.id if self._token.leads else torch.zeros_like(outside)
        if rows.device.type == "cpu" and not bool((goes_on | outside | is_pad).any()):
            return torch.zeros_like(before)
        behind_end = torch.zeros_like(outside)
        for end in self._token.ends:
            behind_end |= previous == end
        of_tail, of_candidates = behind_end & is_pad, behind_end | is_pad
        if isinstance(call.keeps_tail, Tensor):
            proof = outside & torch.where(call.keeps_tail[parents, 0], of_tail, of_candidates)
        else:
            proof = outside & (of_tail if call.keeps_tail else of_candidates)
        if self._token.is_given:
            proof = proof | of_tail
        return torch.where(goes_on, before + 1, proof.long())

    def _may_be_padded(self, rows: Tensor, mask: Tensor) -> Bool[Tensor, ""]:
        """Whether rows may be padded on the left by a token that is not known to pad."""
        first = rows[:, 0]
        repeats = (first == rows[:, 1]).any()
        differ = (first != first[0]).any()
        if not self._token.leads:
            return repeats | differ
        # A batch is padded by one token. If that is the known one in some row, everything else is text.
        begins_with_boundary = torch.zeros_like(differ)
        for token in self._token.boundaries - {self._token.id}:
            begins_with_boundary |= (first == token).any()
        return (repeats | (differ & begins_with_boundary)) & (mask[:, 0] == 1).all()


def _mask_of_beginning(rows: Tensor, pad_token_id: int | None, prompt_mask: Tensor | None) -> Tensor:
    """The mask of rows that have not finished."""
    if prompt_mask is not None:
        return _extended_prompt_mask(rows, prompt_mask)
    # A look is free on a CPU, and most rows hold no padding.
    if pad_token_id is None or (rows.device.type == "cpu" and not (rows == pad_token_id).any()):
        return torch.ones_like(rows)
    # From the first token on that is not the pad token, everything is text.
    return ((rows != pad_token_id).cumsum(-1) > 0).long()


def row_hashes(rows: Int[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
    """Hashes of rows, by which equal rows are found; on the rows' device."""
    powers = torch.full((rows.shape[1],), _FACTOR, dtype=torch.long, device=rows.device).cumprod(0)
    # Sums and products of int64 wrap around.
    return ((rows.long() + 1) * powers).sum(-1)


def _extended_prompt_mask(rows: Tensor, prompt_mask: Tensor) -> Tensor:
    batch, length = rows.shape
    prompts, prompt_length = prompt_mask.shape
    if batch % prompts or length < prompt_length:
        raise PaddingError(
            f"Expected rows that continue the {prompts} prompts of {prompt_length} tokens that attention_mask "
            f"describes, but got {batch} rows of {length} tokens. Make a new processor for other prompts."
        )
    mask = torch.ones_like(rows)
    mask[:, :prompt_length] = prompt_mask.to(rows).repeat_interleave(batch // prompts, dim=0)
    return mask

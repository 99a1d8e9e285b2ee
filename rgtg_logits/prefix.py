"""What of a batch of rows is text, and what of it was seen before.

`generate` shows a processor rows of token ids and nothing else: no mask, no step number, no word about rows that were
permuted, duplicated, dropped or rolled back. Everything is told from the rows themselves, so that state is only ever
a memory of prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rgtg_logits.errors import PaddingError

PADDING = -1
"""Stands for padding in the keys that `PrefixTracker` compares."""


def text_mask(
    rows: Int[Tensor, "batch length"],
    pad_token_id: int | None,
    prompt_mask: Int[Tensor, "prompts prompt_length"] | None = None,
) -> Int[Tensor, "batch length"]:
    """Tells text (1) from padding (0).

    Padding is the leading run of the pad token in a row, or what `prompt_mask` says of the prompt. A row that ends in
    two pad tokens has finished, and those are padding as well: two, because one may be the end-of-text token that the
    row has just drawn. A row of nothing but the pad token is all padding.

    Args:
        rows: Token ids as `generate` shows them.
        pad_token_id: The token that pads; None if nobody knows.
        prompt_mask: The mask of the prompts; each row of it covers the same number of rows (beams, return sequences).

    Raises:
        PaddingError: If the pad token is needed and unknown, or `prompt_mask` does not fit the rows.
    """
    prompt_length = 0
    if prompt_mask is not None:
        mask = _prompt_mask(rows, prompt_mask)
        prompt_length = prompt_mask.shape[1]
    elif pad_token_id is None:
        _check_unpadded(rows)
        return torch.ones_like(rows)
    elif rows.device.type == "cpu" and not (rows == pad_token_id).any():
        # A look is free on a CPU, and tells at once what is true of most rows.
        return torch.ones_like(rows)
    else:
        mask = ((rows != pad_token_id).cumsum(-1) > 0).long()
    if pad_token_id is None or rows.shape[1] - prompt_length < 2:
        return mask
    trailing = (rows[:, prompt_length:] == pad_token_id).flip(-1).cumprod(-1).flip(-1)
    mask[:, prompt_length:] *= 1 - trailing * trailing[:, -2:-1]
    return mask


def _prompt_mask(rows: Tensor, prompt_mask: Tensor) -> Tensor:
    (batch, length), (prompts, prompt_length) = rows.shape, prompt_mask.shape
    if batch % prompts or length < prompt_length:
        raise PaddingError(
            f"Expected rows that continue the {prompts} prompts of {prompt_length} tokens that attention_mask "
            f"describes, but got {batch} rows of {length} tokens. Make a new processor for other prompts."
        )
    mask = torch.ones_like(rows)
    mask[:, :prompt_length] = prompt_mask.to(rows).repeat_interleave(batch // prompts, dim=0)
    return mask


def _check_unpadded(rows: Tensor) -> None:
    """With left padding some row starts with a repeated token, or the rows start with different ones."""
    if rows.shape[0] == 1:
        return
    repeated = (rows[:, :1] == rows[:, 1:2]).any() if rows.shape[1] > 1 else torch.tensor(False)
    if bool(repeated | (rows[:, 0] != rows[0, 0]).any()):
        raise PaddingError(
            f"Expected to know which token pads, because the {rows.shape[0]} rows of this batch may be padded on the "
            "left, but neither the processor nor the reward model names a pad token. "
            "Pass pad_token_id=, tokenizer= or the prompts' attention_mask= to PartialRewardLogitsProcessor."
        )


def dropped(length: int, limit: int) -> int:
    """How many tokens of a text of `length` to leave out on the left so that at most `limit` remain.

    A number that depends on the length alone and grows in steps of a quarter of the limit, so that a text which grows
    token by token keeps its beginning most of the time, and with it whatever is cached.
    """
    block = max(1, limit // 4)
    return max(0, -(-(length - limit) // block) * block)


def cut_left(keys: Int[Tensor, "batch length"], limit: int, bos: int | None) -> Int[Tensor, "batch kept"]:
    """Leaves out the beginning of rows with more than `limit` tokens, but for a start token; see `dropped`.

    Args:
        keys: Token ids with `PADDING` where a row is padded.
        limit: Most tokens of a row.
        bos: The token that starts a text, which a model misses more than any other; None if it has none.
    """
    rows = [row[row != PADDING] for row in keys]
    for index, row in enumerate(rows):
        start = int(len(row) > 0 and limit > 1 and row[0] == bos)
        drop = dropped(len(row), limit)
        rows[index] = torch.cat([row[:start], row[start + drop :]])
    width = max(len(row) for row in rows)
    return torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=PADDING) for row in rows])


@dataclass(frozen=True)
class Plan:
    """How the rows now follow from the rows last time.

    Attributes:
        parents: For each row now, the row last time that it continues; None if each continues its own.
        keep: How many leading columns of the parents are still right. All of them: the rows extend. Fewer: rewind.
            0: restart.
    """

    parents: Int[Tensor, " batch"] | None
    keep: int


class PrefixTracker:
    """Remembers a batch of rows and says how the next batch follows from it.

    Args (of its methods):
        keys: Token ids with `PADDING` where a row is padded, so that equal keys are equal prefixes.
    """

    def __init__(self) -> None:
        self._keys: Int[Tensor, "batch length"] | None = None

    @property
    def length(self) -> int:
        """Number of columns remembered."""
        return 0 if self._keys is None else self._keys.shape[1]

    def plan(self, keys: Int[Tensor, "batch length"]) -> Plan:
        """Compares the rows now with those remembered: extend, rewind or restart."""
        if self._keys is None:
            return Plan(None, 0)
        known = self._keys.to(keys.device)
        columns = min(known.shape[1], keys.shape[1])
        if keys.shape[0] == known.shape[0] and torch.equal(keys[:, :columns], known[:, :columns]):
            return Plan(None, columns)
        shared = _common_prefix(keys[:, None, :columns], known[None, :, :columns])
        own = torch.arange(keys.shape[0])
        if keys.shape[0] == known.shape[0] and bool((shared[own, own] == shared.amax(1)).all()):
            return Plan(None, int(shared[own, own].min()))
        length, parents = shared.max(dim=1)
        return Plan(parents, int(length.min()))

    def remember(self, keys: Int[Tensor, "batch length"]) -> None:
        """Replaces what is remembered."""
        self._keys = keys

    def forget(self) -> None:
        """Makes the next plan a restart."""
        self._keys = None


def _common_prefix(one: Tensor, other: Tensor) -> Tensor:
    """Length of the common prefix along the last axis."""
    same: Bool[Tensor, "*shape length"] = one == other
    padded = torch.nn.functional.pad(~same, (0, 1), value=True)
    # argmax finds the first mismatch; the column of ones stands for "none".
    return padded.to(torch.uint8).argmax(-1)

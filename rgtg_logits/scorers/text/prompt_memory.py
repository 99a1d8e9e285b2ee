"""Where the prompt of each row ends, which `generate` never says."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from rgtg_logits.errors import InvalidArgumentError


class _Seen(NamedTuple):
    """What is known of a row: the length of the prompt it was last shown with, and if it ever was a prompt itself."""

    prompt_length: int
    began: bool


class PromptMemory:
    """Tells prompt from answer by what was shown before.

    `generate` shows every prefix of an answer, one token longer each time. So a row that is one token longer than a
    row shown before, or is such a row again, continues it and has its prompt; any other row is a new prompt, all of
    it. There is no step counter: permuted, duplicated, dropped and rolled-back rows (beams, several return sequences,
    assisted decoding) find their own past, and so do other prompts in a later call. The last token of an answer is
    never shown, so a conversation that goes on is longer by two tokens or more, and everything before its new answer
    becomes prompt.

    When every row of a call was a new prompt once, the same prompts are asked about again, though one of them may also
    be another plus one token.

    One case cannot be told apart from the rows alone: a new prompt that equals a remembered prefix of another text, or
    such a prefix plus one token. It is taken to continue that text, so that its prompt counts as shorter than it is,
    and the rest as answer. The whole text is the same.

    Args:
        capacity: How many prefixes are remembered, by 16 bytes each; those not seen for the longest time
            are forgotten first. The rows of the last call are always remembered.

    Raises:
        InvalidArgumentError: If the capacity is not positive.
    """

    def __init__(self, capacity: int = 2**16) -> None:
        if capacity < 1:
            raise InvalidArgumentError(f"Expected capacity to be a positive number of prefixes, but got {capacity}.")
        self.capacity = capacity
        self._known: OrderedDict[bytes, _Seen] = OrderedDict()

    def split(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Number of tokens in each row's prompt; remembers the rows.

        Args:
            rows: Token ids without padding. Every row that `generate` shows has to be passed, because a row that is
                two tokens longer than the last one is taken for a new prompt.
        """
        keys = [_keys(row) for row in rows]
        known = self._known
        # All rows are looked up before any is remembered, because in a ragged batch one prompt may be another plus one
        # token. The shorter row decides, because what a generation under way has just shown is what it continues.
        again = all(own in known and known[own].began for _, own in keys)
        lengths = [
            len(row) if again or (seen := known.get(parent, known.get(own))) is None else seen.prompt_length
            for row, (parent, own) in zip(rows, keys, strict=True)
        ]
        for row, length, (parent, own) in zip(rows, lengths, keys, strict=True):
            if parent in known:
                known.move_to_end(parent)
            began = length == len(row) or (own in known and known[own].began)
            known[own] = _Seen(length, began)
            known.move_to_end(own)
        while len(known) > max(self.capacity, len(rows)):
            known.popitem(last=False)
        return lengths


def _keys(row: Sequence[int]) -> tuple[bytes, bytes]:
    """Digests of a row without its last token, and of all of it; 8 bytes a token, so that the length counts too."""
    text = blake2b(array("q", row[:-1]).tobytes(), digest_size=16)
    parent = text.digest()
    text.update(array("q", row[-1:]).tobytes())
    return parent, text.digest()

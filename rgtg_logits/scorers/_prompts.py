"""Where the prompt of each row ends, which `generate` never says."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from rgtg_logits.errors import InvalidArgumentError


class PromptMemory:
    """Tells prompt from answer by what was shown before.

    `generate` shows every prefix of an answer, one token longer each time. So a row that is one token longer than a
    row shown before, or is such a row again, continues it and has its prompt; any other row is a new prompt, all of
    it. There is no step counter: permuted, duplicated, dropped and rolled-back rows (beams, several return sequences,
    assisted decoding) find their own past, and so do other prompts in a later call. The last token of an answer is
    never shown, so a conversation that goes on is longer by two tokens or more, and everything before its new answer
    becomes prompt.

    One case cannot be told apart from the rows alone: a new prompt that equals a remembered prefix of another text, or
    such a prefix plus one token. It is taken to continue that text, so that its prompt counts as shorter than it is,
    and the rest as answer. The whole text is the same. Where both rules apply, the shorter row decides, so that
    a generation under way is never disturbed by what was asked earlier.

    Args:
        capacity: How many prefixes are remembered, 16 bytes and a number each; those not seen for the longest time
            are forgotten first. The rows of the last call are always remembered.

    Raises:
        InvalidArgumentError: If the capacity is not positive.
    """

    def __init__(self, capacity: int = 2**16) -> None:
        if capacity < 1:
            raise InvalidArgumentError(f"Expected capacity to be a positive number of prefixes, but got {capacity}.")
        self.capacity = capacity
        self._prompt_lengths: OrderedDict[bytes, int] = OrderedDict()

    def split(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Number of tokens in each row's prompt; remembers the rows.

        Args:
            rows: Token ids without padding. Every row that `generate` shows has to be passed, because a row that is
                two tokens longer than the last one is taken for a new prompt.
        """
        keys = [_keys(row) for row in rows]
        known = self._prompt_lengths
        # All rows are looked up before any is remembered, because in a ragged batch one prompt may be another plus one
        # token.
        lengths = [known.get(parent, known.get(own, len(row))) for row, (parent, own) in zip(rows, keys, strict=True)]
        for length, (parent, own) in zip(lengths, keys, strict=True):
            if parent in known:
                known.move_to_end(parent)
            known[own] = length
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

"""Where the prompt of each row ends, which `generate` does not tell logits processors."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from rgtg_logits.errors import InvalidArgumentError


class _Prefix(NamedTuple):
    """A remembered row.

    Attributes:
        prompt_length: Number of its tokens that were prompt when it was shown last.
        was_prompt: Whether it has ever been a prompt itself.
    """

    prompt_length: int
    was_prompt: bool


class PromptMemory:
    """Distinguishes prompt and answer by the rows that were shown before.

    `generate` shows every prefix of an answer, one token longer each time. So a row that is one token longer than a
    remembered row, or is a remembered row, continues it and has its prompt; any other row is a new prompt as a whole.
    There is no step counter: permuted, duplicated, dropped and rolled-back rows (beams, several return sequences,
    assisted decoding) find their own past, and so do other prompts in a later call. The last token of an answer is
    never shown, so a conversation that goes on is longer by two tokens or more, and everything before its new answer
    becomes prompt.

    If every row of a call has once been a new prompt, the call is about the same prompts again, even if one of them is
    another one plus a token.

    One case cannot be decided from the rows alone: a new prompt that equals a remembered prefix of another text, or
    such a prefix plus one token. It is taken to continue that text, so that its prompt counts as shorter than it is,
    and the remainder counts as answer. The whole text is the same.

    Args:
        capacity: Number of prefixes to remember, 16 bytes each; the least recently used are forgotten first. The rows
            of the last call are always remembered.

    Raises:
        InvalidArgumentError: If the capacity is not positive.
    """

    def __init__(self, capacity: int = 2**16) -> None:
        if capacity < 1:
            raise InvalidArgumentError(f"Expected capacity to be a positive number of prefixes, but got {capacity}.")
        self.capacity = capacity
        # An LRU cache that is keyed by the prefix itself.
        self._prefixes: OrderedDict[bytes, _Prefix] = OrderedDict()

    def prompt_lengths(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """The number of tokens in each row's prompt; remembers the rows.

        Args:
            rows: Token ids without padding. Every row that `generate` shows has to be passed, because a row that is
                two tokens longer than the last one counts as a new prompt.
        """
        digests = [_digests(row) for row in rows]
        # All rows are looked up before any is remembered, because in a ragged batch one prompt may be another plus one
        # token.
        all_were_prompts = all(self._was_prompt(digest) for _, digest in digests)
        lengths = []
        for row, (parent_digest, digest) in zip(rows, digests, strict=True):
            # The shorter row decides, because a generation that is under way has shown that one last.
            known = self._prefixes.get(parent_digest, self._prefixes.get(digest))
            if all_were_prompts or known is None:
                lengths.append(len(row))
            else:
                lengths.append(known.prompt_length)
        for row, length, (parent_digest, digest) in zip(rows, lengths, digests, strict=True):
            if parent_digest in self._prefixes:
                self._prefixes.move_to_end(parent_digest)
            was_prompt = length == len(row) or self._was_prompt(digest)
            self._prefixes[digest] = _Prefix(length, was_prompt)
            self._prefixes.move_to_end(digest)
        self._forget(max(self.capacity, len(rows)))
        return lengths

    def _was_prompt(self, digest: bytes) -> bool:
        prefix = self._prefixes.get(digest)
        return prefix is not None and prefix.was_prompt

    def _forget(self, capacity: int) -> None:
        while len(self._prefixes) > capacity:
            self._prefixes.popitem(last=False)


def _digests(row: Sequence[int]) -> tuple[bytes, bytes]:
    """Digests of a row without its last token and of the whole row, at 8 bytes a token, so that lengths differ too."""
    digest = blake2b(array("q", row[:-1]).tobytes(), digest_size=16)
    parent = digest.digest()
    digest.update(array("q", row[-1:]).tobytes())
    return parent, digest.digest()

"""Where the prompt of each row ends, which `generate` does not tell logits processors."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from rgtg_logits.errors import InvalidArgumentError


class _Prefix(NamedTuple):
    """A remembered row.

    Attributes:
        prompt_length: Number of its tokens that were prompt when it was shown last.
        was_prompt: Whether it has ever been a prompt itself.
        offered: The tokens by which it may go on; None if any may follow.
    """

    prompt_length: int
    was_prompt: bool
    offered: array[int] | None

    def may_continue_with(self, token: int) -> bool:
        """Whether an answer may go on with a token."""
        return self.offered is None or token in self.offered


class PromptMemory:
    """Distinguishes prompt and answer by the rows that were shown before.

    `generate` shows every prefix of an answer, one token longer each time, and that token is one of the candidates that
    the shorter row was offered. So a row that is a remembered row and such a token continues it and has its prompt; a
    row that was shown before has the prompt that it had; any other row is a new prompt as a whole, also if it is a
    remembered row and a token that was not offered, as where requests grow token by token.
    There is no step counter: permuted, duplicated, dropped and rolled-back rows (beams, several return sequences,
    assisted decoding) find their own past, and so do other prompts in a later call. The last token of an answer is
    never shown, so a conversation that goes on is longer by two tokens or more, and everything before its new answer
    becomes prompt.

    If every row of a call has once been a new prompt, the call is about the same prompts again, even if one of them is
    another one plus a token.

    One case cannot be decided by anything that a scorer is shown: a new prompt that is a row of an answer under way, to
    the token, or such a row and a token that it was offered. It is taken to continue that answer.

    Args:
        capacity: Number of prefixes to remember, 16 bytes each and 8 for each token offered; the least recently used
            are forgotten first. The rows of the last call are always remembered.

    Raises:
        InvalidArgumentError: If the capacity is not positive.
    """

    def __init__(self, capacity: int = 2**16) -> None:
        if capacity < 1:
            raise InvalidArgumentError(f"Expected capacity to be a positive number of prefixes, but got {capacity}.")
        self.capacity = capacity
        # An LRU cache that is keyed by the prefix itself.
        self._prefixes: OrderedDict[bytes, _Prefix] = OrderedDict()

    def prompt_lengths(
        self,
        rows: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]] | None = None,
        is_prompt: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[int]:
        """The number of tokens in each row's prompt; remembers the rows.

        Args:
            rows: Token ids without padding. Every row that `generate` shows has to be passed, because a row that is
                two tokens longer than the last one counts as a new prompt.
            candidates: The tokens by which each row may go on; any may follow if None. Rows that are shown several
                times may go on by all that they were offered.
            is_prompt: Whether a row can be a prompt at all; every row can if None. One that cannot, such as a draft
                with half a delimiter of a chat, continues the shorter row by whatever token.
        """
        digests = [_digests(row) for row in rows]
        # All rows are looked up before any is remembered, because in a ragged batch one prompt may be another plus one
        # token.
        all_were_prompts = all(self._was_prompt(digest) for _, digest in digests)
        lengths = []
        for row, (parent_digest, digest) in zip(rows, digests, strict=True):
            # The shorter row decides, because a generation that is under way has shown that one last.
            known = self._prefixes.get(parent_digest)
            if known is None or not known.may_continue_with(row[-1]):
                own = self._prefixes.get(digest)
                may_be_prompt = known is None or own is not None or is_prompt is None or is_prompt(row)
                known = own if may_be_prompt else known
            if all_were_prompts or known is None:
                lengths.append(len(row))
            else:
                lengths.append(known.prompt_length)
        offers = [None] * len(rows) if candidates is None else [array("q", sorted(set(row))) for row in candidates]
        for row, length, offered, (parent_digest, digest) in zip(rows, lengths, offers, digests, strict=True):
            if parent_digest in self._prefixes:
                self._prefixes.move_to_end(parent_digest)
            was_prompt = length == len(row) or self._was_prompt(digest)
            self._prefixes[digest] = _Prefix(length, was_prompt, self._all_offered(digest, offered))
            self._prefixes.move_to_end(digest)
        self._forget(max(self.capacity, len(rows)))
        return lengths

    def _all_offered(self, digest: bytes, offered: array[int] | None) -> array[int] | None:
        """The tokens that a row was offered now or before."""
        known = self._prefixes.get(digest)
        if known is None or offered is None or known.offered == offered:
            return offered
        if known.offered is None:
            return None
        return array("q", sorted({*known.offered, *offered}))

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

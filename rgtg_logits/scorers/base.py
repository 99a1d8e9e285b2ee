"""The contract of scorers: rewards of next tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import PaddingError
from rgtg_logits.scorers.known_tokens import KnownTokens


def no_prefix_error() -> PaddingError:
    """The error for a prefix of no tokens where next tokens can only be judged behind another one."""
    return PaddingError(
        "Expected a token in front of every candidate, because this scorer cannot judge the first token of a text, but "
        "a prefix has none. Begin it with a start token: pass for_prompt a prompt of one token, such as bos, or "
        "start=0 to let the decoder's start token be read."
    )


class Scorer(ABC):
    """Gives the reward of a prefix followed by one more token.

    A scorer may cache; what it returns must not depend on the cache. `rgtg_logits.testing.check_scorer` checks these
    laws:

    1. permuting rows permutes results;
    2. a row alone gives the same as in a batch;
    3. a repeated call gives the same, whatever was scored in between;
    4. left padding changes nothing, and sequences without padding give the same;
    5. results equal those of a scorer without a cache.

    A scorer that caches remembers sequences, of which four more laws hold as far as its memory goes. What is forgotten
    costs its own tokens again.

    6. What one sequence does (joins, leaves, changes place, is asked about by another thread) never makes another one
       be read again.
    7. A sequence that begins as a known one does (beams, the next turn of a chat, a system prompt, a rejected draft)
       reads the rest only.
    8. What is remembered belongs to the model's state: weights, active adapters, attention. Another state knows
       nothing.
    9. An error is one row's error: the others are remembered as they were.

    Attributes:
        vocab_size: Number of token ids that can be scored; None if any can.
        pad_token_id: The token that pads rows; None if unknown.
        known_tokens: Tokens that may be candidates; None if all below `vocab_size` may.
    """

    vocab_size: int | None = None
    pad_token_id: int | None = None
    known_tokens: KnownTokens | None = None

    @abstractmethod
    def score(
        self,
        rows: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate of every row.

        Args:
            rows: Token ids as `generate` shows them, padding included.
            attention_mask: 1 for text, 0 for padding. A row whose last token is padding has finished: it costs nothing,
                and its rewards are 0.
            candidates: Next tokens to score.

        Returns:
            Finite rewards of prefix + candidate, higher is better, in the scorer's own unit; fixed up to a constant
            per row.
        """

    def score_sequences(
        self, prefixes: Sequence[Sequence[int] | Int[Tensor, " length"]], candidates: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Scores every candidate of every prefix, where prefixes are sequences of their own and not padded.

        By default they are padded on the left, which changes nothing (law 4), and passed to `score`.

        Args:
            prefixes: Token ids of each prefix. One without tokens is the beginning of a text, whose first token is
                judged alone, by scorers that can.
            candidates: Next tokens to score.

        Returns:
            As `score`.

        Raises:
            PaddingError: If a prefix has no tokens, and the scorer cannot judge a first token.
        """
        width = max(map(len, prefixes), default=0)
        if not all(map(len, prefixes)):
            raise no_prefix_error()
        # Any token may stand in the place of padding, because the mask excludes it.
        rows = torch.zeros(len(prefixes), width, dtype=torch.long)
        mask = torch.zeros_like(rows)
        for row, prefix in enumerate(prefixes):
            rows[row, width - len(prefix) :] = torch.as_tensor(prefix)
            mask[row, width - len(prefix) :] = 1
        return self.score(rows.to(candidates.device), mask.to(candidates.device), candidates)

    def observe(self, rows: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> None:
        """Shows rows that need no rewards, because each has only one candidate, or that go on by other tokens as well.

        For scorers that distinguish prompt and answer by which rows continue which: any token may follow these rows,
        whatever candidates they are scored with. By default nothing happens.
        """
        return None

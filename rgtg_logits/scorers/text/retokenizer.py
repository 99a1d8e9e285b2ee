"""A row of the base model's tokens as text, and that text in the tokens of a reward model.

What is meant by the text of a row is said here, once: `BaseText`. What a reward model reads of it: `Retokenizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.chat import ChatWriter, ConversationReader
from rgtg_logits.scorers.text.incremental import REPLACEMENT, RowDecoder, TextEncoder
from rgtg_logits.tokenization import text_boundaries

PromptFormat = Callable[[str, str], str]
"""Makes the text that a reward model reads from (prompt_text, answer_text)."""

_MOST_MISSING = 3
"""A character has at most four bytes, so at most three tokens at the end of a row are the beginning of one."""


@dataclass(frozen=True)
class EncodedRow:
    """What a reward model reads of one row.

    Attributes:
        own: Its tokens for the prompt and the answer so far. Empty if there is no text yet and its tokenizer begins
            texts with no token of its own.
        candidates: Its tokens for the same and each candidate.
    """

    own: list[int]
    candidates: list[list[int]]


class BaseText:
    """The text of a base model's tokens.

    The text of a row is what its tokens decode to all at once, special and unknown tokens left out, without cleaning
    up. A row
    may end within a character whose other bytes are still to come; the text ends before it. Decoders write U+FFFD for
    such bytes, so what is taken is the longest text, U+FFFD at its end left out, of the row and the row without its
    last one, two or three tokens that are text. (The shorter rows matter for decoders with byte fallback, which give
    up a whole run of bytes for one that is not complete.)

    Args:
        tokenizer: The base model's tokenizer.
        eos_token_ids: Tokens that end a text besides those of its tokenizer, as generation configs list them.
        piecewise: Whether to decode piece by piece where that is proven to be the same; see `_pieces`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Iterable[int] = (), *, piecewise: bool = True
    ) -> None:
        self._decoder = RowDecoder(tokenizer, piecewise=piecewise)
        # Models may know more ids than their tokenizer. Its length is not the limit, because its ids may leave gaps.
        self._size = max(tokenizer.get_vocab().values()) + 1
        self._ends = {*eos_token_ids, *text_boundaries(tokenizer).ending_tokens}

    def ends(self, token: int) -> bool:
        """Whether a token ends the text."""
        return token in self._ends

    def read(self, row: list[int], tokens: Iterable[int] = ()) -> list[str]:
        """The text of a row without padding, and of the row followed by each of the tokens."""
        row = row if max(row, default=0) < self._size else [token for token in row if token < self._size]
        head, count = self._decoder.head(row)
        decode = self._decoder.decode_rest if count else self._decoder.decode
        tails = [row[count:], *([*row[count:], token] if token < self._size else row[count:] for token in tokens)]
        return [head + self._text(tail, decode) for tail in tails]

    def read_candidates(self, row: list[int], candidates: list[int]) -> tuple[str, list[str]]:
        """The text of a row without padding, and with each candidate; one that ends the text adds nothing."""
        going_on = [token for token in candidates if not self.ends(token)]
        own, *longer = self.read(row, going_on)
        texts = dict(zip(going_on, longer, strict=True))
        return own, [texts.get(token, own) for token in candidates]

    @staticmethod
    def answer(prompt_text: str, text: str) -> str:
        """What a text says after its prompt.

        Not the text of the answer's tokens, which alone would lose the space before their first word (SentencePiece)
        or a character whose first byte is in the prompt. It is what follows in the whole text after the prompt's text;
        where the two part, because the prompt ended within a character, the answer begins with that character.
        """
        if text.startswith(prompt_text):
            return text[len(prompt_text) :]
        shared = (index for index, (ours, theirs) in enumerate(zip(text, prompt_text, strict=False)) if ours != theirs)
        return text[next(shared, len(text)) :]

    def _text(self, tokens: list[int], decode: Callable[[list[int]], str]) -> str:
        text = decode(tokens)
        if not text.endswith(REPLACEMENT):
            return text
        said = [token for token in tokens if token not in self._decoder.special]
        shorter = [decode(said[:-missing]) for missing in range(1, _MOST_MISSING + 1)]
        return max((text.rstrip(REPLACEMENT) for text in (text, *shorter)), key=len)


class _Draft(NamedTuple):
    """A text for the reward model, and whether its end-of-text token follows."""

    text: str
    closed: bool


class Retokenizer:
    """Rows of a base model's tokens in the tokens of a reward model that has another tokenizer.

    Every list of tokens is that of tokenising the whole text from scratch. The text of a candidate is that of prompt,
    answer and candidate (see `BaseText`), so a candidate that is a special token, or the beginning of a character,
    adds nothing. A candidate that ends the text closes it as a finished text of the reward model is
    closed (see `tokenization.encode_finished`), and no other text ends in a token that a tokenizer adds by itself.

    Args:
        tokenizer: The base model's tokenizer.
        own: The reward model's tokenizer. It begins texts as it does by default.
        prompt_format: What the reward model reads. None: the text as it is. A function: what it makes of (prompt_text,
            answer_text). "chat": the reward model's chat template applied to the conversation in the prompt (see
            `ConversationReader`) and the answer, left open; a candidate that ends the text closes the conversation as
            the template does. A chat template writes all special tokens itself, so none is added to it.
        eos_token_ids: Tokens that end the base model's text besides its tokenizer's own.
        piecewise: Whether to remember the tokens of pieces of text where it is proven that they are the same in the
            whole; see `_pieces`.

    Raises:
        InvalidArgumentError: If `prompt_format` is none of these, or a chat template is missing or of no use.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        own: PreTrainedTokenizerBase,
        prompt_format: PromptFormat | str | None = None,
        *,
        eos_token_ids: Iterable[int] = (),
        piecewise: bool = True,
    ) -> None:
        self.base = BaseText(tokenizer, eos_token_ids, piecewise=piecewise)
        self._format = _checked_format(prompt_format)
        self._chat = (ConversationReader(tokenizer), ChatWriter(own)) if prompt_format == "chat" else None
        self._encoder = TextEncoder(own, adds_special_tokens=self._chat is None, piecewise=piecewise)
        self._boundaries = text_boundaries(own)

    def encode(
        self, prompts: list[list[int]], answers: list[list[int]], candidates: list[list[int]]
    ) -> list[EncodedRow]:
        """Encodes every row and every candidate of it.

        Args:
            prompts: The base model's tokens of each row's prompt, without padding.
            answers: Those that follow.
            candidates: Next tokens.

        Raises:
            InvalidArgumentError: If a prompt cannot be read as a chat, or `prompt_format` returns no text.
        """
        if not prompts:
            return []
        drafts = [self._drafts(*row) for row in zip(prompts, answers, candidates, strict=True)]
        encoded = self._encode([draft for row in drafts for draft in row])
        return [EncodedRow(encoded[own], [encoded[draft] for draft in rest]) for own, *rest in drafts]

    def _drafts(self, prompt: list[int], answer: list[int], candidates: list[int]) -> list[_Draft]:
        """The texts of one row: its own, and with each candidate."""
        prompt_text = self.base.read(prompt)[0]
        own, longer = self.base.read_candidates([*prompt, *answer], candidates)
        drafts = [
            (own, False),
            *((text, self.base.ends(token)) for text, token in zip(longer, candidates, strict=True)),
        ]
        return [_Draft(self._render(prompt, prompt_text, *draft), draft[1]) for draft in drafts]

    def _render(self, prompt: list[int], prompt_text: str, text: str, closed: bool) -> str:
        answer = self.base.answer(prompt_text, text)
        if self._chat is not None:
            reader, writer = self._chat
            conversation = reader.read(tuple(prompt))
            return writer.write(conversation.messages, conversation.answer(answer), finished=closed)
        if self._format is None:
            return text
        rendered = self._format(prompt_text, answer)
        if not isinstance(rendered, str):
            raise InvalidArgumentError(
                "Expected prompt_format to return the text that the reward model reads, but it returned "
                f"{type(rendered).__name__}. Return a str made from (prompt_text, answer_text)."
            )
        return rendered

    def _encode(self, drafts: list[_Draft]) -> dict[_Draft, list[int]]:
        """The tokens of each text, every text tokenised once."""
        texts = list(dict.fromkeys(draft.text for draft in drafts))
        tokens = dict(zip(texts, self._encoder.encode(texts), strict=True))
        return {draft: self._closed(tokens[draft.text]) if draft.closed else tokens[draft.text] for draft in drafts}

    def _closed(self, tokens: list[int]) -> list[int]:
        return tokens if self._chat is not None else self._boundaries.close(tokens)


def _checked_format(prompt_format: object) -> PromptFormat | None:
    if prompt_format is None or prompt_format == "chat":
        return None
    if not callable(prompt_format):
        raise InvalidArgumentError(
            'Expected prompt_format to be None, "chat" or a function (prompt_text, answer_text) -> str, but got '
            f"{prompt_format!r}."
        )
    return prompt_format

"""The base model's tokens as text (`Detokenizer`), and that text as a reward model's tokens (`Retokenizer`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.chat import ChatFormat
from rgtg_logits.scorers.text.ends import end_of_turn_tokens
from rgtg_logits.scorers.text.incremental import REPLACEMENT, IncrementalDetokenizer, IncrementalTokenizer
from rgtg_logits.tokenization import common_prefix_length, text_boundaries

PromptFormat = Callable[[str, str], str]
"""Makes the text that a reward model reads from (prompt_text, answer_text)."""

_MAX_BYTE_TOKENS = 3
"""A character has at most four bytes, so that at most three tokens at the end of a row are the beginning of one."""


@dataclass(frozen=True)
class EncodedRow:
    """One row in the tokens of a reward model.

    Attributes:
        prefix: Tokens of the prompt and the answer so far. Empty if there is no text yet and the tokenizer begins texts
            with no token of its own.
        candidates: Tokens of the same text with each candidate.
    """

    prefix: list[int]
    candidates: list[list[int]]


class Detokenizer:
    """The text of rows of a base model's tokens.

    The text of a row is what its tokens decode to all at once, special and unknown tokens left out, without cleaning
    up. A row may end within a character whose other bytes are still to come; its text ends before that character.
    Decoders write U+FFFD for such bytes, so that the text is the longest one, U+FFFD at its end left out, of the row
    and of the row without its last one, two or three tokens that are text. (The shorter rows matter for decoders with
    byte fallback, which give up a whole run of bytes for one that is not complete.)

    Args:
        tokenizer: The base model's tokenizer.
        eos_token_ids: Tokens that end a text, as generation configs list them, besides those of its tokenizer and the
            one by which its chat template ends an assistant's turn.
        incremental: Whether to decode incrementally where that is proven to be the same; see `incremental`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Iterable[int] = (), *, incremental: bool = True
    ) -> None:
        self._incremental = IncrementalDetokenizer(tokenizer, incremental=incremental)
        # Models may know more ids than their tokenizer. Its length is not the limit, because its ids may leave gaps.
        self._vocab_size = max(tokenizer.get_vocab().values()) + 1
        self._eos_token_ids = {*eos_token_ids, *text_boundaries(tokenizer).ending_tokens}
        self._eos_token_ids |= end_of_turn_tokens(tokenizer)

    def is_end(self, token: int) -> bool:
        """Whether a token ends the text."""
        return token in self._eos_token_ids

    def decode(self, row: list[int]) -> str:
        """The text of a row without padding."""
        return self._decode(row, [])[0]

    def decode_candidates(self, row: list[int], candidates: list[int]) -> tuple[str, list[str]]:
        """The text of a row without padding, and with each candidate; one that ends the text adds nothing."""
        continuing = [token for token in candidates if not self.is_end(token)]
        prefix, *longer = self._decode(row, continuing)
        texts = dict(zip(continuing, longer, strict=True))
        return prefix, [texts.get(token, prefix) for token in candidates]

    @staticmethod
    def answer(prompt_text: str, text: str) -> str:
        """The answer in a text that begins with a prompt.

        It is not the text of the answer's tokens, which alone would lose the space before their first word
        (SentencePiece) or a character whose first byte is in the prompt. It is the part of the whole text that follows
        the prompt's text; where the two differ, because the prompt ended within a character, the answer begins with
        that character.
        """
        if text.startswith(prompt_text):
            return text[len(prompt_text) :]
        return text[common_prefix_length(text, prompt_text) :]

    def _decode(self, row: list[int], next_tokens: list[int]) -> list[str]:
        """The text of a row, and of the row followed by each of the tokens."""
        if max(row, default=0) >= self._vocab_size:
            row = [token for token in row if token < self._vocab_size]
        head, num_decoded = self._incremental.head(row)
        decode = self._incremental.decode_tail if num_decoded else self._incremental.decode
        tail = row[num_decoded:]
        tails = [tail]
        for token in next_tokens:
            tails.append([*tail, token] if token < self._vocab_size else tail)
        return [head + self._whole_characters(tokens, decode) for tokens in tails]

    def _whole_characters(self, tokens: list[int], decode: Callable[[list[int]], str]) -> str:
        """The text of tokens without an incomplete character at its end."""
        text = decode(tokens)
        if not text.endswith(REPLACEMENT):
            return text
        ordinary = [token for token in tokens if token not in self._incremental.special_tokens]
        texts = [text, *(decode(ordinary[:-missing]) for missing in range(1, _MAX_BYTE_TOKENS + 1))]
        return max((text.rstrip(REPLACEMENT) for text in texts), key=len)


class _Draft(NamedTuple):
    """A text for the reward model, and whether it is a finished text."""

    text: str
    is_finished: bool


class Retokenizer:
    """Rows of a base model's tokens in the tokens of a reward model that has another tokenizer.

    The tokens of every text are those of tokenising the whole text from scratch. The text of a candidate is that of
    prompt, answer and candidate (see `Detokenizer`), so a candidate that is a special token, or the beginning of a
    character, adds nothing. A candidate that ends the text closes it as a finished text of the reward model is closed
    (see `tokenization.encode_finished`); no other text ends in a token that the tokenizer adds by itself.

    Args:
        base_tokenizer: The base model's tokenizer.
        rm_tokenizer: The reward model's tokenizer. It begins texts as it does by default.
        prompt_format: Format of prompt and answer for the reward model. None: the text as it is. A function: the text
            that it returns for (prompt_text, answer_text). "chat": the reward model's chat template applied to the
            conversation in the prompt (see `chat.ChatPromptParser`) and the answer, left open; a candidate that ends
            the text closes the conversation as the template does. A chat template writes all special tokens itself, so
            none is added to it.
        eos_token_ids: Tokens that end the base model's text besides those of its tokenizer; see `Detokenizer`.
        incremental: Whether to remember the tokens of segments of text where it is proven that they are the same in the
            whole text; see `incremental`.

    Raises:
        InvalidArgumentError: If `prompt_format` is none of these, or a chat template is missing or of no use.
    """

    def __init__(
        self,
        base_tokenizer: PreTrainedTokenizerBase,
        rm_tokenizer: PreTrainedTokenizerBase,
        prompt_format: PromptFormat | str | None = None,
        *,
        eos_token_ids: Iterable[int] = (),
        incremental: bool = True,
    ) -> None:
        self.detokenizer = Detokenizer(base_tokenizer, eos_token_ids, incremental=incremental)
        self._format = _checked_format(prompt_format)
        self._chat = ChatFormat(base_tokenizer, rm_tokenizer) if prompt_format == "chat" else None
        self._tokenizer = IncrementalTokenizer(
            rm_tokenizer, add_special_tokens=self._chat is None, incremental=incremental
        )
        self._boundaries = text_boundaries(rm_tokenizer)

    def encode(
        self, prompts: list[list[int]], answers: list[list[int]], candidates: list[list[int]]
    ) -> list[EncodedRow]:
        """Encodes every row, and every row with each of its candidates.

        Args:
            prompts: The base model's tokens of each row's prompt, without padding.
            answers: The tokens that follow the prompt.
            candidates: Next tokens.

        Raises:
            InvalidArgumentError: If a prompt cannot be parsed as a chat, or `prompt_format` returns no text.
        """
        if not prompts:
            return []
        drafts = [self._drafts(*row) for row in zip(prompts, answers, candidates, strict=True)]
        encoded = self._encode([draft for row in drafts for draft in row])
        rows = []
        for prefix, *with_candidates in drafts:
            rows.append(EncodedRow(encoded[prefix], [encoded[draft] for draft in with_candidates]))
        return rows

    def can_be_prompt(self, prompt: Sequence[int]) -> bool:
        """Whether the base model's tokens of a row can be read as a prompt: not so, if a chat is garbled."""
        return self._chat is None or self._chat.reads(prompt)

    def _drafts(self, prompt: list[int], answer: list[int], candidates: list[int]) -> list[_Draft]:
        """The texts of one row: of the row alone, and with each candidate."""
        prompt_text = self.detokenizer.decode(prompt)
        prefix_text, texts = self.detokenizer.decode_candidates([*prompt, *answer], candidates)
        drafts = [_Draft(self._format_text(prompt, prompt_text, prefix_text, is_finished=False), is_finished=False)]
        for token, text in zip(candidates, texts, strict=True):
            is_finished = self.detokenizer.is_end(token)
            drafts.append(_Draft(self._format_text(prompt, prompt_text, text, is_finished), is_finished))
        return drafts

    def _format_text(self, prompt: list[int], prompt_text: str, text: str, is_finished: bool) -> str:
        """The text that the reward model reads, given the whole text of prompt and answer."""
        answer = self.detokenizer.answer(prompt_text, text)
        if self._chat is not None:
            return self._chat.format(prompt, answer, finished=is_finished)
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
        """The tokens of each draft, every text tokenised once."""
        texts = list(dict.fromkeys(draft.text for draft in drafts))
        tokens = dict(zip(texts, self._tokenizer.encode(texts), strict=True))
        encoded = {}
        for draft in drafts:
            # A chat template closes finished texts itself.
            closes = draft.is_finished and self._chat is None
            encoded[draft] = self._boundaries.close(tokens[draft.text]) if closes else tokens[draft.text]
        return encoded


def _checked_format(prompt_format: object) -> PromptFormat | None:
    if prompt_format is None or prompt_format == "chat":
        return None
    if not callable(prompt_format):
        raise InvalidArgumentError(
            'Expected prompt_format to be None, "chat" or a function (prompt_text, answer_text) -> str, but got '
            f"{prompt_format!r}."
        )
    return prompt_format

"""From texts to token ids: one definition of a prompt, of a finished text, and of what ends it.

Training, scoring, judging, checking and sampling all encode their texts here, so that a reward model scores exactly the
tokens that it was trained on. A chat template writes all special tokens itself, so nothing is added to a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import ne
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError

_PROBE = "a"
"""The text that shows what a tokenizer adds around texts; any other would do."""


@dataclass(frozen=True)
class TextBoundaries:
    """The special tokens at the boundaries of a text.

    Attributes:
        before: Tokens that the tokenizer puts before every text, such as a start token.
        after: Tokens that the tokenizer puts after every text. Most decoders add none.
        eos_token_id: The tokenizer's end-of-text token, if it has one.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    eos_token_id: int | None

    @property
    def end(self) -> tuple[int, ...]:
        """The tokens that end a finished text; none if the tokenizer has nothing to end it with.

        The tokens that the tokenizer puts after every text are its end, also where they are others than `eos_token`
        ([SEP] of BERT, <|endoftext|> of Qwen3-Embedding), because that is how texts ended that its models have read.
        Otherwise the end is `eos_token`, as TRL appends it.
        """
        if self.after or self.eos_token_id is None:
            return self.after
        return (self.eos_token_id,)

    @property
    def ending_tokens(self) -> set[int]:
        """The tokens that end an answer when a model generates them."""
        tokens = set(self.end[:1])
        if self.eos_token_id is not None:
            tokens.add(self.eos_token_id)
        return tokens

    def close(self, ids: list[int]) -> list[int]:
        """Adds the end to the tokens of a text.

        Where the text itself spells out its end (as `eos_token`, or as the tokens above), that one is replaced, so that
        there is exactly one.
        """
        spelled_out = {*self.after, self.eos_token_id}
        length = len(ids)
        while length and ids[length - 1] in spelled_out:
            length -= 1
        return [*ids[:length], *self.end]


def text_boundaries(tokenizer: PreTrainedTokenizerBase) -> TextBoundaries:
    """Finds the tokens that a tokenizer puts around texts by itself, by encoding a letter with and without them.

    The result is not cached, because a tokenizer's settings may change; it takes some 50 µs.
    """
    bare = tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(_PROBE, verbose=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        stop = start + len(bare)
        if whole[start:stop] == bare:
            return TextBoundaries(tuple(whole[:start]), tuple(whole[stop:]), tokenizer.eos_token_id)
    return TextBoundaries((), (), tokenizer.eos_token_id)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes a text that goes on: with what the tokenizer puts before a text, and without what it puts after one.

    Nothing is to be generated behind the end of a text, and an unfinished text has no end yet.
    """
    return _encode_open(tokenizer, text, text_boundaries(tokenizer))


def encode_finished(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes a finished text: as `encode_prompt` does, with exactly one end behind it; see `TextBoundaries.end`.

    Prompt and answer belong into one text, because letters of both may share a token.
    """
    boundaries = text_boundaries(tokenizer)
    return boundaries.close(_encode_open(tokenizer, text, boundaries))


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Encodes a whole conversation by the chat template, as training does (TRL), and as makers of chat models do.

    Raises:
        InvalidArgumentError: If there is no chat template, or it refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise InvalidArgumentError(
            "Expected a tokenizer with a chat template, because it has to encode messages, but this one has none. Pass "
            "texts, or set tokenizer.chat_template to the template that the model was trained with."
        )
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=True, return_dict=True
        )
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InvalidArgumentError(
            f"Expected messages that the chat template takes, but it refuses those of {roles}: {error}. Pass others."
        ) from error
    return list(encoded["input_ids"])


def common_prefix_length(first: Sequence[int] | str, second: Sequence[int] | str) -> int:
    """Number of tokens, or of characters, that two texts begin with alike."""
    # No loop in Python over equal tokens, because prompts are long and are compared at every step.
    differs = map(ne, first, second)
    for first_difference in compress(count(), differs):
        return first_difference
    return min(len(first), len(second))


def differing_tokens(base_tokenizer: PreTrainedTokenizerBase, rm_tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of the base model that have another id in the reward model's vocabulary, or none."""
    rm_vocabulary = rm_tokenizer.get_vocab()
    return sum(rm_vocabulary.get(token) != index for token, index in base_tokenizer.get_vocab().items())


@dataclass(frozen=True)
class SharedVocabulary:
    """A base model's tokens beside a reward model's.

    Attributes:
        differing: Number of tokens of the base model that have another id in the reward model's vocabulary, or none.
        unshared: Ids of special tokens that only the base model has and no text needs, such as an added [PAD].
        needed: The first token, by id, that the reward model lacks and text needs; None if there is none.
    """

    differing: int
    unshared: frozenset[int]
    needed: str | None

    @property
    def shares_ids(self) -> bool:
        """Whether the ids of all tokens that text needs mean the same to both models."""
        return self.needed is None


def shared_vocabulary(
    base_tokenizer: PreTrainedTokenizerBase,
    rm_tokenizer: PreTrainedTokenizerBase | None,
    eos_token_ids: Sequence[int] = (),
) -> SharedVocabulary:
    """Compares the tokens of a base model with those of a reward model.

    A special token that only the base model has is needed if it starts or ends texts, or if the chat template names it,
    because prompts and answers then hold it. A token that carries text is always needed.

    Args:
        base_tokenizer: The base model's tokenizer.
        rm_tokenizer: The reward model's; None if the reward model has the base model's tokens.
        eos_token_ids: Tokens that end the base model's text besides its tokenizer's own.
    """
    if rm_tokenizer is None:
        return SharedVocabulary(0, frozenset(), None)
    rm_vocabulary = rm_tokenizer.get_vocab()
    vocabulary = base_tokenizer.get_vocab()
    differing = [token for token, index in vocabulary.items() if rm_vocabulary.get(token) != index]
    in_use = {*eos_token_ids, *_tokens_around_texts(base_tokenizer)} if differing else set()
    template = str(base_tokenizer.chat_template or "")
    specials = {index for index, token in base_tokenizer.added_tokens_decoder.items() if token.special}
    unshared = set()
    needed = []
    for token in differing:
        index = vocabulary[token]
        if token in rm_vocabulary or index not in specials or index in in_use or token in template:
            needed.append((index, token))
        else:
            unshared.add(index)
    return SharedVocabulary(len(differing), frozenset(unshared), min(needed)[1] if needed else None)


def _tokens_around_texts(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    boundaries = text_boundaries(tokenizer)
    return {*boundaries.before, *boundaries.after, tokenizer.bos_token_id, tokenizer.eos_token_id}


def _encode_open(tokenizer: PreTrainedTokenizerBase, text: str, boundaries: TextBoundaries) -> list[int]:
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    return ids[: len(ids) - len(boundaries.after)]

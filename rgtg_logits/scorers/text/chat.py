"""Conversations: read from a prompt that a chat template rendered, and written in another template.

A chat template is a program; it cannot be inverted by looking at it. Here it is asked: conversations with known
contents are rendered, what stands between the contents are the delimiters, and a prompt that has them in this order
gives its contents away. The messages found are rendered again, and only if that is the prompt itself, to the letter,
are they believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.incremental import special_tokens

Messages = list[dict[str, str]]

_MARK = "zq9endofthetextsofarqz"
"""Shows where in a rendered chat the answer ends."""

_REMEDY = "Pass prompt_format= a function that makes the reward model's text from (prompt_text, answer_text)."


@dataclass(frozen=True)
class Conversation:
    """What a prompt says.

    Attributes:
        messages: What was said before the answer.
        begun: How the prompt begins the answer already; mostly "".
        lead: White space that the template puts before an answer and the model therefore generates itself.
    """

    messages: Messages
    begun: str = ""
    lead: str = ""

    def answer(self, generated: str) -> str:
        """The content of the assistant's message so far."""
        text = self.begun + generated
        return "" if self.lead.startswith(text) else text.removeprefix(self.lead)


class ConversationReader:
    """Recovers the messages of prompts that a tokenizer's chat template rendered.

    Understood are an optional system message followed by user and assistant in turn, ended by the generation prompt,
    and perhaps by the beginning of the answer. A system prompt that the template adds by itself is no message. Tokens
    that begin a text, and white space after them, are not compared, because a rendered chat that is tokenised once more
    as text has two of them.

    Args:
        tokenizer: The base model's tokenizer. Without a chat template every prompt is one message of the user, and so
            is a prompt without any of the template's delimiters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(special_tokens(tokenizer).values())
        self._markers: list[str] = []
        if tokenizer.chat_template is not None:
            self._markers = self._learn()
        self.read = lru_cache(maxsize=1024)(self._read)
        """Cached, because every step asks about the same prompts."""

    def _read(self, prompt: tuple[int, ...]) -> Conversation:
        """The conversation in a prompt.

        Raises:
            InvalidArgumentError: If the prompt has delimiters of the chat template but is not what the template makes
                of any conversation.
        """
        text = self._raw(prompt)
        if not self._looks_like_chat(text):
            plain = self._tokenizer.decode(list(prompt), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return Conversation([{"role": "user", "content": plain.rstrip("\ufffd")}])
        answers = text.count(self._markers[0])
        for turns in range(answers + 1, 0, -1):
            for system in (False, True):
                found = self._match(text, _roles(turns, system))
                if found is not None:
                    return found
        raise InvalidArgumentError(
            "Expected a prompt that the base model's chat template renders from messages of system, user and assistant "
            f"in turn with add_generation_prompt=True, but got {_shortened(text)}. {_REMEDY}"
        )

    def _learn(self) -> list[str]:
        """What the template writes between contents, that of an answer first."""
        plain, full = (self._delimiters(_roles(2, system)) for system in (False, True))
        if plain is None or not all(delimiter.strip() for delimiter in plain[1:-1]):
            raise InvalidArgumentError(
                "Expected the base model's chat template to write the contents of user and assistant with delimiters "
                f"between them, but it does not, so prompts cannot be read. {_REMEDY}"
            )
        markers = [*plain[1:], plain[0], *(full or [])]
        return list(dict.fromkeys(marker.strip() for marker in markers if marker.strip()))

    def _looks_like_chat(self, text: str) -> bool:
        special = [token for token in self._special if any(token in marker for marker in self._markers)]
        return any(mark in text for mark in (*self._markers, *special))

    def _match(self, text: str, roles: Sequence[str]) -> Conversation | None:
        """The conversation of these roles that renders to the text, if there is one."""
        delimiters = self._delimiters(roles)
        contents = None if delimiters is None else _between(text, delimiters)
        if delimiters is None or contents is None:
            return None
        if any(mark in content for content in contents for mark in (*self._markers, *self._special)):
            return None
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        begun = contents[-1]
        if self._view(messages) != text.removesuffix(begun):
            return None
        return Conversation(messages, begun, self._lead(roles, delimiters[-1]))

    def _lead(self, roles: Sequence[str], generation_prompt: str) -> str:
        answered = self._delimiters([*roles, "assistant"], generation_prompt=False)
        lead = "" if answered is None else answered[-2].removeprefix(generation_prompt)
        return lead if lead.isspace() and answered and answered[-2] != lead else ""

    def _delimiters(self, roles: Sequence[str], *, generation_prompt: bool = True) -> list[str] | None:
        """What stands before, between and after the contents of such messages; None if the template refuses them."""
        contents = [f"zq{index}qz" for index in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        rest = self._view(messages, generation_prompt=generation_prompt)
        delimiters = []
        for content in contents:
            if rest is None or rest.count(content) != 1:
                return None
            delimiter, _, rest = rest.partition(content)
            delimiters.append(delimiter)
        return None if rest is None else [*delimiters, rest]

    def _view(self, messages: Messages, *, generation_prompt: bool = True) -> str | None:
        """A rendered chat as it looks when its tokens are decoded; None if the template refuses the messages."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateError:
            return None
        return self._raw(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _raw(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        begin = self._tokenizer.bos_token
        while begin and text.startswith(begin):
            text = text.removeprefix(begin)
        return text.lstrip(" ")


class ChatWriter:
    """Renders a conversation and the answer so far by a reward model's chat template.

    The answer of an unfinished text is the template's own rendering up to where the answer ends, so whatever the
    template does to a content (white space trimmed at its beginning, thoughts left out) is done. White space at the
    end of an unfinished answer stays, because it is in the middle of the finished one.

    Args:
        tokenizer: The reward model's tokenizer.

    Raises:
        InvalidArgumentError: If it has no chat template, or one that does not write what an assistant says.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise InvalidArgumentError(
                'Expected a reward model with a chat template for prompt_format="chat", but its tokenizer has none. '
                + _REMEDY
            )
        self.write([{"role": "user", "content": "zq0qz"}], "", finished=False)

    def write(self, messages: Messages, answer: str, *, finished: bool) -> str:
        """The text that the reward model reads; only that of a finished answer is closed.

        Raises:
            InvalidArgumentError: If the template refuses the messages, or leaves the answer out.
        """
        if finished:
            return self._render(messages, answer)
        text = self._render(messages, answer + _MARK)
        if text.count(_MARK) != 1:
            raise InvalidArgumentError(
                "Expected the reward model's chat template to write the assistant's last message once, but it writes "
                f"it {text.count(_MARK)} times: {_shortened(text)}. {_REMEDY}"
            )
        return text.partition(_MARK)[0]

    def _render(self, messages: Messages, answer: str) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [*messages, {"role": "assistant", "content": answer}], tokenize=False
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InvalidArgumentError(
                f"Expected the reward model's chat template to take messages of {roles}, assistant, but it says: "
                f"{error}. {_REMEDY}"
            ) from error


def _roles(turns: int, system: bool) -> list[str]:
    return ["system"] * system + list(islice(cycle(("user", "assistant")), 2 * turns - 1))


def _between(text: str, delimiters: Sequence[str]) -> list[str] | None:
    """The contents between the delimiters, and what follows the last one; None if they are not there."""
    head, *following = delimiters
    if not text.startswith(head):
        return None
    contents, rest = [], text.removeprefix(head)
    for delimiter in following:
        if not delimiter.strip():
            return None
        content, found, rest = rest.partition(delimiter)
        if not found:
            return None
        contents.append(content)
    return [*contents, rest]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}")

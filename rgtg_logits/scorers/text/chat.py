"""Conversations: parsed from a prompt that one chat template rendered, and rendered by another chat template.

A chat template is a program, and programs cannot be inverted by looking at them. So the template is run: conversations
with known contents are rendered, the texts between the contents are the delimiters, and a prompt that has them in this
order gives its contents away. The messages that were found are rendered again, and are accepted only if the result is
the prompt, to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.incremental import special_tokens
from rgtg_logits.scorers.text.remembered import Remembered

Messages = list[dict[str, str]]

_ANSWER_END = "zq9endofthetextsofarqz"
"""Marks in a rendered chat where the answer ends."""

_REMEDY = "Pass prompt_format= a function that makes the reward model's text from (prompt_text, answer_text)."


@dataclass(frozen=True)
class Conversation:
    """The conversation in a prompt.

    Attributes:
        messages: The messages before the answer.
        prefill: The beginning of the answer, where the prompt holds one already; mostly "".
        answer_indent: White space that the template puts before an answer, and that the model therefore generates
            itself.
    """

    messages: Messages
    prefill: str = ""
    answer_indent: str = ""

    def answer_content(self, generated: str) -> str:
        """The content of the assistant's message so far."""
        text = self.prefill + generated
        return "" if self.answer_indent.startswith(text) else text.removeprefix(self.answer_indent)


class ChatPromptParser:
    """Recovers the messages of prompts that a tokenizer's chat template rendered.

    It understands an optional system message followed by user and assistant in turn, ended by the generation prompt and
    perhaps by the beginning of the answer. A system prompt that the template adds by itself is no message. Tokens that
    begin a text, and white space after them, are not compared, because a rendered chat that is tokenised once more as
    text has two of them.

    Args:
        tokenizer: The base model's tokenizer. Without a chat template every prompt is one message of the user, and so
            is a prompt without any of the template's delimiters.

    Raises:
        InvalidArgumentError: If the chat template writes no delimiters between contents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = set(special_tokens(tokenizer).values())
        self._markers: list[str] = []
        if tokenizer.chat_template is not None:
            self._markers = self._learn_markers()
        self.parse = Remembered(self._parse, 1024)
        """Cached, because every step is about the same prompts."""

    def _parse(self, prompt: tuple[int, ...]) -> Conversation:
        """The conversation in a prompt.

        Raises:
            InvalidArgumentError: If the prompt has delimiters of the chat template but is not what the template makes
                of any conversation.
        """
        text = self._decode(prompt)
        if not self._looks_like_chat(text):
            plain = self._tokenizer.decode(list(prompt), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return Conversation([{"role": "user", "content": plain.rstrip("\ufffd")}])
        num_answers = text.count(self._markers[0])
        for num_turns in range(num_answers + 1, 0, -1):
            for has_system in (False, True):
                conversation = self._parse_as(text, _roles(num_turns, has_system))
                if conversation is not None:
                    return conversation
        raise InvalidArgumentError(
            "Expected a prompt that the base model's chat template renders from messages of system, user and assistant "
            f"in turn with add_generation_prompt=True, but got {_shortened(text)}. {_REMEDY}"
        )

    def _learn_markers(self) -> list[str]:
        """The delimiters that the template writes between contents, the one before an answer first."""
        without_system = self._delimiters(_roles(2, False))
        with_system = self._delimiters(_roles(2, True)) or []
        if without_system is None or not all(delimiter.strip() for delimiter in without_system[1:-1]):
            raise InvalidArgumentError(
                "Expected the base model's chat template to write the contents of user and assistant with delimiters "
                f"between them, but it does not, so prompts cannot be read. {_REMEDY}"
            )
        first = {delimiters[0].strip() for delimiters in (without_system, with_system) if delimiters}
        others = [delimiter.strip() for delimiter in (*without_system[1:], *with_system[1:]) if delimiter.strip()]
        if all(map(self._holds_special_token, others)):
            # Then only the beginning of a prompt is the first delimiter. Without the token that begins texts, it
            # may be a mere word, as "system" is where that token is the marker of turns.
            first = {marker for marker in first if self._holds_special_token(marker)}
        return [marker for marker in dict.fromkeys([*others, *sorted(first)]) if marker]

    def _holds_special_token(self, delimiter: str) -> bool:
        return any(token in delimiter for token in self._special_tokens)

    def _looks_like_chat(self, text: str) -> bool:
        # A special token that delimiters contain shows a chat even where no delimiter is whole.
        delimiting = [token for token in self._special_tokens if any(token in marker for marker in self._markers)]
        return any(marker in text for marker in (*self._markers, *delimiting))

    def _parse_as(self, text: str, roles: Sequence[str]) -> Conversation | None:
        """The conversation of these roles that renders to the text, if there is one."""
        delimiters = self._delimiters(roles)
        contents = None if delimiters is None else _split_contents(text, delimiters)
        if delimiters is None or contents is None:
            return None
        for content in contents:
            if any(marker in content for marker in (*self._markers, *self._special_tokens)):
                return None
        *message_contents, prefill = contents
        messages = [{"role": role, "content": content} for role, content in zip(roles, message_contents, strict=True)]
        if self._render(messages) != text.removesuffix(prefill):
            return None
        return Conversation(messages, prefill, self._answer_indent(roles, delimiters[-1]))

    def _answer_indent(self, roles: Sequence[str], generation_prompt: str) -> str:
        """The white space between the generation prompt and an answer; "" if there is none, or anything else."""
        delimiters = self._delimiters([*roles, "assistant"], generation_prompt=False)
        if delimiters is None:
            return ""
        before_answer = delimiters[-2]
        indent = before_answer.removeprefix(generation_prompt)
        return indent if indent.isspace() and indent != before_answer else ""

    def _delimiters(self, roles: Sequence[str], *, generation_prompt: bool = True) -> list[str] | None:
        """The texts before, between and after the contents of such messages; None if the template refuses them."""
        contents = [f"zq{index}qz" for index in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        remaining = self._render(messages, generation_prompt=generation_prompt)
        delimiters = []
        for content in contents:
            if remaining is None or remaining.count(content) != 1:
                return None
            delimiter, _, remaining = remaining.partition(content)
            delimiters.append(delimiter)
        return None if remaining is None else [*delimiters, remaining]

    def _render(self, messages: Messages, *, generation_prompt: bool = True) -> str | None:
        """A rendered chat as it looks when its tokens are decoded; None if the template refuses the messages."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateError:
            return None
        return self._decode(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special tokens included, but for those that begin a text."""
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        bos = self._tokenizer.bos_token
        while bos and text.startswith(bos):
            text = text.removeprefix(bos)
        return text.lstrip(" ")


class ChatRenderer:
    """Renders a conversation and the answer so far by a reward model's chat template.

    The answer of an unfinished text is the template's own rendering up to where the answer ends, so that everything the
    template does to a content (white space trimmed at its beginning, thoughts left out) is done. White space at the end
    of an unfinished answer stays, because it is in the middle of the finished one.

    Args:
        tokenizer: The reward model's tokenizer.

    Raises:
        InvalidArgumentError: If it has no chat template, or one that does not write the assistant's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise InvalidArgumentError(
                'Expected a reward model with a chat template for prompt_format="chat", but its tokenizer has none. '
                + _REMEDY
            )
        self.render([{"role": "user", "content": "zq0qz"}], "", finished=False)

    def render(self, messages: Messages, answer: str, *, finished: bool) -> str:
        """The text that the reward model reads; only that of a finished answer is closed.

        Raises:
            InvalidArgumentError: If the template refuses the messages, or leaves the answer out.
        """
        if finished:
            return self._apply_template(messages, answer)
        text = self._apply_template(messages, answer + _ANSWER_END)
        if text.count(_ANSWER_END) != 1:
            raise InvalidArgumentError(
                "Expected the reward model's chat template to write the assistant's last message once, but it writes "
                f"it {text.count(_ANSWER_END)} times: {_shortened(text)}. {_REMEDY}"
            )
        return text.partition(_ANSWER_END)[0]

    def _apply_template(self, messages: Messages, answer: str) -> str:
        with_answer = [*messages, {"role": "assistant", "content": answer}]
        try:
            return str(self._tokenizer.apply_chat_template(with_answer, tokenize=False))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in with_answer)
            raise InvalidArgumentError(
                f"Expected the reward model's chat template to take messages of {roles}, but it says: {error}. "
                f"{_REMEDY}"
            ) from error


class ChatFormat:
    """Puts the conversation in a prompt, and the answer so far, into the reward model's chat template.

    Args:
        base_tokenizer: The base model's tokenizer, whose chat template rendered the prompt.
        rm_tokenizer: The reward model's tokenizer.

    Raises:
        InvalidArgumentError: See `ChatPromptParser` and `ChatRenderer`.
    """

    def __init__(self, base_tokenizer: PreTrainedTokenizerBase, rm_tokenizer: PreTrainedTokenizerBase) -> None:
        self._parser = ChatPromptParser(base_tokenizer)
        self._renderer = ChatRenderer(rm_tokenizer)

    def reads(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt holds a conversation that can be rendered."""
        try:
            self.format(prompt, "", finished=False)
        except InvalidArgumentError:
            return False
        return True

    def format(self, prompt: Sequence[int], generated: str, *, finished: bool) -> str:
        """The text that the reward model reads.

        Args:
            prompt: The base model's tokens of the prompt.
            generated: The text that follows the prompt.
            finished: Whether the answer is finished, so that the template closes it.
        """
        conversation = self._parser.parse(tuple(prompt))
        answer = conversation.answer_content(generated)
        return self._renderer.render(conversation.messages, answer, finished=finished)


def _roles(num_turns: int, has_system: bool) -> list[str]:
    """Roles of a conversation in which the user has the last of so many turns."""
    answered_turns = ["user", "assistant"] * (num_turns - 1)
    return [*(["system"] if has_system else []), *answered_turns, "user"]


def _split_contents(text: str, delimiters: Sequence[str]) -> list[str] | None:
    """The contents between the delimiters, and what follows the last one; None if the text lacks a delimiter."""
    first, *following = delimiters
    if not text.startswith(first):
        return None
    contents = []
    remaining = text.removeprefix(first)
    for delimiter in following:
        if not delimiter.strip():
            return None
        content, separator, remaining = remaining.partition(delimiter)
        if not separator:
            return None
        contents.append(content)
    return [*contents, remaining]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}")

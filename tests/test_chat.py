"""Conversations are recovered from prompts exactly, or not at all, and written in the reward model's template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.chat import ChatPromptParser, ChatRenderer
from rgtg_logits.scorers.text.retokenizer import Retokenizer
from rgtg_logits.testing import EOS, tiny_tokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
    "message.role == 'assistant' %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 "
    "%}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}{%- set thought = '' %}"
    "{%- if '</think>' in m.content %}"
    "{%- set thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|im_start|>' + message['role'] + '<|im_start|>\n\n'"
    "+ message['content'] | trim + '<|im_end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_start|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>model\n'}}{% endif %}"
)
PLAIN_ROLES = (
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "qwen": QWEN, "qwen3": QWEN3, "llama3": LLAMA3, "llama2": LLAMA2, "zephyr": ZEPHYR,
    "gemma": GEMMA, "plain_roles": PLAIN_ROLES,
}  # fmt: skip
"""Chat templates as the families of that name have them, with the special tokens of the tiny tokenizers."""
TRIMS = {"llama3", "llama2", "gemma"}
WITHOUT_SYSTEM = {"gemma"}

CONTENTS = st.text(st.sampled_from("ab é中\n.:[#<>|"), min_size=1, max_size=8).filter(lambda text: text.strip())


def with_template(name, kind="llama3", **options):
    return tiny_tokenizer(kind=kind, vocab_size=420, chat_template=TEMPLATES[name], **options)


def conversation(*contents, system=None):
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]
    return [{"role": "system", "content": system}] * (system is not None) + messages


def prompt_of(tokenizer, messages, **options):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


PARSERS = {
    (name, kind): ChatPromptParser(with_template(name, kind))
    for name in TEMPLATES
    for kind in ("llama3", "llama2", "gpt2")
}


def smollm2():
    """A tokenizer whose token that begins texts is the marker of turns."""
    tokenizer = with_template("qwen")
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    return tokenizer


PARSERS["smollm2", "llama3"] = ChatPromptParser(smollm2())
SPECIAL_DELIMITERS = {"chatml", "qwen", "llama3", "gemma", "smollm2"}
WORDS = [
    "<think>",
    "system", "user", "assistant", "model", "Explain the solar system.", "system\n", "user\nhi", "\nassistant\n",
    "[INST]", "[/INST]", "<<SYS>>", "### user:", "### assistant:\n", "<|user|>", "You are a helpful assistant.",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(PARSERS)),
    st.lists(
        st.lists(st.sampled_from([*WORDS, " ", "a"]), min_size=1, max_size=4).map("".join), min_size=1, max_size=3
    ),
    st.booleans(),
)
def test_contents_full_of_words_of_the_template(key, contents, has_system):
    """Words are no delimiters where delimiters hold special tokens; else they may be, and nothing is guessed."""
    parser, (name, _) = PARSERS[key], key
    contents = [text if text.strip() else "a" for text in contents[: len(contents) - 1 + len(contents) % 2]]
    messages = conversation(*contents, system="system" if has_system and name not in WITHOUT_SYSTEM else None)
    prompt = prompt_of(parser._tokenizer, messages)
    try:
        parsed = parser.parse(prompt)
    except InvalidArgumentError:
        assert name not in SPECIAL_DELIMITERS
        return
    assert prompt_of(parser._tokenizer, parsed.messages) == prompt
    if name in SPECIAL_DELIMITERS - TRIMS:
        assert parsed.messages == messages


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PARSERS)), st.lists(CONTENTS, min_size=1, max_size=5), CONTENTS, st.booleans())
def test_messages_are_recovered(key, contents, system, has_system):
    parser, (name, _) = PARSERS[key], key
    contents = contents[: len(contents) - 1 + len(contents) % 2]
    given_messages = conversation(*contents, system=system if has_system and name not in WITHOUT_SYSTEM else None)
    prompt = prompt_of(parser._tokenizer, given_messages)
    parsed = parser.parse(prompt)
    assert parsed.prefill == ""
    trimmed = [{**message, "content": message["content"].strip()} for message in given_messages]
    if name in TRIMS:
        # Llama 2 trims what follows the system message and that message not at all; the template cannot tell.
        assert [{**message, "content": message["content"].strip()} for message in parsed.messages] == trimmed
    elif name == "qwen3":
        assert [message["role"] for message in parsed.messages] == [message["role"] for message in given_messages]
    else:
        assert parsed.messages == given_messages
    assert prompt_of(parser._tokenizer, parsed.messages) == prompt


def test_a_system_prompt_of_the_template_is_no_message():
    parser = ChatPromptParser(with_template("qwen"))
    for messages in (conversation("hi"), conversation("hi", system="Be rude.")):
        assert parser.parse(prompt_of(parser._tokenizer, messages)).messages == messages


@pytest.mark.parametrize("name", ["llama3", "gemma", "llama2"])
def test_a_second_token_that_begins_the_text_changes_nothing(name):
    tokenizer = with_template(name, "llama2", adds_bos=True)
    text = tokenizer.apply_chat_template(conversation("hi"), tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text)["input_ids"]
    assert tokens[:2] == [tokenizer.bos_token_id] * 2
    assert ChatPromptParser(tokenizer).parse(tuple(tokens)).messages == conversation("hi")


def test_an_answer_that_the_prompt_begins():
    parser = ChatPromptParser(with_template("qwen3"))
    tokenizer = parser._tokenizer
    prompt = prompt_of(tokenizer, conversation("hi"), enable_thinking=False)
    parsed = parser.parse(prompt)
    assert (parsed.messages, parsed.prefill) == (conversation("hi"), "<think>\n\n</think>\n\n")
    started = parser.parse((*prompt_of(tokenizer, conversation("hi")), *tokenizer("Well, ")["input_ids"]))
    assert (started.messages, started.answer_content("yes")) == (conversation("hi"), "Well, yes")


def test_white_space_that_the_template_puts_before_answers_is_no_content():
    parser = ChatPromptParser(with_template("llama2", "llama2"))
    parsed = parser.parse(prompt_of(parser._tokenizer, conversation("hi", "ho", "hu")))
    assert (
        parsed.answer_indent,
        parsed.answer_content(" Yes"),
        parsed.answer_content(""),
        parsed.answer_content("No"),
    ) == (" ", "Yes", "", "No")
    assert (
        ChatPromptParser(with_template("chatml"))
        .parse(prompt_of(with_template("chatml"), conversation("a")))
        .answer_indent
        == ""
    )


@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_a_prompt_without_delimiters_is_one_message(name):
    tokenizer = tiny_tokenizer(kind="llama3", chat_template=TEMPLATES.get(name))
    tokens = tuple(tokenizer("The film\n was")["input_ids"])
    assert ChatPromptParser(tokenizer).parse(tokens).messages == conversation("The film\n was")


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nhi<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user\nhi<|im_end|>\n",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>user\nho<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>tool\nhi<|im_end|>\n<|im_start|>assistant\n",
        "Answer this. <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nWell<|im_end|>\n",
    ],
)
def test_a_prompt_that_is_almost_a_chat_is_refused(text):
    parser = ChatPromptParser(with_template("chatml"))
    with pytest.raises(
        InvalidArgumentError, match=r"Expected a prompt that the base .* but got '.*Pass prompt_format= a"
    ):
        parser.parse(tuple(parser._tokenizer(text)["input_ids"]))


@pytest.mark.parametrize(
    "template",
    ["{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}", "{{ raise_exception('no') }}"],
)
def test_a_base_template_without_delimiters(template):
    with pytest.raises(
        InvalidArgumentError, match="Expected the base model's chat template to write .* with delimiters"
    ):
        ChatPromptParser(tiny_tokenizer(chat_template=template))


ANSWERS = st.text(st.sampled_from("ab é中\n.<|im_end>"), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(CONTENTS, min_size=1, max_size=3), ANSWERS)
def test_an_open_answer_is_where_the_closed_one_is(name, contents, answer):
    tokenizer = RENDERERS[name]._tokenizer
    messages = conversation(*contents[: len(contents) - 1 + len(contents) % 2])
    closed = RENDERERS[name].render(messages, answer, finished=True)
    left_open = RENDERERS[name].render(messages, answer, finished=False)
    assert closed == tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=False
    )
    trims_before = name in TRIMS or name == "qwen3"
    content = answer.lstrip("\n" if name == "qwen3" else None) if trims_before else answer
    assert left_open.endswith(content)
    assert closed.startswith(left_open.rstrip() if name in TRIMS else left_open)
    assert left_open.removesuffix(content) == RENDERERS[name].render(messages, "", finished=False)


RENDERERS = {name: ChatRenderer(with_template(name)) for name in TEMPLATES}


def test_thoughts_are_treated_as_the_template_treats_them():
    left_open = RENDERERS["qwen3"].render(conversation("hi"), "<think>\nhm\n</think>\n\nYes", finished=False)
    assert left_open.endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nYes")


def test_a_reward_model_without_a_chat_template():
    with pytest.raises(InvalidArgumentError, match="Expected a reward model with a chat template .* has none. Pass"):
        Retokenizer(with_template("chatml"), tiny_tokenizer(), "chat")


def test_a_reward_model_whose_template_leaves_answers_out():
    tokenizer = tiny_tokenizer(chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(InvalidArgumentError, match="write the assistant's last message once, but it writes it 0 times"):
        ChatRenderer(tokenizer)


def test_a_reward_model_whose_template_refuses_the_roles():
    with pytest.raises(
        InvalidArgumentError, match="to take messages of system, user, assistant, but it says: System role"
    ):
        RENDERERS["gemma"].render(conversation("hi", system="Be rude."), "", finished=False)


@pytest.mark.parametrize("base_name", ["llama2", "qwen"])
def test_chats_are_tokenised_without_further_special_tokens(base_name):
    base = with_template(base_name, "llama2", adds_bos=True)
    rm_tokenizer = with_template("llama3", "gpt2", adds_bos=True, adds_eos=True)
    messages = conversation("Was it good?", "No.", "Was it long?")
    prompt = list(prompt_of(base, messages))
    answer = base("Yes", add_special_tokens=False)["input_ids"]
    encoded = Retokenizer(base, rm_tokenizer, "chat").encode([prompt], [answer], [[EOS, answer[0]]])[0]
    closed = rm_tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "Yes"}], tokenize=False)
    assert encoded.candidates[0] == rm_tokenizer(closed, add_special_tokens=False)["input_ids"]
    left_open = closed.removesuffix("<|im_end|>")
    assert encoded.prefix == rm_tokenizer(left_open, add_special_tokens=False)["input_ids"]
    more = base.decode([*answer, answer[0]]).removeprefix("Yes")
    assert encoded.candidates[1] == rm_tokenizer(left_open + more, add_special_tokens=False)["input_ids"]

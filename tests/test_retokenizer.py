"""A row's text, and that text in the tokens of a reward model, are those of the whole row from scratch."""

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.retokenizer import Detokenizer, Retokenizer
from rgtg_logits.testing import EOS, PAD, TOKENIZER_KINDS, tiny_tokenizer

SENTENCES = [
    "the film was good",
    " the  film was bad,  but we'll see. They're 12345 francs!\n\n  def f(x):\n\treturn x\r\n",
    "the café's crème brûlée, na\u0131ve e\u0301 o\u0308\u0323 a\u00a0b\u2003c",
    "映画は良かったです。電影很好看，結局不好 한국어 텍스트",
    "😀👩‍👩‍👧 liked it 🎬🎬 \ufffd \U0001f1eb\U0001f1f7",
    "ﬁne ½ ① Å ㎏ ئۇيغۇر नमस्ते สวัสดี 'twas'll 'LL don’t",
]


@cache
def tokenizer(kind, adds_bos=False, adds_eos=False):
    return tiny_tokenizer(kind=kind, vocab_size=420, adds_bos=adds_bos, adds_eos=adds_eos)


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + index): byte for index, byte in enumerate(OTHERS)}
"""The byte that each character of a byte-level token stands for; the table is GPT-2's."""


def byte_text(base, row):
    tokens = (base.convert_ids_to_tokens(token) for token in row if token > 4)
    data = b"".join(bytes(BYTES[char] for char in token) for token in tokens)
    return data.decode("utf-8", errors="replace").rstrip("\ufffd")


def slow_text(base, row):
    """The text of a row, one token left out at a time while it ends within a character."""
    ordinary = [token for token in row if token not in base.added_tokens_decoder]
    texts = [base.decode(ordinary[: max(0, len(ordinary) - missing)], skip_special_tokens=True) for missing in range(4)]
    if not texts[0].endswith("\ufffd"):
        return texts[0]
    return max((re.sub("\ufffd+$", "", text) for text in texts), key=len)


def slow_tokens(rm_tokenizer, text, adds_eos, closed=False):
    ids = rm_tokenizer(text)["input_ids"]
    if adds_eos:
        assert ids[-1] == EOS
        ids = ids[:-1]
    while closed and ids[-1:] == [EOS]:
        ids = ids[:-1]
    return ids + [EOS] * closed


ROWS = st.one_of(
    st.lists(st.integers(0, 350), max_size=12),
    st.tuples(st.sampled_from(SENTENCES), st.integers(0, 60)),
    st.text(max_size=12),
    st.text(st.sampled_from(" \n\t'sera1,.é\u0301中\u00a0"), max_size=16),
)


def as_tokens(drawn, base):
    if isinstance(drawn, list):
        return [token % len(base) for token in drawn]
    if isinstance(drawn, tuple):
        return base(drawn[0], add_special_tokens=False)["input_ids"][: drawn[1]]
    return base(drawn, add_special_tokens=False)["input_ids"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_tokens_are_those_of_the_whole_text_from_scratch(data):
    kinds = st.sampled_from(sorted(TOKENIZER_KINDS))
    adds_bos, adds_eos = data.draw(st.booleans()), data.draw(st.booleans())
    base, rm_tokenizer = tokenizer(data.draw(kinds)), tokenizer(data.draw(kinds), adds_bos, adds_eos)
    prompts, answers = ([as_tokens(data.draw(ROWS), base) for _ in range(2)] for _ in range(2))
    candidates = [[EOS, PAD, *data.draw(st.lists(st.integers(0, len(base) - 1), min_size=1, max_size=6))]] * 2
    encoded = Retokenizer(base, rm_tokenizer).encode(prompts, answers, candidates)
    for prompt, answer, row in zip(prompts, answers, encoded, strict=True):
        so_far = slow_text(base, prompt + answer)
        assert row.prefix == row.candidates[1] == slow_tokens(rm_tokenizer, so_far, adds_eos)
        assert row.candidates[0] == slow_tokens(rm_tokenizer, so_far, adds_eos, closed=True)
        for token, ids in zip(candidates[0][1:], row.candidates[1:], strict=True):
            closed = token == EOS
            text = so_far if closed else slow_text(base, [*prompt, *answer, token])
            assert ids == slow_tokens(rm_tokenizer, text, adds_eos, closed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 600), max_size=12), st.text(max_size=12), st.lists(st.integers(0, 600), max_size=6))
def test_tokenizers_that_run_in_python(row, text, candidates):
    """ByT5's tokenizer is one that needs no files; it adds its end-of-text token, 1, to every text."""
    python, fast = ByT5Tokenizer(), tokenizer("llama3")
    answer = fast(text)["input_ids"]
    encoded = Retokenizer(fast, python).encode([row], [answer], [candidates])[0]
    so_far, texts = Detokenizer(fast).decode_candidates([*row, *answer], candidates)
    assert encoded.prefix == slow_tokens(python, so_far, adds_eos=True)
    assert encoded.candidates == [
        slow_tokens(python, so_far if token == EOS else text, adds_eos=True, closed=token == EOS)
        for token, text in zip(candidates, texts, strict=True)
    ]
    row = [token for token in row if token > 2] + python(text)["input_ids"][:-1]
    encoded = Retokenizer(python, fast).encode([[]], [row], [[500, 1]])[0]
    so_far = bytes(token - 3 for token in row if 3 <= token < 259).decode(errors="ignore")
    assert encoded.prefix == encoded.candidates[0] == fast(so_far)["input_ids"]
    assert encoded.candidates[1] == [*encoded.prefix, EOS]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_texts_of_byte_level_rows_are_their_bytes(data):
    base = tokenizer(data.draw(st.sampled_from(["gpt2", "llama3", "qwen2"])))
    rows = [as_tokens(data.draw(ROWS), base) for _ in range(3)]
    assert [Detokenizer(base).decode(row) for row in rows] == [byte_text(base, row) for row in rows]


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_prompt_and_answer_make_the_whole_text_wherever_a_row_is_cut(kind):
    base = tokenizer(kind)
    reader = Detokenizer(base)
    for sentence in SENTENCES:
        row = base(sentence, add_special_tokens=False)["input_ids"]
        whole = reader.decode(row)
        for cut in range(1, len(row)):
            prompt = reader.decode(row[:cut])
            assert prompt + reader.answer(prompt, whole) == whole


def test_the_answer_keeps_its_first_space_and_its_first_character():
    base = tokenizer("llama2")
    prompt, answer = (base(text, add_special_tokens=False)["input_ids"] for text in ("the film", "was"))
    formatted = []
    Retokenizer(base, tokenizer("gpt2"), lambda *texts: formatted.append(texts) or "x").encode(
        [prompt], [answer], [[5]]
    )
    assert formatted[0] == ("the film", " was")
    half = [base.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "中".encode()]
    formatted.clear()
    retokenizer = Retokenizer(base, tokenizer("gpt2"), lambda *texts: formatted.append(texts) or "x")
    retokenizer.encode([[*prompt, half[0]]], [half[1:]], [[5]])
    assert formatted[0] == ("the film", "中")


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_half_a_character_adds_nothing_and_takes_nothing_away(kind):
    base, rm_tokenizer = tokenizer(kind), tokenizer("llama3")
    row = [byte_token(base, kind, byte) for byte in "a 中é".encode()]
    halves = [byte_token(base, kind, byte) for byte in "中".encode()[:2]]
    detokenizer = Detokenizer(base)
    assert detokenizer.decode_candidates(row, halves[:1]) == ("a 中é", ["a 中é"])
    assert detokenizer.decode([*row, *halves]) == "a 中é"
    encoded = Retokenizer(base, rm_tokenizer).encode([row], [halves[:1]], [halves[1:]])[0]
    assert encoded.prefix == encoded.candidates[0] == rm_tokenizer("a 中é")["input_ids"]


def byte_token(base, kind, byte):
    if kind == "llama2":
        return base.convert_tokens_to_ids(f"<0x{byte:02X}>")
    return base.convert_tokens_to_ids(next(char for char, value in BYTES.items() if value == byte))


def test_every_end_of_text_token_counts_and_other_special_tokens_say_nothing():
    base, rm_tokenizer = tokenizer("gpt2"), tokenizer("llama3", adds_bos=True)
    prompt, answer = (base(text)["input_ids"] for text in ("the film", " was good"))
    encoded = Retokenizer(base, rm_tokenizer, eos_token_ids=[4]).encode([prompt], [answer], [[EOS, 4, 3, PAD, 10_000]])[
        0
    ]
    assert encoded.prefix == rm_tokenizer("the film was good")["input_ids"]
    assert encoded.candidates == [[*encoded.prefix, EOS]] * 2 + [encoded.prefix] * 3


def test_a_reward_model_without_an_end_of_text_token_reads_the_text_so_far():
    rm_tokenizer = tiny_tokenizer(kind="llama3")
    rm_tokenizer.eos_token = None
    encoded = Retokenizer(tokenizer("gpt2"), rm_tokenizer).encode([[70]], [[71]], [[EOS]])[0]
    assert encoded.candidates == [encoded.prefix]


def test_no_rows_and_rows_without_text():
    retokenizer = Retokenizer(tokenizer("gpt2"), tokenizer("llama2"))
    assert retokenizer.encode([], [], []) == []
    assert retokenizer.encode([[PAD]], [[]], [[PAD, EOS]])[0].prefix == []
    assert retokenizer.encode([[PAD]], [[]], [[PAD, EOS]])[0].candidates == [[], [EOS]]


def test_a_format_of_the_users_own():
    base, rm_tokenizer = tokenizer("llama2"), tokenizer("gpt2", adds_bos=True, adds_eos=True)
    prompt, answer = base("Was it good?")["input_ids"], base("Yes")["input_ids"]
    retokenizer = Retokenizer(base, rm_tokenizer, lambda prompt, answer: f"Q: {prompt}\nA:{answer}")
    encoded = retokenizer.encode([prompt], [answer], [[EOS, *base.convert_tokens_to_ids(["▁the"])]])[0]
    closed = rm_tokenizer("Q: Was it good?\nA: Yes")["input_ids"]
    assert closed[-1] == EOS
    assert encoded.prefix == closed[:-1]
    assert encoded.candidates == [closed, rm_tokenizer("Q: Was it good?\nA: Yes the")["input_ids"][:-1]]


def test_a_format_that_is_none():
    with pytest.raises(
        InvalidArgumentError, match='Expected prompt_format to be None, "chat" or a function .*but got 7'
    ):
        Retokenizer(tokenizer("gpt2"), tokenizer("gpt2"), 7)
    retokenizer = Retokenizer(tokenizer("gpt2"), tokenizer("gpt2"), lambda prompt, answer: None)
    with pytest.raises(InvalidArgumentError, match="Expected prompt_format to return the text .* returned NoneType"):
        retokenizer.encode([[70]], [[71]], [[72]])

"""Incremental tokenisation and detokenisation give the tokens and the text of the whole, taken at once."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rgtg_logits.scorers.text import incremental
from rgtg_logits.scorers.text.incremental import IncrementalDetokenizer, IncrementalTokenizer
from rgtg_logits.scorers.text.retokenizer import Retokenizer
from rgtg_logits.testing import EOS, TOKENIZER_KINDS, tiny_tokenizer

GPT4O_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def changed(kind="gpt2", added=(), **parts):
    """A tiny tokenizer with other parts, and with further tokens."""
    tokenizer = tiny_tokenizer(kind=kind, vocab_size=420, adds_bos=True).backend_tokenizer
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def with_model(kind, **options):
    specification = json.loads(tiny_tokenizer(kind=kind, vocab_size=420).backend_tokenizer.to_str())
    specification["model"].update(options)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(specification)))


def split(pattern, behavior="isolated", invert=False):
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), bytes_only])


ADDED = [AddedToken("  ", normalized=False), AddedToken("<m>", lstrip=True), AddedToken("<é>", normalized=True)]
CUTTABLE = {
    **{kind: lambda kind=kind: changed(kind) for kind in TOKENIZER_KINDS if kind != "llama2_across"},
    "prefix_space": lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt4o": lambda: changed(pre_tokenizer=split(GPT4O_PATTERN)),
    "digits": lambda: changed(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    ),
    "added": lambda: changed("qwen2", ADDED),
    "added_sentencepiece": lambda: changed("llama2", [AddedToken("<m>", normalized=False, lstrip=True)]),
    "added_unigram": lambda: changed("unigram", ADDED),
    "metaspace_first": lambda: changed(
        "llama2", normalizer=None, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "metaspace_never": lambda: changed("unigram", pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never")),
    "ignore_merges": lambda: with_model("llama3", ignore_merges=True),
}  # fmt: skip
"""Tokenizers for which the proof holds."""

REFUSED = {
    "llama2_across": lambda: changed("llama2_across"),
    "rstrip": lambda: changed(added=[AddedToken("<m>", rstrip=True)]),
    "single_word": lambda: changed(added=[AddedToken("<m>", single_word=True)]),
    "ends_like_a_word": lambda: changed(added=["nothing"]),
    "two_clauses": lambda: changed(added=["<好，>"]),
    "two_words": lambda: changed(added=["<a b>"]),
    "normalized": lambda: changed("llama2", [AddedToken("<m>", normalized=True)]),
    "lowercase": lambda: changed(normalizer=normalizers.Lowercase()),
    "whitespace": lambda: changed(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
    "no_pre_tokens": lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)),
    "lookbehind": lambda: changed(pre_tokenizer=split(r"(?<=a) \p{L}+|\s+|\S+")),
    "words_and_space": lambda: changed(pre_tokenizer=split(r"\p{L}+ ?|\s+")),
    "no_white_space": lambda: changed(pre_tokenizer=split(r" ?\p{L}+")),
    "removed": lambda: changed(pre_tokenizer=split(r"\s+", "removed")),
    "merged": lambda: changed(pre_tokenizer=split(r"\s+", "merged_with_previous")),
    "inverted": lambda: changed(pre_tokenizer=split(r"\s+", invert=True)),
    "other_splitter": lambda: changed(pre_tokenizer=pre_tokenizers.BertPreTokenizer()),
    "other_surroundings": lambda: changed(post_processor=processors.BertProcessing(("<m>", 5), ("<m>", 5))),
    "dropout": lambda: with_model("llama3", dropout=0.1),
    "whole_stretches": lambda: with_model("llama2", ignore_merges=True),
}  # fmt: skip
"""Tokenizers for which it does not hold."""


@cache
def encoders(name):
    tokenizer = CUTTABLE[name]()
    return IncrementalTokenizer(tokenizer), IncrementalTokenizer(tokenizer, incremental=False)


@pytest.mark.parametrize("name", CUTTABLE)
def test_tokenizers_that_are_cut(name):
    assert encoders(name)[0].incremental
    assert not encoders(name)[1].incremental


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_are_not_cut(name):
    assert not IncrementalTokenizer(REFUSED[name]()).incremental


WORDS = st.one_of(
    st.sampled_from(["the", "film,", "wasn't", "'ll", "'tis", "I'd", "12345", "6", "...", "a_b", "ABc", "a", "/"]),
    st.sampled_from(["<m>", "<|im_end|>", "<|endoftext|>end", "\n", "\n\n", "\t", "\r\n", "\x1c", "\u00a0", "\u2003"]),
    st.sampled_from(
        ["\u1680", "\u200d", "\ufffd", "na\u00efve", "e\u0301", "\u0301", "\u0958", "<\u00e9>", "<e\u0301>"]
    ),
    st.sampled_from(
        ["\u212b", "\u00bd", "\ufb01", "\u01c5AB", "\u02b0", "\u1112\u1161\u11ab", "中文", "映画。", "한국", "😀"]
    ),
    st.sampled_from(["▁", "a▁"]),
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "", "  ", "\n", "   "])), max_size=40).map(
    lambda parts: "".join(word + space for word, space in parts)
)


@pytest.fixture(
    scope="module",
    params=[(1, 1), (16, 4), (incremental._SEGMENT_CHARACTERS, incremental._SEGMENT_TOKENS)],
    ids=["tiny", "small", "usual"],
)
def segments(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "_SEGMENT_CHARACTERS", request.param[0])
        patch.setattr(incremental, "_SEGMENT_TOKENS", request.param[1])
        yield


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(CUTTABLE)), st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3)), min_size=1, max_size=3)
)
def test_tokens_of_segments_are_tokens_of_the_whole(segments, name, drawn):
    stepwise, whole = encoders(name)
    texts = [text + ending for text, endings in drawn for ending in ("", *endings)]
    assert stepwise.encode(texts) == whole.encode(texts)


@cache
def decoders(kind):
    tokenizer = tiny_tokenizer(kind=kind, vocab_size=420)
    return tokenizer, IncrementalDetokenizer(tokenizer), IncrementalDetokenizer(tokenizer, incremental=False)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TOKENIZER_KINDS)), st.lists(st.integers(0, 440), max_size=90), TEXTS, st.integers(0, 90))
def test_texts_of_segments_are_texts_of_the_whole(segments, kind, tokens, text, place):
    tokenizer, stepwise, whole = decoders(kind)
    assert stepwise.incremental
    row = [*tokens[:place], *tokenizer(text, add_special_tokens=False)["input_ids"], *tokens[place:]]
    head, count = stepwise.head(row)
    tail = stepwise.decode_tail(row[count:]) if count else stepwise.decode(row)
    assert head + tail == whole.decode(row)
    assert whole.head(row) == ("", 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_incremental_generation_is_one_from_scratch(segments, data):
    kinds = st.sampled_from(sorted(TOKENIZER_KINDS))
    (base, *_), (rm_tokenizer, *_) = decoders(data.draw(kinds)), decoders(data.draw(kinds))
    prompt = base(data.draw(TEXTS), add_special_tokens=False)["input_ids"]
    answer = [*base(data.draw(TEXTS), add_special_tokens=False)["input_ids"], *data.draw(st.lists(st.integers(0, 440)))]
    fast, slow = (Retokenizer(base, rm_tokenizer, incremental=is_incremental) for is_incremental in (True, False))
    for length in range(0, len(answer), max(1, len(answer) // 5)):
        candidates = [EOS, *data.draw(st.lists(st.integers(0, 440), max_size=5)), *answer[length : length + 1]]
        step = [prompt], [answer[:length]], [candidates]
        assert fast.encode(*step) == slow.encode(*step)


def test_a_long_prompt_is_remembered():
    """Guards the tests above: with nothing remembered they would compare the whole with itself."""
    tokenizer, decoder, _ = decoders("gpt2")
    row = tokenizer("the film was good, and the end was bad. " * 20)["input_ids"]
    assert decoder.head(row)[1] > len(row) - incremental._SEGMENT_TOKENS
    encoder = IncrementalTokenizer(tokenizer)
    encoder.encode([tokenizer.decode(row)])
    assert encoder._segment.cache_info().currsize >= 3
    encoder.encode([tokenizer.decode(row) + " and"])
    assert encoder._segment.cache_info().hits >= 3


def test_rows_without_a_place_to_cut():
    tokenizer, decoder, whole = decoders("gpt2")
    for row in ([EOS] * 500, tokenizer("中")["input_ids"][:1] * 500):
        head, count = decoder.head(row)
        assert (head, count) == ("", 0)
        assert decoder.decode(row) == whole.decode(row)

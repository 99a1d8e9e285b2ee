"""Tiny tokenizers of common kinds, trained in code on a few sentences of several scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pattern by which Llama 3 splits text before byte pairs are merged."""

SPECIAL = ["<|pad|>", "<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>"]
"""Special tokens, with ids from 0, so that the pad token is `PAD` and the end-of-text token is `EOS`."""

TEXTS = [
    "the film was good and the end was bad, but the music and the cast weren't that bad",
    "a good plot, a bad cast;  and the music was good!\n\nthe end",
    "In 1999 the café's crème brûlée cost 12345 francs, naïve as we were. We'll see: they've gone.",
    "映画は良かったです。結末は悪かった。電影很好看，结局不好。",
    "😀 the 👩‍👩‍👧 liked it 🎬🎬\tвесь фильм был хорошим",
]
"""Training texts by default."""


def tiny_tokenizer(
    texts: list[str] | None = None,
    *,
    vocab_size: int = 300,
    kind: str = "gpt2",
    adds_bos: bool = False,
    adds_eos: bool = False,
    closed_by: str | None = None,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """A tokenizer trained on a few sentences; pads on the left.

    Args:
        texts: Training texts.
        vocab_size: Number of tokens, about.
        kind: One of `TOKENIZER_KINDS`.
        adds_bos: Whether it begins texts with "<|begin|>" by itself.
        adds_eos: Whether it ends texts with "<|endoftext|>" by itself.
        closed_by: The special token that it ends texts with by itself, if any, which need not be "<|endoftext|>".
        chat_template: Its chat template.
    """
    tokenizer = TOKENIZER_KINDS[kind](texts or TEXTS, vocab_size)
    tokenizer.add_special_tokens(SPECIAL)
    opened_by = "<|begin|>" if adds_bos else None
    closed_by = "<|endoftext|>" if adds_eos else closed_by
    if opened_by or closed_by:
        single = [token for token in (opened_by, "$A", closed_by) if token is not None]
        special = [(token, tokenizer.token_to_id(token)) for token in single if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        bos_token="<|begin|>" if adds_bos else "<|endoftext|>",
        padding_side="left",
        chat_template=chat_template,
    )


def _byte_level(texts: list[str], vocab_size: int, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _gpt2(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE on the pieces of GPT-2's pattern."""
    return _byte_level(texts, vocab_size, pre_tokenizers.ByteLevel(add_prefix_space=False))


def _llama3(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE on the pieces of Llama 3's pattern, which Qwen 2 and others share but for the digits."""
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(texts, vocab_size, pre_tokenizers.Sequence([split, bytes_only]))


def _qwen2(texts: list[str], vocab_size: int) -> Tokenizer:
    """As Llama 3, after Unicode normalisation, with one digit a piece."""
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN.replace("{1,3}", "")), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = _byte_level(texts, vocab_size, pre_tokenizers.Sequence([split, bytes_only]))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _llama2(texts: list[str], vocab_size: int, *, across_words: bool = False) -> Tokenizer:
    """BPE as SentencePiece does it: "▁" for spaces, one at the beginning, bytes for unknown characters, no pieces."""
    trained = Tokenizer(models.BPE())
    if not across_words:
        trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>"], show_progress=False)
    known = [text.encode("ascii", "ignore").decode() for text in texts]
    trained.train_from_iterator([text.replace(" ", "▁") for text in known] if across_words else known, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = dict.fromkeys([*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *model["vocab"]])
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _llama2_across(texts: list[str], vocab_size: int) -> Tokenizer:
    """As Llama 2, with tokens of several words."""
    return _llama2(texts, vocab_size, across_words=True)


def _unigram(texts: list[str], vocab_size: int) -> Tokenizer:
    """Unigram on words that begin with "▁"."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TOKENIZER_KINDS: dict[str, Callable[[list[str], int], Tokenizer]] = {
    "gpt2": _gpt2,
    "llama3": _llama3,
    "qwen2": _qwen2,
    "llama2": _llama2,
    "llama2_across": _llama2_across,
    "unigram": _unigram,
}
"""Makers of tokenizers, by the kind of tokenizer that they are small versions of."""

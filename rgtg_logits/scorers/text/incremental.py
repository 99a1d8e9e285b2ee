r"""Incremental tokenisation and detokenisation, used only where it is proven to give what the whole text gives.

A step needs the tokens of one long text with k short endings. Tokenising k whole texts costs k times the prompt; but
most tokenizers cannot look across the beginning of a word, so the tokens of the common text can be kept. They are
remembered by segments of text, and the key of a segment is its text, never a row or a step. Where the proof does not
hold, the whole text is tokenised.

**Tokenising.** Write E(T) for the tokens of a text T, without what the tokenizer adds around it. A *cut* is a place
before a space (U+0020) that follows a word character or one of ``.,;:!?``; for tokenizers that split by a pattern,
also a place before one of the marks ``，。、！？；：`` that follows an ideograph, kana or hangul. For the tokenizers
that have cuts by `_cut_pattern`, and for a text that is L before a cut and S after it,

    E(L S) = E(L) + F(S),    where F(S) is E("a" S) without its beginning E("a"),

because no stage of such a tokenizer looks across the cut:

1. *Added tokens* are matched first. In none of them does a character that may follow a cut come after one that is no
   white space, so none lies across the cut. None swallows the white space that follows it (`rstrip`) or depends on its
   neighbours (`single_word`); white space before one (`lstrip`) is swallowed up to the cut at most. None ends in a
   character that may come before a cut, so the cut lies within one stretch of ordinary text, in L S as in "a" S.
2. *Normalisation* is absent, or is NFC, in which the characters after a cut compose with nothing before them, and one
   before a cut stays a letter, a mark, a number or punctuation; or, as in SentencePiece, it writes "▁" for each space
   and at the beginning of each stretch, which is in L or in "a".
3. *Pre-tokenisation*, if any, is one of:

   - a pattern that is searched for from left to right, each time from where the last match ended (`ByteLevel`,
     `Split`). Every alternative in `_ALTERNATIVES` matches white space only at the beginning of a match or throughout
     it. So no attempt to match that begins in L gets beyond the cut, and it sees the space (or the end of L) only as a
     character that it cannot take; the look-ahead behind white space is over before the last character of L. Nothing
     looks behind. ``\s+`` is among the alternatives, so a match begins at the cut. The same holds for the marks: within
     a match, letters are followed only by letters, combining marks or an apostrophe, and one of `_LETTER_ALTERNATIVES`
     takes the letter before the cut. `Digits` may split further: what follows a cut is no digit;
   - `Metaspace` with `split`, which begins a pre-token at each space.

   The model is then applied to each pre-token by itself.
4. Without pre-tokenisation, the model is BPE and merges over the whole stretch. None of its tokens has "▁" after
   another character, so no merge joins the two sides of a cut. Merges are applied in the order of their ranks and then
   of their places, so those of one side are applied in the same order whatever happens on the other side. "▁" is a
   token, so no unknown token is fused across the cut. There is no dropout, and no rule for whole stretches
   (`ignore_merges`, prefixes, suffixes).

By induction, F(S S') = F(S) + F(S') for a cut between S and S'.

**Detokenising.** Write D(R) for the text of tokens R. For the decoders that `_is_additive` accepts, and tokens H whose
text is not empty and does not end in U+FFFD,

    D(H R) = D(H) + G(R),    where G(R) is D(X R) without its beginning D(X) = "a".

`ByteLevel` joins the bytes of all tokens and reads them as UTF-8; a text that does not end in U+FFFD ends with a whole
character, and reading starts afresh behind it. The SentencePiece sequence reads runs of byte tokens together, so the
last token of H must not be a byte token (nor a token that is left out, which might hide one); it takes away one space
at the very beginning, which is in H or in X. `Metaspace` treats only the first token differently, which is in H or in X
as well.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rgtg_logits.scorers.text.remembered import Remembered
from rgtg_logits.tokenization import text_boundaries

REPLACEMENT = "\ufffd"
"""The character that decoders write for bytes that are no character."""

_SEGMENT_CHARACTERS = 128
_SEGMENT_TOKENS = 32
"""Least length of the segments that are remembered: cheap to redo at the end of a row, and few in a long text."""

_MAX_SEGMENTS = 2**15
"""Number of segments that are remembered, about 1 kB each: 64 rows of 2048 tokens take some 5,000."""

_SPACE_CUT = r"(?<=[\w.,;:!?]) "
_MARK_CUT = "(?<=[\u4e00-\u9fa5\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3])[，。、！？；：]"
_ACROSS_CUT = r"\S[ ，。、！？；：]"
_BEFORE_CUT = r"[\w.,;:!?]$"
_ANCHOR = "a"
"""A letter before the second of two segments, so that a tokenizer does not take the segment for a beginning of text."""

_LETTERS = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CAPITALS = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTER_ALTERNATIVES = {
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]*[{_LETTERS}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]*[{_LETTERS}]+{_CONTRACTIONS}?",
}
_ALTERNATIVES = {
    *_LETTER_ALTERNATIVES,
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]+[{_LETTERS}]*",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]+[{_LETTERS}]*{_CONTRACTIONS}?",
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTIONS),
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
}
"""Parts of the patterns of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen 2 and relatives, for which 3. above holds."""


class _Head(NamedTuple):
    """The beginning of a text up to a cut, and its tokens.

    Attributes:
        cut: Position of the cut; 0 if the text has none.
        text: The text up to the cut, and the character behind it, without which the place would be no cut.
        ids: The tokens before the cut, with what the tokenizer adds before a text.
    """

    cut: int
    text: str
    ids: list[int]

    def begins(self, text: str) -> bool:
        """Whether another text has the same beginning and cut."""
        return self.cut > 0 and text.startswith(self.text)


class IncrementalTokenizer:
    """Tokens of texts, with what the tokenizer adds before a text and without what it adds after one.

    Args:
        tokenizer: Any tokenizer.
        add_special_tokens: Whether the tokenizer adds anything at all.
        incremental: Whether to remember the tokens of segments where that is proven right.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True, incremental: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        boundaries = text_boundaries(tokenizer)
        self._before = list(boundaries.before) if add_special_tokens else []
        self._num_after = len(boundaries.after) if add_special_tokens else 0
        self._anchor_length = len(self._tokenize([_ANCHOR])[0])
        pattern = _cut_pattern(_specification(tokenizer)) if incremental else None
        self.incremental = pattern is not None
        self._cut = re.compile(pattern or "(?!)")
        self._segment = Remembered(self._uncached_segment, _MAX_SEGMENTS)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text. Texts with a common beginning are cheapest side by side, the shortest first."""
        if not self.incremental:
            whole = self._tokenizer(texts, add_special_tokens=self._add_special_tokens, verbose=False)["input_ids"]
            return [ids[: len(ids) - self._num_after] for ids in whole]
        heads = self._heads(texts)
        # Behind a cut, the anchor stands for what comes before it; its tokens are taken away again.
        tails = self._tokenize(
            [_ANCHOR + text[head.cut :] if head.cut else text for text, head in zip(texts, heads, strict=True)]
        )
        encoded = []
        for head, tail in zip(heads, tails, strict=True):
            skipped = self._anchor_length if head.cut else 0
            encoded.append([*head.ids, *tail[skipped:]])
        return encoded

    def _heads(self, texts: list[str]) -> list[_Head]:
        heads = []
        head = _Head(0, "", self._before)
        for text in texts:
            # Candidates of one row differ at their ends only, so that the last head mostly fits the next text.
            if not head.begins(text):
                head = self._head(text)
            heads.append(head)
        return heads

    def _head(self, text: str) -> _Head:
        """A text up to its last cut: remembered segments, and one of any length that is not remembered."""
        start = 0
        ids = self._before
        while (cut := self._cut.search(text, start + _SEGMENT_CHARACTERS)) is not None:
            ids = [*ids, *self._segment(text[start : cut.start()], start == 0)]
            start = cut.start()
        last_cuts = [cut.start() for cut in self._cut.finditer(text, start + 1)]
        if last_cuts:
            ids = [*ids, *self._uncached_segment(text[start : last_cuts[-1]], start == 0)]
            start = last_cuts[-1]
        return _Head(start, text[: start + 1] if start else "", ids)

    def _uncached_segment(self, text: str, is_first: bool) -> tuple[int, ...]:
        """E(text) of the first segment of a text, F(text) of any other."""
        if is_first:
            return tuple(self._tokenize([text])[0])
        return tuple(self._tokenize([_ANCHOR + text])[0][self._anchor_length :])

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


class IncrementalDetokenizer:
    """The text of rows of tokens, special tokens left out, in two parts: a remembered head and what follows it.

    Args:
        tokenizer: Any tokenizer.
        incremental: Whether to remember the text of segments where that is proven right.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, incremental: bool = True) -> None:
        self._tokenizer = tokenizer
        self.special_tokens = special_tokens(tokenizer)
        specification = _specification(tokenizer)
        self._anchor = self._tokenizer(_ANCHOR, add_special_tokens=False, verbose=False)["input_ids"]
        self.incremental = incremental and _is_additive(specification) and self.decode(self._anchor) == _ANCHOR
        self._has_byte_tokens = specification is not None and "ByteFallback" in json.dumps(specification["decoder"])
        self._segment = Remembered(self._uncached_segment, _MAX_SEGMENTS)

    def head(self, row: list[int]) -> tuple[str, int]:
        """The text of the leading tokens of a row that can be kept, and how many they are; perhaps none."""
        text = ""
        start = 0
        end = _SEGMENT_TOKENS
        while self.incremental and end <= len(row):
            segment = self._segment(tuple(row[start:end]), start == 0)
            is_complete = segment != "" and not segment.endswith(REPLACEMENT)
            if is_complete and not self._may_continue(row[end - 1]):
                text += segment
                start = end
                end += _SEGMENT_TOKENS
            else:
                # By ever longer steps, because a row without such a place must not cost one decoding per token.
                end += max(1, (end - start) // 16)
        return text, start

    def decode(self, tokens: list[int]) -> str:
        """The text of a whole row."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_tail(self, tokens: list[int]) -> str:
        """The text of tokens that follow a head."""
        return self.decode([*self._anchor, *tokens])[len(_ANCHOR) :]

    def _may_continue(self, token: int) -> bool:
        """Whether a token is, or hides, a byte of a character that the next token completes."""
        if not self._has_byte_tokens:
            return False
        name = self._tokenizer.convert_ids_to_tokens(token)
        is_byte = name is not None and name.startswith("<0x") and len(name) == len("<0x00>")
        return name is None or token in self.special_tokens or is_byte

    def _uncached_segment(self, tokens: tuple[int, ...], is_first: bool) -> str:
        return self.decode(list(tokens)) if is_first else self.decode_tail(list(tokens))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that decoding leaves out, by id."""
    tokens = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            tokens[index] = token.content
    return tokens


def _specification(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The stages of a tokenizer as in its tokenizer.json; None if it runs in Python."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None


def _cut_pattern(specification: dict[str, Any] | None) -> str | None:
    """A pattern that finds places across which a tokenizer does nothing, by the proof above; None without a proof."""
    if specification is None or not _has_harmless_additions(specification):
        return None
    model = specification["model"]
    normalizer = specification["normalizer"]
    stages = _flat(specification["pre_tokenizer"], "pretokenizers")
    if normalizer is not None and normalizer["type"] != "NFC":
        untouched = not stages and not any(token["normalized"] for token in specification["added_tokens"])
        return _SPACE_CUT if untouched and _is_sentencepiece(normalizer) and _merges_within_words(model) else None
    if _is_metaspace(stages):
        return _SPACE_CUT if stages[0]["split"] or _merges_within_words(model) else None
    return _cut_pattern_of_splits(stages)


def _has_harmless_additions(specification: dict[str, Any]) -> bool:
    """Whether added tokens are as 1. above says, and neither chance nor the context has a part in the result."""
    added = specification["added_tokens"]
    return (
        not specification["model"].get("dropout")
        and all(step["type"] in ("ByteLevel", "TemplateProcessing") for step in _post_processors(specification))
        and not any(token["rstrip"] or token["single_word"] for token in added)
        and not any(re.search(f"{_ACROSS_CUT}|{_BEFORE_CUT}", token["content"]) for token in added)
    )


def _cut_pattern_of_splits(stages: list[dict[str, Any]]) -> str | None:
    """A pattern that finds cuts in texts that are split by patterns (3. above); None without a proof."""
    if any(stage["type"] not in ("Digits", "Split", "ByteLevel") for stage in stages):
        return None
    patterns = [_alternatives(stage) for stage in stages if stage["type"] == "Split"]
    if not all(r"\s+" in pattern and pattern <= _ALTERNATIVES for pattern in patterns):
        return None
    if any(stage["type"] == "ByteLevel" and stage["use_regex"] for stage in stages):
        return f"{_SPACE_CUT}|{_MARK_CUT}"
    if not patterns:
        return None
    takes_letters = any(pattern & _LETTER_ALTERNATIVES for pattern in patterns)
    return f"{_SPACE_CUT}|{_MARK_CUT}" if takes_letters else _SPACE_CUT


def _alternatives(split: dict[str, Any]) -> set[str]:
    """The alternatives of a pattern whose matches become pre-tokens; empty for any other way to split."""
    if split["behavior"] != "Isolated" or split["invert"] or "Regex" not in split["pattern"]:
        return set()
    # Every alternative ends at a bar outside of brackets; the patterns in question nest none.
    return set(re.split(r"\|(?![^(]*\))", split["pattern"]["Regex"]))


def _is_metaspace(stages: list[dict[str, Any]]) -> bool:
    return [stage["type"] for stage in stages] == ["Metaspace"] and stages[0]["replacement"] == "▁"


def _is_sentencepiece(normalizer: dict[str, Any]) -> bool:
    return _flat(normalizer, "normalizers") == [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]


def _merges_within_words(model: dict[str, Any]) -> bool:
    """Whether BPE without pre-tokenisation merges nothing across a cut (4. above)."""
    whole_stretch_rules = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(rule) for rule in whole_stretch_rules):
        return False
    return "▁" in model["vocab"] and not any(re.search("[^▁]▁", token) for token in model["vocab"])


def _post_processors(specification: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages that put special tokens around a text."""
    return _flat(specification["post_processor"], "processors")


def _is_additive(specification: dict[str, Any] | None) -> bool:
    """Whether the text of tokens is the concatenated text of their parts, by the proof above."""
    decoder = None if specification is None else specification["decoder"]
    if decoder is None:
        return False
    sentencepiece = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return decoder["type"] in ("ByteLevel", "Metaspace") or _flat(decoder, "decoders") == sentencepiece


def _flat(stage: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    """The stages of a sequence, or the stage itself."""
    if stage is None:
        return []
    return stage[children] if stage["type"] == "Sequence" else [stage]

r"""Tokenising and decoding piece by piece, where it is proven that the pieces make the whole.

A step asks for the tokens of one long text with k short endings. To tokenise k whole texts costs k times the prompt;
but most tokenizers cannot look across a word's beginning, so the tokens of the common text can be kept. What is kept
is a memory of pieces, keyed by the piece itself, never by a row or a step. Where the proof does not hold, the whole
text is taken.

**Tokenising.** Write E(T) for the tokens of a text T, without what is added around it. A *cut* is before a space
(U+0020) that follows a word character or one of ``.,;:!?``, and for tokenizers that split by a pattern also before one
of the marks ``，。、！？；：`` that follows an ideograph, kana or hangul. For the tokenizers whose `_cuts` are not
None, and a text that is L before a cut and S after it,

    E(L S) = E(L) + F(S),    where F(S) is E("a" S) without its beginning E("a"),

because nothing that such a tokenizer does looks across the cut:

1. *Added tokens* are found first. None of them has a character that may follow a cut after another character, so none
   lies across the cut; none takes in white space that follows it (`rstrip`) or asks for its neighbours (`single_word`);
   white space before one (`lstrip`) is taken in up to the cut at most. None ends in a character that may come before a
   cut, so the cut lies within one stretch of ordinary text, in L S as in "a" S.
2. *Normalisation* is none, or NFC, in which the characters after a cut compose with nothing before them, and one before
   a cut stays a letter, a mark, a number or punctuation; or, as in SentencePiece, it puts "▁" for each space and at the
   beginning of each stretch, which is in L or "a".
3. *Splitting*, if any, is one of:

   - a pattern searched for from left to right, each time where the last match ended (`ByteLevel`, `Split`). Every
     alternative in `_ALTERNATIVES` matches white space at the beginning of a match or throughout it. So no attempt to
     match that begins in L gets beyond the cut, and it sees the space (or the end of L) only as a character that it
     cannot take; the look-ahead after white space is done before the last character of L. Nothing looks behind. ``\s+``
     is among the alternatives, so a match begins at the cut. The same goes for the marks: within a match, letters are
     followed by letters, combining marks or an apostrophe only, and one of `_OF_LETTERS` takes the letter before the
     cut. `Digits` may split further: what follows a cut is no digit;
   - `Metaspace` with `split`, which begins a piece at each space.

   The model is then applied to each piece by itself.
4. Without splitting, the model is BPE and merges over the whole stretch. None of its tokens has "▁" after another
   character, so no merge joins the two sides of a cut. Merges are done in order of rank and then of place, so those of
   one side are done in the same order whatever happens on the other. "▁" is a token, so no unknown one is fused
   across. There is neither dropout nor a rule for whole stretches (`ignore_merges`, prefixes, suffixes).

Applied again, F(S S') = F(S) + F(S') for a cut between S and S'.

**Decoding.** Write D(R) for the text of tokens R. For the decoders that `_adds_up` accepts, and tokens H whose text is
not empty and does not end in U+FFFD,

    D(H R) = D(H) + G(R),    where G(R) is D(X R) without its beginning D(X) = "a".

`ByteLevel` joins the bytes of all tokens and reads them as UTF-8; a text that does not end in U+FFFD ends with a whole
character, after which reading begins anew. The SentencePiece sequence reads runs of byte tokens together, so the last
token of H must not be one (nor left out, which would hide one); it takes away one space at the very beginning, which
is in H or X. `Metaspace` treats the first token only in another way, which is in H or X, too.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from rgtg_logits.tokenization import text_boundaries

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character."""

_CHARACTERS, _TOKENS = 128, 32
"""Length of the pieces that are remembered: short enough to be cheap at the end of a row, long enough to be few."""

_REMEMBERED = 2**15
"""Number of pieces that are remembered, about 1 kB each: 64 rows of 2048 tokens take some 5,000."""

_SPACE = r"(?<=[\w.,;:!?]) "
_MARK = "(?<=[\u4e00-\u9fa5\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3])[，。、！？；：]"
_ACROSS_CUT, _BEFORE_CUT = r"\S[ ，。、！？；：]", r"[\w.,;:!?]$"
_ANCHOR = "a"

_LETTERS = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CAPITALS = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OF_LETTERS = {
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]*[{_LETTERS}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]*[{_LETTERS}]+{_CONTRACTIONS}?",
}
_ALTERNATIVES = {
    *_OF_LETTERS,
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]+[{_LETTERS}]*",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]+[{_LETTERS}]*{_CONTRACTIONS}?",
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTIONS),
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
}
"""Parts of the patterns of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen 2 and relatives, for which 3. above holds."""


class TextEncoder:
    """The tokens of texts, with what the tokenizer adds before them and without what it adds after them.

    Args:
        tokenizer: Any tokenizer.
        adds_special_tokens: Whether it adds anything at all.
        piecewise: Whether to use the memory of pieces where it is proven right.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, adds_special_tokens: bool = True, piecewise: bool = True
    ) -> None:
        self._tokenizer, self._adds = tokenizer, adds_special_tokens
        boundaries = text_boundaries(tokenizer)
        self._prefix = list(boundaries.before) if adds_special_tokens else []
        self._added_after = len(boundaries.after) if adds_special_tokens else 0
        self._anchor = len(self._encode([_ANCHOR], False)[0])
        cuts = _cuts(_specification(tokenizer)) if piecewise else None
        self.piecewise = cuts is not None
        self._cut = re.compile(cuts or "(?!)")
        self._piece = lru_cache(maxsize=_REMEMBERED)(self._uncached_piece)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text. Texts that begin alike are cheapest one after another, the shortest first."""
        if not self.piecewise:
            return [ids[: len(ids) - self._added_after] for ids in self._encode(texts, self._adds)]
        kept, length, head = "", 0, self._prefix
        heads, rests = [], []
        for text in texts:
            if not kept or not text.startswith(kept):
                kept, length, head = self._head(text)
            heads.append(head)
            rests.append(_ANCHOR + text[length:] if kept else text)
        tails = self._encode(rests, False)
        skipped = (self._anchor if head is not self._prefix else 0 for head in heads)
        return [head + tail[skip:] for head, tail, skip in zip(heads, tails, skipped, strict=True)]

    def _head(self, text: str) -> tuple[str, int, list[int]]:
        """A text up to its last cut and one character more, the place of that cut, and the tokens before it."""
        start, head = 0, self._prefix
        while (cut := self._cut.search(text, start + _CHARACTERS)) is not None:
            head = [*head, *self._piece(text[start : cut.start()], start == 0)]
            start = cut.start()
        last = [cut.start() for cut in self._cut.finditer(text, start + 1)]
        if last:
            head = [*head, *self._uncached_piece(text[start : last[-1]], start == 0)]
            start = last[-1]
        return text[: start + 1] if start else "", start, head

    def _uncached_piece(self, text: str, first: bool) -> tuple[int, ...]:
        if first:
            return tuple(self._encode([text], False)[0])
        return tuple(self._encode([_ANCHOR + text], False)[0][self._anchor :])

    def _encode(self, texts: list[str], adds: bool) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=adds, verbose=False)["input_ids"]


class RowDecoder:
    """The text of rows of tokens, special tokens left out, in two parts: a remembered head and what follows.

    Args:
        tokenizer: Any tokenizer.
        piecewise: Whether to use the memory of pieces where it is proven right.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, piecewise: bool = True) -> None:
        self._tokenizer, self.special = tokenizer, special_tokens(tokenizer)
        specification = _specification(tokenizer)
        self._anchor = self._tokenizer(_ANCHOR, add_special_tokens=False, verbose=False)["input_ids"]
        self.piecewise = piecewise and _adds_up(specification) and self.decode(self._anchor) == _ANCHOR
        self._has_byte_tokens = specification is not None and "ByteFallback" in json.dumps(specification["decoder"])
        self._piece = lru_cache(maxsize=_REMEMBERED)(self._uncached_piece)

    def head(self, row: list[int]) -> tuple[str, int]:
        """Text of the leading tokens of a row that can be kept, and how many they are; perhaps none."""
        text, start, end = "", 0, _TOKENS
        while self.piecewise and end <= len(row):
            piece = self._piece(tuple(row[start:end]), start == 0)
            if piece and not piece.endswith(REPLACEMENT) and not self._may_go_on(row[end - 1]):
                text, start, end = text + piece, end, end + _TOKENS
            else:
                # By ever longer steps, because a row without such a place must not cost one decoding per token.
                end += max(1, (end - start) // 16)
        return text, start

    def decode(self, tokens: list[int]) -> str:
        """Text of whole rows."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_rest(self, tokens: list[int]) -> str:
        """Text of tokens that follow a head."""
        return self.decode([*self._anchor, *tokens])[len(_ANCHOR) :]

    def _may_go_on(self, token: int) -> bool:
        """Whether a token is, or hides, a byte of a character that the next token goes on with."""
        if not self._has_byte_tokens:
            return False
        name = self._tokenizer.convert_ids_to_tokens(token)
        return name is None or token in self.special or (name.startswith("<0x") and len(name) == len("<0x00>"))

    def _uncached_piece(self, tokens: tuple[int, ...], first: bool) -> str:
        return self.decode(list(tokens)) if first else self.decode_rest(list(tokens))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that decoding leaves out, by id."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return {**dict(named), **{index: token.content for index, token in added if token.special}}


def _specification(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """What a tokenizer is made of; None if it runs in Python."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None


def _cuts(specification: dict[str, Any] | None) -> str | None:
    """A pattern that finds places across which a tokenizer does nothing, by the proof above; None without a proof."""
    if specification is None or not _leaves_cuts_alone(specification):
        return None
    model, normalizer = specification["model"], specification["normalizer"]
    stages = _flat(specification["pre_tokenizer"], "pretokenizers")
    if normalizer is not None and normalizer["type"] != "NFC":
        untouched = not stages and not any(token["normalized"] for token in specification["added_tokens"])
        return _SPACE if untouched and _is_sentencepiece(normalizer) and _keeps_words(model) else None
    if _is_metaspace(stages):
        return _SPACE if stages[0]["split"] or _keeps_words(model) else None
    return _cuts_of_patterns(stages)


def _leaves_cuts_alone(specification: dict[str, Any]) -> bool:
    """Whether added tokens are as 1. above says, and neither chance nor the context has a part in it."""
    added = specification["added_tokens"]
    return (
        not specification["model"].get("dropout")
        and all(step["type"] in ("ByteLevel", "TemplateProcessing") for step in _surroundings(specification))
        and not any(token["rstrip"] or token["single_word"] for token in added)
        and not any(re.search(f"{_ACROSS_CUT}|{_BEFORE_CUT}", token["content"]) for token in added)
    )


def _cuts_of_patterns(stages: list[dict[str, Any]]) -> str | None:
    """The same for texts that are split by patterns (3. above)."""
    if any(stage["type"] not in ("Digits", "Split", "ByteLevel") for stage in stages):
        return None
    patterns = [_alternatives(stage) for stage in stages if stage["type"] == "Split"]
    if not all(r"\s+" in pattern and pattern <= _ALTERNATIVES for pattern in patterns):
        return None
    if any(stage["type"] == "ByteLevel" and stage["use_regex"] for stage in stages):
        return f"{_SPACE}|{_MARK}"
    if not patterns:
        return None
    return f"{_SPACE}|{_MARK}" if any(pattern & _OF_LETTERS for pattern in patterns) else _SPACE


def _alternatives(split: dict[str, Any]) -> set[str]:
    """The alternatives of a pattern whose matches become pieces; empty for any other way to split."""
    if split["behavior"] != "Isolated" or split["invert"] or "Regex" not in split["pattern"]:
        return set()
    # Every alternative ends at a bar outside of brackets; the patterns in question nest none.
    return set(re.split(r"\|(?![^(]*\))", split["pattern"]["Regex"]))


def _is_metaspace(stages: list[dict[str, Any]]) -> bool:
    return [stage["type"] for stage in stages] == ["Metaspace"] and stages[0]["replacement"] == "▁"


def _is_sentencepiece(normalizer: dict[str, Any]) -> bool:
    steps = [{**step} for step in _flat(normalizer, "normalizers")]
    return steps == [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]


def _keeps_words(model: dict[str, Any]) -> bool:
    """Whether BPE without splitting merges nothing across a cut (4. above)."""
    if model["type"] != "BPE" or any(
        model.get(rule) for rule in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        return False
    return "▁" in model["vocab"] and not any(re.search("[^▁]▁", token) for token in model["vocab"])


def _surroundings(specification: dict[str, Any]) -> list[dict[str, Any]]:
    """What puts tokens around a text."""
    return _flat(specification["post_processor"], "processors")


def _adds_up(specification: dict[str, Any] | None) -> bool:
    """Whether the text of tokens is the sum of the texts of its parts, by the proof above."""
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
    """The stages of a sequence."""
    if stage is None:
        return []
    return stage[children] if stage["type"] == "Sequence" else [stage]

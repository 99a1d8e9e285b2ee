"""One self-contained HTML page that shows recorded steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.trace.steps import ROUNDING, StepRecord, origins_of

SCALES = (0.5, 1.0, 2.0, 3.0)
"""Possible ends of the colour scale in nats. A page uses the smallest that covers its changes; beyond the largest the
colour stays the same."""

# Control characters as visible signs: Unicode has a picture for each of the first 32 (U+2400 to U+241F).
_CONTROLS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(32)},
    ord("\n"): "⏎\n",
    ord("\t"): "⇥",
    0x7F: "␡",
}


def render_page(
    generations: Sequence[tuple[Sequence[StepRecord], Tensor | None]], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Renders the page.

    Args:
        generations: The steps of each call of `generate`, and its output if it is known.
        tokenizer: The base model's tokenizer.
    """
    words = _TokenTexts(tokenizer)
    rows_by_generation = [_page_rows(steps, output, words) for steps, output in generations]
    tokens = [token for rows in rows_by_generation for row in rows for token in row.tokens]
    largest = max((abs(token.change) for token in tokens if token.change is not None), default=0.0)
    scale = min((end for end in SCALES if end >= largest), default=SCALES[-1])
    environment = Environment(
        loader=PackageLoader("rgtg_logits"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(probability=_probability, signed=_signed)
    template = environment.get_template("trace.html.jinja")
    return template.render(generations=rows_by_generation, scale=scale, clipped=largest > scale)


@dataclass(frozen=True)
class _Candidate:
    """A line in the table of a token; probabilities in [0, 1]."""

    text: str
    base: float
    reward: float | None
    guided: float
    drawn: bool


@dataclass(frozen=True)
class _Token:
    """A token on the page.

    Attributes:
        text: As it stands in the text; None if the token is unknown.
        name: With visible spaces; None if the token is unknown.
        change: Guided minus base log-probability in nats; None if the token has no probability.
        candidates: The candidates of its step.
    """

    text: str | None
    name: str | None
    change: float | None
    candidates: tuple[_Candidate, ...]


@dataclass(frozen=True)
class _Row:
    """A text on the page; `divergence` is the mean over its steps in nats per token."""

    prompt: str
    tokens: tuple[_Token, ...]
    divergence: float


class _TokenTexts:
    """Texts of tokens on the page."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end: int | None = tokenizer.eos_token_id
        # Without a pad token `generate` pads with the end-of-text token.
        self.pad: int | None = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end

    def text(self, token: int) -> str:
        """A token in running text: spaces and line breaks have their effect, control characters become visible."""
        raw = self._tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return f"[{token}]"
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        # Parts of characters all decode to the same replacement sign, so the token itself stands for them.
        if "\ufffd" in text:
            text = raw
        # SentencePiece decoders drop the space before the first token, and here each token is decoded alone.
        if raw.startswith("▁") and not text.startswith((" ", "▁")):
            text = f" {text}"
        return text.translate(_CONTROLS)

    def visible(self, token: int) -> str:
        """A token in a table, with visible spaces."""
        return self.text(token).replace("\n", "").replace(" ", "␣") or "(empty)"

    def prompt(self, ids: Sequence[int]) -> str:
        """A prompt without its left padding."""
        start = 0
        while start < len(ids) and ids[start] == self.pad:
            start += 1
        return str(self._tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False))

    def strip_padding(self, ids: list[int], start: int) -> list[int]:
        """A row without the padding that `generate` adds to a finished one; `start` is the prompt's width."""
        stop = len(ids)
        while stop > start and ids[stop - 1] == self.pad:
            stop -= 1
        # Where the end-of-text token pads as well, the first one ends the text.
        if self.pad == self.end and stop < len(ids):
            stop += 1
        return ids[:stop]


def _page_rows(steps: Sequence[StepRecord], output: Tensor | None, words: _TokenTexts) -> list[_Row]:
    """The texts of one call of `generate`: the rows of its output, or else of its last step."""
    rows = steps[-1].rows if output is None else output
    start = steps[0].rows.shape[1]
    # The history of a row is found by its prefixes, because beams move to other rows.
    origins = [origins_of(step.rows, rows) for step in steps]
    tables = [_StepTable(step) for step in steps]
    page_rows = []
    for index, ids in enumerate(rows.tolist()):
        text = words.strip_padding(ids, start)
        generated: list[int | None] = [*text[start:]]
        ended = len(text) < len(ids) or (generated and generated[-1] == words.end)
        if output is None and not ended:
            generated.append(None)
        tokens = []
        divergence = 0.0
        for token, step_origins, table in zip(generated, origins, tables, strict=False):
            # Every row of a generation continues one of its first rows, so a row without an origin cannot get here.
            origin = step_origins[index] or 0
            tokens.append(table.token(origin, token, words))
            divergence += table.divergence[origin]
        page_rows.append(_Row(words.prompt(ids[:start]), tuple(tokens), divergence / max(len(tokens), 1)))
    return page_rows


class _StepTable:
    """One step as plain lists, because reading tensors number by number is slow."""

    def __init__(self, step: StepRecord) -> None:
        self.divergence: list[float] = step.divergence().tolist()
        self._tail_change: list[float] = step.tail_change().tolist()
        self._ids = step.candidates.tolist()
        self._base = step.base.tolist()
        self._guided = step.guided.tolist()
        self._rewards = None if step.rewards is None else step.rewards.tolist()

    def token(self, row: int, token: int | None, words: _TokenTexts) -> _Token:
        """A token with its candidates; None stands for an unknown token."""
        change = None
        candidates = []
        for slot, candidate in enumerate(self._ids[row]):
            base = self._base[row][slot]
            guided = self._guided[row][slot]
            # An unused slot repeats the best token.
            if base == -math.inf:
                continue
            if candidate == token:
                change = guided - base
            reward = None if self._rewards is None else self._rewards[row][slot]
            text = words.visible(candidate)
            candidates.append(_Candidate(text, math.exp(base), reward, math.exp(guided), candidate == token))
        if token is None:
            return _Token(None, None, None, tuple(candidates))
        if change is None and sum(candidate.base for candidate in candidates) < 1 - ROUNDING:
            change = self._tail_change[row]
        return _Token(words.text(token), words.visible(token), change, tuple(candidates))


def _probability(value: float) -> str:
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")

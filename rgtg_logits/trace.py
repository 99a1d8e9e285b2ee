"""What happened at each step of a guided generation: records, and one self-contained HTML page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically

SCALES = (0.5, 1.0, 2.0, 3.0)
"""Ends of the colour scale in nats. The smallest that holds a page is taken; larger changes get the last colour."""

_ROUNDING = 1e-6
"""Probability that is no more than what float32 loses of a sum."""

_CONTROLS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(32)},
    ord("\n"): "⏎\n",
    ord("\t"): "⇥",
    0x7F: "␡",
}


@dataclass(frozen=True)
class StepRecord:
    """One call of the processor.

    Attributes:
        rows: The prefixes, padding included.
        candidates: The candidate tokens.
        base: Log-probabilities of the base model, cut to the candidates if guidance is, in nats; -inf in unused slots.
        rewards: Rewards of the candidates; None if the reward model was not asked.
        guided: Log-probabilities after guidance, in nats.
    """

    rows: Int[Tensor, "batch length"]
    candidates: Int[Tensor, "batch k"]
    base: Float[Tensor, "batch k"]
    rewards: Float[Tensor, "batch k"] | None
    guided: Float[Tensor, "batch k"]

    def divergence(self) -> Float[Tensor, " batch"]:
        """KL(guided ‖ base, cut to the candidates if guidance is) of each row in nats, exact."""
        guided, base = self.guided.double(), self.base.double()
        # Unused slots have probability 0 and add 0, but 0 · (inf - inf) is not a number.
        of_candidates = (guided.exp() * (guided - base)).masked_fill(self.guided.isneginf(), 0.0).sum(-1)
        rest = 1 - guided.exp().sum(-1)
        return of_candidates + (rest * self.rest_change()).masked_fill(rest <= _ROUNDING, 0.0)

    def rest_change(self) -> Float[Tensor, " batch"]:
        """How much more probable guidance makes each token that is no candidate, in nats; 0 if there is none."""
        guided, base = (1 - each.double().exp().sum(-1) for each in (self.guided, self.base))
        nothing = (guided <= _ROUNDING) | (base <= _ROUNDING)
        return torch.where(nothing, 0.0, guided.clamp(min=_ROUNDING).log() - base.clamp(min=_ROUNDING).log())


class Trace:
    """Records the steps of a processor: pass `trace=Trace()`, generate, then read `steps` or write the page.

    Tensors stay on their device; recording waits for nothing. Memory grows with the square of the text's length,
    because each step keeps its rows.

    What a step drew is told from the rows of the next step, so the last step's token is unknown until `finish` is given
    what `generate` returned. Any number of calls of `generate` can share one trace. Assisted decoding rolls back, so
    each of its passes is shown by itself, and "drawn" is the token that the pass went on with, drafts included.

    Example:
        ```python
        trace = Trace()
        processor = PartialRewardLogitsProcessor("org/partial-rm", trace=trace)
        trace.finish(model.generate(**inputs, logits_processor=[processor]))
        trace.save_html("trace.html", tokenizer)
        ```
    """

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        # From a number of steps to what `generate` returned after them.
        self._outputs: dict[int, Tensor] = {}

    def record(
        self,
        rows: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
        base: Float[Tensor, "batch k"],
        rewards: Float[Tensor, "batch k"] | None,
        guided: Float[Tensor, "batch k"],
    ) -> None:
        """Adds one step."""
        self.steps.append(StepRecord(rows, candidates, base, rewards, guided))

    def finish(self, output: Int[Tensor, "rows length"]) -> None:
        """Adds what `generate` returned after the steps so far, prompts included; the page then shows these rows.

        Raises:
            InvalidArgumentError: If the rows do not continue the recorded prompts.
        """
        # Only the last run is looked for, because looking through all of them at every call would add up.
        start = next((index for index in reversed(range(len(self.steps))) if self._starts_passage(index)), None)
        if start is None or None in _origins(self.steps[start].rows, output):
            raise InvalidArgumentError(
                f"Expected the rows that generate returned after the {len(self.steps)} recorded steps, prompts "
                f"included, but the {len(output)} rows given do not start with the recorded prompts. Call finish() "
                "right after generate, with its whole output (`.sequences` if it returned a dict)."
            )
        self._outputs[len(self.steps)] = output

    def clear(self) -> None:
        """Forgets all steps."""
        self.steps.clear()
        self._outputs.clear()

    def drawn(self) -> list[Bool[Tensor, "batch k"]]:
        """Which candidates each step's rows went on with.

        One per row in greedy decoding and sampling; any number under beams, where a prefix may live on in several rows
        or in none. None as well where nobody knows: at the last step without `finish`, and where a row went on with a
        token that is no candidate, such as the padding of a finished row.
        """
        found = []
        for passage in self._passages():
            later = [self.steps[index].rows for index in passage[1:]]
            for index, rows in zip(passage, [*later, self._outputs.get(passage.stop)], strict=True):
                found.append(_drawn(self.steps[index], rows))
        return found

    def to_html(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Renders one HTML page that needs no network and no script.

        It shows each row's text, each token shaded by how much guidance changed its log-probability, and the candidates
        of a token when it is pointed at or has the keyboard's focus. About 3 kB per token with 20 candidates.

        Args:
            tokenizer: The base model's tokenizer.

        Raises:
            InvalidArgumentError: If nothing was recorded.
        """
        if not self.steps:
            raise InvalidArgumentError(
                "Expected a trace with at least one step, but nothing was recorded. "
                "Pass it as trace= to PartialRewardLogitsProcessor and generate first."
            )
        words = _Words(tokenizer)
        passages = [
            _read(self.steps[passage.start : passage.stop], self._outputs.get(passage.stop), words)
            for passage in self._passages()
        ]
        changes = [abs(t.change) for rows in passages for row in rows for t in row.tokens if t.change is not None]
        largest = max(changes, default=0.0)
        scale = next((end for end in SCALES if end >= largest), SCALES[-1])
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            loader=PackageLoader("rgtg_logits"),
        )  # fmt: skip
        environment.filters.update(probability=_probability, signed=_signed)
        source = (files("rgtg_logits") / "templates" / "trace.html.jinja").read_text(encoding="utf-8")
        return environment.from_string(source).render(passages=passages, scale=scale, clipped=largest > scale)

    def save_html(self, path: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the page; the file appears whole or not at all, and folders on the way are made."""
        write_atomically(path, self.to_html(tokenizer))

    def _passages(self) -> list[range]:
        """Runs of steps that continue one another by one token: one run for each call of `generate`."""
        starts = [index for index in range(len(self.steps)) if self._starts_passage(index)]
        return [range(start, stop) for start, stop in pairwise([*starts, len(self.steps)])]

    def _starts_passage(self, index: int) -> bool:
        if index == 0 or index in self._outputs:
            return True
        return not _continues(self.steps[index - 1].rows, self.steps[index].rows)


def _continues(rows: Tensor, later: Tensor) -> bool:
    return later.shape == (rows.shape[0], rows.shape[1] + 1) and None not in _origins(rows, later)


def _origins(rows: Tensor, later: Tensor) -> list[int | None]:
    """The row that each later row continues, its own one if that fits; None if there is none."""
    width = rows.shape[1]
    keys = [row.tobytes() for row in rows.cpu().numpy()]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    found = []
    for index, row in enumerate(later[:, :width].cpu().numpy()):
        key = row.tobytes()
        # Several rows may be equal, as at the first step of several return sequences.
        found.append(index if index < len(keys) and keys[index] == key else first.get(key))
    return found


def _drawn(step: StepRecord, later: Tensor | None) -> Bool[Tensor, "batch k"]:
    candidates, used = step.candidates.cpu(), ~step.base.cpu().isneginf()
    mask = torch.zeros_like(used)
    width = step.rows.shape[1]
    if later is not None and later.shape[1] > width:
        for origin, token in zip(_origins(step.rows, later), later[:, width].tolist(), strict=True):
            if origin is not None:
                mask[origin] |= (candidates[origin] == token) & used[origin]
    return mask


@dataclass(frozen=True)
class _Candidate:
    """A line of a token's table; probabilities in [0, 1]."""

    text: str
    base: float
    reward: float | None
    guided: float
    drawn: bool


@dataclass(frozen=True)
class _Token:
    """A token of a text; `text` and `name` (spaces visible) are None if nobody knows it.

    `change` is guided minus base log-probability in nats, None if the token is no candidate.
    """

    text: str | None
    name: str | None
    change: float | None
    candidates: tuple[_Candidate, ...]


@dataclass(frozen=True)
class _Row:
    """A text; `divergence` is the mean over its steps in nats per token."""

    prompt: str
    tokens: tuple[_Token, ...]
    divergence: float


class _Words:
    """How tokens look on the page."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end: int | None = tokenizer.eos_token_id
        # Without a pad token `generate` pads with the end-of-text token.
        self.pad: int | None = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end

    def text(self, token: int) -> str:
        """A token in running text: spaces and line breaks act as such, control characters are shown."""
        raw = self._tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return f"[{token}]"
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        # Part of a character decodes to a replacement sign, which would make different tokens look the same.
        text = raw if "\ufffd" in text else text
        # SentencePiece decoders drop the space of a text's first token, and here each token is decoded alone.
        text = f" {text}" if raw.startswith("▁") and not text.startswith((" ", "▁")) else text
        return text.translate(_CONTROLS)

    def visible(self, token: int) -> str:
        """A token in a table, spaces included."""
        return self.text(token).replace("\n", "").replace(" ", "␣") or "(empty)"

    def prompt(self, ids: Sequence[int]) -> str:
        """A prompt without its padding."""
        start = next((index for index, token in enumerate(ids) if token != self.pad), len(ids))
        return str(self._tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False))

    def cut(self, ids: list[int], start: int) -> list[int]:
        """A row without the padding that `generate` adds to a finished one; `start` is the prompt's width."""
        stop = len(ids)
        while stop > start and ids[stop - 1] == self.pad:
            stop -= 1
        ended_by_pad = self.pad == self.end and stop < len(ids)
        return ids[: stop + ended_by_pad]


def _read(steps: Sequence[StepRecord], output: Tensor | None, words: _Words) -> list[_Row]:
    """The texts of one passage: those that `generate` returned, or else the rows of its last step."""
    rows = steps[-1].rows if output is None else output
    start = steps[0].rows.shape[1]
    # A row's history is found by its prefixes, because beams move to other rows as they go.
    origins = [_origins(step.rows, rows) for step in steps]
    tables = [_Table(step) for step in steps]
    found = []
    for index, ids in enumerate(rows.tolist()):
        text = words.cut(ids, start)
        ended = output is not None or len(text) < len(ids) or (len(text) > start and text[-1] == words.end)
        continued: list[int | None] = [*text[start:], *([] if ended else [None])]
        tokens, divergence = [], 0.0
        for token, origin, table in zip(continued, (row[index] for row in origins), tables, strict=False):
            # Every row of a passage continues its first rows, so a row without an origin cannot get here.
            tokens.append(table.token(origin or 0, token, words))
            divergence += table.divergence[origin or 0]
        found.append(_Row(words.prompt(ids[:start]), tuple(tokens), divergence / max(len(tokens), 1)))
    return found


class _Table:
    """One step as plain lists, because reading tensors number by number is slow."""

    def __init__(self, step: StepRecord) -> None:
        self.divergence: list[float] = step.divergence().tolist()
        self._rest_change: list[float] = step.rest_change().tolist()
        self._ids = step.candidates.tolist()
        self._base, self._guided = step.base.tolist(), step.guided.tolist()
        self._rewards = None if step.rewards is None else step.rewards.tolist()

    def token(self, row: int, token: int | None, words: _Words) -> _Token:
        """A token with its candidates; None is the token that nobody knows."""
        change, candidates = None, []
        for slot, candidate in enumerate(self._ids[row]):
            base, guided = self._base[row][slot], self._guided[row][slot]
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
        if change is None and sum(candidate.base for candidate in candidates) < 1 - _ROUNDING:
            change = self._rest_change[row]
        return _Token(words.text(token), words.visible(token), change, tuple(candidates))


def _probability(value: float) -> str:
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")

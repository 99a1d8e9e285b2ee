"""The ways to generate that are compared: what a file lists, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.guidance import RESTS

KINDS = ("causal", "vocabulary", "log_ratio")
_LISTS = ("guide", "weights", "beta")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to generate. With nothing but a name it draws from the base model, cut to its candidates.

    The parts go together: a model, cut to its candidates; guided by rewards with strength beta, if there are any; at
    some temperature, or greedy; the best of several answers, if `best_of` is given.

    Attributes:
        name: What it is called in tables.
        model: Hub id or folder of a language model that draws instead of the base model, such as one fine-tuned by DPO
            from it; its token ids are taken to be the base model's. Divergence is measured to the base model.
        guide: What guides: Hub ids or folders of reward models, or functions `package.module:function`; several are
            summed, see `WeightedScorer`.
        weights: Factor of each guide; 1 by default.
        kind: How the guides' checkpoints are read, where they do not say; one of `KINDS`.
        beta: Guidance strengths in nats per unit of reward; with several, the method is a curve.
        greedy: Whether the most probable token is taken, instead of a draw.
        temperature: Divides the scores after guidance, as in `generate`.
        best_of: How many answers are drawn, of which the one with the highest reward is kept.
        ranked_by: What ranks these; see `load_reward`.
        top_k: How many candidates; 0 is the whole vocabulary, None what the evaluation says.
        top_p: Cut the candidates to this share of the probability.
        min_p: Cut the candidates to those at least this fraction as probable as the best.
        rest: What becomes of the tokens that are no candidates: "drop", or "keep" (see `PartialRewardLogitsProcessor`).
        family: The curve that it lies on, for methods that differ in how they were trained; by default its name.

    Raises:
        InvalidArgumentError: If a value is out of its range, or values do not go together.
    """

    name: str
    model: str | None = None
    guide: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    kind: str | None = None
    beta: tuple[float, ...] = ()
    greedy: bool = False
    temperature: float = 1.0
    best_of: int = 1
    ranked_by: str | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    rest: str = "drop"
    family: str = ""

    def __post_init__(self) -> None:
        betas = all(isfinite(beta) and beta >= 0 for beta in self.beta) and len(set(self.beta)) == len(self.beta)
        rules = {
            "name": (bool(self.name.strip()), "a text"),
            "beta": (betas and bool(self.beta) == bool(self.guide), "strengths of 0 or more if there is a guide"),
            "weights": (
                all(map(isfinite, self.weights)) and len(self.weights) in (0, len(self.guide)),
                "one finite factor for each guide",
            ),
            "kind": (self.kind is None or (self.kind in KINDS and bool(self.guide)), f"one of {', '.join(KINDS)}"),
            "temperature": (isfinite(self.temperature) and self.temperature > 0, "a finite number above 0, such as 1"),
            "best_of": (self.best_of > 1 or (self.best_of == 1 and self.ranked_by is None), "2 or more, if ranked"),
            "ranked_by": (self.best_of == 1 or self.ranked_by is not None, "what ranks the answers of best_of"),
            "greedy": (not (self.greedy and self.best_of > 1), "false for the best of several draws"),
            "top_k": (self.top_k is None or self.top_k >= 0, "a number of tokens, where 0 is all"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "a probability above 0"),
            "min_p": (self.min_p is None or 0 < self.min_p <= 1, "a fraction above 0"),
            "rest": (self.rest in RESTS, f"one of {', '.join(RESTS)}"),
        }
        for name, (kept, wanted) in rules.items():
            if not kept:
                raise InvalidArgumentError(
                    f"Expected {name} of the method {self.name!r} to be {wanted}, but got {getattr(self, name)!r}. "
                    "Change it in the list of methods."
                )

    @property
    def curve(self) -> str:
        """The curve that it lies on."""
        return self.family or self.name


class Policy(NamedTuple):
    """A method at one strength.

    Attributes:
        method: The method.
        beta: Its strength; 0 without a guide.
    """

    method: Method
    beta: float

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.method.name}, beta {self.beta:g}" if self.method.guide else self.method.name

    @property
    def key(self) -> str:
        """Its name on disk: readable, and different for policies of which anything is different."""
        readable = re.sub(r"[^a-z0-9.]+", "-", self.title.lower()).strip("-")
        return f"{readable}-{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """Everything that decides what it does; its other strengths, and the curve it lies on, do not."""
        others = (field.name for field in fields(Method) if field.name not in ("beta", "family"))
        return (*(getattr(self.method, name) for name in others), float(self.beta))


def policies(methods: Sequence[Method]) -> list[Policy]:
    """Every method at each of its strengths, in order."""
    return [Policy(method, float(beta)) for method in methods for beta in (method.beta or (0.0,))]


def read_methods(path: str) -> list[Method]:
    """Reads a list of methods: YAML or JSON, each a mapping of the attributes of `Method`.

    Example:
        ```yaml
        - name: base
        - name: PARGS
          guide: org/partial-rm
          beta: [1, 2, 4]
        - {name: best of 16, best_of: 16, ranked_by: org/rm}
        - {name: DPO, model: org/tuned}
        ```

    Raises:
        InvalidArgumentError: If the file cannot be read, or a method in it is wrong.
    """
    try:
        listed = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgumentError(
            f"Expected {path!r} to be a YAML or JSON file with a list of methods, but reading it failed: {error} "
            "Check --methods."
        ) from error
    if not isinstance(listed, list) or not listed:
        raise InvalidArgumentError(
            f"Expected {path!r} to hold a list of methods, but got {type(listed).__name__}. Begin each with `- name:`."
        )
    return check_names([_method(entry, number) for number, entry in enumerate(listed, 1)])


def choose_methods(path: str | None, guide: str | None, betas: Sequence[float] | None) -> tuple[Method, ...]:
    """The methods of a file, or the base model alone and with one guide.

    Raises:
        InvalidArgumentError: If both are given, or none.
    """
    if (path is None) == (guide is None) or (guide is None and betas):
        raise InvalidArgumentError(
            f"Expected either a file with methods, or a guide and perhaps its strengths, but got methods={path!r}, "
            f"guide={guide!r} and beta={betas!r}. Pass --methods, or --guide and --beta."
        )
    if path is not None:
        return tuple(read_methods(path))
    return Method(name="base"), Method(name="guided", guide=(str(guide),), beta=tuple(map(float, betas or [1.0])))


def check_names(methods: Sequence[Method]) -> list[Method]:
    """The methods, if no two have the same name.

    Raises:
        InvalidArgumentError: If two have.
    """
    names = [method.name for method in methods]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgumentError(
            f"Expected methods of different names, but {', '.join(map(repr, twice))} is there more than once. Rename "
            "one; methods of one curve may share a family."
        )
    return list(methods)


def _method(entry: object, number: int) -> Method:
    known = {field.name for field in fields(Method)}
    if not isinstance(entry, Mapping) or "name" not in entry or not set(entry) <= known:
        got = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise InvalidArgumentError(
            f"Expected method {number} to have a name and some of {', '.join(sorted(known - {'name'}))}, but got "
            f"{got}. Correct it in the list of methods."
        )
    try:
        return Method(**dict(_values(entry)))
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(
            f"Expected method {number} ({entry['name']!r}) to have texts as names and numbers as strengths, but "
            f"{error}. Correct it in the list of methods."
        ) from error


def _values(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is one where several may be is a list of one."""
    numbers = ("weights", "beta", "temperature", "top_p", "min_p")
    for name, value in entry.items():
        several = [value] if name in _LISTS and not isinstance(value, list) else value
        if name in numbers and several is not None:
            yield name, tuple(map(float, several)) if isinstance(several, list) else float(several)
        else:
            yield name, tuple(several) if isinstance(several, list) else several

"""The decoding methods that are compared: reading a list of them, and checks before any model is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.guidance import RESTS
from rgtg_logits.reward_model import KINDS
from rgtg_logits.settings import Rule, at_least, check_rules, one_of, positive

_LISTS = ("guide", "weights", "beta")
_NUMBERS = ("weights", "beta", "temperature", "top_p", "min_p")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A decoding method. With nothing but a name, it samples from the base model, truncated to the candidates.

    The parts combine in this order: a model, truncated to its candidates; guidance by rewards with strength beta;
    temperature, or greedy decoding; and the best of n answers.

    Attributes:
        name: Name in tables.
        model: Hub id or folder of a language model that generates instead of the base model, such as one fine-tuned
            from it by DPO. It has to have the base model's token ids. Divergence is measured to the base model.
        guide: Hub ids or folders of reward models, or functions `package.module:function`, that guide; several are
            summed (see `WeightedScorer`).
        weights: Factor of each guide; 1 by default.
        kind: Kind of reward model, one of `KINDS`, for checkpoints of guides that do not say.
        beta: Guidance strengths in nats per unit of reward; with several, the method is a curve.
        greedy: Whether the most probable token is taken instead of a sample.
        temperature: Divides the scores after guidance, as in `generate`.
        best_of: Number of answers sampled, of which the one with the highest reward is kept (best of n).
        ranked_by: Reward for ranking them; see `load_reward`.
        top_k: Number of candidates; 0 is the whole vocabulary, None that of the evaluation's settings.
        top_p: Truncates the candidates to the most likely ones that hold this share of the probability.
        min_p: Truncates the candidates to those at least this fraction as probable as the best one.
        rest: Treatment of the tail of the distribution, the tokens that are no candidates: "drop" or "keep" (see
            `PartialRewardLogitsProcessor`).
        family: The curve it belongs to, for methods that differ in their training; by default its name.

    Raises:
        InvalidArgumentError: If a value is out of its range, or values do not fit each other.
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
        are_strengths = all(isfinite(beta) and beta >= 0 for beta in self.beta)
        are_different = len(set(self.beta)) == len(self.beta)
        fit_guide = bool(self.beta) == bool(self.guide)
        one_each = all(map(isfinite, self.weights)) and len(self.weights) in (0, len(self.guide))
        is_known_kind = self.kind is None or (self.kind in KINDS and bool(self.guide))
        is_ranked = self.ranked_by is not None
        rules = {
            "name": Rule(bool(self.name.strip()), "a text"),
            "beta": Rule(are_strengths and are_different and fit_guide, "strengths of 0 or more if there is a guide"),
            "weights": Rule(one_each, "one finite factor for each guide"),
            "kind": Rule(is_known_kind, f"one of {', '.join(KINDS)}"),
            "temperature": positive(self.temperature, "a finite number above 0, such as 1"),
            "best_of": Rule(self.best_of > 1 or (self.best_of == 1 and not is_ranked), "2 or more, if ranked"),
            "ranked_by": Rule(self.best_of == 1 or is_ranked, "the reward that ranks the answers of best_of"),
            "greedy": Rule(not (self.greedy and self.best_of > 1), "false for the best of several samples"),
            "top_k": at_least(0, self.top_k, "a number of tokens, where 0 is all"),
            "top_p": Rule(self.top_p is None or 0 < self.top_p <= 1, "a probability above 0"),
            "min_p": Rule(self.min_p is None or 0 < self.min_p <= 1, "a fraction above 0"),
            "rest": one_of(self.rest, RESTS),
        }
        check_rules(self, rules, "Change it in the list of methods.", owner=f"the method {self.name!r}")

    @property
    def curve(self) -> str:
        """The curve it belongs to."""
        return self.family or self.name


class Policy(NamedTuple):
    """A method at one strength.

    Attributes:
        method: The method.
        beta: The guidance strength; 0 without a guide.
    """

    method: Method
    beta: float

    @property
    def title(self) -> str:
        """Name in tables and messages."""
        return f"{self.method.name}, beta {self.beta:g}" if self.method.guide else self.method.name

    @property
    def key(self) -> str:
        """Name of its folder: readable, and unique to its `identity`."""
        # The hash tells apart what the readable part does not show, such as another checkpoint under the same name.
        readable = re.sub(r"[^a-z0-9.]+", "-", self.title.lower()).strip("-")
        return f"{readable}-{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """The values that determine its answers: not the other strengths of its method, nor its curve."""
        names = [field.name for field in fields(Method) if field.name not in ("beta", "family")]
        return (*(getattr(self.method, name) for name in names), float(self.beta))


def list_policies(methods: Sequence[Method]) -> list[Policy]:
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
        InvalidArgumentError: If the file cannot be read, or a method in it is not valid.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgumentError(
            f"Expected {path!r} to be a YAML or JSON file with a list of methods, but reading it failed: {error} "
            "Check --methods."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise InvalidArgumentError(
            f"Expected {path!r} to hold a list of methods, but got {type(entries).__name__}. Begin each with `- name:`."
        )
    methods = [_parse_method(entry, number) for number, entry in enumerate(entries, 1)]
    check_unique_names(methods)
    return methods


def choose_methods(path: str | None, guide: str | None, betas: Sequence[float] | None) -> tuple[Method, ...]:
    """The methods of a file, or two of them: the base model alone, and with one guide.

    Args:
        path: File of methods; see `read_methods`.
        guide: Hub id or folder of a reward model.
        betas: Strengths of the guide; by default 1.

    Raises:
        InvalidArgumentError: If both a file and a guide are given, or neither.
    """
    if (path is None) == (guide is None) or (guide is None and betas):
        raise InvalidArgumentError(
            f"Expected either a file with methods, or a guide and perhaps its strengths, but got methods={path!r}, "
            f"guide={guide!r} and beta={betas!r}. Pass --methods, or --guide and --beta."
        )
    if path is not None:
        return tuple(read_methods(path))
    strengths = tuple(float(beta) for beta in betas or [1.0])
    return Method(name="base"), Method(name="guided", guide=(str(guide),), beta=strengths)


def check_unique_names(methods: Sequence[Method]) -> None:
    """Checks that no two methods have the same name.

    Raises:
        InvalidArgumentError: If two have.
    """
    names = [method.name for method in methods]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidArgumentError(
            f"Expected methods of different names, but {', '.join(map(repr, repeated))} is there more than once. "
            "Rename one; methods of one curve may share a family."
        )


def _parse_method(entry: object, number: int) -> Method:
    known = {field.name for field in fields(Method)}
    if not isinstance(entry, Mapping) or "name" not in entry or not set(entry) <= known:
        got = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise InvalidArgumentError(
            f"Expected method {number} to have a name and some of {', '.join(sorted(known - {'name'}))}, but got "
            f"{got}. Correct it in the list of methods."
        )
    try:
        return Method(**{name: _parse_value(name, value) for name, value in entry.items()})
    except InvalidArgumentError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"Expected method {number} ({entry['name']!r}) to have texts as names and numbers as strengths, but "
            f"{error}. Correct it in the list of methods."
        ) from error


def _parse_value(name: str, value: Any) -> Any:
    """The value of an attribute of `Method`: numbers as floats, lists as tuples, also from a single value."""
    values = value if isinstance(value, list) else [value]
    if name in _NUMBERS and value is not None:
        values = [float(each) for each in values]
    return tuple(values) if isinstance(value, list) or name in _LISTS else values[0]

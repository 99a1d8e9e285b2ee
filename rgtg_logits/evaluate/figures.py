"""The pictures of an evaluation: rewards against divergence and time, what texts become, curves at equal divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from itertools import product
from math import ceil, floor, isfinite, log10
from typing import Any, NamedTuple

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, PolicyResult

# Seven colours and nine markers go 63 curves before a pair of them comes again.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ("-", "--", ":")
# Where a name may stand from its point, in points of type; the nearest come first.
_OFFSETS = ((8, 0), (-8, 0), (6, 8), (6, -8), (-6, 8), (-6, -8), (0, 11), (0, -11))
_LONGEST_NAME = 30
_DPI = 160


class Theme(NamedTuple):
    """Colours of a picture; `lines` stay apart for colour-blind readers, and markers differ as well."""

    paper: str
    ink: str
    soft: str
    lines: tuple[str, ...]


# The Okabe-Ito palette without its yellow, which white swallows, and on black with a blue that black does not swallow.
LIGHT = Theme(
    "#ffffff", "#1a1c20", "#5a616c", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#1a1c20", "#56B4E9")
)
DARK = Theme(
    "#15171b", "#eceef2", "#a3abb8", ("#5585F0", "#E8701A", "#00B383", "#D98CB8", "#E69F00", "#eceef2", "#7CCBF5")
)
"""Both as on the page."""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Its file name without the ending.
        title: What it shows.
        caption: How to read it.
        width: How wide it is shown, in CSS pixels.
        light: PNG on white.
        dark: PNG on black.
    """

    name: str
    title: str
    caption: str
    width: int
    light: bytes
    dark: bytes


class _Axis(NamedTuple):
    """What is shown in one direction; `scale` is linear, log, or root, which spreads small values."""

    label: str
    read: Callable[[PolicyResult], Estimate]
    scale: str


class _Curve(NamedTuple):
    """Policies on one line, in order of divergence, and how they are drawn."""

    label: str
    policies: list[PolicyResult]
    color: int
    marker: str
    dashes: str
    baseline: bool


def check_matplotlib() -> None:
    """Checks that figures can be drawn.

    Raises:
        InvalidArgumentError: If matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise InvalidArgumentError(
            "Expected matplotlib, which draws the figures of an evaluation, but it is not installed. "
            'Run: pip install "rgtg_logits[evaluate]".'
        )


def pictures(results: EvaluationResults) -> list[Picture]:
    """Draws everything there is to draw; equal results give equal bytes where the fonts are the same.

    Raises:
        InvalidArgumentError: If matplotlib is missing.
    """
    check_matplotlib()
    curves = _curves(results)
    judges = list(results.policies[0].judges) if results.policies else []
    kl = _Axis("KL(policy ‖ base) of an answer, nats (square-root scale)", lambda policy: policy.kl, "root")
    bars = "Open markers are greedy, the star is the baseline. Bars: 95 % intervals."
    points = f"Points of a line are the strengths (beta) of a method. {bars}"
    found = [
        _picture(
            f"reward_against_kl-{judge}", f"Reward ({judge}) against divergence", points, curves, (kl, _reward(judge))
        )
        for judge in judges
    ]
    if judges:
        time = _Axis("ms per token of a row", lambda policy: _exact(policy.ms_per_token), "log")
        note = f"{bars} Times are those of batches as they were used, on the machine of this run."
        found.append(_picture("cost", f"Reward ({judges[0]}) against time", note, curves, (time, _reward(judges[0]))))
        perplexity = _Axis("perplexity under the base", lambda policy: policy.perplexity, "log")
        distinct = _Axis("different bigrams of an answer", lambda policy: _exact(policy.distinct[1]), "linear")
        note = f"{points} Texts that no longer read like the base model's are rare under it, or repeat themselves."
        found.append(_picture("texts", "What becomes of the texts", note, curves, (kl, perplexity), (kl, distinct)))
    if results.comparisons:
        found.append(_forest(results.comparisons))
    return found


def _reward(judge: str) -> _Axis:
    return _Axis(f"reward ({judge})", lambda policy: policy.judges[judge].reward, "linear")


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


def _curves(results: EvaluationResults) -> list[_Curve]:
    """Lines in order of appearance; the greedy policies of a curve are a line of their own."""
    found: dict[tuple[str, bool], list[PolicyResult]] = {}
    for policy in results.policies:
        found.setdefault((policy.curve, policy.greedy), []).append(policy)
    curves: list[_Curve] = []
    for (name, greedy), policies in found.items():
        index = len(curves)
        label = f"{name}, greedy" if greedy and (name, False) in found else name
        baseline = any(policy.name == results.baseline for policy in policies)
        curves.append(
            _Curve(
                label=label,
                policies=sorted(policies, key=lambda policy: policy.kl.value if isfinite(policy.kl.value) else 0.0),
                color=LIGHT.lines.index(LIGHT.ink) if baseline else index % len(LIGHT.lines),
                marker="*" if baseline else _MARKERS[index % len(_MARKERS)],
                dashes=_DASHES[index // len(LIGHT.lines) % len(_DASHES)],
                baseline=baseline,
            )
        )
    return curves


def _picture(name: str, title: str, caption: str, curves: list[_Curve], *panels: tuple[_Axis, _Axis]) -> Picture:
    columns = ceil(len(curves) / 26)
    width, height = 5.8 * len(panels) + 2.6 * columns, 5.6 if len(panels) == 1 else 4.8

    def draw(theme: Theme) -> bytes:
        figure = _figure(width, height, theme)
        handles: list[Any] = []
        # Several panels at once, and yet one legend: the lines of the first stand for all.
        for axes, (x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            handles = _draw(axes, curves, x, y, theme)
        figure.legend(
            handles, [_short(curve.label) for curve in curves], loc="outside right upper", ncols=columns,
            frameon=False, fontsize=8.5, labelcolor=theme.ink, handlelength=2.6,
        )  # fmt: skip
        figure.draw_without_rendering()
        # Names are put where the layout leaves room, so it may not move any more.
        figure.set_layout_engine("none")
        for axes, (x, y) in zip(figure.axes, panels, strict=True):
            _put_names(axes, curves, x, y, theme)
        return _png(figure)

    return Picture(name, title, caption, round(96 * width), draw(LIGHT), draw(DARK))


def _figure(width: float, height: float, theme: Theme) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415  (heavy, and not needed without figures)

    # Without pyplot, so that neither a window nor the settings of the caller's own figures are touched.
    return Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)


def _png(figure: Any) -> bytes:
    file = BytesIO()
    # The version of matplotlib is left out, so that the same results give the same file.
    figure.savefig(file, dpi=_DPI, format="png", metadata={"Software": None})
    return file.getvalue()


def _dress(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.soft)
    axes.tick_params(colors=theme.ink, which="both", labelsize=8.5)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.grid(color=theme.soft, alpha=0.22, linewidth=0.5)
    axes.set_axisbelow(True)


def _draw(axes: Any, curves: list[_Curve], x: _Axis, y: _Axis, theme: Theme) -> list[Any]:
    """Draws the lines and gives them back for the legend."""
    _dress(axes, theme)
    handles = []
    for curve in curves:
        shown = _shown(curve, x, y)
        color = theme.lines[curve.color]
        across, up = [x.read(policy) for policy in shown], [y.read(policy) for policy in shown]
        # Where times are shown, a curve is a cloud: its strengths cost the same.
        joined = x.scale == "root" and len(curve.policies) > 1
        handle = axes.errorbar(
            [point.value for point in across], [point.value for point in up], xerr=_bars(across), yerr=_bars(up),
            color=color, marker=curve.marker, linestyle=curve.dashes if joined else "none", linewidth=1.4,
            markersize=11 if curve.baseline else 5.5, elinewidth=0.8, ecolor=(color, 0.55), capsize=0,
            # An open marker hides the lines behind it, which would make it look filled.
            markerfacecolor=theme.paper if curve.policies[0].greedy else color, zorder=4 if curve.baseline else 3,
        )  # fmt: skip
        handles.append(handle.lines[0])
        if curve.baseline and shown:
            axes.axhline(up[0].value, color=theme.soft, linestyle=(0, (1, 3)), linewidth=1, zorder=1)
    axes.set_xlabel(_plain(x.label), fontsize=9.5)
    axes.set_ylabel(_plain(y.label), fontsize=9.5)
    points = [policy for curve in curves for policy in _shown(curve, x, y)]
    _scale(axes, "x", x, [x.read(policy) for policy in points])
    _scale(axes, "y", y, [y.read(policy) for policy in points])
    return handles


def _shown(curve: _Curve, x: _Axis, y: _Axis) -> list[PolicyResult]:
    """The policies that have a place; the logarithm of 0 has none."""
    return [
        policy
        for policy in curve.policies
        if all(
            isfinite(axis.read(policy).value) and (axis.scale != "log" or axis.read(policy).value > 0)
            for axis in (x, y)
        )
    ]


def _bars(points: Sequence[Estimate]) -> list[list[float]]:
    """Distances down and up from each value to the ends of its interval; 0 where there is none."""
    lows = [point.value - point.low for point in points]
    highs = [point.high - point.value for point in points]
    return [[max(end, 0.0) if isfinite(end) else 0.0 for end in ends] for ends in (lows, highs)]


def _scale(axes: Any, direction: str, wanted: _Axis, points: list[Estimate]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator  # noqa: PLC0415  (as above)

    ends = [end for point in points for end in point if isfinite(end)]
    if wanted.scale == "linear" or not ends or max(ends) <= 0:
        return
    largest, smallest = max(ends), min(point.value for point in points)
    if wanted.scale == "root":
        scale: dict[str, Any] = {"value": "function", "functions": (_root, _square)}
        ticks = [0.0, *_round_numbers(largest / 40, largest)]
        if 5 * smallest > largest:
            # Where all policies cut the vocabulary, no divergence is near 0.
            ticks = list(MaxNLocator(6).tick_values(smallest, largest))
    elif largest < 5 * smallest:
        # Too short for round numbers on a logarithmic axis.
        return
    else:
        scale = {"value": "log"}
        ticks = list(_round_numbers(smallest, largest))
    (axes.set_xscale if direction == "x" else axes.set_yscale)(**scale)
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _root(values: Any) -> Any:
    """The square root, also of negative numbers, to which the interval of an estimated divergence may reach."""
    return abs(values) ** 0.5 * ((values > 0) * 2.0 - 1.0)


def _square(values: Any) -> Any:
    return abs(values) * values


def _round_numbers(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times powers of 10 within bounds above 0."""
    for power in range(floor(log10(low)), ceil(log10(high)) + 1):
        yield from (digit * 10.0**power for digit in (1, 2, 5) if low <= digit * 10.0**power <= high)


def _put_names(axes: Any, curves: list[_Curve], x: _Axis, y: _Axis, theme: Theme) -> None:
    """Writes the name of each line beside one of its points, where it covers nothing; else the legend has to do."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415  (as above)

    places = [[(x.read(policy).value, y.read(policy).value) for policy in _shown(curve, x, y)] for curve in curves]
    dots = [axes.transData.transform(place) for line in places for place in line]
    reach = 4 * axes.figure.dpi / 72
    taken = [(left - reach, low - reach, left + reach, low + reach) for left, low in dots]
    window = axes.get_window_extent().extents
    for curve, line in zip(curves, places, strict=True):
        for place, (right, up) in product(reversed(line), _OFFSETS):
            name = axes.annotate(
                _short(curve.label), place, xytext=(right, up), textcoords="offset points", fontsize=7.5,
                color=theme.ink, ha="left" if right > 0 else "right" if right < 0 else "center", va="center",
                path_effects=[withStroke(linewidth=2, foreground=theme.paper)], zorder=5,
            )  # fmt: skip
            box = tuple(name.get_window_extent().extents)
            if _within(box, window) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                break
            name.remove()


def _within(box: Sequence[float], window: Sequence[float]) -> bool:
    return box[0] >= window[0] and box[1] >= window[1] and box[2] <= window[2] and box[3] <= window[3]


def _overlap(box: Sequence[float], other: Sequence[float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _forest(comparisons: Sequence[EqualKL]) -> Picture:
    """Each comparison a line: the mean difference with its interval, judges side by side."""
    judges = list(dict.fromkeys(item.judge for item in comparisons))
    pairs = list(dict.fromkeys((item.first, item.second) for item in comparisons))
    width, height = 3.0 + 3.4 * len(judges), 1.2 + 0.34 * len(pairs)

    def draw(theme: Theme) -> bytes:
        figure = _figure(width, height, theme)
        for axes, judge in zip(figure.subplots(1, len(judges), squeeze=False)[0], judges, strict=True):
            _dress(axes, theme)
            axes.axvline(0, color=theme.soft, linewidth=1)
            for item in comparisons:
                if item.judge == judge and isfinite(item.overall.value):
                    _draw_difference(axes, item.overall, pairs.index((item.first, item.second)), theme)
            names = [f"{_short(first)} − {_short(second)}" for first, second in pairs]
            axes.set_yticks(range(len(pairs)), labels=names if judge == judges[0] else [""] * len(pairs))
            axes.set_ylim(len(pairs) - 0.5, -0.5)
            axes.set_xlabel(_plain(f"difference of reward ({judge})"), fontsize=9.5)
        return _png(figure)

    caption = (
        "Mean difference over the divergences that both curves reach. Bars: 95 % intervals; a marker is filled where "
        "its interval leaves out 0."
    )
    return Picture("comparisons", "Curves at equal divergence", caption, round(96 * width), draw(LIGHT), draw(DARK))


def _draw_difference(axes: Any, overall: Estimate, height: int, theme: Theme) -> None:
    clear = overall.low > 0 or overall.high < 0
    color = theme.lines[0 if overall.value > 0 else 1]
    axes.errorbar(
        [overall.value], [height], xerr=_bars([overall]), color=color, marker="o", markersize=6, linewidth=1.6,
        capsize=3, markerfacecolor=color if clear else theme.paper,
    )  # fmt: skip


def _short(text: str) -> str:
    """A name that does not push the figure off its own picture."""
    line = " ".join(text.split())
    return _plain(line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…")


def _plain(text: str) -> str:
    """A text as it is, since matplotlib reads formulas between dollars and hides names that start with _."""
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")

"""The pictures of an evaluation: reward against divergence and time, diversity, curves at equal divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from math import ceil, floor, isfinite, log10
from typing import Any, NamedTuple

from rgtg_logits.drawing import COLORS, INK, interval_bars, new_figure, save_png, style_axes
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, PolicyResult

# Seven colours and nine markers go 63 curves before a pair of them comes again.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ("-", "--", ":")
# Where a label may stand from its point, in points of type, with its alignment; the nearest come first.
_OFFSETS = (
    (8, 0, "left"), (-8, 0, "right"), (6, 8, "left"), (6, -8, "left"), (-6, 8, "right"), (-6, -8, "right"),
    (0, 11, "center"), (0, -11, "center"),
)  # fmt: skip
_LONGEST_NAME = 30
_LEGEND_ROWS = 26
_DPI = 160


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: File name without the suffix.
        title: What is plotted.
        caption: How to read it.
        width: Width on the page, in CSS pixels.
        png: The picture, which can be read on light and on dark pages.
    """

    name: str
    title: str
    caption: str
    width: int
    png: bytes


class _Axis(NamedTuple):
    """A quantity of each policy on one axis; `scale` is "linear", "log", or "root", which spreads small values."""

    label: str
    read: Callable[[PolicyResult], Estimate]
    scale: str


class _Curve(NamedTuple):
    """Policies on one line, in order of divergence, and the look of that line."""

    label: str
    policies: list[PolicyResult]
    color: str
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
    """Draws every figure that the results have numbers for; equal results give equal bytes with the same fonts.

    Raises:
        InvalidArgumentError: If matplotlib is missing.
    """
    check_matplotlib()
    curves = _curves(results)
    judges = list(results.policies[0].judges) if results.policies else []
    kl = _Axis("KL(policy ‖ base) of an answer, nats (square-root scale)", lambda policy: policy.kl, "root")
    bars = "Open markers are greedy, the star is the baseline. Bars: 95 % intervals."
    points = f"Points of a line are the strengths (beta) of a method. {bars}"
    drawn = []
    for judge in judges:
        title = f"Reward ({judge}) against divergence"
        drawn.append(_draw_picture(f"reward_against_kl-{judge}", title, points, curves, [(kl, _reward(judge))]))
    if judges:
        time = _Axis("ms per token of a row", lambda policy: _exact(policy.ms_per_token), "log")
        note = f"{bars} Times are those of batches as they were used, on the machine of this run."
        title = f"Reward ({judges[0]}) against time"
        drawn.append(_draw_picture("cost", title, note, curves, [(time, _reward(judges[0]))]))
        perplexity = _Axis("perplexity under the base", lambda policy: policy.perplexity, "log")
        distinct = _Axis("different bigrams of an answer", lambda policy: _exact(policy.distinct[1]), "linear")
        note = f"{points} Texts unlike those of the base model have a high perplexity under it, or repeat themselves."
        panels = [(kl, perplexity), (kl, distinct)]
        drawn.append(_draw_picture("texts", "Perplexity and diversity of the texts", note, curves, panels))
    if results.comparisons:
        drawn.append(_draw_comparisons(results.comparisons))
    return drawn


def _reward(judge: str) -> _Axis:
    return _Axis(f"reward ({judge})", lambda policy: policy.judges[judge].reward, "linear")


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


def _curves(results: EvaluationResults) -> list[_Curve]:
    """Lines in order of appearance; the greedy policies of a curve are a line of their own."""
    # Greedy and sampled policies share no line, because their divergences cannot be compared.
    groups: dict[tuple[str, bool], list[PolicyResult]] = {}
    for policy in results.policies:
        groups.setdefault((policy.curve, policy.greedy), []).append(policy)
    curves: list[_Curve] = []
    for (name, greedy), policies in groups.items():
        index = len(curves)
        baseline = any(policy.name == results.baseline for policy in policies)
        curves.append(
            _Curve(
                label=f"{name}, greedy" if greedy and (name, False) in groups else name,
                policies=sorted(policies, key=lambda policy: policy.kl.value if isfinite(policy.kl.value) else 0.0),
                color=INK if baseline else COLORS[index % len(COLORS)],
                marker="*" if baseline else _MARKERS[index % len(_MARKERS)],
                dashes=_DASHES[index // len(COLORS) % len(_DASHES)],
                baseline=baseline,
            )
        )
    return curves


def _draw_picture(
    name: str, title: str, caption: str, curves: list[_Curve], panels: Sequence[tuple[_Axis, _Axis]]
) -> Picture:
    """One picture of panels side by side, each a pair of axes (x, y), with one legend for all of them."""
    columns = ceil(len(curves) / _LEGEND_ROWS)
    width = 5.8 * len(panels) + 2.6 * columns
    figure = new_figure(width, 5.6 if len(panels) == 1 else 4.8)
    handles: list[Any] = []
    for axes, (x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        handles = _draw_lines(axes, curves, x, y)
    figure.legend(
        handles, [_short(curve.label) for curve in curves], loc="outside right upper", ncols=columns,
        frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.6,
    )  # fmt: skip
    figure.draw_without_rendering()
    # Labels are placed where the layout leaves room, so it must not move any more.
    figure.set_layout_engine("none")
    for axes, (x, y) in zip(figure.axes, panels, strict=True):
        _label_lines(axes, curves, x, y)
    return Picture(name, title, caption, round(96 * width), _png(figure))


def _png(figure: Any) -> bytes:
    file = BytesIO()
    save_png(figure, file, dpi=_DPI)
    return file.getvalue()


def _draw_lines(axes: Any, curves: list[_Curve], x: _Axis, y: _Axis) -> list[Any]:
    """Draws all curves and returns their lines, for the legend."""
    style_axes(axes)
    axes.set_xlabel(_plain(x.label), fontsize=9.5)
    axes.set_ylabel(_plain(y.label), fontsize=9.5)
    handles = [_draw_curve(axes, curve, x, y) for curve in curves]
    points = [policy for curve in curves for policy in _plottable(curve, x, y)]
    _set_scale(axes.xaxis, axes.set_xscale, x.scale, [x.read(policy) for policy in points])
    _set_scale(axes.yaxis, axes.set_yscale, y.scale, [y.read(policy) for policy in points])
    return handles


def _draw_curve(axes: Any, curve: _Curve, x: _Axis, y: _Axis) -> Any:
    shown = _plottable(curve, x, y)
    across = [x.read(policy) for policy in shown]
    up = [y.read(policy) for policy in shown]
    # Where times are shown, a curve is a cloud: its strengths cost the same.
    joined = x.scale == "root" and len(curve.policies) > 1
    handle = axes.errorbar(
        [point.value for point in across], [point.value for point in up], xerr=_bars(across), yerr=_bars(up),
        color=curve.color, marker=curve.marker, linestyle=curve.dashes if joined else "none", linewidth=1.4,
        markersize=11 if curve.baseline else 5.5, elinewidth=0.8, ecolor=(curve.color, 0.55), capsize=0,
        markerfacecolor="none" if curve.policies[0].greedy else curve.color, zorder=4 if curve.baseline else 3,
    )  # fmt: skip
    if curve.baseline and shown:
        axes.axhline(up[0].value, color=INK, linestyle=(0, (1, 3)), linewidth=1, zorder=1)
    return handle.lines[0]


def _bars(points: Sequence[Estimate]) -> list[list[float]] | None:
    return interval_bars([point.value for point in points], [(point.low, point.high) for point in points])


def _plottable(curve: _Curve, x: _Axis, y: _Axis) -> list[PolicyResult]:
    """The policies whose values are finite, and above 0 on a logarithmic axis."""
    return [policy for policy in curve.policies if _has_position(policy, x) and _has_position(policy, y)]


def _has_position(policy: PolicyResult, axis: _Axis) -> bool:
    value = axis.read(policy).value
    return isfinite(value) and (axis.scale != "log" or value > 0)


def _set_scale(axis: Any, set_scale: Callable[..., None], scale: str, points: list[Estimate]) -> None:
    """Scales an axis for the values of these points, with ticks at round numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator  # noqa: PLC0415  (heavy)

    ends = [end for point in points for end in point if isfinite(end)]
    if scale == "linear" or not ends or max(ends) <= 0:
        return
    largest = max(ends)
    smallest = min(point.value for point in points)
    if scale == "root":
        ticks = [0.0, *_round_numbers(largest / 40, largest)]
        if 5 * smallest > largest:
            # Where all policies cut the vocabulary, no divergence is near 0.
            ticks = list(MaxNLocator(6).tick_values(smallest, largest))
        set_scale("function", functions=(_root, _square))
    elif largest < 5 * smallest:
        # Too short for round numbers on a logarithmic axis.
        return
    else:
        ticks = list(_round_numbers(smallest, largest))
        set_scale("log")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _root(values: Any) -> Any:
    """The square root with the sign of its argument: the interval of an estimated divergence may reach below 0."""
    return abs(values) ** 0.5 * ((values > 0) * 2.0 - 1.0)


def _square(values: Any) -> Any:
    return abs(values) * values


def _round_numbers(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times powers of 10 within bounds above 0."""
    for power in range(floor(log10(low)), ceil(log10(high)) + 1):
        for digit in (1, 2, 5):
            number = digit * 10.0**power
            if low <= number <= high:
                yield number


def _label_lines(axes: Any, curves: list[_Curve], x: _Axis, y: _Axis) -> None:
    """Writes the name of each line beside one of its points, where it hides nothing; else the legend has to do."""
    from matplotlib.transforms import Bbox  # noqa: PLC0415  (heavy)

    points = [[(x.read(policy).value, y.read(policy).value) for policy in _plottable(curve, x, y)] for curve in curves]
    dots = axes.transData.transform([point for line in points for point in line] or [(0.0, 0.0)])
    reach = 4 * axes.figure.dpi / 72
    occupied = [Bbox.from_extents(*(dot - reach), *(dot + reach)) for dot in dots]
    paths = [line.get_path().transformed(axes.transData) for line in axes.lines]
    for curve, line in zip(curves, points, strict=True):
        # Where lines are dense, a name may cross some, but never a point or another name.
        box = _place_label(axes, curve, line, occupied, paths) or _place_label(axes, curve, line, occupied, [])
        if box is not None:
            occupied.append(box)


def _place_label(
    axes: Any, curve: _Curve, points: Sequence[tuple[float, float]], occupied: Sequence[Any], paths: Sequence[Any]
) -> Any | None:
    """Writes the name of a line at the first free place, later points first; returns its box, None if all are taken."""
    label = axes.annotate(
        _short(curve.label), (0, 0), xytext=(0, 0), textcoords="offset points", fontsize=7.5, color=curve.color,
        va="center", zorder=5,
    )  # fmt: skip
    window = axes.get_window_extent()
    for point in reversed(points):
        for right, up, alignment in _OFFSETS:
            label.xy = point
            label.set_position((right, up))
            label.set_horizontalalignment(alignment)
            box = label.get_window_extent()
            is_inside = window.containsx(box.x0) and window.containsx(box.x1)
            is_inside = is_inside and window.containsy(box.y0) and window.containsy(box.y1)
            if is_inside and not box.count_overlaps(occupied) and not _crosses(paths, box):
                return box
    label.remove()
    return None


def _crosses(paths: Sequence[Any], box: Any) -> bool:
    return any(path.intersects_bbox(box, filled=False) for path in paths)


def _draw_comparisons(comparisons: Sequence[EqualKL]) -> Picture:
    """A forest plot: each comparison a line with the mean difference and its interval, judges side by side."""
    judges = list(dict.fromkeys(item.judge for item in comparisons))
    pairs = list(dict.fromkeys((item.first, item.second) for item in comparisons))
    names = [f"{_short(first)} − {_short(second)}" for first, second in pairs]
    width = 3.0 + 3.4 * len(judges)
    figure = new_figure(width, 1.2 + 0.34 * len(pairs))
    for axes, judge in zip(figure.subplots(1, len(judges), squeeze=False)[0], judges, strict=True):
        style_axes(axes)
        axes.axvline(0, color=INK, linewidth=1)
        for item in comparisons:
            if item.judge == judge and isfinite(item.overall.value):
                _draw_difference(axes, item.overall, pairs.index((item.first, item.second)))
        axes.set_yticks(range(len(pairs)), labels=names if judge == judges[0] else [""] * len(pairs))
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xlabel(_plain(f"difference of reward ({judge})"), fontsize=9.5)
    caption = (
        "Mean difference over the divergences that both curves reach. Bars: 95 % intervals; a marker is filled where "
        "its interval leaves out 0."
    )
    return Picture("comparisons", "Curves at equal divergence", caption, round(96 * width), _png(figure))


def _draw_difference(axes: Any, overall: Estimate, height: int) -> None:
    clear = overall.low > 0 or overall.high < 0
    color = COLORS[0] if overall.value > 0 else COLORS[1]
    axes.errorbar(
        [overall.value], [height], xerr=_bars([overall]), color=color, marker="o", markersize=6, linewidth=1.6,
        capsize=3, markerfacecolor=color if clear else "none",
    )  # fmt: skip


def _short(text: str) -> str:
    """A name on one line, cut to a length that leaves room for the figure."""
    line = " ".join(text.split())
    return _plain(line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…")


def _plain(text: str) -> str:
    """A text as it is, since matplotlib reads formulas between dollars and hides names that start with _."""
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")

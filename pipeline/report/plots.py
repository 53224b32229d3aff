"""Plots as inline SVG: distributions, quality against identity, rank intervals.

Colours are classes of the style sheet, so that they follow light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.report.escape import plain, text
from pipeline.report.grid import ARROWS, DIRECTIONS, number
from pipeline.results import MetricInfo

WIDTH = 440
LABEL_PX, RIGHT_PX, TOP_PX, AXIS_PX = 128, 14, 8, 40
ROW_PX = 30
NUM_BINS = 72
TAIL_PERCENT = 0.5
FEWEST = 5
NUM_COLORS = 10
_LABEL_SIGNS = 17
_SIGN_PX = 7.0

Values = NDArray[np.float64]


class Range(NamedTuple):
    """A value with its 95 % interval, which may be the value alone."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A method in a scatter plot."""

    method: str
    x: Range
    y: Range


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether they overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


class Scale(NamedTuple):
    """A linear map from values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start_px + share * (self.end_px - self.start_px), 1)


def distribution(info: MetricInfo, values: Mapping[str, Values], colors: Mapping[str, int]) -> str:
    """How a metric is spread over images: one shape a method, with quartiles and median.

    Args:
        info: The metric.
        values: Method -> its images' values, finite; methods with fewer than five are left out.
        colors: Method -> number of its colour.

    Returns:
        The plot; "" where there is nothing to see.
    """
    shown = {method: each for method, each in values.items() if each.size >= FEWEST}
    everything = np.concatenate([np.empty(0), *shown.values()])
    if np.unique(everything).size <= 2:  # yes or no: the mean says all
        return ""
    low, high = np.percentile(everything, [TAIL_PERCENT, 100 - TAIL_PERCENT]).tolist()
    margin = (high - low) * 0.03
    x = _scale(low - margin, high + margin, LABEL_PX, WIDTH - RIGHT_PX)
    rows = [
        _shape(method, each, x, TOP_PX + ROW_PX * (i + 1), colors[method])
        for i, (method, each) in enumerate(shown.items())
    ]
    bottom = TOP_PX + ROW_PX * len(shown)
    parts = [_x_axis(x, bottom, _axis_name(info)), *rows]
    return _svg(parts, bottom + AXIS_PX, f"Distribution of {info.name} over images, by method")


def scatter(x_info: MetricInfo, y_info: MetricInfo, points: Sequence[Point],
            colors: Mapping[str, int]) -> str:  # fmt: skip
    """One metric against another: a point a method, crossed by its intervals."""
    height = 340
    left, bottom = 64, height - AXIS_PX - 4
    x = _spanning([point.x for point in points], left, WIDTH - RIGHT_PX - 8)
    y = _spanning([point.y for point in points], bottom, TOP_PX + 10)
    parts = [_x_axis(x, bottom, _axis_name(x_info)), _y_axis(y, left, _axis_name(y_info))]
    taken = [_around(x(point.x.value), y(point.y.value)) for point in points]
    for point in points:
        parts.append(_cross(point, x, y, colors[point.method], taken))
    return _svg(parts, height, f"{y_info.name} against {x_info.name}, by method")


def intervals(ranges: Mapping[str, Range], label: str, colors: Mapping[str, int]) -> str:
    """A dot and a bar a method, smallest first: mean ranks."""
    ordered = sorted(ranges.items(), key=lambda item: item[1].value)
    x = _spanning(list(ranges.values()), LABEL_PX + 6, WIDTH - RIGHT_PX - 8)
    bottom = TOP_PX + 26 * len(ordered)
    parts = [_x_axis(x, bottom, label)]
    for i, (method, each) in enumerate(ordered):
        y = TOP_PX + 26 * i + 13
        told = f"{method}: {number(each.value, 2)}"
        if each.low < each.high:
            told += f" [{number(each.low, 2)}, {number(each.high, 2)}]"
        parts.append(
            f'<g class="c{colors[method]}"><title>{text(told)}</title>'
            f"{_label(method, LABEL_PX - 6, y)}"
            f'<path class="bar" d="M{x(each.low)} {y}H{x(each.high)}"/>'
            f'<circle class="dot" cx="{x(each.value)}" cy="{y}" r="4.5"/></g>'
        )
    return _svg(parts, bottom + AXIS_PX, f"{label}, by method")


def _shape(method: str, values: Values, x: Scale, base: float, color: int) -> str:
    q1, median, q3 = (float(q) for q in np.percentile(values, [25, 50, 75]))
    height = ROW_PX - 7
    told = f"{method}: median {median:.4g}, quartiles {q1:.4g} and {q3:.4g}, n {values.size:,}"
    points = "L".join(
        f"{px} {round(base - share * height, 1)}" for px, share in _density(values, x)
    )
    ends = f"M{x(x.low)} {base}L{points}L{x(x.high)} {base}Z"
    inside = [min(max(value, x.low), x.high) for value in (q1, median, q3)]
    return (
        f'<g class="c{color}"><title>{text(told)}</title>{_label(method, LABEL_PX - 6, base - 9)}'
        f'<path class="shape" d="{ends}"/>'
        f'<path class="bar" d="M{x(inside[0])} {base}H{x(inside[2])}"/>'
        f'<circle class="dot" cx="{x(inside[1])}" cy="{base}" r="3.2"/></g>'
    )


def _density(values: Values, x: Scale) -> list[tuple[float, float]]:
    """A smoothed histogram: (pixel, share of the highest bin)."""
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(x.low, x.high))
    # Silverman's rule, in bins; a width of a bin at least keeps equal values visible.
    bin_width = edges[1] - edges[0]
    sigma = max(1.0, float(0.9 * values.std() * values.size**-0.2 / bin_width))
    reach = np.arange(-NUM_BINS, NUM_BINS + 1)
    smooth = np.convolve(counts, np.exp(-0.5 * (reach / sigma) ** 2))[NUM_BINS : 2 * NUM_BINS]
    shares = smooth / max(float(smooth.max()), 1e-12)
    centers = (edges[:-1] + edges[1:]) / 2
    return [(x(float(c)), float(share)) for c, share in zip(centers, shares, strict=True)]


def _cross(point: Point, x: Scale, y: Scale, color: int, taken: list[Box]) -> str:
    px, py = x(point.x.value), y(point.y.value)
    told = f"{point.method}: {point.x.value:.4g}, {point.y.value:.4g}"
    short = _short(point.method)
    anchor, label_x, label_y = _free_place(px, py, len(plain(point.method)), taken)
    return (
        f'<g class="c{color}"><title>{text(told)}</title>'
        f'<path class="bar thin" d="M{x(point.x.low)} {py}H{x(point.x.high)}'
        f'M{px} {y(point.y.low)}V{y(point.y.high)}"/>'
        f'<circle class="dot" cx="{px}" cy="{py}" r="5"/>'
        f'<text class="name" x="{label_x:g}" y="{label_y:g}" text-anchor="{anchor}">{short}</text>'
        "</g>"
    )


def _around(x: float, y: float) -> Box:
    return Box(x - 5, y - 5, x + 5, y + 5)


def _free_place(x: float, y: float, num_signs: int, taken: list[Box]) -> tuple[str, float, float]:
    """Where a point's label hides neither a point nor a label: anchor, x, y; it is then taken."""
    width = _SIGN_PX * min(num_signs, _LABEL_SIGNS)
    tried = [
        (anchor, x + side * 8, y + down)
        for down in (-7, 16, -20, 29, -33, 42)
        for anchor, side in (("start", 1), ("end", -1))
    ]
    lefts = [at - width if anchor == "end" else at for anchor, at, _ in tried]
    boxes = [
        Box(left, base - 10, left + width, base + 2)
        for left, (_, _, base) in zip(lefts, tried, strict=True)
    ]
    inside = [box.left > 60 and box.right < WIDTH and box.top > 0 for box in boxes]
    free = [fits and not any(box.meets(other) for other in taken)
            for box, fits in zip(boxes, inside, strict=True)]  # fmt: skip
    chosen = free.index(True) if True in free else inside.index(True) if True in inside else 0
    taken.append(boxes[chosen])
    return tried[chosen]


def _spanning(ranges: Sequence[Range], start_px: float, end_px: float) -> Scale:
    low = min(each.low for each in ranges)
    high = max(each.high for each in ranges)
    margin = (high - low) * 0.06
    return _scale(low - margin, high + margin, start_px, end_px)


def _scale(low: float, high: float, start_px: float, end_px: float) -> Scale:
    if not high > low:  # all equal
        low, high = low - 0.5, high + 0.5
    return Scale(low, high, start_px, end_px)


def _x_axis(x: Scale, y: float, label: str) -> str:
    middle = (x.start_px + x.end_px) / 2
    return (
        f'<path class="axis" d="M{x.start_px} {y}H{x.end_px}"/>'
        + "".join(
            f'<path class="gridline" d="M{x(tick)} {TOP_PX}V{y}"/>'
            f'<text class="tick" x="{x(tick)}" y="{y + 15}" text-anchor="middle">{printed}</text>'
            for tick, printed in _ticks(x)
        )
        + f'<text class="axisname" x="{middle}" y="{y + 33}" text-anchor="middle">'
        f"{text(label)}</text>"
    )


def _y_axis(y: Scale, x: float, label: str) -> str:
    middle = (y.start_px + y.end_px) / 2
    return (
        f'<path class="axis" d="M{x} {y.start_px}V{y.end_px}"/>'
        + "".join(
            f'<path class="gridline" d="M{x} {y(tick)}H{WIDTH - RIGHT_PX}"/>'
            f'<text class="tick" x="{x - 6}" y="{y(tick) + 4}" text-anchor="end">{printed}</text>'
            for tick, printed in _ticks(y)
        )
        + f'<text class="axisname" text-anchor="middle" transform="translate(14 {middle}) '
        f'rotate(-90)">{text(label)}</text>'
    )


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    """Three to eight round values inside the scale."""
    most = (scale.high - scale.low) / 3
    power = 10.0 ** math.floor(math.log10(most))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(scale.low / step)
    last = math.floor(scale.high / step)
    return [(n * step, number(n * step, digits)) for n in range(first, last + 1)]


def _axis_name(info: MetricInfo) -> str:
    unit = f" ({info.unit})" if info.unit else ""
    return f"{plain(info.name)}{unit} {ARROWS[info.better]} {DIRECTIONS[info.better]}"


def _label(method: str, x: float, y: float) -> str:
    return f'<text class="name" x="{x}" y="{y + 4}" text-anchor="end">{_short(method)}</text>'


def _short(method: str) -> str:
    """A name that fits beside a plot; the whole name is in the title."""
    line = plain(method)
    return text(line if len(line) <= _LABEL_SIGNS else f"{line[: _LABEL_SIGNS - 1]}\u2026")


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg>'
    )

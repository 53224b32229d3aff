import re

import numpy as np
import pytest

from pipeline.metrics.table import BY_NAME
from pipeline.report.plots import Point, Range, distribution, intervals, scatter
from pipeline.results import MetricInfo

COLORS = {name: number for number, name in enumerate("abcdefgh")}


def info(name: str) -> MetricInfo:
    metric = BY_NAME[name]
    return MetricInfo(
        name=name, protocol=metric.protocol, better=metric.better, unit=metric.unit,
        kind=metric.kind, source=metric.source,
    )  # fmt: skip


def numbers(svg: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, svg)]


def test_a_distribution_peaks_where_its_values_are():
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(20, 1, 500), "b": rng.normal(30, 1, 500), "c": np.empty(0)}
    svg = distribution(info("psnr"), values, COLORS)
    dots = numbers(svg, r'class="dot" cx="([\d.]+)"')
    assert len(dots) == 2
    for dot, shape in zip(dots, re.findall(r'class="shape" d="([^"]+)"', svg), strict=True):
        points = [tuple(map(float, xy.split())) for xy in shape.strip("MZ").split("L")]
        peak = min(points, key=lambda point: point[1])  # y grows downwards
        assert peak[0] == pytest.approx(dot, abs=12)


@pytest.mark.parametrize("value", [0.0, 7.25, -1e-9])
def test_equal_values_and_single_ones_draw(value):
    values = np.array([value, value, value + 1, value + 2, value])
    svg = distribution(info("detail"), {"a": values, "b": np.full(5, value)}, COLORS)
    assert svg.count('class="shape"') == 2
    point = Point("a", Range(value, value, value), Range(value, value, value))
    svg += scatter(info("niqe"), info("identity"), [point, point], COLORS)
    svg += intervals({"a": Range(value, value, value)}, "Mean rank", COLORS)
    assert not re.search(r"nan|inf", svg)


def test_yes_or_no_and_a_handful_of_values_have_no_distribution():
    assert not distribution(info("expression"), {"a": np.array([0.0, 1] * 50)}, COLORS)
    assert not distribution(info("psnr"), {"a": np.arange(4.0)}, COLORS)


def test_intervals_stand_in_order_and_span_what_they_say():
    ranges = {"a": Range(3.0, 2.0, 5.0), "b": Range(1.0, 1.0, 2.0)}
    svg = intervals(ranges, "Mean rank", COLORS)
    assert re.findall(r"<title>(\w)", svg) == ["b", "a"]
    (b_low, b_high), (a_low, a_high) = (
        map(float, found) for found in re.findall(r'class="bar" d="M([\d.]+) \d+H([\d.]+)"', svg)
    )
    assert b_high == a_low  # both are 2
    assert (a_high - a_low) == pytest.approx(3 * (b_high - b_low), abs=0.3)


def test_labels_of_a_scatter_hide_no_other_label():
    ranges = [Range(value, value - 0.02, value + 0.02) for value in (0.3, 0.301, 0.302, 0.4)]
    points = [Point(name, each, each) for name, each in zip("abcd", ranges, strict=True)]
    svg = scatter(info("lpips-alex"), info("identity"), points, COLORS)
    labels = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', svg)
    boxes = [(float(x) - 7 * (anchor == "end"), float(y)) for x, y, anchor in labels]
    assert len(boxes) == 4
    for i, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:i]:
            assert abs(x - other_x) >= 7 or abs(y - other_y) >= 12


def test_axes_have_three_to_eight_round_ticks():
    for high in (0.001, 0.37, 1.0, 7.3, 99.0, 12345.0):
        svg = intervals({"a": Range(high / 2, 0.0, high)}, "x", COLORS)
        ticks = re.findall(r'class="tick"[^>]*>([^<]+)<', svg)
        assert 3 <= len(ticks) <= 8
        assert all(len(tick.strip("\u22120.")) <= 5 for tick in ticks)

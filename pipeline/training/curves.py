"""Curves of a run as one picture: a panel for each figure, training and validation in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.images import Pixels

COLUMNS = 3
WIDTH, HEIGHT = 640, 400  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 104, 24, 56, 48  # what is around its axes
INK, FAINT = (40, 40, 40), (222, 222, 222)
TRAINING, VALIDATION = (120, 160, 210), (200, 60, 40)
FIRST = ("loss", "l1", "l2", "lpips", "identity", "psnr", "codes")

Series = list[tuple[float, float]]


def curves(lines: Sequence[Mapping[str, Any]]) -> Pixels:
    """Draw every figure of a log against the images seen.

    Args:
        lines: As `pipeline.training.log.read_figures` gives them.

    Returns:
        (H, W, 3) uint8; a panel for each name, in which "lpips" and "val/lpips" share one.
    """
    panels = _panels(lines)
    rows = -(-len(panels) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * WIDTH, max(1, rows) * HEIGHT), "white")
    for number, (name, series) in enumerate(panels.items()):
        y, x = divmod(number, COLUMNS)
        _Panel(picture, x * WIDTH, y * HEIGHT, series).draw(name)
    return np.asarray(picture)


def _panels(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    found: dict[str, dict[str, Series]] = {}
    for line in lines:
        for name, value in line.items():
            if name in ("images", "time_s") or value is None:
                continue
            short = name.removeprefix("val/")
            kind = "training" if short == name else "validation"
            series = found.setdefault(short, {"training": [], "validation": []})
            series[kind].append((line["images"], value))
    return {name: found[name] for name in sorted(found, key=_rank)}


def _rank(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


class _Panel:
    """Axes with two lines in them."""

    def __init__(
        self, picture: Image.Image, left: int, top: int, series: Mapping[str, Series]
    ) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._left, self._top = left + LEFT, top + TOP
        self._wide, self._high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        self._series = series
        points = [point for line in series.values() for point in line]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        self._last = max(xs)
        pad = 0.05 * (max(ys) - min(ys)) or abs(max(ys)) * 0.05 or 1.0
        self._low, self._span = min(ys) - pad, max(ys) - min(ys) + 2 * pad

    def _place(self, x: float, y: float) -> tuple[float, float]:
        right, up = x / max(self._last, 1), (y - self._low) / self._span
        return self._left + right * self._wide, self._top + (1 - up) * self._high

    def draw(self, name: str) -> None:
        big, small = ImageFont.load_default(24), ImageFont.load_default(18)
        self._draw.text((self._left, self._top - 16), name, INK, big, anchor="ls")
        for share in (0.0, 0.5, 1.0):
            value = self._low + share * self._span
            start, end = self._place(0, value), self._place(self._last, value)
            self._draw.line((*start, *end), FAINT, 2)
            self._draw.text((start[0] - 8, start[1]), f"{value:.3g}", INK, small, anchor="rm")
        below = self._top + self._high + 24
        self._draw.text((self._left, below), "0", INK, small, anchor="mm")
        right = self._left + self._wide
        self._draw.text((right, below), f"{self._last:,.0f} images", INK, small, anchor="rm")
        self._line("training", TRAINING, 2, right - 100)
        self._line("validation", VALIDATION, 4, right)

    def _line(self, kind: str, colour: tuple[int, int, int], width: int, label_px: int) -> None:
        places = [self._place(*point) for point in self._series[kind]]
        if not places:
            return
        if len(places) > 1:
            self._draw.line([each for place in places for each in place], colour, width, "curve")
        else:
            self._draw.circle(places[0], width + 2, colour)
        font = ImageFont.load_default(18)
        self._draw.text((label_px, self._top - 16), kind, colour, font, anchor="rs")

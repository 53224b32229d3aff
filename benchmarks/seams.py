"""How well a crop goes back into its photo: shift, round trip and seams of `faces/paste.py`.

    OMP_NUM_THREADS=1 python benchmarks/seams.py
    OMP_NUM_THREADS=1 python benchmarks/seams.py --out runs/seams     # and pictures to look at

A portrait (`skimage.data.astronaut`) is scaled so that its crop has the given side, turned, moved
by a part of a pixel, cut out, and pasted back as it is: a model that changes nothing. Columns, the
worst of all turns:

    psnr    of the photo against itself where the window is full, in dB; what is lost there is lost
            by resampling twice
    shift   between the two, in pixels: least squares over the photo's gradients in the middle of
            the face, which reads a known shift of a quarter pixel as a quarter (see tests)
    edge    largest step from pixel to pixel across the window's border, in gray levels, when the
            restored face is 40 levels brighter than the photo (a hard-edged paste: 40)
    step    the same anywhere under the window
    outside number of bytes changed where the window is zero
    ms      for one paste, mean

The portrait's own crop is 160 pixels wide: larger ones hold no finer detail, which flatters psnr.
Sides over 1.25 times the model's size are left out: such faces are not restored.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from pipeline.faces.align import Matrix, crop_place, cut
from pipeline.faces.paste import FEATHER, INSET, Patch, paste

MODEL_SIZES = (64, 128, 512)
CROP_SIDES_PX = (40, 60, 80, 120, 160, 240, 320, 480, 600)
TURNS_DEG = (0, 7, 25, 90)
BRIGHTER = 40
PORTRAIT_POINTS = np.array([[203, 115], [242, 113], [221, 137], [208, 155], [239, 153]])


def photo_of(side_px: float, turn_deg: float) -> tuple[NDArray[np.uint8], Matrix]:
    """The portrait at a scale where its crop has a given side, and where that crop lies."""
    place = crop_place(PORTRAIT_POINTS + 0.5)
    scale = side_px * np.hypot(*place[0, :2])
    size = round(512 * scale)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    photo = cv2.resize(data.astronaut(), (size, size), interpolation=way)
    centre = np.linalg.solve(place[:, :2], [0.5, 0.5] - place[:, 2]) * size / 512 + (0.3, -0.2)
    turn = np.deg2rad(turn_deg)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / side_px
    return photo, np.column_stack([linear, [0.5, 0.5] - linear @ centre])


def window(shape: tuple[int, ...], place: Matrix) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the pasted face has any weight, and where its weight is full; from the definition."""
    y, x = np.indices(shape[:2]) + 0.5
    crop = np.tensordot(place[:, :2], np.stack([x, y]), 1) + place[:, 2, None, None]
    inside = np.minimum(crop, 1 - crop).min(0)
    return inside > INSET, inside >= INSET + FEATHER


def steps(difference: NDArray[np.float64], some: NDArray[np.bool_]) -> tuple[float, float]:
    """Largest step between neighbours: across the window's border, and anywhere."""
    edge = anywhere = 0.0
    for axis in (0, 1):
        step = np.abs(np.diff(difference, axis=axis))
        border = np.diff(some.astype(int), axis=axis) != 0
        edge = max(edge, float(step[border].max(initial=0)))
        anywhere = max(anywhere, float(step.max(initial=0)))
    return edge, anywhere


def shift_between(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How far the content of `after` lies down and right of that of `before`, in pixels."""
    # Smoothed, because first differences understate the slopes of the finest detail.
    one, other = (cv2.GaussianBlur(picture.mean(2), (0, 0), 1.5) for picture in (before, after))
    slopes = np.stack([slope.ravel() for slope in np.gradient(one)], axis=1)
    solution, *_ = np.linalg.lstsq(slopes, (one - other).ravel(), rcond=None)
    return solution


def measure(size: int, side_px: float, turn_deg: float) -> dict[str, float]:
    """One row for one turn."""
    photo, place = photo_of(side_px, turn_deg)
    crop = cut(photo, place, size)
    began = time.perf_counter()
    result = paste(photo, [Patch(crop, place)])
    seconds = time.perf_counter() - began
    some, full = window(photo.shape, place)
    error = (photo[full].astype(float) - result[full]) ** 2
    x, y = np.linalg.solve(place[:, :2], [0.5, 0.5] - place[:, 2])
    middle = np.s_[round(y - side_px / 4) : round(y + side_px / 4),
                   round(x - side_px / 4) : round(x + side_px / 4)]  # fmt: skip
    flat = np.full_like(photo, 100)
    brighter = paste(flat, [Patch(np.full_like(crop, 100 + BRIGHTER), place)])
    edge, anywhere = steps(brighter[:, :, 0] - 100.0, some)
    return {
        "psnr": -10 * np.log10(max(error.mean(), 1e-6) / 255**2),
        "shift": float(np.abs(shift_between(photo[middle], result[middle])).max()),
        "edge": edge,
        "step": anywhere,
        "outside": float((photo != result)[~some].sum()),
        "ms": 1e3 * seconds,
    }


def save_pictures(folder: Path) -> None:
    """The portrait with its face unchanged, and inverted to show the window."""
    folder.mkdir(parents=True, exist_ok=True)
    photo, place = photo_of(200, 25)
    crop = cut(photo, place, 128)
    for name, restored in {"same": crop, "inverted": 255 - crop}.items():
        result = paste(photo, [Patch(restored, place)])
        cv2.imwrite(str(folder / f"{name}.png"), cv2.cvtColor(result, cv2.COLOR_RGB2BGR))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for pictures")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    columns: dict[str, Callable[[list[float]], float]] = {
        "psnr": min,
        "shift": max,
        "edge": max,
        "step": max,
        "outside": max,
        "ms": statistics.mean,
    }
    print("model  crop px " + "".join(f"{name:>9}" for name in columns))
    for size in MODEL_SIZES:
        for side_px in CROP_SIDES_PX:
            if side_px > 1.25 * size:
                continue
            found = [measure(size, side_px, turn) for turn in TURNS_DEG]
            cells = [
                f"{worst([row[name] for row in found]):9.3f}" for name, worst in columns.items()
            ]
            print(f"{size:5d} {side_px:8d} " + "".join(cells))
    if args.out:
        save_pictures(args.out)


if __name__ == "__main__":
    main()

"""The degradation: blur kernels, and whole chains step by step without JPEG."""

from __future__ import annotations

from typing import Any

import numpy as np
from parity_vectors.vectors import Vectors

from pipeline import degradation as steps


def degradation(vectors: Vectors) -> None:
    """Kernels in float64, images in float32."""
    for i, drawn in enumerate(vectors.meta["kernels"]):
        vectors.check(f"kernel{i}", _kernel(drawn))
    for name, drawn in vectors.meta["chains"].items():
        _check_chain(vectors, name, drawn)


def _kernel(drawn: list[Any]) -> np.ndarray:
    """From [side, kind, sigma_x, sigma_y, theta]; of a round one only the first width counts."""
    side, kind, sigma_x, sigma_y, theta = drawn
    if kind == "iso":
        return steps.gaussian_kernel(side, sigma_x, sigma_x)
    return steps.gaussian_kernel(side, sigma_x, sigma_y, theta)


def _check_chain(vectors: Vectors, name: str, drawn: dict[str, Any]) -> None:
    def checked(step: str, image: np.ndarray) -> np.ndarray:
        vectors.check(f"{name}/{step}", image)
        return image

    clean = vectors.array(f"{name}/input_uint8").astype(np.float32) / np.float32(255)
    x = checked("blurred", steps.blur(clean, _kernel(drawn["kern"])))
    if drawn["haze"] is not None:
        x = checked("hazed", steps.haze(x, drawn["haze"]))
    x = checked("small", steps.resize(x, drawn["low_size"]))
    x = checked("noisy", steps.add_noise(x, vectors.drawn(drawn["noise"]), drawn["sigma"]))
    x = checked("output", steps.quantise(steps.resize(x, drawn["hw"])))
    if drawn["gray"]:
        checked("output_gray", steps.gray(x))
        checked("gt_gray", steps.gray(clean))

"""Known amounts of damage, kind by kind: what the quality score is trained and tested on.

A severity from 0 (nothing) to 1 (hardly a face) means the same whatever the kind: at one severity
all kinds take a face equally far from its original, by the ruler `difference`, on average over
public-domain faces. The ruler is arithmetic, so no person's opinion and no network's lies in the
scale; the root makes its steps even to the eye. `benchmarks/quality.py --scale` measures the table
`_STRENGTHS` anew.

Lengths are pixels of a face of 128 and are scaled with the size; noise and JPEG are not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import degradation
from pipeline.images import Pixels
from vsp_model.randomness import generator_for

Floats = NDArray[np.float32]
Kind = Literal[
    "blur", "defocus", "reduction", "smooth", "noise", "grain", "impulse", "jpeg", "sharpen",
    "chain", "motion", "median", "pixelate",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
UNSEEN: tuple[Kind, ...] = ("motion", "median", "smooth", "pixelate", "impulse")
"""Never used in training: what the score says of them, it was not taught."""
TRAINED: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in UNSEEN)

FULL_DIFFERENCE = 0.25
"""What `difference` comes to on average at severity 1."""
MAX_SEVERITY = 1.5
"""Where mixed damage, which may be worse than any single kind's severity 1, is cut off."""
BASE_SIZE = 128
_NUM_SCALES = 3
_WINDOW = 1.5  # sigma of SSIM's window
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


# --------------------------------------------------------------------------------------- ruler


def difference(face: Pixels, truth: Pixels) -> float:
    """How far a damaged face is from its original: 1 - SSIM of the luma, mean of three scales.

    SSIM as Wang et al. 2004 (Gaussian window of sigma 1.5), at the full size, the half and the
    quarter.

    Args:
        face: uint8 (H, W, 3) RGB.
        truth: The same shape.

    Returns:
        0 for equal pictures, at most 2.
    """
    x, y = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float32) for each in (face, truth))
    values = []
    for scale in range(_NUM_SCALES):
        if scale:
            x, y = _halved(x), _halved(y)
        values.append(_ssim(x, y))
    return 1 - sum(values) / len(values)


def _halved(x: Floats) -> Floats:
    height, width = x.shape
    size = (max(1, width // 2), max(1, height // 2))
    return np.asarray(cv2.resize(x, size, interpolation=cv2.INTER_AREA), np.float32)


def _ssim(x: Floats, y: Floats) -> float:
    mean_x, mean_y = _local(x), _local(y)
    var_x, var_y = _local(x * x) - mean_x**2, _local(y * y) - mean_y**2
    both = _local(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * both + _C2)
    below = (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    return float(np.mean(top / below))


def _local(x: Floats) -> Floats:
    return np.asarray(cv2.GaussianBlur(x, (11, 11), _WINDOW), np.float32)


def severity_of(face: Pixels, truth: Pixels) -> float:
    """The severity that the difference of one face stands for, 0 to 1.5; for mixed damage."""
    return min(MAX_SEVERITY, math.sqrt(max(0.0, difference(face, truth)) / FULL_DIFFERENCE))


# --------------------------------------------------------------------------------------- kinds


def damage(pixels: Pixels, kind: Kind, severity: float, *, seed: int, key: str) -> Pixels:
    """Damage one face by a known amount; equal arguments give equal bytes.

    Args:
        pixels: Clean face, uint8 (S, S, 3) RGB, at least 32 pixels.
        kind: One of `KINDS`.
        severity: 0 nothing to 1.
        seed: With the key it decides all that is random.
        key: Of the face.

    Returns:
        The same shape.
    """
    if severity <= 0:
        return pixels
    return apply(pixels, kind, strength_of(kind, severity), seed=seed, key=key)


def strength_of(kind: Kind, severity: float) -> float:
    """The kind's own parameter at a severity: a sigma, a factor, a JPEG quality ..."""
    strengths = _STRENGTHS[kind]
    places = np.linspace(0, 1, len(strengths))
    return float(np.interp(severity, places, strengths))


def apply(pixels: Pixels, kind: Kind, strength: float, *, seed: int, key: str) -> Pixels:
    """Damage one face by the kind's own parameter; see `damage` and `STRENGTH_RANGES`."""
    stream = generator_for(seed, key, f"damage {kind}")
    image = pixels.astype(np.float32) / np.float32(255)
    done = _STEPS[kind](image, strength, pixels.shape[0] / BASE_SIZE, stream)
    damaged: Pixels = np.clip(np.rint(done * np.float32(255)), 0, 255).astype(np.uint8)
    return damaged


Step = Callable[[Floats, float, float, np.random.Generator], Floats]
"""Image in [0, 1], strength, size / 128, random numbers -> image."""


def _odd(reach: float) -> int:
    return 2 * max(1, math.ceil(reach)) + 1


def _blur(image: Floats, sigma: float, scale: float, stream: np.random.Generator) -> Floats:
    ratio, theta = math.exp(stream.uniform(-0.4, 0.4)), stream.uniform(0, math.pi)
    along, across = sigma * scale * ratio, sigma * scale / ratio
    side = _odd(3 * max(along, across))
    return degradation.blur(image, degradation.gaussian_kernel(side, along, across, theta))


def _defocus(image: Floats, radius: float, scale: float, stream: np.random.Generator) -> Floats:
    kernel = _soft_disk(radius * scale)
    return degradation.blur(image, kernel)


def _soft_disk(radius: float) -> NDArray[np.float64]:
    """A disk whose rim is as wide as a pixel, summing to 1."""
    offsets = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    distance = np.hypot(*np.meshgrid(offsets, offsets))
    weights = np.clip(radius + 0.5 - distance, 0, 1)
    kernel: NDArray[np.float64] = weights / weights.sum()
    return kernel


def _motion(image: Floats, length: float, scale: float, stream: np.random.Generator) -> Floats:
    theta, length = stream.uniform(0, math.pi), length * scale
    reach = math.ceil(length / 2) + 1
    offsets = np.arange(-reach, reach + 1)
    x, y = np.meshgrid(offsets, offsets)
    along = np.abs(x * math.cos(theta) + y * math.sin(theta))
    across = np.abs(-x * math.sin(theta) + y * math.cos(theta))
    weights = np.clip(length / 2 + 0.5 - along, 0, 1) * np.clip(1 - across, 0, 1)
    return degradation.blur(image, weights / weights.sum())


_DOWN = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
_UP = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def _reduction(image: Floats, factor: float, scale: float, stream: np.random.Generator) -> Floats:
    down, up = (ways[int(stream.integers(len(ways)))] for ways in (_DOWN, _UP))
    side = image.shape[0]
    low = max(4, round(side / factor))
    if down != cv2.INTER_AREA:  # these look at single pixels: average first, so nothing aliases
        image = degradation.blur(image, _soft_disk(factor / 2))
    small = cv2.resize(image, (low, low), interpolation=down)
    return _clipped(cv2.resize(small, (side, side), interpolation=up))


def _noise(image: Floats, sigma: float, scale: float, stream: np.random.Generator) -> Floats:
    field = stream.standard_normal(image.shape, np.float32)
    return degradation.add_noise(image, field, sigma)


def _grain(image: Floats, sigma: float, scale: float, stream: np.random.Generator) -> Floats:
    """Grey and soft, as film's."""
    field = stream.standard_normal((*image.shape[:2], 1), np.float32)
    soft = np.asarray(cv2.GaussianBlur(field, (0, 0), 0.7), np.float32)
    return degradation.add_noise(image, (soft / soft.std())[:, :, None], sigma)


def _jpeg(image: Floats, loss: float, scale: float, stream: np.random.Generator) -> Floats:
    quality = max(1, round(100 - loss))
    return degradation.jpeg(image, quality, swaps_red_blue=False)


def _sharpen(image: Floats, amount: float, scale: float, stream: np.random.Generator) -> Floats:
    """Too much of it, so that edges ring."""
    soft = np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2 * scale), np.float32)
    return _clipped(image + np.float32(amount) * (image - soft))


def _chain(image: Floats, strength: float, scale: float, stream: np.random.Generator) -> Floats:
    """The published chain: blur, reduce, noise, JPEG, enlarge."""
    side = image.shape[0]
    share = stream.uniform(0.5, 1.5, 4)
    sigma = max(0.1, 2.5 * strength * float(share[0]) * scale)
    low = max(4, round(side / (1 + 3 * strength * float(share[1]))))
    params = degradation.DegradationParams(
        size=side, flip=False, kernel_side=_odd(3 * sigma), sigma_x=sigma, sigma_y=sigma, theta=0.0,
        haze=None, low_side=low, noise_sigma=20 * strength * float(share[2]),
        jpeg_quality=max(5, round(100 - 45 * min(2.0, strength * float(share[3])))),
        gray=False, swaps_red_blue=False,
    )  # fmt: skip
    field = stream.standard_normal((low, low, 3), np.float32)
    return degradation.degrade_float(image, params, field)


def _smooth(image: Floats, strength: float, scale: float, stream: np.random.Generator) -> Floats:
    """Bilateral: skin without pores between edges that stay, as of denoising and beauty filters."""
    reach = (1 + strength) * scale
    return np.asarray(cv2.bilateralFilter(image, -1, 0.12 * strength, reach), np.float32)


def _median(image: Floats, side: float, scale: float, stream: np.random.Generator) -> Floats:
    """A median over a square; of a side between two odd ones, a blend of both."""
    side = max(1.0, side * scale)
    below = 2 * math.floor((side - 1) / 2) + 1
    share = (side - below) / 2
    return _blended(_median_of(image, below), _median_of(image, below + 2), share)


def _median_of(image: Floats, side: int) -> Floats:
    if side == 1:
        return image
    pixels = np.rint(image * np.float32(255)).astype(np.uint8)
    median = np.asarray(cv2.medianBlur(pixels, side), np.float32)
    return median / np.float32(255)


def _pixelate(image: Floats, block: float, scale: float, stream: np.random.Generator) -> Floats:
    """Squares of one colour; of a side between two whole ones, a blend of both."""
    block = max(1.0, block * scale)
    below = math.floor(block)
    return _blended(_blocks_of(image, below), _blocks_of(image, below + 1), block - below)


def _blocks_of(image: Floats, block: int) -> Floats:
    side = image.shape[0]
    low = -(-side // block)
    beyond = low * block - side
    whole = cv2.copyMakeBorder(image, 0, beyond, 0, beyond, cv2.BORDER_REFLECT)
    small = cv2.resize(whole, (low, low), interpolation=cv2.INTER_AREA)
    large = np.repeat(np.repeat(small, block, axis=0), block, axis=1)
    return np.asarray(large[:side, :side], np.float32)


def _blended(fine: Floats, coarse: Floats, share: float) -> Floats:
    return np.asarray((1 - share) * fine + share * coarse, np.float32)


def _impulse(image: Floats, share: float, scale: float, stream: np.random.Generator) -> Floats:
    """Salt and pepper."""
    draw = stream.random(image.shape[:2])
    salted = image.copy()
    salted[draw < share / 2] = 0
    salted[draw > 1 - share / 2] = 1
    return salted


def _clipped(image: NDArray[np.floating] | cv2.typing.MatLike) -> Floats:
    clipped: Floats = np.clip(np.asarray(image, np.float32), 0, 1)
    return clipped


_STEPS: Mapping[Kind, Step] = {
    "blur": _blur, "defocus": _defocus, "reduction": _reduction, "smooth": _smooth,
    "noise": _noise, "grain": _grain, "impulse": _impulse, "jpeg": _jpeg, "sharpen": _sharpen,
    "chain": _chain, "motion": _motion, "median": _median, "pixelate": _pixelate,
}  # fmt: skip

STRENGTH_RANGES: Mapping[Kind, tuple[float, float]] = {
    "blur": (0.2, 8), "defocus": (0.3, 14), "reduction": (1, 16), "smooth": (0, 10),
    "noise": (0, 40), "grain": (0, 30), "impulse": (0, 0.1), "jpeg": (0, 99), "sharpen": (0, 12),
    "chain": (0, 1.5), "motion": (0.5, 40), "median": (1, 31), "pixelate": (1, 14),
}  # fmt: skip
"""Where the strengths of the table are looked for: Gaussian's sigma, disk's radius, factor, share,
sigma of 255, sigma of 255, share of pixels, 100 - quality, amount, share, length, side, side."""

# Of severity 0, 0.1 ... 1.
_STRENGTHS: Mapping[Kind, Sequence[float]] = {
    "smooth": (0, 0.4051, 1.002, 1.698, 2.427, 3.237, 4.026, 4.828, 5.712, 6.743, 7.895),
    "blur": (0.2, 0.4434, 0.5842, 0.7826, 1.048, 1.365, 1.736, 2.172, 2.691, 3.317, 4.085),
    "defocus": (0.3, 0.6132, 0.8794, 1.284, 1.877, 2.46, 3.116, 3.854, 4.726, 5.765, 7.019),
    "reduction": (1, 1.004, 1.167, 1.677, 2.281, 3.004, 3.886, 4.695, 5.688, 7.032, 8.356),
    "noise": (0, 1.214, 2.656, 4.146, 5.746, 7.528, 9.568, 11.96, 14.83, 18.34, 22.75),
    "grain": (0, 0.7864, 1.669, 2.574, 3.53, 4.567, 5.714, 7.007, 8.494, 10.24, 12.33),
    "jpeg": (0, 7.102, 15.15, 43.03, 73.1, 84.14, 89.36, 92.69, 94.6, 96.57, 98.78),
    "sharpen": (0, 0.264, 0.5602, 0.8999, 1.291, 1.749, 2.292, 2.946, 3.746, 4.749, 6.045),
    "chain": (0, 0.00137, 0.00334, 0.1078, 0.183, 0.2591, 0.3403, 0.4306, 0.5292, 0.64, 0.768),
    "motion": (0.5, 1.323, 2.14, 3.453, 4.734, 6.261, 8.014, 10.09, 12.56, 15.65, 19.43),
    "median": (1, 1.716, 2.357, 3.209, 4.342, 5.653, 7.083, 8.948, 11.15, 14.01, 17.38),
    "pixelate": (1, 1.287, 1.569, 1.86, 2.517, 2.846, 3.695, 4.63, 5.174, 6.055, 7.384),
    "impulse": (0, 0.000169, 0.000686, 0.001542, 0.002813, 0.004524, 0.006742, 0.009535, 0.0131,
                0.01789, 0.02414),
}  # fmt: skip

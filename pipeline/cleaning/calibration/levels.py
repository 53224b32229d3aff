"""Five levels of known damage: what the calibration does to a set's good faces.

Blur, reduction, noise and JPEG as `pipeline.degradation` does them, in fixed amounts. Level 1 is
hardly visible; level 5 leaves a face of ten pixels, on which nobody knows anybody.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline import degradation
from pipeline.degradation import PUBLISHED_SIZE
from pipeline.images import Pixels


@dataclass(frozen=True, slots=True)
class DamageLevel:
    """One amount of damage, in the published degradation's terms.

    Attributes:
        number: 1 mild to 5 severe.
        name: For people.
        blur_sigma_px: Width of the round blur at 512 pixels; scaled with the size.
        reduction: Factor by which the side shrinks at 512 pixels; scaled with the size's root.
        noise_sigma: Of Gaussian noise on the reduced face, on the scale 0 to 255.
        jpeg_quality: Of the reduced face's compression.
    """

    number: int
    name: str
    blur_sigma_px: float
    reduction: float
    noise_sigma: float
    jpeg_quality: int

    def blur_at(self, size: int) -> float:
        """Width of the blur for a face of `size` pixels."""
        return self.blur_sigma_px * size / PUBLISHED_SIZE

    def low_side_at(self, size: int) -> int:
        """Side after the reduction; one below 1 reduces nothing."""
        factor = max(1.0, self.reduction * math.sqrt(size / PUBLISHED_SIZE))
        return max(1, math.floor(size / factor))


LEVELS = (
    DamageLevel(1, "faint", 2.0, 1.0, 3, 85),
    DamageLevel(2, "light", 3.0, 2.6, 5, 75),
    DamageLevel(3, "clear", 5.0, 4.5, 8, 65),
    DamageLevel(4, "heavy", 7.0, 7.0, 10, 55),
    DamageLevel(5, "ruin", 12.0, 24.0, 20, 45),
)


def level_of(number: int) -> DamageLevel:
    """The level of that number, 1 to 5."""
    return LEVELS[number - 1]


def damage(pixels: Pixels, level: int, *, seed: int, key: str) -> Pixels:
    """Damage a clean face by a known amount; equal arguments give equal bytes.

    Args:
        pixels: uint8 (S, S, 3) RGB.
        level: 1 to 5.
        seed: Of the run.
        key: Of the image; with seed and level it decides the noise.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: If the picture is no square of at least 8 pixels.
    """
    size = pixels.shape[0]
    if pixels.shape != (size, size, 3) or size < degradation.MIN_SIZE:
        raise ValueError(f"shape {pixels.shape}: expected a square of at least 8 pixels, RGB")
    amount = level_of(level)
    sigma = amount.blur_at(size)
    # Three widths to either side: the published kernel would cut a strong blur off.
    kernel = degradation.gaussian_kernel(2 * math.ceil(3 * sigma) + 1, sigma, sigma)
    low_side = amount.low_side_at(size)
    noise = degradation.draw_noise(low_side, seed=seed, key=f"{key}|level {level}")
    x = degradation.blur(pixels.astype(np.float32) / np.float32(255), kernel)
    x = degradation.add_noise(degradation.resize(x, low_side), noise, amount.noise_sigma)
    x = degradation.jpeg(x, amount.jpeg_quality, swaps_red_blue=False)
    x = degradation.quantise(degradation.resize(x, size))
    damaged: Pixels = np.rint(x * np.float32(255)).astype(np.uint8)
    return damaged

"""The published degradation, step by step: how a clean face becomes the face to restore.

Every step is a function of its arguments. What is random is drawn once per image from
(seed, key), as plain numbers that a sidecar can record, so one image can be repeated alone.

Images between the steps are float32, RGB, (H, W, 3), in [0, 1]; sizes are pixels of the published
512 image unless they say otherwise.
"""

import math
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.colour import (
    ColourConfig,
    ColourParams,
    Fraction,
    Ordered,
    Positive,
    draw_colour,
    recolour,
)
from pipeline.images import Pixels
from vsp_model.randomness import generator_for

Floats = NDArray[np.float32]

PUBLISHED_SIZE = 512
MIN_SIZE = 8


NonNegative = Annotated[float, Field(ge=0)]
Quality = Annotated[float, Field(ge=1, le=100)]


class DegradationConfig(BaseModel):
    """What is drawn from; the defaults are the published training set of the code diffuser.

    Attributes:
        kernel_sides: Sides of the blur kernel, equal odds; scaled with the image.
        isotropic_probability: Of a round blur; else both widths and the angle are drawn.
        blur_sigma: Widths of the blur; scaled with the image.
        reduction: Factor by which the side shrinks; below 1 it grows. The upper end is scaled.
        noise_sigma: Of the Gaussian noise, on the scale 0 to 255.
        jpeg_quality: Drawn evenly, fraction cut off, so the upper end itself never comes.
        flip_probability: Of a horizontal flip, of the true image too.
        haze_probability: Of fading towards white.
        haze_alpha: What is left of the image under haze.
        gray_probability: Of losing the colours, in the true image too.
        swaps_red_blue: Whether JPEG and gray take red for blue, as the published code does; others
            that draw the same ranges do not.
        colour: What happens to the colours of the degraded image alone, before all else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel_sides: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (39, 41)
    isotropic_probability: Fraction = 0.5
    blur_sigma: Annotated[tuple[Positive, Positive], Ordered] = (0.1, 10.0)
    reduction: Annotated[tuple[Positive, Positive], Ordered] = (0.8, 8.0)
    noise_sigma: Annotated[tuple[NonNegative, NonNegative], Ordered] = (0.0, 20.0)
    jpeg_quality: Annotated[tuple[Quality, Quality], Ordered] = (60.0, 100.0)
    flip_probability: Fraction = 0.0
    haze_probability: Fraction = 0.0
    haze_alpha: Annotated[tuple[Fraction, Fraction], Ordered] = (0.75, 0.95)
    gray_probability: Fraction = 0.0
    swaps_red_blue: bool = True
    colour: ColourConfig | None = None

    @property
    def changes_truth(self) -> bool:
        """Whether the true image may be changed too, so that the clean one is not the target."""
        return self.flip_probability > 0 or self.gray_probability > 0

    @property
    def keeps_colour(self) -> bool:
        """Whether colours are those of the true image, so that a restorer may take them over."""
        return self.colour is None

    @model_serializer(mode="wrap")
    def _without_colour(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a `colour` of None: what was made before there was one stays as it is."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name != "colour" or value}


STAGE_2 = DegradationConfig()
FREE_FORM = DegradationConfig(flip_probability=0.5, haze_probability=0.008, gray_probability=0.008)
"""The training set of the restoration network."""


class DegradationParams(NamedTuple):
    """The draw for one image, in pixels of its own size; a row of a table."""

    size: int
    flip: bool
    kernel_side: int
    sigma_x: float
    sigma_y: float
    theta: float
    """Of the blur's first axis, in radians, y down."""
    haze: float | None
    """What is left of the image, None without haze."""
    low_side: int
    """Side after the reduction."""
    noise_sigma: float
    """On the scale 0 to 255."""
    jpeg_quality: int
    gray: bool
    swaps_red_blue: bool = True
    colour: ColourParams | None = None

    def record(self) -> dict[str, Any]:
        """The draw as JSON; without `colour` where nothing happens to it."""
        values = self._asdict()
        colour = values.pop("colour")
        return values if colour is None else values | {"colour": colour._asdict()}


# ------------------------------------------------------------------------------------ drawing


def draw_params(config: DegradationConfig, size: int, *, seed: int, key: str) -> DegradationParams:
    """Draw the degradation of one image.

    Every quantity is drawn whether it is used or not: switching one step on changes no other.

    Args:
        config: What to draw from.
        size: Side of the image; blur and reduction are scaled to it, noise and JPEG are not.
        seed: Of the data set.
        key: Of the image.

    Raises:
        ValueError: If the size is too small to be reduced.
    """
    if size < MIN_SIZE:
        raise ValueError(f"degradation: size {size}, expected at least {MIN_SIZE}")
    stream = generator_for(seed, key, "degradation")
    flip, isotropic, haze, gray = stream.random(4).tolist()
    sigma_x, sigma_y = stream.uniform(*config.blur_sigma, 2).tolist()
    theta = stream.uniform(-math.pi, math.pi)
    side = config.kernel_sides[int(stream.integers(len(config.kernel_sides)))]
    alpha = stream.uniform(*config.haze_alpha)
    factor = stream.uniform(*reduction_at(config, size))
    noise_sigma = stream.uniform(*config.noise_sigma)
    quality = stream.uniform(*config.jpeg_quality)
    round_blur = isotropic < config.isotropic_probability
    scale = size / PUBLISHED_SIZE
    return DegradationParams(
        size=size,
        flip=flip < config.flip_probability,
        kernel_side=kernel_side_at(side, size),
        sigma_x=sigma_x * scale,
        sigma_y=(sigma_x if round_blur else sigma_y) * scale,
        theta=0.0 if round_blur else theta,
        haze=alpha if haze < config.haze_probability else None,
        low_side=max(1, math.floor(size / factor)),
        noise_sigma=noise_sigma,
        jpeg_quality=int(quality),
        gray=gray < config.gray_probability,
        swaps_red_blue=config.swaps_red_blue,
        colour=draw_colour(config.colour, seed=seed, key=key) if config.colour else None,
    )


def draw_noise(side: int, *, seed: int, key: str) -> Floats:
    """Draw the standard normal field of one image, (side, side, 3)."""
    stream = generator_for(seed, key, "degradation noise")
    return stream.standard_normal((side, side, 3), dtype=np.float32)


def reduction_at(config: DegradationConfig, size: int) -> tuple[float, float]:
    """The range of the reduction for another size.

    The upper end goes with the root of the size: between the same information and the same
    factor, so that a small face keeps enough pixels to be a face. A lower end above 1 goes with it,
    down to 1.
    """
    low, high = config.reduction
    scale = math.sqrt(size / PUBLISHED_SIZE)
    low = low if low <= 1 else max(1.0, low * scale)
    return low, max(low, high * scale)


def kernel_side_at(side: int, size: int) -> int:
    """The kernel side for another size: scaled, the nearest odd number, at least 3."""
    return max(3, 2 * (side * size // (2 * PUBLISHED_SIZE)) + 1)


# -------------------------------------------------------------------------------------- steps


def fit(image: Pixels, size: int) -> Pixels:
    """Bring uint8 (H, W, 3) to (size, size, 3): Lanczos on the shorter side, then a centre crop.

    Published code cuts the fraction of the new side, which leaves it a pixel short at every eighth
    width; here it is rounded.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = size / min(height, width)
    new_width, new_height = max(size, round(width * ratio)), max(size, round(height * ratio))
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.LANCZOS)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def gaussian_kernel(
    side: int, sigma_x: float, sigma_y: float, theta: float = 0.0
) -> NDArray[np.float64]:
    """Sample a Gaussian of two widths on integer offsets, (side, side), summing to 1.

    Args:
        side: Odd.
        sigma_x: Width along the first axis, which lies at angle `theta` to x.
        sigma_y: Width across it.
        theta: In radians.
    """
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    covariance = turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T
    offsets = np.arange(side, dtype=np.float64) - side // 2
    points = np.stack(np.meshgrid(offsets, offsets), axis=-1)  # (side, side, 2), (x, y) last
    distance = np.sum(points @ np.linalg.inv(covariance) * points, axis=-1)
    weights = np.exp(-0.5 * distance)
    kernel: NDArray[np.float64] = weights / weights.sum()
    return kernel


def blur(image: Floats, kernel: NDArray[np.float64]) -> Floats:
    """Correlate with the kernel; the border mirrors without repeating the edge."""
    return _float32(cv2.filter2D(image, -1, kernel))


def haze(image: Floats, alpha: float) -> Floats:
    """Fade towards white; `alpha` is what is left of the image."""
    return _float32(image * alpha + (1 - alpha))


def resize(image: Floats, side: int) -> Floats:
    """Resample to (side, side, 3), bilinear without antialiasing, either way."""
    return _float32(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR))


def add_noise(image: Floats, field: Floats, sigma: float) -> Floats:
    """Add `field` times sigma / 255 and clip to [0, 1]; nothing is rounded."""
    return _float32(np.clip(image + field * np.float32(sigma) / np.float32(255), 0, 1))


def jpeg(image: Floats, quality: int, *, swaps_red_blue: bool = True) -> Floats:
    """Compress as JPEG, 4:2:0.

    The published code hands its RGB array to an encoder that takes it for BGR, so luma weighs blue
    as red; the networks were trained on that.

    Args:
        image: In [0, 1]; rounded to 8 bits.
        quality: 1 to 100.
        swaps_red_blue: As published.
    """
    pixels = _to_uint8(image)
    if not swaps_red_blue:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_BGR) if done else None
    if decoded is None:
        raise RuntimeError(f"OpenCV made no JPEG of shape {image.shape}, quality {quality}")
    if not swaps_red_blue:
        decoded = np.ascontiguousarray(decoded[:, :, ::-1])
    return _float32(decoded) / np.float32(255)


def quantise(image: Floats) -> Floats:
    """Round to multiples of 1 / 255, half to even, and clip to [0, 1]."""
    return _float32(_to_uint8(image)) / np.float32(255)


def gray(image: Floats, *, swaps_red_blue: bool = True) -> Floats:
    """Replace the colours by their luma, as published with the weights of red and blue swapped."""
    way = cv2.COLOR_BGR2GRAY if swaps_red_blue else cv2.COLOR_RGB2GRAY
    luma = cv2.cvtColor(image, way)
    return _float32(np.repeat(luma[:, :, None], 3, axis=2))


def _float32(image: NDArray[np.floating] | cv2.typing.MatLike) -> Floats:
    return np.asarray(image, dtype=np.float32)


def _to_uint8(image: Floats) -> Pixels:
    pixels: Pixels = np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)
    return pixels


# -------------------------------------------------------------------------------------- chain


def degrade_float(image: Floats, params: DegradationParams, noise: Floats) -> Floats:
    """Run the whole chain with a given draw.

    Args:
        image: The clean face, (size, size, 3) float32 in [0, 1], not flipped yet.
        params: From `draw_params`.
        noise: From `draw_noise`, (low_side, low_side, 3).

    Returns:
        The degraded face, the same shape and range; multiples of 1 / 255 unless it is gray.
    """
    kernel = gaussian_kernel(params.kernel_side, params.sigma_x, params.sigma_y, params.theta)
    x = _flipped(image, params)
    x = blur(recolour(x, params.colour) if params.colour else x, kernel)
    if params.haze is not None:
        x = haze(x, params.haze)
    x = add_noise(resize(x, params.low_side), noise, params.noise_sigma)
    swaps = params.swaps_red_blue
    x = jpeg(x, params.jpeg_quality, swaps_red_blue=swaps)
    x = quantise(resize(x, params.size))
    return gray(x, swaps_red_blue=swaps) if params.gray else x


def truth_float(image: Floats, params: DegradationParams) -> Floats:
    """What the degraded face is to become: flip and gray happen to the true image too."""
    x = _flipped(image, params)
    return gray(x, swaps_red_blue=params.swaps_red_blue) if params.gray else x


def _flipped(image: Floats, params: DegradationParams) -> Floats:
    return np.ascontiguousarray(image[:, ::-1]) if params.flip else image


class Pair(NamedTuple):
    """A degraded face, what it is to become, and how it was made; (S, S, 3) uint8 RGB."""

    lq: Pixels
    truth: Pixels
    params: DegradationParams


def degrade_pair(
    image: Pixels,
    key: str,
    seed: int = 0,
    size: int = PUBLISHED_SIZE,
    config: DegradationConfig = STAGE_2,
) -> Pair:
    """Degrade one face; equal arguments give equal bytes.

    Args:
        image: Clean face, uint8 (H, W, 3) RGB; fitted to `size` if it has another one.
        key: Of the image; with the seed it decides everything that is random.
        seed: Of the data set.
        size: Side of the result in pixels.
        config: What is drawn from.
    """
    params = draw_params(config, size, seed=seed, key=key)
    clean = _float32(fit(image, size)) / np.float32(255)
    noise = draw_noise(params.low_side, seed=seed, key=key)
    lq = _to_uint8(degrade_float(clean, params, noise))
    return Pair(lq, _to_uint8(truth_float(clean, params)), params)


def degrade(
    image: Pixels,
    key: str,
    seed: int = 0,
    size: int = PUBLISHED_SIZE,
    config: DegradationConfig = STAGE_2,
) -> Pixels:
    """Degrade one face; equal arguments give equal bytes.

    Args:
        image: Clean face, uint8 (H, W, 3) RGB; fitted to `size` if it has another one.
        key: Of the image; with the seed it decides everything that is random.
        seed: Of the data set.
        size: Side of the result in pixels.
        config: What is drawn from; the default neither flips nor takes colours away.

    Returns:
        uint8 (size, size, 3) RGB.
    """
    return degrade_pair(image, key, seed, size, config).lq

"""What light, age and water do to colours: one step that may stand before the published chain.

It happens to the scene, before the camera blurs it and adds its noise, and to the degraded picture
alone: the true colours are what is to be restored. Everything is drawn from a stream of its own, as
plain numbers, so that no other draw changes by it.

Images are float32, RGB, (H, W, 3), in [0, 1].
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vsp_model.randomness import generator_for

Floats = NDArray[np.float32]
Channels = tuple[float, float, float]
"""Of red, green and blue."""
Water = Literal["I", "IA", "IB", "II", "III", "1", "3", "5", "7", "9"]
GRID = 4
"""Distances are drawn on so many by so many places, and smooth between them."""


def ordered(span: tuple[float, float]) -> tuple[float, float]:
    """Refuse a span whose ends stand the wrong way round."""
    if span[0] > span[1]:
        raise ValueError(f"{list(span)}: the lower end comes first")
    return span


Ordered = AfterValidator(ordered)
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Shift = Annotated[float, Field(ge=-1, le=1)]
PositiveSpan = Annotated[tuple[Positive, Positive], Ordered]
FractionSpan = Annotated[tuple[Fraction, Fraction], Ordered]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CastConfig(_Config):
    """A wrong white balance: each channel gain * x ** gamma + shift.

    Gains alone are von Kries's model (1902) of another light. The shift is that of GFPGAN's
    training (`color_jitter_shift`, 20 of 255), the rest our own [I].

    Attributes:
        gain: Of each channel, even in its logarithm.
        gamma: Of each channel, likewise.
        shift: Of each channel.
    """

    kind: Literal["cast"] = "cast"
    gain: PositiveSpan = (0.7, 1.4)
    gamma: PositiveSpan = (0.8, 1.25)
    shift: Annotated[tuple[Shift, Shift], Ordered] = (-0.08, 0.08)


class FadedConfig(_Config):
    """A print that has aged: dyes lose their density, the paper yellows. Our own ranges [I].

    Attributes:
        black: Where black comes to lie.
        white: Where white does.
        colour: What is left of the distance from grey.
        yellow: Share that the paper takes from blue; from green it takes a quarter of that.
    """

    kind: Literal["faded"] = "faded"
    black: FractionSpan = (0.08, 0.35)
    white: FractionSpan = (0.65, 0.95)
    colour: FractionSpan = (0.2, 0.8)
    yellow: FractionSpan = (0.05, 0.35)


class UnderwaterConfig(_Config):
    """Through water: x exp(-beta d) + veil (1 - exp(-beta d)), each channel with its own beta.

    The simplified model of image formation (McGlamery 1980; Jaffe 1990: forward scattering left
    out; the chain's blur stands for it), on stored values, as the synthetic sets of Li, Anwar and
    Porikli (2020).

    Attributes:
        waters: Kinds of water after Jerlov; the digits are coastal.
        distance_m: From camera to scene; the nearest and the farthest are drawn.
        least_left: What the clearest channel keeps at least: into murky water neither eye nor light
            goes far. Without it half of the kinds leave no scene at 15 m, the published end [I].
        depth_m: Of water that tinted the daylight before it became the veil [I]; published: white.
        veil: Of its brightest channel; published 0.8 to 1.
    """

    kind: Literal["underwater"] = "underwater"
    waters: Annotated[tuple[Water, ...], Field(min_length=1)] = get_args(Water)
    distance_m: PositiveSpan = (0.5, 15.0)
    least_left: Annotated[float, Field(gt=0, lt=1)] = 0.35
    depth_m: PositiveSpan = (1.0, 6.0)
    veil: FractionSpan = (0.6, 1.0)


ColourConfig = Annotated[CastConfig | FadedConfig | UnderwaterConfig, Field(discriminator="kind")]


class CastParams(NamedTuple):
    """One draw of `CastConfig`."""

    gain: Channels
    gamma: Channels
    shift: Channels
    kind: str = "cast"


class FadedParams(NamedTuple):
    """One draw of `FadedConfig`."""

    black: float
    white: float
    colour: float
    yellow: float
    kind: str = "faded"


class UnderwaterParams(NamedTuple):
    """One draw of `UnderwaterConfig`."""

    water: Water
    near_m: float
    far_m: float
    grid: tuple[float, ...]
    """Where between near and far the places lie, row by row, 0 to 1."""
    veil: Channels
    kind: str = "underwater"


ColourParams = CastParams | FadedParams | UnderwaterParams

LEFT_PER_METRE: Mapping[Water, Channels] = {
    "I": (0.805, 0.961, 0.982),
    "IA": (0.804, 0.955, 0.975),
    "IB": (0.830, 0.950, 0.968),
    "II": (0.800, 0.925, 0.940),
    "III": (0.750, 0.885, 0.890),
    "1": (0.750, 0.885, 0.875),
    "3": (0.710, 0.820, 0.800),
    "5": (0.670, 0.730, 0.670),
    "7": (0.620, 0.610, 0.500),
    "9": (0.550, 0.460, 0.290),
}
"""exp(-beta) of a metre: Li, Anwar, Porikli 2020 (Pattern Recognition 98), Table 1, after Chiang
and Chen 2012 (TIP 21) and Jerlov, Marine Optics, 1976."""


# ------------------------------------------------------------------------------------ drawing


def draw_colour(config: ColourConfig, *, seed: int, key: str) -> ColourParams:
    """Draw what happens to the colours of one image."""
    stream = generator_for(seed, key, "degradation colour")
    if isinstance(config, CastConfig):
        gain, gamma = (_even_in_log(span, stream) for span in (config.gain, config.gamma))
        return CastParams(gain, gamma, _channels(stream.uniform(*config.shift, 3)))
    if isinstance(config, FadedConfig):
        spans = np.array([config.black, config.white, config.colour, config.yellow])
        black, white, colour, yellow = stream.uniform(spans[:, 0], spans[:, 1]).tolist()
        return FadedParams(black, white, colour, yellow)
    return _draw_water(config, stream)


def _draw_water(config: UnderwaterConfig, stream: np.random.Generator) -> UnderwaterParams:
    water = config.waters[int(stream.integers(len(config.waters)))]
    near, far = sorted(stream.uniform(*config.distance_m, 2).tolist())
    depth, level = stream.uniform(*config.depth_m), stream.uniform(*config.veil)
    grid = tuple(stream.random(GRID * GRID).tolist())
    left = np.array(LEFT_PER_METRE[water])
    most = math.log(config.least_left) / math.log(left.max())
    tint = left ** min(depth, most)
    veil = _channels(level * tint / tint.max())
    return UnderwaterParams(water, min(near, most), min(far, most), grid, veil)


def _even_in_log(span: tuple[float, float], stream: np.random.Generator) -> Channels:
    low, high = map(math.log, span)
    return _channels(np.exp(stream.uniform(low, high, 3)))


def _channels(values: NDArray[np.float64]) -> Channels:
    red, green, blue = values.tolist()
    return red, green, blue


# -------------------------------------------------------------------------------------- steps


def recolour(image: Floats, params: ColourParams) -> Floats:
    """Do to an image what was drawn; the same shape, clipped to [0, 1]."""
    if isinstance(params, CastParams):
        changed = cast(image, params)
    elif isinstance(params, FadedParams):
        changed = fade(image, params)
    else:
        changed = submerge(image, params)
    clipped: Floats = np.clip(changed, 0, 1, dtype=np.float32)
    return clipped


def cast(image: Floats, params: CastParams) -> Floats:
    """Gain, gamma and shift of each channel; see `CastConfig`."""
    gain, gamma, shift = (np.array(values, np.float32) for values in params[:3])
    return _float32(gain * image**gamma + shift)


def fade(image: Floats, params: FadedParams) -> Floats:
    """Towards grey, then between the new black and white, on yellow paper; see `FadedConfig`."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    x = luma + np.float32(params.colour) * (image - luma)
    x = np.float32(params.black) + np.float32(params.white - params.black) * x
    paper = np.array([1, 1 - params.yellow / 4, 1 - params.yellow], np.float32)
    return _float32(x * paper)


def submerge(image: Floats, params: UnderwaterParams) -> Floats:
    """Attenuation with the distance, and the veiling light in its place; see `UnderwaterConfig`."""
    distance = distance_map(params, image.shape[0], image.shape[1])[:, :, None]
    beta = -np.log(np.array(LEFT_PER_METRE[params.water], np.float32))
    left = np.exp(-beta * distance)
    return _float32(image * left + np.array(params.veil, np.float32) * (1 - left))


def distance_map(params: UnderwaterParams, height: int, width: int) -> Floats:
    """Metres to the scene, (H, W): smooth, from near to far."""
    grid = np.array(params.grid, np.float32).reshape(GRID, GRID)
    smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return _float32(params.near_m + (params.far_m - params.near_m) * np.clip(smooth, 0, 1))


def _float32(image: NDArray[np.floating] | cv2.typing.MatLike) -> Floats:
    return np.asarray(image, dtype=np.float32)

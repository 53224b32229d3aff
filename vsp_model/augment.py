"""Adaptive discriminator augmentation (Karras et al. 2020, "ADA"), with what VSPBFR changed in it.

Drawing is apart from applying: ``sample_matrices`` turns a generator into one affine map and one
colour matrix per image, ``apply`` is a function of image and matrices that can be differentiated
twice (R1 passes through it).

Coordinates are centred pixels, x right and y down. Shapes: B batch, (H, W) pixels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsp_model.config import Config
from vsp_model.ops import upfirdn2d

# The symlet of six vanishing moments: low-pass, of sum sqrt(2), so that up and down cancel.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_MARGIN = 3  # pixels on each side for the tails of the filter
_LUMA_AXIS = (3**-0.5, 3**-0.5, 3**-0.5, 0.0)


class AugmentConfig(Config):
    """How the probability follows the discriminator; the defaults are published."""

    target: float = 0.6
    """Mean sign of the logits of real images that is aimed at."""
    interval: int = 8
    """Iterations between two changes of the probability."""
    ramp_images: int = 500_000
    """Images after which an unbroken rise would reach 1."""


class Matrices(NamedTuple):
    """One augmentation per image, float32."""

    inverse_affine: Tensor
    """Output coordinates -> input coordinates, (B, 3, 3)."""
    color: Tensor
    """Acts on (R, G, B, 1), (B, 4, 4)."""


class AugmentController:
    """The probability p, driven by the signs of the discriminator's logits of real images."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.probability = 0.0
        self._iterations = 0
        self._signs = torch.zeros(2)  # sum of signs, number of logits since the last change

    def observe(self, real_logits: Tensor) -> None:
        """Count one iteration's logits, (B, 1); every ``interval`` iterations p moves."""
        self.observe_sign(real_logits.detach().float().sign().mean(), real_logits.numel())

    def observe_sign(self, mean_sign: Tensor, num_images: int) -> None:
        """As ``observe``, of an iteration whose logits several workers computed."""
        seen = torch.stack([mean_sign * num_images, torch.full_like(mean_sign, num_images)])
        self._signs = self._signs.to(seen.device) + seen  # no wait for the device until p moves
        self._iterations += 1
        if self._iterations % self.config.interval == 0:
            self._move()

    def _move(self) -> None:
        total, images = self._signs.tolist()
        direction = 1 if total / images > self.config.target else -1
        step = direction * images / self.config.ramp_images
        self.probability = min(1.0, max(0.0, self.probability + step))
        self._signs = torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "probability": self.probability,
            "iterations": self._iterations,
            "signs": self._signs.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.probability = float(state["probability"])
        self._iterations = int(state["iterations"])
        self._signs = torch.tensor(state["signs"])


def augment(image: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Draw and apply; with probability 0 the image comes back untouched and nothing is drawn.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        probability: of each transform.
        generator: on the CPU.
    """
    if probability == 0:
        return image
    b, _, h, w = image.shape
    return apply(image, *sample_matrices(b, (h, w), probability, generator))


# ------------------------------------------------------------------------------------ drawing


class _Draws:
    """Random numbers for a batch, (B,) float64, on the CPU."""

    def __init__(self, batch: int, generator: torch.Generator) -> None:
        self.batch = batch
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        unit = torch.rand(self.batch, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * unit

    def normal(self) -> Tensor:
        return torch.randn(self.batch, generator=self.generator, dtype=torch.float64)

    def coin(self) -> Tensor:
        return (self.uniform() < 0.5).double()

    def compose(self, transform: Tensor, probability: float, before: Tensor) -> Tensor:
        """``transform`` after ``before``, in the images that chance picks."""
        picked = (self.uniform() < probability)[:, None, None]
        return torch.where(picked, transform @ before, before)


def sample_matrices(
    batch: int, size: tuple[int, int], probability: float, generator: torch.Generator
) -> Matrices:
    """Draw one augmentation per image.

    Args:
        batch: B.
        size: (H, W); shifts are fractions of it.
        probability: of each transform, in [0, 1].
        generator: on the CPU; fixes the result.
    """
    draws = _Draws(batch, generator)
    affine = _sample_affine(draws, size, probability)
    color = _sample_color(draws, probability)
    return Matrices(torch.linalg.inv(affine).float(), color.float())


def _sample_affine(draws: _Draws, size: tuple[int, int], p: float) -> Tensor:
    """Input coordinates -> output coordinates, (B, 3, 3) float64.

    As published, the quarter turns are none or three (90 and 180 degrees are missing), and flip
    and turn happen with p / 2, since a fair coin decides after p did.
    """
    h, w = size
    one = torch.ones(draws.batch, dtype=torch.float64)
    p_turn = 1 - math.sqrt(1 - p)  # twice, so that p is the chance of at least one
    g = torch.eye(3, dtype=torch.float64).expand(draws.batch, 3, 3)
    g = draws.compose(_scaling(1 - 2 * draws.coin(), one), p, g)
    g = draws.compose(_rotation(-1.5 * math.pi * draws.coin()), p, g)
    x, y = draws.uniform(-0.125, 0.125), draws.uniform(-0.125, 0.125)
    g = draws.compose(_translation((x * w).round(), (y * h).round()), p, g)
    zoom = torch.exp2(0.2 * draws.normal())
    g = draws.compose(_scaling(zoom, zoom), p, g)
    g = draws.compose(_rotation(draws.uniform(-math.pi, math.pi)), p_turn, g)
    stretch = torch.exp2(0.2 * draws.normal())
    g = draws.compose(_scaling(stretch, 1 / stretch), p, g)
    g = draws.compose(_rotation(draws.uniform(-math.pi, math.pi)), p_turn, g)
    x, y = 0.125 * draws.normal(), 0.125 * draws.normal()
    return draws.compose(_translation(x * w, y * h), p, g)


def _sample_color(draws: _Draws, p: float) -> Tensor:
    """(R, G, B, 1) -> (R, G, B, 1), (B, 4, 4) float64; a fair coin halves the luma flip's p."""
    eye = torch.eye(4, dtype=torch.float64)
    axis = torch.tensor(_LUMA_AXIS, dtype=torch.float64)
    luma = torch.outer(axis, axis)
    c = eye.expand(draws.batch, 4, 4)
    c = draws.compose(_brightness(0.2 * draws.normal()), p, c)
    c = draws.compose(_contrast(torch.exp2(0.5 * draws.normal())), p, c)
    c = draws.compose(eye - 2 * luma * draws.coin()[:, None, None], p, c)
    c = draws.compose(_hue(draws.uniform(-math.pi, math.pi), axis), p, c)
    saturation = torch.exp2(draws.normal())[:, None, None]
    return draws.compose(luma + saturation * (eye - luma), p, c)


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _translation(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix([[one, zero, x], [zero, one, y], [zero, zero, one]])


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, one]])


def _brightness(shift: Tensor) -> Tensor:
    color = torch.eye(4, dtype=shift.dtype).repeat(len(shift), 1, 1)
    color[:, :3, 3] = shift[:, None]
    return color


def _contrast(factor: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([factor] * 3 + [torch.ones_like(factor)], dim=-1))


def _hue(angle: Tensor, axis: Tensor) -> Tensor:
    """Turn about the luma axis (Rodrigues' formula)."""
    x, y, z, _ = axis.tolist()
    cross = torch.zeros(4, 4, dtype=axis.dtype)
    cross[:3, :3] = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turned = c * torch.eye(4, dtype=axis.dtype) + s * cross + (1 - c) * torch.outer(axis, axis)
    turned[:, 3, 3] = 1
    return turned


# ----------------------------------------------------------------------------------- applying


def apply(image: Tensor, inverse_affine: Tensor, color: Tensor) -> Tensor:
    """Transform geometry, then colour; identity matrices give the image back to about 2e-6.

    Args:
        image: (B, 3, H, W); computed in float32 or wider, also under autocast.
        inverse_affine: output coordinates -> input coordinates, (B, 3, 3).
        color: acts on (R, G, B, 1), (B, 4, 4).

    Returns:
        (B, 3, H, W).
    """
    with torch.autocast(image.device.type, enabled=False):
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        return apply_color(apply_affine(wide, inverse_affine), color)


def apply_color(image: Tensor, color: Tensor) -> Tensor:
    """Per pixel, the first three rows of ``color`` times (R, G, B, 1)."""
    color = color.to(image)
    mixed = torch.einsum("bij,bjhw->bihw", color[:, :3, :3], image)
    return mixed + color[:, :3, 3, None, None]


def apply_affine(image: Tensor, inverse_affine: Tensor) -> Tensor:
    """Resample at twice the resolution under a wavelet filter (ADA, Sec. B.2).

    The reflected border is as wide as the batch's widest view needs, so it waits for the device.
    """
    _, _, h, w = image.shape
    left, right, top, bottom = pad = _padding(inverse_affine, h, w)
    x = F.pad(image, pad, mode="reflect")
    taps = torch.tensor(SYM6, dtype=image.dtype, device=image.device)
    half = len(SYM6) // 2
    x = upfirdn2d(x, taps[None, :], up=(2, 1), pad=(half, half - 1, 0, 0))
    x = upfirdn2d(x, taps[:, None], up=(1, 2), pad=(0, 0, half, half - 1))
    centre = _shift((left - right) / 2, (top - bottom) / 2)
    x = _Sample.apply(x, _grid(centre @ inverse_affine.double().cpu(), x, (h, w)))
    mirrored = taps.flip(0)
    x = upfirdn2d(x, mirrored[None, :], down=(2, 1), pad=(-1, -1, 0, 0))
    return upfirdn2d(x, mirrored[:, None], down=(1, 2), pad=(0, 0, -1, -1))


def _padding(inverse_affine: Tensor, h: int, w: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom: how far the batch looks over the edge, at most a reflection."""
    x, y = (w - 1) / 2, (h - 1) / 2
    corners = torch.tensor([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]], dtype=torch.float64)
    seen = corners @ inverse_affine.double().cpu().transpose(1, 2)  # (B, 4, 3)
    (x_low, y_low, _), (x_high, y_high, _) = seen.amin((0, 1)).tolist(), seen.amax((0, 1)).tolist()

    def over(reach: float, half_side: float, side: int) -> int:
        return math.ceil(min(max(reach + 2 * _MARGIN - half_side, 0), side - 1))

    return over(-x_low, x, w), over(x_high, x, w), over(-y_low, y, h), over(y_high, y, h)


def _grid(inverse_affine: Tensor, source: Tensor, size: tuple[int, int]) -> Tensor:
    """Where to sample the doubled and padded source, (B, 2H + 12, 2W + 12, 2) in [-1, 1] units."""
    batch, channels, source_h, source_w = source.shape
    h, w = (2 * (side + 2 * _MARGIN) for side in size)
    doubled = _stretch(2, 2) @ inverse_affine @ _stretch(0.5, 0.5)
    doubled = _shift(-0.5, -0.5) @ doubled @ _shift(0.5, 0.5)
    theta = _stretch(2 / source_w, 2 / source_h) @ doubled @ _stretch(w / 2, h / 2)
    theta = theta[:, :2].to(source.dtype).to(source.device)  # not every device knows float64
    return F.affine_grid(theta, [batch, channels, h, w], align_corners=False)


def _shift(x: float, y: float) -> Tensor:
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def _stretch(x: float, y: float) -> Tensor:
    return torch.diag(torch.tensor([x, y, 1], dtype=torch.float64))


class _Sample(torch.autograd.Function):
    """Bilinear sampling, zeros outside. It is linear in the image, so it has every derivative.

    torch's own ``grid_sample`` stops at the first one.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = image.shape
        return F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _SampleTransposed.apply(gradient, grid, ctx.shape), None


class _SampleTransposed(torch.autograd.Function):
    """The transposed map of ``_Sample``, whose transposed map is ``_Sample`` again."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            image = gradient.new_zeros(shape, requires_grad=True)
            sampled = F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
        (transposed,) = torch.autograd.grad(sampled, image, gradient)
        return transposed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(gradient, grid), None, None

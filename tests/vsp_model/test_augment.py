import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vsp_model.augment import (
    SYM6,
    AugmentConfig,
    AugmentController,
    apply,
    apply_affine,
    apply_color,
    augment,
    sample_matrices,
)

PARITY = Path(__file__).resolve().parents[1] / "parity_data"


@pytest.fixture
def published():
    with np.load(PARITY / "public/ada.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files if name != "meta"}


def images(*shape, dtype=torch.float32):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=dtype) - 1


def eye(batch, side):
    return torch.eye(side).expand(batch, side, side)


def affine(rows):
    return torch.tensor([[*rows, [0, 0, 1]]], dtype=torch.float32)


# ----------------------------------------------------------------------------------- applying


def test_published_outputs(published):
    x, inverse_affine = published["x"], published["inverse_affine"]
    assert torch.equal(torch.tensor(SYM6, dtype=torch.float64), published["sym6"])
    out = apply(x, inverse_affine, published["color"])
    assert (out - published["out"]).abs().max() < 1e-5
    assert (apply_affine(x, inverse_affine) - published["out_affine_only"]).abs().max() < 1e-5
    assert (apply(x, eye(3, 3), eye(3, 4)) - published["out_identity"]).abs().max() < 1e-5


def test_identity_gives_the_image_back():
    x = images(2, 3, 24, 40)
    assert (apply(x, eye(2, 3), eye(2, 4)) - x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 0, 5], [0, 1, 0]], lambda x: torch.cat([x[..., 5:], x.flip(3)[..., 1:6]], 3)),
        ([[1, 0, 0], [0, 1, -5]], lambda x: torch.cat([x.flip(2)[:, :, -6:-1], x[:, :, :-5]], 2)),
    ],
    ids=["x", "y"],
)
def test_whole_pixel_shifts_are_exact(rows, expected):
    """The matrix maps output to input coordinates, y down; what lies outside is a reflection."""
    x = images(1, 3, 32, 32)
    assert (apply_affine(x, affine(rows)) - expected(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[-1, 0, 0], [0, 1, 0]], lambda x: x.flip(3)),
        ([[0, 1, 0], [-1, 0, 0]], lambda x: x.rot90(-1, (2, 3))),
    ],
    ids=["flip", "quarter turn"],
)
def test_flips_and_turns_keep_smooth_images(rows, expected):
    """The symlet is not quite symmetric, so even what is smooth moves a little (here by 0.03)."""
    coarse = images(1, 3, 4, 4)
    x = F.interpolate(coarse, (32, 32), mode="bicubic", align_corners=False)
    assert (apply_affine(x, affine(rows)) - expected(x)).abs().max() < 0.05


def test_colours_are_mixed_by_rows():
    x = images(1, 3, 4, 4)
    swap = torch.tensor([[[0, 0, 1, 0.5], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 7]]])
    expected = torch.stack([x[:, 2] + 0.5, x[:, 1], 2 * x[:, 0]], dim=1)
    assert torch.allclose(apply_color(x, swap), expected)


def test_autocast_changes_nothing(published):
    arguments = [published[name] for name in ("x", "inverse_affine", "color")]
    plain = apply(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply(*arguments), plain)


def test_the_image_can_be_differentiated_twice():
    generator = torch.Generator().manual_seed(5)
    matrices = [m.double() for m in sample_matrices(1, (5, 5), 1.0, generator)]
    x = images(1, 3, 5, 5, dtype=torch.float64).requires_grad_()

    def curved(x):
        """As the discriminator is for R1."""
        return apply(x, *matrices).pow(3).sum()

    assert torch.autograd.gradcheck(curved, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(curved, x, fast_mode=True)


# ------------------------------------------------------------------------------------ drawing


def test_equal_generators_draw_equal_matrices():
    first, second = (
        sample_matrices(4, (16, 16), 0.7, torch.Generator().manual_seed(9)) for _ in range(2)
    )
    assert torch.equal(first.inverse_affine, second.inverse_affine)
    assert torch.equal(first.color, second.color)
    assert not torch.equal(first.color[0], first.color[1])


def test_probability_zero_changes_nothing_and_draws_nothing():
    generator = torch.Generator().manual_seed(9)
    before = generator.get_state()
    x = images(2, 3, 8, 8)
    assert augment(x, 0.0, generator) is x
    assert torch.equal(generator.get_state(), before)
    matrices = sample_matrices(2, (8, 8), 0.0, generator)
    assert torch.equal(matrices.inverse_affine, eye(2, 3))
    assert torch.equal(matrices.color, eye(2, 4))


def test_flips_happen_with_half_the_probability():
    """Of all transforms only the flip mirrors the plane, only the luma flip the colour space."""
    inverse_affine, color = sample_matrices(4000, (8, 8), 0.6, torch.Generator().manual_seed(2))
    for matrices in (inverse_affine, color[:, :3, :3]):
        mirrored = (torch.linalg.det(matrices.double()) < 0).float().mean().item()
        assert mirrored == pytest.approx(0.3, abs=0.03)


def test_spreads_are_the_published_ones():
    """With p = 1: zoom 2^(0.2 n) decides the area; colour volume and shift follow their laws."""
    inverse_affine, color = sample_matrices(6000, (64, 64), 1.0, torch.Generator().manual_seed(2))
    area = torch.linalg.det(inverse_affine.double()).abs().log2()
    assert area.mean().item() == pytest.approx(0, abs=0.02)
    assert area.std().item() == pytest.approx(2 * 0.2, rel=0.05)
    volume = torch.linalg.det(color[:, :3, :3].double()).abs().log2()
    assert volume.std().item() == pytest.approx(math.hypot(3 * 0.5, 2), rel=0.05)
    shift = torch.linalg.inv(inverse_affine.double())[:, :2, 2]
    integer, fractional = 64 * 0.25 / math.sqrt(12), 64 * 0.125
    # The whole-pixel shift passes through zoom and stretch, which widen it by a few per cent.
    assert shift.std().item() == pytest.approx(math.hypot(integer, fractional), rel=0.05)


def test_gray_stays_gray():
    """Brightness, contrast, luma flip, hue and saturation all keep the luma axis."""
    _, color = sample_matrices(16, (8, 8), 1.0, torch.Generator().manual_seed(4))
    gray = images(16, 1, 4, 4).expand(-1, 3, -1, -1)
    mixed = apply_color(gray, color)
    assert (mixed - mixed.mean(dim=1, keepdim=True)).abs().max() < 1e-5
    assert not torch.allclose(mixed, gray, atol=0.1)


# --------------------------------------------------------------------------------- controller


def observe(controller, value, iterations, batch=4):
    for _ in range(iterations):
        controller.observe(torch.full((batch, 1), value))


def test_probability_follows_the_signs():
    controller = AugmentController(AugmentConfig(ramp_images=320))
    observe(controller, 3.0, 7)
    assert controller.probability == 0
    observe(controller, 3.0, 1)
    assert controller.probability == pytest.approx(8 * 4 / 320)
    observe(controller, 3.0, 8 * 20)
    assert controller.probability == 1
    observe(controller, -3.0, 8)
    assert controller.probability == pytest.approx(0.9)
    observe(controller, -3.0, 8 * 20)
    assert controller.probability == 0


def test_the_target_is_the_mean_sign():
    """Nine of ten logits positive is a mean sign of 0.8, three of four one of 0.5."""
    for positive, total, expected in ((9, 10, 0.25), (3, 4, 0.15)):
        controller = AugmentController(AugmentConfig(interval=1, ramp_images=total * 20))
        controller.probability = 0.2
        logits = torch.full((total, 1), 0.01)
        logits[positive:] = -100.0
        controller.observe(logits)
        assert controller.probability == pytest.approx(expected)


def test_a_resumed_controller_goes_on_in_mid_interval():
    straight, first = (AugmentController(AugmentConfig(ramp_images=320)) for _ in range(2))
    for controller in (straight, first):
        observe(controller, 1.0, 15)
    resumed = AugmentController(AugmentConfig(ramp_images=320))
    resumed.load_state_dict(first.state_dict())
    for controller in (straight, resumed):
        observe(controller, -0.5, 1)
    assert resumed.state_dict() == straight.state_dict()
    assert resumed.probability == pytest.approx(0.2)

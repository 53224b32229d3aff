"""The style encoder: its two resizes, its pyramid, its tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.vsp_model.tiny import lively, some_faces, tiny_config
from vsp_model.irse import BottleneckIRSE, SqueezeExcitation
from vsp_model.style_encoder import StyleBlock, StyleEncoder, StyleEncoderConfig, first_convs


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return lively(StyleEncoder(tiny_config(32, prior_size=64).encoder)).eval().requires_grad_(False)


def test_the_input_is_resized_with_half_pixel_centres_and_no_antialiasing(encoder):
    halved = encoder.resize(some_faces(1, 64))
    torch.testing.assert_close(halved, F.avg_pool2d(some_faces(1, 64), 2))
    quarter = encoder.resize(some_faces(1, 128))
    centre = F.avg_pool2d(some_faces(1, 128)[:, :, 1:-1, 1:-1], 2, stride=4)
    torch.testing.assert_close(quarter, centre)  # antialiasing would look at all 16 pixels
    face = some_faces(1, 32)
    assert encoder.resize(face) is face


def test_the_pyramid_is_enlarged_with_aligned_corners(encoder):
    face = some_faces(2, 32)
    coarse, middle, fine = encoder.pyramid(face)
    assert [m.shape[-1] for m in (coarse, middle, fine)] == [2, 4, 8]
    taps = encoder.body(face)
    from_coarse = middle - encoder.lateral_middle(taps[2])
    from_middle = fine - encoder.lateral_fine(taps[1])
    for large, small in ((from_coarse, coarse), (from_middle, middle)):
        # Along the upper edge the first and last samples stay, the others divide it evenly.
        place = torch.linspace(0, small.shape[3] - 1, large.shape[3])
        left, edge = place.long().clamp(max=small.shape[3] - 2), small[:, :, 0]
        part = place - left
        expected = edge[..., left] * (1 - part) + edge[..., left + 1] * part
        torch.testing.assert_close(large[:, :, 0], expected, rtol=0, atol=1e-5)


def test_tokens_read_three_levels_of_the_pyramid():
    assert StyleEncoderConfig().token_sides == (16,) * 3 + (32,) * 4 + (64,) * 11


def test_first_convolutions_run_as_one(encoder):
    blocks, x = list(encoder.styles[:3]), torch.randn(2, 16, 2, 2)
    together = first_convs(blocks, x)
    for block, first in zip(blocks, together, strict=True):
        torch.testing.assert_close(first, block.convs[0](x), rtol=0, atol=1e-6)


def test_a_style_block_leaks_a_hundredth():
    block = StyleBlock(1, 1, 4).double()
    nn.init.ones_(block.linear.weight)
    for conv in block.convs:
        nn.init.ones_(conv.weight)
        nn.init.zeros_(conv.bias)
    first = torch.full((1, 1, 2, 2), -1.0, dtype=torch.float64)
    assert block(first).item() == pytest.approx(4 * -0.01 * 0.01)


def test_tokens_are_differences_to_the_first_around_the_average(encoder):
    face = some_faces(2, 32)
    codes = encoder(face)
    assert codes.shape == (2, 10, 16)
    torch.testing.assert_close(codes - encoder.latent_avg, encoder.encode(face))
    linear = encoder.styles[4].linear
    kept = [p.clone() for p in (linear.weight, linear.bias)]
    linear.weight.zero_()
    linear.bias.zero_()
    flat = encoder.encode(face)
    for p, value in zip((linear.weight, linear.bias), kept, strict=True):
        p.copy_(value)
    assert torch.equal(flat[:, 4], flat[:, 0])
    others = [i for i in range(10) if i != 4]
    assert torch.equal(flat[:, others], encoder.encode(face)[:, others])


def test_a_unit_of_equal_width_subsamples_its_shortcut():
    unit, x = BottleneckIRSE(4, 4, 2, 2).eval(), torch.randn(1, 4, 6, 6)
    assert not list(unit.shortcut.parameters())
    assert torch.equal(unit(x), unit.residual(x) + x[:, :, ::2, ::2])


def test_squeeze_excitation_gates_each_channel():
    layer, x = SqueezeExcitation(4, 2), torch.randn(2, 4, 3, 3)
    squeezed = F.relu(x.mean((2, 3)) @ layer.fc1.weight[:, :, 0, 0].T)
    gate = (squeezed @ layer.fc2.weight[:, :, 0, 0].T).sigmoid()
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])

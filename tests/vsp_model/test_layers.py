"""The layers against their definitions, and R1's second backward pass through each of them."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

from tests.vsp_model.tiny import lively, naive_conv, naive_upfirdn2d
from vsp_model.layers import (
    AggregatedConv,
    ConvLayer,
    EqualLinear,
    MappingNetwork,
    NoiseInjection,
    ResBlock,
    StyledConv,
    ToRGB,
)
from vsp_model.ops import bias_act, fir_kernel, modulated_conv2d
from vsp_model.smart import SmartLayer


def wide(*shape):
    return torch.randn(shape, dtype=torch.float64)


def phi(x):
    return 2**0.5 * F.leaky_relu(x, 0.2)


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
@pytest.mark.parametrize("activate", [True, False])
def test_equal_linear_is_its_formula(activate, multiplier):
    layer = EqualLinear(6, 4, bias_init=1.0, lr_multiplier=multiplier, activate=activate).double()
    assert (layer.bias == 1).all()
    x = wide(3, 6)
    y = x @ (layer.weight * multiplier / 6**0.5).T + layer.bias * multiplier
    torch.testing.assert_close(layer(x), phi(y) if activate else y, rtol=0, atol=1e-12)


def test_equal_linear_starts_with_weights_that_undo_the_multiplier():
    weight = EqualLinear(256, 256, lr_multiplier=0.01).weight
    assert weight.std().item() == pytest.approx(100, rel=0.02)


def test_mapping_normalises_features_then_activates_every_layer():
    mapping = lively(MappingNetwork(5, 2, 0.01)).double()
    z = wide(3, 5)
    s = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in mapping.layers:
        s = phi(s @ (layer.weight * 0.01 / 5**0.5).T + layer.bias * 0.01)
    torch.testing.assert_close(mapping(z), s, rtol=1e-7, atol=0)


def test_mapping_stays_float32_under_autocast():
    mapping, z = MappingNetwork(16, 4, 0.01), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        s = mapping(z)
    assert s.dtype == torch.float32
    assert torch.equal(s, mapping(z))


def test_noise_is_shared_by_channels_and_scaled_by_one_number():
    layer, x, noise = NoiseInjection(), torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4)
    assert torch.equal(layer(x, noise), x)  # as initialised
    torch.nn.init.constant_(layer.strength, 0.5)
    torch.testing.assert_close(layer(x, noise) - x, (0.5 * noise).expand_as(x))
    assert layer(x, None) is x


@pytest.mark.parametrize(("resample", "side"), [("same", 6), ("up", 12), ("down", 3)])
def test_styled_layer_is_convolution_noise_activation(resample, side):
    layer = lively(StyledConv(3, 5, 4, resample)).double()
    x, style, noise = wide(2, 3, 6, 6), wide(2, 4), wide(2, 1, side, side)
    modulation = style @ layer.modulation.weight.T / 2 + layer.modulation.bias
    y = modulated_conv2d(x, layer.weight, modulation, resample=resample, fir=layer.fir)
    y = phi(y + layer.noise.strength * noise + layer.bias.reshape(1, 5, 1, 1))
    assert y.shape == (2, 5, side, side)
    torch.testing.assert_close(layer(x, style, noise), y, rtol=0, atol=1e-12)


def test_to_rgb_does_not_demodulate_and_adds_the_doubled_previous_image():
    layer = lively(ToRGB(4, 3)).double()
    x, style, previous = wide(2, 4, 6, 6), wide(2, 3), wide(2, 3, 3, 3)
    modulation = layer.modulation(style)
    y = torch.einsum("oi,bi,bihw->bohw", layer.weight[:, :, 0, 0] / 2, modulation, x)
    y = y + layer.bias.reshape(1, 3, 1, 1)
    torch.testing.assert_close(layer(x, style), y, rtol=0, atol=1e-12)
    doubled = naive_upfirdn2d(previous, fir_kernel(4.0, torch.float64), up=(2, 2), pad=(2, 1, 2, 1))
    torch.testing.assert_close(layer(x, style, previous), y + doubled, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "fir_pad"), [(3, 2), (1, 1)])
def test_conv_layer_reduces_by_filter_and_stride(side, fir_pad):
    plain = lively(ConvLayer(3, 4, side)).double()
    reducing = lively(ConvLayer(3, 4, side, reduce=True, activate=False)).double()
    assert reducing.bias is None
    x = wide(1, 3, 6, 6)
    gain = (3 * side**2) ** -0.5
    y = naive_conv(x[0], plain.weight * gain, pad=side // 2)
    y = phi(y + plain.bias.reshape(4, 1, 1))
    torch.testing.assert_close(plain(x)[0], y, rtol=0, atol=1e-12)
    filtered = naive_upfirdn2d(x, fir_kernel(1.0, torch.float64), pad=(fir_pad,) * 4)
    y = naive_conv(filtered[0], reducing.weight * gain, stride=2)
    assert y.shape == (4, 3, 3)
    torch.testing.assert_close(reducing(x)[0], y, rtol=0, atol=1e-12)


def test_residual_block_halves_and_keeps_the_variance():
    block = lively(ResBlock(3, 5)).double()
    x = wide(2, 3, 8, 8)
    y = (block.conv2(block.conv1(x)) + block.skip(x)) / 2**0.5
    assert y.shape == (2, 5, 4, 4)
    torch.testing.assert_close(block(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [1, 3])
def test_aggregated_convolution_merges_the_rates_and_activates_twice(side):
    layer = lively(AggregatedConv(3, 8, side, (1, 2, 4, 8))).double()
    x = wide(1, 3, 5, 5)
    blocks = zip((layer.weight * (3 * side**2) ** -0.5).chunk(4), (1, 2, 4, 8), strict=True)
    branches = torch.cat([naive_conv(x[0], w, pad=r * (side // 2), rate=r) for w, r in blocks])
    fused = naive_conv(branches, layer.fusion.weight * 8**-0.5)
    fused = phi(fused + layer.fusion.bias.reshape(8, 1, 1))
    y = phi(fused + layer.bias.reshape(8, 1, 1))
    torch.testing.assert_close(layer(x)[0], y, rtol=0, atol=1e-12)


def test_smart_layer_shares_one_modulation_and_activates_around_the_noise():
    layer = lively(SmartLayer(3, 8, 4)).double()
    x, style, noise = wide(2, 3, 5, 5), wide(2, 4), wide(2, 1, 5, 5)
    modulation = layer.modulation(style)
    branches = [
        modulated_conv2d(x, w, modulation, dilations=(r,))
        for w, r in zip(layer.weight.chunk(4), (1, 2, 4, 8), strict=True)
    ]
    branches = torch.cat(branches, dim=1)
    torch.testing.assert_close(layer.branches(x, style), branches, rtol=0, atol=1e-12)
    fused = F.conv2d(branches, layer.fusion.weight * 72**-0.5, padding=1)
    fused = bias_act(fused, layer.fusion.bias) + layer.noise.strength * noise
    y = bias_act(fused, layer.bias)
    torch.testing.assert_close(layer(x, style, noise), y, rtol=0, atol=1e-12)


def test_smart_layer_refuses_channels_it_cannot_split():
    with pytest.raises(ValueError, match="10 output channels can't be split among 4 dilation"):
        SmartLayer(4, 10, 8)


LAYERS = {
    "linear": (lambda: EqualLinear(4, 3, activate=True), [(2, 4)]),
    "mapping": (lambda: MappingNetwork(4, 2, 0.5), [(2, 4)]),
    "styled": (lambda: StyledConv(3, 4, 2), [(2, 3, 6, 6), (2, 2)]),
    "styled, one image": (lambda: StyledConv(3, 4, 2), [(1, 3, 6, 6), (1, 2)]),
    "styled up": (lambda: StyledConv(3, 4, 2, "up"), [(2, 3, 6, 6), (2, 2)]),
    "styled down": (lambda: StyledConv(3, 4, 2, "down"), [(2, 3, 6, 6), (2, 2)]),
    "rgb": (lambda: ToRGB(3, 2), [(2, 3, 6, 6), (2, 2), (2, 3, 3, 3)]),
    "convolution": (lambda: ConvLayer(3, 4, 3), [(2, 3, 6, 6)]),
    "residual": (lambda: ResBlock(3, 4), [(2, 3, 6, 6)]),
    "aggregated": (lambda: AggregatedConv(3, 8, 3, (1, 2, 4, 8)), [(2, 3, 6, 6)]),
    "smart": (lambda: SmartLayer(3, 8, 2), [(2, 3, 6, 6), (2, 2)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_r1_has_the_right_gradient(name):
    """The penalty's derivative along a random direction against a difference quotient."""
    make, shapes = LAYERS[name]
    layer, inputs = lively(make()).double(), [wide(*shape) for shape in shapes]
    parameters = list(layer.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def penalty():
        leaves = [x.clone().requires_grad_() for x in inputs]
        slopes = grad(layer(*leaves).square().sum(), leaves, create_graph=True)
        return sum(slope.square().sum() for slope in slopes)

    def moved(step):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        return penalty()

    slopes = grad(penalty(), parameters, allow_unused=True, materialize_grads=True)
    along = sum((slope * d).sum() for slope, d in zip(slopes, direction, strict=True))
    step = 1e-6
    quotient = (moved(step) - moved(-2 * step)).detach() / (2 * step)
    assert along.abs() > 1e-3
    torch.testing.assert_close(along, quotient, rtol=1e-4, atol=0)

"""The pure functions: against naive versions in float64, and their first and second gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from tests.vsp_model.tiny import naive_conv, naive_transposed_conv, naive_upfirdn2d
from vsp_model.ops import (
    bias_act,
    demodulation,
    dilated_conv2d,
    fir_kernel,
    modulated_conv2d,
    pixel_norm,
    upfirdn2d,
)

FIR_CASES = {
    "filter": {"pad": (1, 2, 2, 1)},
    "enlarge": {"up": (2, 2), "pad": (2, 1, 2, 1)},
    "reduce": {"down": (2, 2), "pad": (1, 1, 1, 1)},
    "uneven": {"up": (3, 2), "down": (2, 1), "pad": (0, 3, 1, 2)},
    "crop": {"up": (2, 2), "pad": (-1, 2, 3, -2)},
    "crop all round": {"up": (2, 2), "down": (2, 2), "pad": (-1, -1, -1, -1)},
    "nothing": {},
}
VARIANTS = [
    {"resample": "same"},
    {"resample": "same", "dilations": (2,)},
    {"resample": "same", "dilations": (1, 2, 4, 8)},
    {"resample": "up"},
    {"resample": "down"},
]
EVERY_VARIANT = [
    pytest.param(variant | {"demodulate": demodulate}, id=f"{variant}-{demodulate}")
    for variant, demodulate in itertools.product(VARIANTS, (True, False))
]


def wide(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def fir_of(variant):
    gain = {"same": None, "up": 4.0, "down": 1.0}[variant["resample"]]
    return None if gain is None else fir_kernel(gain, torch.float64)


@pytest.mark.parametrize("case", FIR_CASES)
def test_upfirdn2d_equals_its_definition(case):
    x, kernel = wide(2, 3, 6, 5), wide(3, 4)  # asymmetric: a kernel that is not flipped shows
    x, kernel = x.detach(), kernel.detach()
    y = upfirdn2d(x, kernel, **FIR_CASES[case])
    expected = naive_upfirdn2d(x, kernel, **FIR_CASES[case])
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", FIR_CASES)
def test_upfirdn2d_can_be_differentiated_twice(case):
    x, kernel = wide(1, 2, 4, 5), wide(3, 4)

    def run(x, kernel):
        return upfirdn2d(x, kernel, **FIR_CASES[case])

    assert gradcheck(run, (x, kernel))
    assert gradgradcheck(run, (x, kernel), fast_mode=True)


def test_fir_kernel_is_the_binomial_one():
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    assert torch.equal(fir_kernel(4.0), torch.outer(taps, taps) / 16)
    assert fir_kernel().sum() == 1


def naive_modulated(x, weight, modulation, variant):
    """Step by step for one image (I, H, W) with weights of its own."""
    w = weight / (weight[0].numel() ** 0.5) * modulation.reshape(1, -1, 1, 1)
    if variant["demodulate"]:
        w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if variant["resample"] == "up":
        y = naive_transposed_conv(x, w)
        return naive_upfirdn2d(y[None], fir_of(variant), pad=(1, 1, 1, 1))[0]
    if variant["resample"] == "down":
        x = naive_upfirdn2d(x[None], fir_of(variant), pad=(2, 2, 2, 2))[0]
        return naive_conv(x, w, stride=2)
    rates = variant.get("dilations", (1,))
    blocks = zip(w.chunk(len(rates)), rates, strict=True)
    return torch.cat([naive_conv(x, block, pad=r, rate=r) for block, r in blocks])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_modulated_convolution_equals_weights_of_each_image_own(variant, batch):
    x, weight, modulation = wide(batch, 3, 6, 6), wide(8, 3, 3, 3), wide(batch, 3)
    with torch.no_grad():
        y = modulated_conv2d(x, weight, modulation, fir=fir_of(variant), **variant)
        each = [naive_modulated(a, weight, m, variant) for a, m in zip(x, modulation, strict=True)]
    torch.testing.assert_close(y, torch.stack(each), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_one_image_folded_equals_two_scaled(variant):
    x, weight, modulation = wide(2, 3, 8, 8), wide(8, 3, 3, 3), wide(2, 3)
    with torch.no_grad():
        both = modulated_conv2d(x, weight, modulation, fir=fir_of(variant), **variant)
        for i in range(2):
            one = modulated_conv2d(
                x[i : i + 1], weight, modulation[i : i + 1], fir=fir_of(variant), **variant
            )
            torch.testing.assert_close(both[i : i + 1], one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_modulated_convolution_can_be_differentiated_twice(variant, batch):
    def run(x, weight, modulation):
        return modulated_conv2d(x, weight, modulation, fir=fir_of(variant), **variant)

    side = {"same": 3, "up": 2, "down": 4}[variant["resample"]]
    inputs = wide(batch, 2, side, side), wide(4, 2, 3, 3), wide(batch, 2)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs, fast_mode=True)


def test_resampling_without_its_kernel_is_refused():
    with pytest.raises(ValueError, match=r"resample='up' needs its FIR kernel, got fir=None"):
        modulated_conv2d(wide(1, 2, 4, 4), wide(2, 2, 3, 3), wide(1, 2), resample="up")


def test_demodulation_gives_each_output_channel_unit_norm():
    weight, modulation = wide(5, 3, 3, 3), wide(2, 3)
    scale = demodulation(weight, modulation)
    modulated = weight[None] * modulation[:, None, :, None, None] * scale[:, :, None, None, None]
    norms = modulated.square().sum((2, 3, 4))
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-7)


def test_demodulation_of_half_weights_sums_in_float32():
    weight = torch.full((1, 64, 3, 3), 100.0, dtype=torch.float16)  # nine squares: out of range
    scale = demodulation(weight, torch.ones(1, 64))
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale, torch.full((1, 1), 1 / (100 * 576**0.5)))


@pytest.mark.parametrize("rates", [(1,), (4,), (1, 2, 4, 8), (3, 5)])
def test_dilated_branches_lie_side_by_side_in_the_order_of_the_rates(rates):
    x, weight = wide(2, 3, 5, 5), wide(8, 3, 3, 3)
    y = dilated_conv2d(x, weight, rates)
    blocks = weight.chunk(len(rates))
    for image, result in zip(x, y, strict=True):
        each = [naive_conv(image, w, pad=r, rate=r) for w, r in zip(blocks, rates, strict=True)]
        torch.testing.assert_close(result, torch.cat(each), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)])
def test_bias_act_is_the_scaled_leaky_relu(shape):
    x, bias = wide(*shape), wide(3)
    before = x.detach().clone()
    y = bias_act(x, bias)
    shifted = x + bias.reshape(1, 3, *([1] * (len(shape) - 2)))
    expected = 2**0.5 * torch.where(shifted > 0, shifted, 0.2 * shifted)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert torch.equal(x, before)
    assert gradcheck(bias_act, (x, bias))
    assert gradgradcheck(bias_act, (x, bias))


def test_pixel_norm_runs_over_the_second_axis():
    codes = wide(2, 5, 3)
    rms = codes.square().mean(1, keepdim=True).sqrt()  # over the tokens, feature by feature
    torch.testing.assert_close(pixel_norm(codes), codes / rms, rtol=1e-7, atol=0)
    assert pixel_norm(torch.zeros(1, 4)).isfinite().all()
    assert gradcheck(pixel_norm, (codes,))


def test_a_filter_of_one_tap_changes_nothing():
    x = torch.randn(2, 3, 7, 5)
    assert torch.equal(upfirdn2d(x, torch.ones(1, 1)), x)
    up = upfirdn2d(x, torch.ones(1, 1), up=(2, 2))
    assert torch.equal(up[:, :, ::2, ::2], x)
    assert F.avg_pool2d(up, 2).mul(4).sub(x).abs().max() == 0

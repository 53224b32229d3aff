"""Parts that hold one layer each: building blocks, the SMART layer, the schedule."""

from __future__ import annotations

from parity_vectors.networks import filled
from parity_vectors.vectors import Vectors
from torch import Tensor

from vsp_model import ops, published
from vsp_model.diffusion import sqrt_linear_schedule
from vsp_model.layers import AggregatedConv, ConvLayer, EqualLinear, ResBlock, StyledConv, ToRGB
from vsp_model.smart import SmartLayer

RATES = (1, 2, 4, 8)  # of the aggregated convolutions; no tensor shows them
LR_MULTIPLIER = 0.01  # of the mapping network's linears; no tensor shows it


def ddpm_schedule(vectors: Vectors) -> None:
    """Every buffer of the few-step schedule."""
    meta = vectors.meta
    schedule = sqrt_linear_schedule(meta["timesteps"], meta["linear_start"], meta["linear_end"])
    for name, value in vars(schedule).items():
        vectors.check(name, value)


def smart(vectors: Vectors) -> None:
    """One SMART layer, with what happens inside."""
    sizes = vectors.meta["config"]
    rates = tuple(vectors.meta["rates"])
    layer = filled(
        SmartLayer(sizes["cin"], sizes["cout"], sizes["sd"], rates),
        published.smart_layout("", "", len(rates)),
        vectors.weights(vectors.meta["namespace"]),
    )
    x, style = vectors.given("x"), vectors.given("style")
    (noise,) = vectors.noise("noise")
    vectors.check("modulated_style", layer.modulation(style))
    branches = layer.branches(x, style)
    vectors.check("branches", branches)
    vectors.check("fusion", layer.fusion(branches))
    vectors.check("out", layer(x, style, noise))


def primitives(vectors: Vectors) -> None:
    """Every building block on one small, oblong input."""
    x, style = vectors.given("x"), vectors.given("style")
    _styled(vectors, x, style)
    _convolutions(vectors, x)
    _linears(vectors, style)
    _functions(vectors, x, style)


def _unit(vectors: Vectors, name: str) -> dict[str, Tensor]:
    return vectors.weights(f"unit/{name}", vectors.meta["specs"][name])


def _styled(vectors: Vectors, x: Tensor, style: Tensor) -> None:
    sizes = vectors.meta["config"]
    cin, cout, width = sizes["cin"], sizes["cout"], sizes["style_dim"]
    variants: tuple[tuple[str, ops.Resample], ...] = (
        ("styled_up", "up"),
        ("styled_plain", "same"),
        ("styled_down", "down"),
    )
    for name, resample in variants:
        layer = StyledConv(cin, cout, width, resample)
        layout = published.styled_conv_layout("", "", resample)
        filled(layer, layout, _unit(vectors, name))
        (noise,) = vectors.noise(f"noise/unit/{name}")
        vectors.check(name, layer(x, style, noise))
    to_rgb = ToRGB(cin, width)
    filled(to_rgb, published.to_rgb_layout("", "", upsample=True), _unit(vectors, "to_rgb"))
    vectors.check("to_rgb", to_rgb(x, style, vectors.given("skip")))


def _convolutions(vectors: Vectors, x: Tensor) -> None:
    cin, cout = vectors.meta["config"]["cin"], vectors.meta["config"]["cout"]
    aggregated = published.aggregated_conv_layout("", "", len(RATES))
    conv, reducing = (
        published.conv_layer_layout("", ""),
        published.conv_layer_layout("", "", reduce=True),
    )
    for name, layer, layout in (
        ("large_conv1", AggregatedConv(cin, cout, 1, RATES), aggregated),
        ("large_conv3", AggregatedConv(cin, cout, 3, RATES), aggregated),
        ("conv_layer", ConvLayer(cin, cout, 3), conv),
        ("conv_layer_strided", ConvLayer(cin, cout, 3, reduce=True), reducing),
        ("res_block", ResBlock(cin, cout), published.res_block_layout("", "")),
    ):
        vectors.check(name, filled(layer, layout, _unit(vectors, name))(x))


def _linears(vectors: Vectors, style: Tensor) -> None:
    width, cout = vectors.meta["config"]["style_dim"], vectors.meta["config"]["cout"]
    layout: published.Layout = [published.Rule(n, (n,)) for n in ("weight", "bias")]
    plain = EqualLinear(width, cout)
    mapping = EqualLinear(width, cout, lr_multiplier=LR_MULTIPLIER, activate=True)
    for name, layer in (("equal_linear_plain", plain), ("equal_linear_lr", mapping)):
        vectors.check(name, filled(layer, layout, _unit(vectors, name))(style))


def _functions(vectors: Vectors, x: Tensor, style: Tensor) -> None:
    """The filters' settings are the ones that meta describes in words, the same in every set."""
    vectors.check("fused_leaky_relu", ops.bias_act(x, vectors.given("bias")))
    vectors.check("pixelnorm_2d", ops.pixel_norm(style))
    image, one, four = x[:, :3], ops.fir_kernel(1.0), ops.fir_kernel(4.0)
    asymmetric = vectors.given("kernel34")
    for name, value in (
        ("fir_up2", ops.upfirdn2d(image, four, up=(2, 2), pad=(2, 1, 2, 1))),
        ("fir_down2", ops.upfirdn2d(image, one, down=(2, 2), pad=(1, 1, 1, 1))),
        ("fir_blur_22", ops.upfirdn2d(image, one, pad=(2, 2, 2, 2))),
        ("fir_blur_11", ops.upfirdn2d(image, four, pad=(1, 1, 1, 1))),
        ("fir_asym", ops.upfirdn2d(image, asymmetric, up=(2, 1), down=(1, 2), pad=(3, -1, 1, 2))),
    ):
        vectors.check(name, value)

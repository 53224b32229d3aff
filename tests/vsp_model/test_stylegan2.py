"""The prior: features and image, where synthesis stops, what is read and what is not."""

import pytest
import torch

from tests.vsp_model.tiny import WIDTHS, lively
from vsp_model.layers import NoiseInjection, StyledConv, ToRGB
from vsp_model.stylegan2 import StyleGAN2, StyleGAN2Config

SIZE = 64


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    config = StyleGAN2Config(size=SIZE, style_dim=16, channels=WIDTHS[:5], mapping_layers=2)
    return lively(StyleGAN2(config)).eval().requires_grad_(False)


@pytest.fixture
def w_plus():
    return torch.randn(2, 12, 16)  # two tokens more than are read


def maps(prior, count=2, **options):
    return [torch.randn(count, 1, side, side) for side in prior.noise_sides(**options)]


def calls(prior, kind):
    """Names of the modules of a kind, in the order in which they were called."""
    found = []
    for name, module in prior.named_modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda *_, name=name: found.append(name))
    return found


@pytest.fixture
def unhooked(prior):
    yield prior
    for module in prior.modules():
        module._forward_hooks.clear()


def test_features_double_from_the_constant_to_the_size(prior, w_plus):
    synthesis = prior(w_plus, maps(prior), image=True)
    sides = [4, 8, 16, 32, 64]
    assert [f.shape for f in synthesis.features] == [
        (2, c, s, s) for c, s in zip(WIDTHS, sides, strict=False)
    ]
    assert synthesis.image.shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize("stop", [8, 32, 64])
@pytest.mark.parametrize("image", [True, False])
def test_a_stopped_run_begins_like_the_whole_one(prior, w_plus, stop, image):
    noise = maps(prior)
    whole = prior(w_plus, noise, image=True)
    part = prior(w_plus, noise[: len(prior.noise_sides(stop, image=image))], stop=stop, image=image)
    count = stop.bit_length() - 2
    assert len(part.features) == count
    for ours, theirs in zip(part.features, whole.features[:count], strict=True):
        assert torch.equal(ours, theirs)
    assert (part.image is None) is not image
    if image:
        assert part.image.shape == (2, 3, stop, stop)


def test_noise_sides_name_one_map_a_styled_layer(unhooked, w_plus):
    assert unhooked.noise_sides() == [4, 8, 8, 16, 16, 32, 32, 64, 64]
    assert unhooked.noise_sides(16, image=False) == [4, 8, 8, 16]
    called = calls(unhooked, NoiseInjection)
    unhooked(w_plus, maps(unhooked, stop=16, image=False), stop=16)
    assert called == ["conv.noise", "blocks.0.up.noise", "blocks.0.conv.noise", "blocks.1.up.noise"]


def test_without_the_image_nothing_past_the_last_feature_is_computed(unhooked, w_plus):
    colours, layers = calls(unhooked, ToRGB), calls(unhooked, StyledConv)
    unhooked(w_plus, stop=32)
    assert colours == []
    assert layers[-1] == "blocks.2.up"
    unhooked(w_plus, stop=32, image=True)
    assert colours == ["to_rgb", "blocks.0.to_rgb", "blocks.1.to_rgb", "blocks.2.to_rgb"]


def test_each_layer_reads_its_own_style_and_no_other(prior, w_plus):
    """Layer 0 reads w0, block k reads w(2k+1), w(2k+2), and its ToRGB w(2k+3)."""
    read = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: read.__setitem__(name, args[1][0])
        )
        for name, module in prior.named_modules()
        if isinstance(module, StyledConv | ToRGB)
    ]
    prior(w_plus, image=True)
    for hook in hooks:
        hook.remove()
    slots = {name: (w_plus[0] == style).all(1).nonzero().item() for name, style in read.items()}
    expected = {"conv": 0, "to_rgb": 1}
    for k in range(4):
        expected |= {
            f"blocks.{k}.up": 2 * k + 1,
            f"blocks.{k}.conv": 2 * k + 2,
            f"blocks.{k}.to_rgb": 2 * k + 3,
        }
    assert slots == expected


@pytest.mark.parametrize(
    ("stop", "image", "read"), [(64, True, 10), (64, False, 8), (16, False, 4)]
)
def test_tokens_past_the_last_layer_have_no_effect(prior, w_plus, stop, image, read):
    noise = maps(prior)

    def last(codes):
        synthesis = prior(codes, noise, stop=stop, image=image)
        return synthesis.image if image else synthesis.features[-1]

    before = last(w_plus)
    unread, final = w_plus.clone(), w_plus.clone()
    unread[:, read:] = torch.nan
    final[:, read - 1] += 1
    assert torch.equal(last(unread), before)
    assert not torch.equal(last(final), before)


def test_no_noise_is_zero_noise(prior, w_plus):
    zeros = [torch.zeros_like(m) for m in maps(prior)]
    silent, zero = prior(w_plus, image=True).image, prior(w_plus, zeros, image=True).image
    assert torch.equal(silent, zero)
    assert not torch.equal(silent, prior(w_plus, maps(prior), image=True).image)


def test_the_stored_noise_maps_are_never_read(prior, w_plus):
    before = prior(w_plus, image=True).image
    kept = {n: b.clone() for n, b in prior.named_buffers() if n.startswith("noise_")}
    assert len(kept) == 9
    for name in kept:
        prior.get_buffer(name).fill_(torch.nan)
    try:
        assert torch.equal(prior(w_plus, image=True).image, before)
    finally:
        for name, value in kept.items():
            prior.get_buffer(name).copy_(value)


@pytest.mark.parametrize("size", [8, 16, 128])
def test_any_power_of_two_and_any_width_builds_and_runs(size):
    levels = size.bit_length() - 2
    widths = (7, 5, 3, 3, 2, 1)[:levels]
    config = StyleGAN2Config(size=size, style_dim=5, channels=widths, mapping_layers=1)
    image = StyleGAN2(config)(torch.randn(1, config.num_slots, 5), image=True).image
    assert image.shape == (1, 3, size, size)
    assert image.isfinite().all()

"""The restoration net: slots, skips, priors, noise, mixing, and the switches of Table IV."""

import pytest
import torch

from tests.vsp_model.tiny import WIDTHS, lively, some_faces
from vsp_model.layers import NoiseInjection, StyledConv, ToRGB
from vsp_model.restoration import RestorationConfig, RestorationNet
from vsp_model.smart import SmartLayer

SIZE, WIDTH, TOKENS = 32, 16, 10  # two tokens more than are read
COMMON = {"size": SIZE, "style_dim": WIDTH, "channels": WIDTHS[:4], "mapping_layers": 2}


def build(**config):
    torch.manual_seed(0)
    net = RestorationNet(RestorationConfig(**COMMON, global_dim=12, **config))
    return lively(net).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    return build()


def inputs(count=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    priors = [torch.randn(count, c, 4 << k, 4 << k, generator=g) for k, c in enumerate(WIDTHS[:4])]
    w_plus = torch.randn(count, TOKENS, WIDTH, generator=g)
    return some_faces(count, SIZE), w_plus, torch.randn(count, 1, WIDTH, generator=g), priors


def maps(net, count=2):
    return [torch.randn(count, 1, side, side) for side in net.noise_sides()]


def watch(net, kind, position):
    """Name -> that positional argument, for every module of a kind, in call order."""
    found, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, kind):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: found.__setitem__(name, args[position])
                )
            )
    return found, hooks


def unwatch(hooks):
    for hook in hooks:
        hook.remove()


def test_every_layer_reads_its_published_slot(net):
    image, w_plus, z, priors = inputs()
    found, hooks = watch(net, SmartLayer | StyledConv | ToRGB, 1)
    net(image, w_plus, z, priors)
    unwatch(hooks)
    prompt = w_plus[0]
    slots = {
        name: (prompt == style[0, :WIDTH]).all(1).nonzero().item() for name, style in found.items()
    }
    expected = {"smart": 0, "to_rgb": 1}
    for j, slot in enumerate((7, 5, 3)):  # both layers of an encoder stage share a slot
        expected |= {f"encoder.{j}.smart": slot, f"encoder.{j}.down": slot}
    for k in (1, 2, 3):
        names = (f"decoder.{k - 1}.{layer}" for layer in ("up", "smart", "to_rgb"))
        expected |= dict(zip(names, (2 * k - 1, 2 * k, 2 * k + 1), strict=True))
    assert slots == expected


def test_styles_are_prompt_then_random_style_then_global_code(net):
    image, w_plus, z, priors = inputs()
    found, hooks = watch(net, SmartLayer, 1)
    net(image, w_plus, z, priors)
    unwatch(hooks)
    s = net.mapping(z[:, 0])
    _, code = net.encode(image, net.styles(w_plus, z), [None] * 6)
    assert torch.equal(found["encoder.0.smart"], torch.cat([w_plus[:, 7], s], 1))
    assert torch.equal(found["smart"], torch.cat([w_plus[:, 0], s, code], 1))


def test_tokens_past_the_last_slot_are_not_read(net):
    image, w_plus, z, priors = inputs()
    before = net(image, w_plus, z, priors)
    w_plus[:, 8:] = torch.nan
    assert torch.equal(net(image, w_plus, z, priors), before)


def test_noise_sides_follow_the_calls(net):
    image, w_plus, z, priors = inputs()
    assert net.noise_sides() == [32, 16, 16, 8, 8, 4, 4, 8, 8, 16, 16, 32, 32]
    found, hooks = watch(net, NoiseInjection, 1)
    noise = maps(net)
    net(image, w_plus, z, priors, noise)
    unwatch(hooks)
    assert [id(m) for m in found.values()] == [id(m) for m in noise]
    order = [name.removesuffix(".noise") for name in found]
    stages = [f"encoder.{j}.{layer}" for j in range(3) for layer in ("smart", "down")]
    decoder = [f"decoder.{k}.{layer}" for k in range(3) for layer in ("up", "smart")]
    assert order == [*stages, "smart", *decoder]


def test_every_noise_map_shows_and_none_is_zero(net):
    image, w_plus, z, priors = inputs(1)
    silent = net(image, w_plus, z, priors)
    zeros = [torch.zeros_like(m) for m in maps(net, 1)]
    assert torch.equal(net(image, w_plus, z, priors, zeros), silent)
    for i, noise in enumerate(maps(net, 1)):
        one = [*zeros[:i], noise, *zeros[i + 1 :]]
        assert not torch.allclose(net(image, w_plus, z, priors, one), silent), f"map {i}"


def test_skip_prior_and_decoder_are_summed(net):
    image, w_plus, z, priors = inputs()
    found, hooks = watch(net, SmartLayer, 0)
    ups = {}
    hooks += [
        stage.up.register_forward_hook(lambda _, args, out, k=k: ups.__setitem__(k, out))
        for k, stage in enumerate(net.decoder)
    ]
    net(image, w_plus, z, priors)
    unwatch(hooks)
    skips, _ = net.encode(image, net.styles(w_plus, z), [None] * 6)
    assert torch.equal(found["smart"], skips[0])
    for k in range(3):
        total = ups[k] + skips[k + 1] + priors[k + 1]
        torch.testing.assert_close(found[f"decoder.{k}.smart"], total)


def test_the_smallest_prior_feature_is_not_read_and_the_others_are(net):
    image, w_plus, z, priors = inputs()
    before = net(image, w_plus, z, priors)
    for k in range(4):
        changed = [p + 1 if i == k else p for i, p in enumerate(priors)]
        assert torch.equal(net(image, w_plus, z, changed), before) is (k == 0)


def test_above_the_priors_size_the_skip_stands_alone(net):
    image, w_plus, z, priors = inputs()
    padded = [*priors[:3], torch.zeros_like(priors[3])]
    torch.testing.assert_close(
        net(image, w_plus, z, priors[:3]), net(image, w_plus, z, padded), rtol=0, atol=0
    )


def test_a_second_style_takes_over_at_its_slot(net):
    _, w_plus, _, _ = inputs()
    z = torch.randn(2, 2, WIDTH)
    mixed = net.styles(w_plus, z, torch.tensor([3, 8]))
    first, second = (net.styles(w_plus, z[:, i : i + 1]) for i in (0, 1))
    assert torch.equal(mixed[0, :3], first[0, :3])
    assert torch.equal(mixed[0, 3:], second[0, 3:])
    assert torch.equal(mixed[1], first[1])  # 8 slots: the second style is never reached


def test_the_global_code_drops_out_in_training_only():
    net = build(dropout=0.5)
    image, w_plus, z, _ = inputs()
    styles = net.styles(w_plus, z)
    _, code = net.encode(image, styles, [None] * 6)
    _, again = net.encode(image, styles, [None] * 6)
    assert torch.equal(code, again)
    _, dropped = net.train().encode(image, styles, [None] * 6)
    kept = dropped != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(dropped[kept], 2 * code[kept])


# The switches of Table IV.


def test_switch_b_puts_a_styled_convolution_for_every_smart_layer(net):
    plain = build(smart=False)
    assert not any(isinstance(m, SmartLayer) for m in plain.modules())
    swapped = [n for n, m in net.named_modules() if isinstance(m, SmartLayer)]
    assert len(swapped) == 7
    assert all(isinstance(plain.get_submodule(n), StyledConv) for n in swapped)
    fusion = {n: p.shape for n, p in net.named_parameters() if ".fusion." in f".{n}"}
    ours = {n: p.shape for n, p in net.named_parameters() if n not in fusion}
    aggregated = {n for n in fusion if n.startswith(("stem", "bottleneck"))}
    theirs = {n: p.shape for n, p in plain.named_parameters() if n not in aggregated}
    assert ours == theirs  # nothing else changes
    assert plain(*inputs()).shape == (2, 3, SIZE, SIZE)


def test_switch_c_leaves_the_prompt_out_of_the_decoder_only(net):
    without = build(style_prompt=False)
    image, w_plus, z, priors = inputs()
    found, hooks = watch(without, SmartLayer | StyledConv | ToRGB, 1)
    y = without(image, w_plus, z, priors)
    unwatch(hooks)
    s = without.mapping(z[:, 0])
    for name, style in found.items():
        if name.startswith("encoder"):
            assert style.shape == (2, 2 * WIDTH)
        else:
            assert style.shape == (2, WIDTH + 12)
            assert torch.equal(style[:, :WIDTH], s)
    assert y.shape == (2, 3, SIZE, SIZE)
    ours = {n: p.shape for n, p in net.named_parameters()}
    for name, p in without.named_parameters():
        narrower = p.shape[1] + WIDTH == ours[name][1] if p.ndim == 2 else False
        decoder_style = "modulation.weight" in name and not name.startswith("encoder")
        assert narrower is decoder_style, name
        assert narrower or p.shape == ours[name]


def test_switch_c_changes_nothing_through_decoder_styles():
    """With the encoder's result held, another prompt gives the same image."""
    without = build(style_prompt=False)
    image, w_plus, z, priors = inputs()
    held = without.encode(image, without.styles(w_plus, z), [None] * 6)
    without.encode = lambda *_: held
    before = without(image, w_plus, z, priors)
    assert torch.equal(without(image, w_plus + 1, z, priors), before)
    assert not torch.equal(without(image, w_plus, z + torch.randn_like(z), priors), before)


def test_switch_d_is_a_plain_skip(net):
    without = build(facial_priors=False)
    image, w_plus, z, priors = inputs()
    y = without(image, w_plus, z, priors)
    assert torch.equal(y, without(image, w_plus, z))
    assert torch.equal(y, net(image, w_plus, z))
    assert not torch.equal(y, net(image, w_plus, z, priors))
    assert without.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("size", "widths", "dilations"),
    [(8, (6, 3), (1, 2, 3)), (16, (5, 7, 3), (1,)), (128, (8, 12, 4, 4, 4, 4), (1, 2, 4, 8))],
)
def test_any_power_of_two_and_odd_widths_run(size, widths, dilations):
    config = RestorationConfig(
        size=size, style_dim=5, channels=widths, global_dim=3, mapping_layers=1, dilations=dilations
    )
    net = RestorationNet(config).eval()
    w_plus = torch.randn(1, config.num_slots, 5)
    y = net(some_faces(1, size), w_plus, torch.randn(1, 1, 5), noise=maps(net, 1))
    assert y.shape == (1, 3, size, size)
    assert y.isfinite().all()

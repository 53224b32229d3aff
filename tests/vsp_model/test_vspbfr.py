"""The assembled restorer: deterministic per (seed, key), inspectable, switchable."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.vsp_model.tiny import lively, some_faces, some_keys, tiny_config, tiny_model
from vsp_model import registry
from vsp_model.randomness import draw, noise_maps
from vsp_model.smart import SmartLayer
from vsp_model.vspbfr import FORMAT, VSPBFR, VSPBFRConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "configs" / "models" / "vspbfr-64.yaml"
MOST = 5  # faces a batch


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(32, prior_size=64)


@pytest.fixture(scope="module")
def small():
    """The 64-pixel model that the commands use."""
    config = VSPBFRConfig.model_validate(yaml.safe_load(SMALL.read_text())["model"])
    return lively(registry.untrained(config))


@pytest.fixture(scope="module", params=["tiny", "small"])
def restorer(request):
    return request.getfixturevalue(request.param)


def restore(model, items, **options):
    """Restore the faces of these numbers, in this order."""
    faces = some_faces(2 * MOST, model.size)
    return model.restore(faces[list(items)], [some_keys(2 * MOST)[i] for i in items], **options)


@pytest.mark.parametrize("batch", range(1, MOST + 1))
def test_bits_do_not_depend_on_order_or_neighbours(restorer, batch):
    items = list(range(batch))
    first = restore(restorer, items)
    assert torch.equal(restore(restorer, items), first)
    assert torch.equal(restore(restorer, items[::-1]).flip(0), first)
    rolled = [*items[1:], 0]
    assert torch.equal(restore(restorer, rolled).roll(1, 0), first)
    if batch > 1:
        strangers = restore(restorer, [*range(MOST, MOST + batch - 1), 0])
        assert torch.equal(strangers[-1], first[0])


def test_bits_do_not_depend_on_the_thread(restorer):
    found = {}

    def run(items):
        found[items] = restore(restorer, items)

    jobs = [(0, 1), (2, 3), (1, 0)]
    threads = [threading.Thread(target=run, args=(items,)) for items in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for items in jobs:
        assert torch.equal(found[items], restore(restorer, items))


def test_batch_sizes_agree_to_a_ten_thousandth(restorer):
    alone = torch.cat([restore(restorer, [i]) for i in range(MOST)])
    bound = 1e-4 * max(1.0, alone.abs().max().item())
    for batch in range(2, MOST + 1):
        together = restore(restorer, range(batch))
        assert (together - alone[:batch]).abs().max() <= bound, f"batch {batch}"


def directly(model, faces, inputs):
    """The network alone, on the memory format that ``restore`` gives it."""
    with torch.no_grad():
        return model(faces.contiguous(memory_format=FORMAT), inputs)


def test_seed_and_key_change_the_result(tiny):
    face = some_faces(1, 32)
    base = tiny.restore(face, ["a"])
    assert not torch.equal(tiny.restore(face, ["b"]), base)
    assert not torch.equal(tiny.restore(face, ["a"], seed=1), base)
    assert torch.equal(tiny.restore(face, ["a"], seed=0), base)


def test_mean_is_one_result_for_every_key_and_seed(tiny):
    face = some_faces(1, 32)
    base = tiny.restore(face, ["a"], noise="mean")
    assert torch.equal(tiny.restore(face, ["b"], seed=7, noise="mean"), base)
    assert torch.equal(tiny.restore(face, ["a"], noise="mean", seed=1), base)
    inputs = draw(tiny.random_shapes, ["c"], 3, "mean")
    zeros = inputs._replace(
        prior_noise=[torch.zeros(1, 1, s, s) for s in tiny.random_shapes.prior_sides],
        restoration_noise=[torch.zeros(1, 1, s, s) for s in tiny.random_shapes.restoration_sides],
    )
    assert torch.equal(directly(tiny, face, zeros), base)


def test_mixing_changes_only_the_images_it_falls_on(tiny):
    keys = some_keys(8)
    inject = draw(tiny.random_shapes, keys, mixing=True).inject
    mixed = inject < tiny.random_shapes.num_slots
    assert 0 < mixed.sum() < 8
    faces = some_faces(8, 32)
    change = (tiny.restore(faces, keys, mixing=True) - tiny.restore(faces, keys)).abs()
    assert torch.equal(change.flatten(1).amax(1) > 1e-3, mixed)


def test_no_global_generator_is_read_or_moved(tiny):
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = restore(tiny, [0, 1], mixing=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(2)
    assert torch.equal(restore(tiny, [0, 1], mixing=True), first)


def test_restoring_keeps_no_graph_and_leaves_the_faces_alone(tiny):
    faces = some_faces(2, 32)
    kept = faces.clone()
    assert not tiny.restore(faces, some_keys(2)).requires_grad
    assert torch.equal(faces, kept)


def test_the_memory_format_of_the_faces_changes_no_bit(tiny):
    faces, keys = some_faces(2, 32), some_keys(2)
    other = faces.contiguous(memory_format=torch.channels_last)
    assert torch.equal(tiny.restore(other, keys), tiny.restore(faces, keys))
    mirrored = faces.flip(3).contiguous().flip(3)  # another stride again
    assert torch.equal(tiny.restore(mirrored, keys), tiny.restore(faces, keys))


def test_the_prior_stops_at_the_working_size_without_colours(tiny):
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in tiny.prior.named_modules()
    ]
    restore(tiny, [0])
    for hook in hooks:
        hook.remove()
    assert not [name for name in calls if "to_rgb" in name]
    assert "blocks.2.up" in calls  # 32 pixels
    assert not [name for name in calls if name.startswith(("blocks.2.conv", "blocks.3"))]
    assert not [name for name in calls if name.startswith("mapping")]


# By-products.


@pytest.mark.parametrize("noise", ["seeded", "mean"])
@pytest.mark.parametrize("prior_size", [16, 32, 64])
def test_inspection_restores_the_same_bits(prior_size, noise):
    model = tiny_model(32, prior_size=prior_size)
    faces, keys = some_faces(2, 32), some_keys(2)
    seen = model.inspect(faces, keys, seed=4, noise=noise)
    assert torch.equal(seen.restored, model.restore(faces, keys, seed=4, noise=noise))


@pytest.mark.parametrize("prior_size", [16, 32, 64])
def test_inspection_shows_what_the_restoration_was_made_from(prior_size):
    model = tiny_model(32, prior_size=prior_size)
    faces, keys = some_faces(2, 32), some_keys(2)
    seen = model.inspect(faces, keys, seed=4)
    inputs = draw(model.random_shapes, keys, 4)
    tokens = model.config.encoder.num_tokens
    with torch.no_grad():
        codes, w_plus = model.prompt(faces.contiguous(memory_format=FORMAT), inputs.start)
        noise = noise_maps(model.prior.noise_sides(), keys, 4, "prior")
        synthesis = model.prior(w_plus, noise, image=True)
    assert seen.codes.shape == (2, tokens, 16)
    assert torch.equal(seen.codes, codes)
    assert torch.equal(seen.w_plus, w_plus)
    shown = min(32, prior_size)
    assert torch.equal(seen.inverted, F.adaptive_avg_pool2d(synthesis.image, shown))
    assert [f.shape[-1] for f in seen.prior_features] == [
        4 << k for k in range(shown.bit_length() - 2)
    ]
    for ours, theirs in zip(seen.prior_features, synthesis.features, strict=False):
        assert torch.equal(ours, theirs)


def test_inspection_shows_the_branches_of_every_smart_layer(tiny):
    layers = {n: m for n, m in tiny.restoration.named_modules() if isinstance(m, SmartLayer)}
    expected = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: expected.__setitem__(name, layer.branches(*args[:2]))
        )
        for name, layer in layers.items()
    ]
    seen = tiny.inspect(some_faces(2, 32), some_keys(2))
    for hook in hooks:
        hook.remove()
    assert len(layers) == 7
    assert seen.smart_branches.keys() == layers.keys()
    for name, branches in seen.smart_branches.items():
        assert torch.equal(branches, expected[name])
    assert not any(layer.fusion._forward_pre_hooks for layer in layers.values())


def test_the_inverted_image_ends_where_the_tokens_do():
    """The published prior could go to 1024 pixels, but a prompt of 8 tokens reaches 32."""
    config = tiny_config(32, prior_size=64)
    short = {"num_tokens": 8}
    config = VSPBFRConfig(
        encoder=config.encoder.model_copy(update=short),
        diffuser=config.diffuser.model_copy(update=short),
        prior=config.prior,
        restoration=config.restoration,
    )
    seen = lively(registry.untrained(config)).inspect(some_faces(1, 32), ["a"])
    assert seen.inverted.shape == (1, 3, 32, 32)
    assert seen.inverted.isfinite().all()


# The switches of Table IV.


def test_switch_a_takes_the_encoders_codes_as_the_prompt():
    model = tiny_model(32, diffuser=False)
    faces, keys = some_faces(2, 32), some_keys(2)
    seen = model.inspect(faces, keys)
    assert torch.equal(seen.w_plus, seen.codes)
    assert torch.equal(seen.restored, model.restore(faces, keys))
    whole = VSPBFR(tiny_config(32)).state_dict().keys()
    assert whole - model.state_dict().keys() == {k for k in whole if k.startswith("diffuser.")}
    inputs = draw(model.random_shapes, keys)
    other = directly(model, faces, inputs._replace(start=inputs.start + 1))
    assert torch.equal(other, seen.restored)


@pytest.mark.parametrize("switch", ["smart", "style_prompt", "facial_priors"])
def test_switches_b_c_and_d_run_whole(switch):
    model = tiny_model(32, **{switch: False})
    y = restore(model, [0, 1])
    assert y.shape == (2, 3, 32, 32)
    assert y.isfinite().all()
    seen = model.inspect(some_faces(2, 32), some_keys(2))
    assert torch.equal(seen.restored, model.restore(some_faces(2, 32), some_keys(2)))
    assert (seen.smart_branches == {}) is (switch == "smart")


def test_switch_d_never_calls_the_prior():
    model = tiny_model(32, facial_priors=False)
    assert model.random_shapes.prior_sides == ()

    def refuse(*_):
        raise AssertionError("the prior was called")

    model.prior.register_forward_pre_hook(refuse)
    assert restore(model, [0]).isfinite().all()


# Training.

# Why a parameter may stay without a gradient.
UNUSED = {
    "prior.mapping.": "the prompt comes from the encoder",
    "prior.to_rgb.": "restoration reads features, not colours",
    "prior.blocks.0.to_rgb.": "the same",
    "prior.blocks.1.to_rgb.": "the same",
    "prior.blocks.2.to_rgb.": "the same",
    "prior.blocks.2.conv.": "it lies past the last feature, at 32 pixels",
}


@pytest.mark.parametrize("count", [1, 2])
def test_training_reaches_every_parameter_that_restoration_uses(count):
    model = tiny_model(32).train()
    inputs = draw(model.random_shapes, some_keys(count))
    model(some_faces(count, 32), inputs).square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still == {n for n, _ in model.named_parameters() if n.startswith(tuple(UNUSED))}

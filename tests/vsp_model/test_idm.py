"""IDM assembled: the identity before training, bits by (seed, key), wishes and refusals."""

import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from tests.vsp_model.tiny import some_faces, some_keys
from tests.vsp_model.tiny_idm import MOST, SIZE, config, lively, model_of, restore
from vsp_model import checkpoints, registry
from vsp_model.ask import Ask
from vsp_model.idm import chain
from vsp_model.idm.config import IDMConfig
from vsp_model.idm.model import IDM, settle

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "configs" / "models").glob("idm-*.yaml"))


@pytest.fixture(scope="module")
def restorer():
    return lively(model_of(unet={"condition": {}}, eta=1.0))


# Before training.


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("tail", [0, 4])
@pytest.mark.parametrize(
    "ask",
    [{}, {"eta": 1.0}, {"sampler": "ancestral"}, {"start": "estimate"}, {"quality": 0.9}],
    ids=lambda ask: str(next(iter(ask.items()), "default")),
)
def test_an_untrained_residual_net_is_exactly_the_identity(steps, tail, ask):
    model = model_of(unet={"condition": {}, "tail_channels": tail})
    faces = some_faces(2, SIZE)
    faces[0, :, :4] = 1.0
    faces[0, :, 4:8] = -1.0
    restored = model.restore(faces, some_keys(2), ask=Ask(steps=steps, **ask))
    assert torch.equal(restored, faces)


def test_without_zeros_at_the_end_it_is_not():
    model = model_of(unet={"zero_out": False})
    faces = some_faces(1, SIZE)
    assert not torch.equal(model.restore(faces, ["a"]), faces)


@pytest.mark.parametrize("mode", ["continuous", "quantile_bins"])
@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0, "unknown"])
def test_a_new_condition_changes_no_bit_of_a_trained_net(mode, quality):
    old = lively(model_of(eta=0.5))
    new = model_of(eta=0.5, unet={"condition": {"mode": mode}})
    state = new.state_dict() | old.state_dict()
    added = set(state) - set(old.state_dict())
    assert {name.split(".")[1] for name in added} == {"condition"}
    new.load_state_dict(state)
    faces, keys = some_faces(3, SIZE), some_keys(3)
    restored = new.restore(faces, keys, ask=Ask(quality=quality))
    assert torch.equal(restored, old.restore(faces, keys))


@pytest.mark.parametrize("quality", [0, 1, "unknown", math.nan])
def test_the_ends_of_the_dial_are_known(restorer, quality):
    faces, keys = some_faces(1, SIZE), ["a"]
    restored = restorer.restore(faces, keys, ask=Ask(quality=quality))
    assert restored.isfinite().all()
    unknown = restorer.restore(faces, keys, ask=Ask(quality="unknown"))
    assert torch.equal(restored, unknown) == (quality not in (0, 1))


def test_quality_and_guidance_show(restorer):
    faces, keys = some_faces(1, SIZE), ["a"]

    def ask(**wishes):
        return restorer.restore(faces, keys, ask=Ask(**wishes))

    unknown, low, high = ask(), ask(quality=0.1), ask(quality=0.9)
    assert not torch.equal(low, high)
    assert not torch.equal(unknown, high)
    assert not torch.equal(ask(quality=0.9, guidance=2.0), high)
    with pytest.raises(ValueError, match="ask for a quality, too"):  # of nothing nothing is more
        ask(guidance=2.0)
    torch.testing.assert_close(ask(quality=0.9, guidance=0.0), unknown)


# Bits.


@pytest.mark.parametrize("batch", range(1, MOST + 1))
@pytest.mark.parametrize(
    "wishes", [{}, {"sampler": "ancestral", "quality": 0.7, "guidance": 1.5}], ids=["ddim", "all"]
)
def test_bits_do_not_depend_on_order_or_neighbours(restorer, batch, wishes):
    items, ask = list(range(batch)), Ask(**wishes)
    first = restore(restorer, items, ask=ask)
    assert torch.equal(restore(restorer, items[::-1], ask=ask).flip(0), first)
    assert torch.equal(restore(restorer, [*items[1:], 0], ask=ask).roll(1, 0), first)
    if batch > 1:
        strangers = restore(restorer, [*range(MOST, MOST + batch - 1), 0], ask=ask)
        assert torch.equal(strangers[-1], first[0])


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_bits_of_the_built_in_net_do_not_depend_on_the_place(batch):
    settings = of_file(ROOT / "configs" / "models" / "idm-128.yaml")
    model = lively(registry.untrained(settings), 0.05)
    faces, keys = some_faces(batch, 128), some_keys(batch)
    ask = Ask(steps=2, eta=1.0, quality=0.8)
    first = model.restore(faces, keys, ask=ask)
    rolled = model.restore(faces.roll(1, 0), [keys[-1], *keys[:-1]], ask=ask)
    assert torch.equal(rolled.roll(-1, 0), first)


def test_seed_and_key_change_the_result(restorer):
    face = some_faces(1, SIZE)
    base = restorer.restore(face, ["a"])
    assert not torch.equal(restorer.restore(face, ["b"]), base)
    assert not torch.equal(restorer.restore(face, ["a"], seed=1), base)
    assert torch.equal(restorer.restore(face, ["a"], seed=0), base)


def test_mean_is_one_result_for_every_key_and_seed(restorer):
    face = some_faces(1, SIZE)
    base = restorer.restore(face, ["a"], noise="mean")
    assert torch.equal(restorer.restore(face, ["b"], seed=7, noise="mean"), base)
    assert restorer.drawn(["a"], mode="mean").steps is None
    with pytest.raises(ValueError, match="noise mode 'none': expected one of seeded, mean"):
        restorer.drawn(["a"], mode="none")


def test_no_global_generator_is_read_or_moved(restorer):
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = restore(restorer, [0, 1])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(2)
    assert torch.equal(restore(restorer, [0, 1]), first)


def test_bits_do_not_depend_on_the_thread(restorer):
    found = {}
    jobs = [(0, 1), (2, 3), (1, 0)]
    threads = [
        threading.Thread(target=lambda items=items: found.update({items: restore(restorer, items)}))
        for items in jobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for items in jobs:
        assert torch.equal(found[items], restore(restorer, items))


def test_the_memory_format_of_the_faces_changes_no_bit(restorer):
    faces, keys = some_faces(2, SIZE), some_keys(2)
    other = faces.contiguous(memory_format=torch.channels_last)
    assert torch.equal(restorer.restore(other, keys), restorer.restore(faces, keys))


# Wishes.


def test_wishes_take_the_place_of_the_models_own_settings():
    model = model_of(unet={"condition": {"default": 0.9}})
    own = model.settle(Ask())
    assert own == (own.dial, 4, "ddim", 0.0, "noise", 1.0)
    assert own.dial == (0.9, 1.0)
    asked = model.settle(Ask(steps=9, sampler="ddim", eta=0.2, start="estimate", t0=0.5))
    assert asked[1:] == (9, "ddim", 0.2, "estimate", 0.5)
    assert model.settle(Ask(sampler="ancestral")).eta == 1.0
    assert model.settle(Ask(start="estimate", t0=0.02)).steps == 2  # the chain has no more
    assert model_of().settle(Ask()).dial is None


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"steps": 101}, "steps 101: the chain has 100, from t0 1 down"),
        ({"steps": 31, "start": "estimate", "t0": 0.3}, "steps 31: the chain has 30, from t0 0.3"),
        ({"sampler": "ancestral", "eta": 0.5}, "eta: the ancestral sampler has none"),
        ({"t0": 0.5}, "t0: only of a chain that starts from an estimate"),
        ({"quality": 0.5}, "quality: this idm model was trained without a quality condition"),
        ({"fidelity": 0.5}, "fidelity: not known to idm models"),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_line(wishes, message):
    with pytest.raises(ValueError, match=message) as told:
        model_of().settle(Ask(**wishes))
    assert "\n" not in str(told.value)


def test_a_prior_refuses_to_start_from_noise():
    model = model_of(param="eps", start="estimate", unet={"conditional": False})
    with pytest.raises(ValueError, match="start noise: this model sees the face only in"):
        model.settle(Ask(start="noise"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": {"groups": 5}}, "groups 5: do not divide 16"),
        ({"unet": {"size": 48}}, "size 48: expected a power of two"),
        ({"unet": {"multipliers": [1] * 6}}, "with a pixel left after 5 halvings"),
        ({"steps": 101}, "steps 101: the schedule has 100"),
        ({"unet": {"conditional": False}, "param": "eps"}, "start noise: an unconditional net"),
        ({"unet": {"conditional": False}, "start": "estimate"}, "param residual_x0: an uncondit"),
        (
            {"unet": {"scaled_state": True}, "param": "eps"},
            "scaled_state: param eps asks for noise",
        ),
        ({"prama": "eps"}, "prama"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        config(**change)


# Files.


def of_file(path):
    return IDMConfig.model_validate(yaml.safe_load(path.read_text())["model"])


def test_every_model_file_has_the_parameters_that_its_header_says():
    """SR3's, as its public re-implementation; the spec counts 95.4 million."""
    found = {}
    for path in YAMLS:
        settings = of_file(path)
        assert path.stem.endswith(f"-{settings.size}")
        model = checkpoints.hollow(lambda settings=settings: IDM(settings))
        found[path.stem] = sum(p.numel() for p in model.parameters())
        header = path.read_text().partition("model:\n")[0].replace("\n# ", " ")
        assert f"{found[path.stem]:,} parameters" in header
    assert found == {
        "idm-128": 1_837_021,
        "idm-512": 155_339_395,
        "idm-64": 1_520_080,
        "idm-difface-512": 113_524_323,
        "idm-sr3-128": 97_807_491,
    }


def test_the_prior_of_difface_takes_a_quality_and_its_own_start():
    settings = of_file(ROOT / "configs" / "models" / "idm-difface-512.yaml")
    asked = settle(settings, Ask(quality=0.9))
    assert asked == ((0.9, 1.0), 100, "ddim", 0.5, "estimate", 0.4)


def test_the_built_in_model_dials():
    settings = of_file(ROOT / "configs" / "models" / "idm-128.yaml")
    assert settings.param == "residual_x0"
    assert settings.condition is not None


def test_a_bundle_gives_the_same_bits(tmp_path, restorer):
    path = tmp_path / "idm.safetensors"
    checkpoints.save(restorer, path)
    again = checkpoints.load(path)
    assert again.config == restorer.config
    assert torch.equal(restore(again, [0, 1]), restore(restorer, [0, 1]))


def test_training_reaches_every_parameter():
    model = lively(model_of(unet={"condition": {}, "dropout": 0.0})).train()
    quality = torch.tensor([0.3, math.nan])
    state, lq = some_faces(4, SIZE).chunk(2)
    model.unet(state, torch.tensor([0.4, 0.9]), lq, quality).square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still == set()


def test_only_the_network_is_compiled(restorer, monkeypatch):
    found = []
    monkeypatch.setattr(restorer.unet, "compile", lambda **options: found.append(options))
    restorer.compile(fullgraph=True)
    assert found == [{"fullgraph": True}]
    assert chain.start_time(0.4, 1000) == 400

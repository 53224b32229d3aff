"""IDM's chain of steps: what is drawn when, where it starts, what is clipped, where it ends."""

import math
import weakref
from itertools import pairwise

import pytest
import torch

from tests.vsp_model.tiny import some_faces, some_keys
from tests.vsp_model.tiny_idm import SIZE, lively, model_of, restore
from vsp_model.ask import Ask
from vsp_model.idm.chain import StepNoise
from vsp_model.idm.schedule import level_at, noised, to_x0


@pytest.fixture(scope="module")
def restorer():
    return lively(model_of(unet={"condition": {}}, eta=1.0))


def test_noise_is_drawn_when_its_step_comes_and_never_kept(restorer, monkeypatch):
    """However many steps there are: a batch's random numbers take the room of one step."""
    alive, most, asked = [], [], []
    original = StepNoise.at

    def watched(self, time):
        noise = original(self, time)
        asked.append(time)
        alive[:] = [each for each in alive if each() is not None]
        alive.append(weakref.ref(noise))
        most.append(len(alive))
        return noise

    monkeypatch.setattr(StepNoise, "at", watched)
    restore(restorer, [0], ask=Ask(steps=50, eta=1.0))
    assert len(asked) == 49  # the last step adds none
    assert len(set(asked)) == 49
    assert max(most) <= 2
    drawn = restorer.drawn(["a"])
    assert drawn.start.numel() == 3 * SIZE**2
    assert torch.equal(drawn.steps.at(7), drawn.to("cpu").steps.at(7))
    assert not torch.equal(drawn.steps.at(7), drawn.steps.at(8))


def test_without_eta_no_noise_is_drawn(restorer, monkeypatch):
    usual = restore(restorer, [0], ask=Ask(eta=0.0))
    monkeypatch.setattr(StepNoise, "at", lambda *_: pytest.fail("noise was drawn"))
    assert torch.equal(restore(restorer, [0], ask=Ask(eta=0.0)), usual)


@pytest.mark.parametrize("param", ["eps", "v", "x0", "residual_x0"])
def test_every_estimate_is_clipped_to_a_picture(param):
    model = lively(model_of(param=param), 3.0)
    faces, keys = some_faces(2, SIZE), some_keys(2)
    for steps in (1, 3):
        restored = model.restore(faces, keys, ask=Ask(steps=steps))
        assert restored.abs().max() <= 1 + 1e-5
        assert restored.abs().max() > 0.99  # the net errs so far that it is needed


@pytest.mark.parametrize("param", ["eps", "v", "x0", "residual_x0"])
def test_one_step_is_what_the_network_says_of_pure_noise(param):
    model = lively(model_of(param=param), 0.1)
    faces = some_faces(2, SIZE).contiguous(memory_format=torch.channels_last)
    drawn = model.drawn(some_keys(2))
    level = level_at(float(model.chain.alpha_bar[-1]))
    with torch.no_grad():
        said = model.unet(drawn.start, torch.full((2,), level.signal), faces)
        x0 = model.chain.clipped(to_x0(param, said, drawn.start, level), faces)
        expected = model.chain.picture_of(x0, faces)
        assert torch.equal(model(faces, drawn, model.settle(Ask(steps=1))), expected)


def test_a_scaled_state_hides_pure_noise_and_shows_what_is_under_a_little():
    faces, keys = some_faces(2, SIZE), some_keys(2)

    def spread(scaled, **wishes):
        model = lively(model_of(unet={"scaled_state": scaled}), 0.1)
        one, other = (model.restore(faces, keys, seed=s, ask=Ask(**wishes)) for s in (0, 1))
        return (one - other).square().mean().sqrt().item()

    assert spread(True, steps=1) < 0.2 * spread(False, steps=1)
    slight = {"steps": 1, "start": "estimate", "t0": 0.02}
    assert spread(True, **slight) == pytest.approx(spread(False, **slight), rel=0.1)


def truth_teller(model, truth, lq):
    """A network that knows the clean state, whatever the noise."""
    target = model.chain.state_of(truth, lq)
    return lambda state, signal, lq, quality: target


@pytest.mark.parametrize("param", ["x0", "residual_x0"])
@pytest.mark.parametrize("wishes", [{}, {"sampler": "ancestral"}, {"start": "estimate", "t0": 0.3}])
def test_a_chain_whose_network_is_right_ends_at_the_truth(param, wishes):
    model = model_of(param=param)
    lq, truth = some_faces(4, SIZE).chunk(2)
    settings = model.settle(Ask(steps=7, **wishes))
    found = model.chain.sample(
        truth_teller(model, truth, lq), lq, model.drawn(some_keys(2)), settings, estimate=lq
    )
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=1e-6)


def test_an_estimate_is_noised_to_its_time_and_not_further():
    model = model_of(param="x0", start="estimate", t0=0.3)
    lq, estimate = some_faces(2, SIZE).chunk(2)
    drawn = model.drawn(["a"])
    seen = []

    def network(state, signal, lq, quality):
        seen.append((state, signal.item()))
        return state

    model.chain.sample(network, lq, drawn, model.settle(Ask(steps=3)), estimate)
    level = level_at(float(model.chain.alpha_bar[30]))
    torch.testing.assert_close(seen[0][0], noised(estimate, drawn.start, level))
    assert [signal for _, signal in seen] == pytest.approx(
        [math.sqrt(model.chain.alpha_bar[t]) for t in (30, 20, 10)]
    )


@pytest.mark.parametrize("param", ["eps", "residual_x0"])
def test_an_estimate_beyond_the_range_is_clamped(param):
    model = lively(model_of(param=param, start="estimate", t0=0.3))
    lq, estimate = some_faces(4, SIZE).chunk(2)
    keys, wild = some_keys(2), 1.5 * estimate
    assert wild.abs().max() > 1
    once = model.restore(lq, keys, estimate=wild.clamp(-1, 1))
    assert torch.equal(model.restore(lq, keys, estimate=wild), once)


def test_without_an_estimate_the_chain_starts_from_the_degraded_face():
    model = lively(model_of(param="x0", start="estimate", t0=0.3))
    faces, keys = some_faces(2, SIZE), some_keys(2)
    base = model.restore(faces, keys)
    assert torch.equal(model.restore(faces, keys, estimate=faces), base)
    assert not torch.equal(model.restore(faces, keys, estimate=-faces), base)
    little = model_of(param="eps", start="estimate", t0=0.01)  # an untrained eps sees no noise
    assert (little.restore(faces, keys, ask=Ask(steps=1)) - faces).abs().max() < 0.2


def test_an_unconditional_net_sees_the_face_in_its_start_alone():
    model = lively(model_of(param="eps", start="estimate", unet={"conditional": False}), 0.05)
    faces, keys = some_faces(2, SIZE), some_keys(2)
    estimate = some_faces(2, SIZE, seed=9)
    base = model.restore(faces, keys, estimate=estimate)
    assert torch.equal(model.restore(-faces, keys, estimate=estimate), base)
    assert not torch.equal(model.restore(faces, keys), base)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_quality_is_asked_of_a_chain_that_starts_from_an_estimate(conditional):
    unet = {"conditional": conditional, "condition": {}}
    model = lively(model_of(param="eps", start="estimate", unet=unet), 0.05)
    faces, keys = some_faces(2, SIZE), some_keys(2)
    found = [
        model.restore(faces, keys, estimate=-faces, ask=Ask(**wishes))
        for wishes in ({}, {"quality": 0.1}, {"quality": 0.9}, {"quality": 0.9, "guidance": 2.0})
    ]
    assert all(picture.isfinite().all() for picture in found)
    assert all(not torch.equal(one, other) for one, other in pairwise(found))

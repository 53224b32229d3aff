"""The mathematics of IDM's chain, in float64 against the textbook's formulas."""

import math

import numpy as np
import pytest
import torch

from vsp_model.idm.config import NoiseConfig
from vsp_model.idm.samplers import advance, ancestral_step, ddim_step, plan
from vsp_model.idm.schedule import (
    alpha_bars,
    continuous_signal,
    from_x0,
    level_at,
    levels_of,
    noised,
    target_of,
    times,
    to_x0,
)

NOISE = NoiseConfig(num_steps=200, beta_start=1e-4, beta_end=0.05)
AB = alpha_bars(NOISE)
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture
def faces():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_variances_are_evenly_spaced_and_the_chain_begins_clean():
    betas = 1 - AB[1:] / AB[:-1]
    assert AB[0] == 1
    assert betas[0] == pytest.approx(1e-4)
    assert betas[-1] == pytest.approx(0.05)
    assert np.diff(betas) == pytest.approx(np.full(199, (0.05 - 1e-4) / 199), rel=1e-6)
    sr3 = alpha_bars(NoiseConfig())
    assert len(sr3) == 2001
    assert sr3[-1] == pytest.approx(math.exp(-10.0), rel=0.05)  # the sum of its betas


def test_the_continuous_level_lies_between_its_neighbours():
    t = np.arange(1, 201)
    low, high = continuous_signal(AB, t, np.zeros(200)), continuous_signal(AB, t, np.ones(200))
    assert np.array_equal(low, np.sqrt(AB[1:]))
    assert high == pytest.approx(np.sqrt(AB[:-1]), abs=1e-15)
    middle = continuous_signal(AB, t, np.full(200, 0.5))
    assert ((low < middle) & (middle < high)).all()
    like = torch.zeros(200, 3, 1, 1, dtype=torch.float64)
    level = levels_of(middle, like)
    assert level.signal.shape == (200, 1, 1, 1)
    assert (level.signal**2 + level.noise**2 - 1).abs().max() < 1e-15


@pytest.mark.parametrize("t", [1, 7, 100, 200])
@pytest.mark.parametrize("param", ["eps", "v", "x0", "residual_x0"])
def test_the_true_prediction_gives_the_clean_state_back(param, t, faces):
    x0, noise, _ = faces
    level = level_at(AB[t])
    x_t = noised(x0, noise, level)
    target = target_of(param, x0, noise, level)
    torch.testing.assert_close(to_x0(param, target, x_t, level), x0, **CLOSE)
    torch.testing.assert_close(from_x0(param, x0, x_t, level), target, **CLOSE)


@pytest.mark.parametrize("other", ["eps", "v", "x0"])
@pytest.mark.parametrize("param", ["eps", "v", "x0"])
def test_every_prediction_converts_into_every_other(param, other, faces):
    prediction, x_t, _ = faces
    level = level_at(AB[90])
    there = from_x0(other, to_x0(param, prediction, x_t, level), x_t, level)
    back = from_x0(param, to_x0(other, there, x_t, level), x_t, level)
    torch.testing.assert_close(back, prediction, **CLOSE)


def epsilon(x0, x_t, t):
    return (x_t - math.sqrt(AB[t]) * x0) / math.sqrt(1 - AB[t])


@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (120, 119), (200, 150), (40, 3)])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_of_ddim_is_the_papers(t, s, eta, faces):
    x_t, x0, noise = faces
    x0 = x0.clamp(-1, 1)
    sigma = eta * math.sqrt((1 - AB[s]) / (1 - AB[t])) * math.sqrt(1 - AB[t] / AB[s])
    toward = math.sqrt(1 - AB[s] - sigma**2) * epsilon(x0, x_t, t)
    expected = math.sqrt(AB[s]) * x0 + toward + sigma * noise
    step = ddim_step(AB, t, s, eta)
    torch.testing.assert_close(advance(x_t, x0, step, noise), expected, **CLOSE)
    assert step.to_time == s


@pytest.mark.parametrize("t", [1, 2, 77, 200])
def test_ddim_with_all_its_noise_is_the_ancestral_posterior(t, faces):
    x_t, x0, noise = faces
    x0 = x0.clamp(-1, 1)
    beta = 1 - AB[t] / AB[t - 1]
    mean = (
        math.sqrt(AB[t - 1]) * beta / (1 - AB[t]) * x0
        + math.sqrt(1 - beta) * (1 - AB[t - 1]) / (1 - AB[t]) * x_t
    )
    variance = beta * (1 - AB[t - 1]) / (1 - AB[t])
    for step in (ddim_step(AB, t, t - 1, 1.0), ancestral_step(AB, t, t - 1)):
        torch.testing.assert_close(advance(x_t, x0, step), mean, **CLOSE)
        assert step.of_noise**2 == pytest.approx(variance, abs=1e-12)
        expected = mean + math.sqrt(variance) * noise
        torch.testing.assert_close(advance(x_t, x0, step, noise), expected, **CLOSE)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_the_last_step_is_the_estimate_itself(sampler, faces):
    x_t, x0, _ = faces
    last = plan(AB, [50, 0], sampler, 1.0)[-1]
    assert last.of_noise == 0
    assert torch.equal(advance(x_t, x0, last), x0)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_chain_that_knows_the_truth_walks_along_it(sampler, faces):
    x0, noise, _ = faces
    walk = times(200, 17)
    state = noised(x0, noise, level_at(AB[200]))
    for t, step in zip(walk[1:], plan(AB, walk, sampler), strict=True):
        state = advance(state, x0, step)
        if sampler == "ddim":  # without noise of its own it keeps that of the start
            torch.testing.assert_close(state, noised(x0, noise, level_at(AB[t])), **CLOSE)
    torch.testing.assert_close(state, x0, **CLOSE)


def test_a_far_step_of_the_ancestral_sampler_has_the_variance_of_all_the_steps_between():
    """Two steps with the same x_0 make the one step of the sub-sequence."""
    whole, first, second = (ancestral_step(AB, t, s) for t, s in ((90, 60), (90, 75), (75, 60)))
    assert whole.of_state == pytest.approx(first.of_state * second.of_state, rel=1e-10)
    assert whole.of_x0 == pytest.approx(second.of_state * first.of_x0 + second.of_x0, rel=1e-10)
    variance = (second.of_state * first.of_noise) ** 2 + second.of_noise**2
    assert whole.of_noise**2 == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize("top", [1, 2, 7, 200, 2000])
def test_times_fall_evenly_from_the_top_to_zero(top):
    for steps in {1, 2, 5, 50, top - 1, top} & set(range(1, top + 1)):
        found = times(top, steps)
        gaps = -np.diff(found)
        assert (found[0], found[-1], len(found)) == (top, 0, steps + 1)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
    assert times(top, top) == list(range(top, -1, -1))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_all_steps_are_the_full_chain(sampler, faces):
    """Neighbours in turn, as the textbook's loop goes, with a network that errs."""
    state, _, _ = faces
    byhand = state
    for step in plan(AB, times(200, 200), sampler, 0.0):
        state = advance(state, torch.tanh(state), step)
    for t in range(200, 0, -1):
        x0 = torch.tanh(byhand)
        if sampler == "ddim":
            kept = math.sqrt(1 - AB[t - 1]) * epsilon(x0, byhand, t)
            byhand = math.sqrt(AB[t - 1]) * x0 + kept
        else:
            beta = 1 - AB[t] / AB[t - 1]
            byhand = (
                math.sqrt(AB[t - 1]) * beta * x0 + math.sqrt(1 - beta) * (1 - AB[t - 1]) * byhand
            ) / (1 - AB[t])
    torch.testing.assert_close(state, byhand, **CLOSE)

"""Reduced precision stays within a stated bound of float32; memory layouts within rounding."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.vsp_model.tiny import lively, some_faces, some_keys, tiny_model
from vsp_model import registry
from vsp_model.ops import bias_act, modulated_conv2d
from vsp_model.randomness import draw
from vsp_model.vspbfr import VSPBFRConfig

SMALL = Path(__file__).resolve().parents[2] / "configs" / "models" / "vspbfr-64.yaml"
COUNT = 2
# Largest and mean error, both relative to the largest value of the float32 result.
BOUNDS = {torch.bfloat16: (0.15, 0.02), torch.float16: (0.03, 0.004)}


@pytest.fixture(scope="module")
def small():
    config = VSPBFRConfig.model_validate(yaml.safe_load(SMALL.read_text())["model"])
    model = lively(registry.untrained(config))
    return model.to(memory_format=torch.channels_last)  # float16 is six times faster so


@pytest.fixture(scope="module")
def batch(small):
    faces = some_faces(COUNT, 64).contiguous(memory_format=torch.channels_last)
    return faces, draw(small.random_shapes, some_keys(COUNT))


@pytest.fixture(scope="module")
def exact(small, batch):
    with torch.no_grad():
        return small(*batch)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_autocast_stays_within_its_bound(small, batch, exact, dtype):
    with torch.no_grad(), torch.autocast("cpu", dtype):
        reduced = small(*batch).float()
    assert reduced.isfinite().all()
    error, scale = (reduced - exact).abs(), exact.abs().max()
    largest, mean = (error.max() / scale).item(), (error.mean() / scale).item()
    assert 1e-4 < largest < BOUNDS[dtype][0]  # below: it did not run in reduced precision
    assert mean < BOUNDS[dtype][1]


def test_codes_prompt_and_result_are_float32_under_autocast(small, batch):
    faces, inputs = batch
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        codes, w_plus = small.prompt(faces, inputs.start)
        assert codes.dtype == w_plus.dtype == torch.float32
        assert torch.equal(w_plus, small.diffuser.sample(codes, inputs.start))
        assert small(faces, inputs).dtype == torch.float32  # the colours are summed in float32
        features = small.prior(w_plus, stop=64).features
    assert {f.dtype for f in features} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(w_plus, small.diffuser.sample(codes, inputs.start))


def test_channels_last_changes_rounding_only():
    model = tiny_model(64)
    faces, keys = some_faces(2, 64), some_keys(2)
    usual = model.restore(faces, keys)
    bound = 1e-4 * max(1.0, usual.abs().max().item())
    with torch.no_grad():
        plain = model(faces, draw(model.random_shapes, keys))
    assert (plain - usual).abs().max() <= bound
    model = model.to(memory_format=torch.channels_last)
    other = model.restore(faces, keys)
    assert (other - usual).abs().max() <= bound


def test_channels_last_survives_the_layers():
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)
    weight, modulation = torch.randn(8, 8, 3, 3), torch.randn(2, 8)
    y = modulated_conv2d(x, weight, modulation, dilations=(1, 2, 4, 8))
    y = bias_act(y, torch.randn(8))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_under_autocast_gives_finite_gradients(dtype):
    model = tiny_model(32).train()
    inputs = draw(model.random_shapes, some_keys(2))
    with torch.autocast("cpu", dtype):
        loss = model(some_faces(2, 32), inputs).float().square().mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_a_model_in_float64_runs_in_float64():
    model = tiny_model(32).double()
    inputs = draw(model.random_shapes, some_keys(1))
    wide = inputs._replace(
        start=inputs.start.double(),
        z=inputs.z.double(),
        prior_noise=[m.double() for m in inputs.prior_noise],
        restoration_noise=[m.double() for m in inputs.restoration_noise],
    )
    faces = some_faces(1, 32)
    with torch.no_grad():
        exact = model(faces.double(), wide)
    assert exact.dtype == torch.float64
    usual = tiny_model(32).restore(faces, some_keys(1))
    bound = 1e-4 * max(1.0, usual.abs().max().item())
    assert (exact - usual).abs().max() <= bound

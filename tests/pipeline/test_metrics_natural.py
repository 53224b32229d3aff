import math

import numpy as np
import pytest
from skimage import data

from pipeline.errors import UserError
from pipeline.metrics import natural


@pytest.fixture(scope="module")
def pristine(shared_dir):
    path = shared_dir / "weights" / "niqe_pris_params.npz"
    if not path.is_file():
        pytest.skip("needs the pristine model of NIQE")
    return natural.load_model(path)


@pytest.fixture(scope="module")
def textures():
    stream = np.random.default_rng(0)
    fields = stream.normal(128, 40, (20, 128, 128, 3))
    smooth = (fields + np.roll(fields, 1, 1) + np.roll(fields, 1, 2)) / 3
    return np.clip(smooth, 0, 255).astype(np.uint8)


# pyiqa's default, full-range gray: 3.062. BasicSR's luma: 3.09, which hangs on rounding in the
# photo's black parts.
@pytest.mark.parametrize(
    ("luma", "value", "error"), [("full", 3.062, 2e-3), ("studio", 3.09, 0.03)]
)
def test_astronaut_has_the_known_value(pristine, luma, value, error):
    model = natural.NaturalModel(pristine.mean, pristine.covariance, luma=luma)
    assert natural.niqe(data.astronaut(), model) == pytest.approx(value, abs=error)


def test_a_small_picture_is_refused(pristine):
    with pytest.raises(ValueError, match="128 x 128: NIQE of this model needs 192"):
        natural.niqe(data.astronaut()[:128, :128], pristine)


def test_a_fitted_model_tells_its_own_kind_from_others(textures):
    model = natural.fit(textures[:16])
    own = [natural.niqe(image, model) for image in textures[16:]]
    flatter = [natural.niqe(image // 8 * 8 // 4, model) for image in textures[16:]]
    assert max(own) < min(flatter)


def test_a_flat_picture_has_no_value(textures):
    assert math.isnan(natural.niqe(np.full((128, 128, 3), 90, np.uint8), natural.fit(textures)))


def test_a_fit_needs_enough_blocks(textures):
    with pytest.raises(UserError, match="give more clean images"):
        natural.fit(textures[:1])


def test_halving_keeps_a_constant_and_a_ramp():
    ramp = np.tile(np.arange(32.0), (32, 1))
    half = natural._halved(ramp)
    assert half.shape == (16, 16)
    assert half[4:12, 4:12] == pytest.approx(np.tile(2 * np.arange(4, 12) + 0.5, (8, 1)))


def test_no_model_is_one_line(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, mu=np.zeros(36))
    with pytest.raises(UserError, match="no NIQE model"):
        natural.load_model(path)

import math

import numpy as np
import pytest
from scipy.io import savemat
from skimage import data

from pipeline import images
from pipeline.errors import UserError
from pipeline.metrics import natural
from pipeline.metrics.judge import Face
from pipeline.metrics.natural_features import halved


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
    half = halved(ramp)
    assert half.shape == (16, 16)
    assert half[4:12, 4:12] == pytest.approx(np.tile(2 * np.arange(4, 12) + 0.5, (8, 1)))


@pytest.mark.parametrize(
    "name", ["other.npz", "other.mat", "absent.npz", "damaged.npz", "damaged.mat"]
)
def test_no_model_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name.startswith("damaged"):
        path.write_bytes(b"PK\x03\x04 and no more")
    elif name.startswith("other"):
        savemat(path, {"mu": 1}) if path.suffix == ".mat" else np.savez(path, mu=np.zeros(36))
    with pytest.raises(UserError, match="no NIQE model") as caught:
        natural.load_model(path)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, mu_pris_param=np.zeros(18), cov_pris_param=np.eye(18))
    with pytest.raises(UserError, match=r"shapes \(18,\)"):
        natural.load_model(path)


def test_the_published_models_of_both_libraries_are_one(tmp_path, pristine):
    path = tmp_path / "niqe_modelparameters.mat"
    savemat(path, {"mu_prisparam": pristine.mean[None], "cov_prisparam": pristine.covariance})
    model = natural.load_model(path)
    assert (model.mean == pristine.mean).all()
    assert (model.covariance == pristine.covariance).all()
    assert model.block_px == natural.BLOCK_PX


def test_a_model_of_ones_own_faces_is_kept_and_used(tmp_path, textures):
    model, path = natural.fit(textures[:16]), tmp_path / "own.npz"
    natural.save_model(path, model)
    face = Face("a", textures[16])
    value = natural.SmallNiqeJudge(path).score(face)["niqe-small"].value
    assert value == natural.niqe(textures[16], model)
    assert value != natural.SmallNiqeJudge().score(face)["niqe-small"].value


def test_a_model_of_other_blocks_is_another_metric(tmp_path):
    with pytest.raises(UserError, match=r"blocks of 32 px; niqe has 96"):
        natural.NiqeJudge(natural.SMALL_MODEL_PATH)
    path = tmp_path / "large.npz"
    natural.save_model(path, natural.NaturalModel(np.ones(36), np.eye(36)))
    with pytest.raises(UserError, match=r"blocks of 96 px; niqe-small has 32"):
        natural.SmallNiqeJudge(path)


def test_the_model_that_comes_with_the_program_knows_a_face_from_its_ruins():
    face = images.resize(np.ascontiguousarray(data.astronaut()[:256, 100:356]), 128)
    noisy = np.clip(face + np.random.default_rng(0).normal(0, 25, face.shape), 0, 255)
    blurred = images.resize(images.resize(face, 24), 128)
    score = natural.SmallNiqeJudge().score
    clean, *ruined = (
        score(Face("a", picture))["niqe-small"].value
        for picture in (face, noisy.astype(np.uint8), blurred)
    )
    assert clean < 4 < min(ruined)

"""Classic measurements and pose: each against pictures whose truth is known."""

import cv2
import numpy as np
import pytest
import simplejpeg
from skimage import data

from pipeline.cleaning.quality.damage import KINDS, UNSEEN, damage
from pipeline.cleaning.quality.measures import Measures, classic_quality, measure
from pipeline.cleaning.quality.pose import pose
from pipeline.faces.align import TEMPLATE
from pipeline.images import encode, resize


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """NASA's portrait of an astronaut, 256 genuine pixels."""
    return np.ascontiguousarray(data.astronaut()[0:256, 96:352])


def of(pixels: np.ndarray) -> Measures:
    return measure(pixels, b"", "png")


def classic(pixels: np.ndarray) -> float:
    return classic_quality(of(pixels))


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    field = np.random.default_rng(0).normal(0, sigma, (*pixels.shape[:2], 1))
    return np.clip(np.rint(pixels + field), 0, 255).astype(np.uint8)


def enlarged(face: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(resize(face, side), (256, 256), interpolation=cv2.INTER_CUBIC)


def test_blur_takes_sharpness_and_real_resolution(face):
    told = [of(cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    for measured in ("sharpness", "native_side_px"):
        values = [getattr(of(face), measured), *(getattr(each, measured) for each in told)]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] / 4


def test_sharpness_hardly_depends_on_the_size(face):
    large = np.ascontiguousarray(data.astronaut()[0:512, 0:512])
    values = [of(resize(large, side)).sharpness for side in (128, 256, 512)]
    assert max(values) < 1.6 * min(values)


@pytest.mark.parametrize("sigma", [5, 10, 20])
def test_noise_is_measured_in_grey_levels(face, sigma):
    flat = np.full((128, 128, 3), 120, np.uint8)
    assert of(noisy(flat, sigma)).noise_sigma == pytest.approx(sigma, rel=0.1)
    assert of(noisy(face, sigma)).noise_sigma == pytest.approx(sigma, rel=0.3)
    assert of(face).noise_sigma < 2.5


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 90, 95, 100])
def test_jpeg_quality_stands_in_the_file(face, quality):
    file = simplejpeg.encode_jpeg(face, quality=quality)
    assert measure(face, file, "jpeg").jpeg_quality == quality


def test_what_is_no_jpeg_has_no_jpeg_quality(face):
    assert measure(face, encode(face, "png"), "png").jpeg_quality is None
    for damaged in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xdb\x00\x43\x00short",
        b"\xff\xd8\xff\xff\xff",
    ):
        assert measure(face, damaged, "jpeg").jpeg_quality is None


def test_blockiness_outlives_the_file(face):
    told = []
    for quality in (95, 60, 30, 10):
        file = simplejpeg.encode_jpeg(face, quality=quality, colorsubsampling="420")
        told.append(of(simplejpeg.decode_jpeg(file)).blockiness)
    assert told == sorted(told)
    assert told[0] < 0.3 < 2 < told[-1]


def test_light_and_colour(face):
    black = np.zeros_like(face)
    assert (of(black).exposure, of(black).clipped_share, of(black).contrast) == (0, 1, 0)
    gray = np.repeat(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    assert (of(gray).is_gray, of(face).is_gray) == (True, False)
    assert of(face).exposure == pytest.approx(face.mean() / 255, abs=0.05)
    half = cv2.addWeighted(face, 0.5, np.full_like(face, 128), 0.5, 0)
    assert of(half).contrast == pytest.approx(of(face).contrast / 2, rel=0.05)


def test_real_resolution_of_an_enlarged_face(face):
    assert of(face).native_side_px >= 200
    assert 56 <= of(enlarged(face, 64)).native_side_px <= 100
    assert 28 <= of(enlarged(face, 32)).native_side_px <= 60


def test_noise_and_jpeg_hardly_fool_the_real_resolution(face):
    small = enlarged(face, 64)
    file = simplejpeg.encode_jpeg(small, quality=60, colorsubsampling="420")
    for fooled in (noisy(small, 8), simplejpeg.decode_jpeg(file)):
        assert 56 <= of(fooled).native_side_px <= 112


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UNSEEN])
def test_classic_quality_falls_with_every_damage(face, kind):
    small = resize(face, 128)
    steps = (0, 0.3, 0.6, 1)
    told = [classic(damage(small, kind, severity, seed=0, key="a")) for severity in steps]
    assert told == sorted(told, reverse=True)
    assert told[0] > 0.8
    assert told[-1] < 0.75 * told[0]


def test_noise_and_ringing_do_not_make_a_blurred_face_better(face):
    blurred = cv2.GaussianBlur(resize(face, 128), (0, 0), 2)
    ringing = cv2.addWeighted(blurred, 9, cv2.GaussianBlur(blurred, (0, 0), 2), -8, 0)
    assert classic(noisy(blurred, 12)) < classic(blurred)
    assert classic(ringing) < classic(resize(face, 128))


def test_the_cleaner_and_sharper_of_two_is_better(face):
    clean = resize(face, 128)
    degraded = damage(clean, "chain", 0.7, seed=0, key="a")
    half_way = cv2.addWeighted(clean, 0.6, cv2.GaussianBlur(clean, (0, 0), 1.5), 0.4, 0)
    assert classic(degraded) < classic(half_way) < classic(clean)


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (8, 8), (300, 64)])
def test_odd_and_plain_pictures_are_measured(shape):
    plain = np.full((*shape, 3), 77, np.uint8)
    drawn = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for picture in (plain, drawn):
        told = of(picture)
        assert all(np.isfinite(getattr(told, name)) for name in ("sharpness", "native_side_px"))
        assert 0 <= classic_quality(told) <= 1
    assert of(plain).sharpness == of(plain).noise_sigma == of(plain).blockiness == 0


# ----------------------------------------------------------------------------------------- pose


def mirrored(points: np.ndarray) -> np.ndarray:
    return ((512, 0) + points * (-1, 1))[[1, 0, 2, 4, 3]]


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - 256) @ turn.T + 256


def with_nose(shift: tuple[float, float]) -> np.ndarray:
    points = TEMPLATE.copy()
    points[2] += shift
    return points


def test_the_mean_face_looks_into_the_camera():
    assert pose(TEMPLATE) == pytest.approx((0, 0, 0), abs=0.5)


def test_signs():
    assert pose(with_nose((20, 0)))[0] > 10  # to the viewer's right
    assert pose(with_nose((0, -20)))[1] > 10  # up
    assert pose(turned(TEMPLATE, 15))[2] == pytest.approx(15, abs=0.5)  # clockwise, y down


def test_a_mirrored_face_looks_the_other_way():
    points = turned(with_nose((25, 12)), 8)
    yaw, pitch, roll = pose(points)
    assert pose(mirrored(points)) == pytest.approx((-yaw, pitch, -roll), abs=0.5)


def test_tilt_and_size_change_no_yaw():
    points = with_nose((25, -10))
    assert pose(turned(points, 30) / 4 + 7)[:2] == pytest.approx(pose(points)[:2], abs=1e-6)


def test_points_that_are_no_face_have_no_pose():
    assert pose(np.zeros((5, 2))) == (0, 0, 0)
    line = np.column_stack([np.arange(5.0), np.zeros(5)])
    assert np.isfinite(pose(line)).all()

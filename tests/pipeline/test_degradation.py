import io
import json
import random
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline import degradation
from pipeline.degradation import (
    FREE_FORM,
    STAGE_2,
    DegradationConfig,
    DegradationParams,
    degrade,
    degrade_float,
    draw_noise,
    draw_params,
    fit,
    gaussian_kernel,
    kernel_side_at,
    reduction_at,
    truth_float,
)

PARITY = Path(__file__).resolve().parents[1] / "parity_data"


def face(size=64, seed=0):
    """A smooth picture without symmetry, uint8."""
    coarse = np.random.default_rng(seed).integers(30, 220, (5, 5, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def as_float(image):
    return image.astype(np.float32) / np.float32(255)


# ---------------------------------------------------------------------------------- published


@pytest.fixture(scope="module")
def published():
    with np.load(PARITY / "public/degradation.npz") as stored:
        return {name: stored[name] for name in stored.files}


def test_published_kernels(published):
    for i, (side, kind, x, y, theta) in enumerate(json.loads(str(published["meta"]))["kernels"]):
        kernel = gaussian_kernel(side, x, x if kind == "iso" else y, theta)
        assert kernel.dtype == np.float64
        assert np.abs(kernel - published[f"kernel{i}"]).max() < 1e-15


@pytest.mark.parametrize("name", ["deg", "deg2"])
def test_published_chains_without_jpeg(published, name):
    meta = json.loads(str(published["meta"]))
    chain = meta["chains"][name]
    noise = published_normal(meta["base_seed"], *chain["noise"])
    side, kind, x, y, theta = chain["kern"]
    clean = as_float(published[f"{name}/input_uint8"])
    steps = {}
    steps["blurred"] = degradation.blur(
        clean, gaussian_kernel(side, x, x if kind == "iso" else y, theta)
    )
    if chain["haze"]:
        steps["hazed"] = degradation.haze(steps["blurred"], chain["haze"])
    steps["small"] = degradation.resize(list(steps.values())[-1], chain["low_size"])
    steps["noisy"] = degradation.add_noise(steps["small"], noise, chain["sigma"])
    steps["output"] = degradation.quantise(degradation.resize(steps["noisy"], chain["hw"]))
    if chain["gray"]:
        steps["output_gray"] = degradation.gray(steps["output"])
        steps["gt_gray"] = degradation.gray(clean)
    for step, image in steps.items():
        assert image.dtype == np.float32, step
        assert np.abs(image - published[f"{name}/{step}"]).max() < 1e-6, step


def published_normal(base_seed, name, shape):
    stream = np.random.Generator(np.random.PCG64(zlib.crc32(f"{base_seed}|{name}".encode())))
    return stream.standard_normal(shape).astype(np.float32)


# -------------------------------------------------------------------------------------- steps


def test_a_kernel_sums_to_one_and_lies_along_theta():
    kernel = gaussian_kernel(21, 4.0, 1.0, np.pi / 4)
    assert kernel.sum() == pytest.approx(1)
    assert np.allclose(kernel, kernel[::-1, ::-1])
    # y points down: the long axis at 45 degrees runs from top left to bottom right
    assert kernel[15, 15] > 10 * kernel[15, 5]


def test_a_round_kernel_does_not_turn():
    assert np.allclose(gaussian_kernel(9, 1.3, 1.3, 0.8), gaussian_kernel(9, 1.3, 1.3))


def test_the_blur_mirrors_without_repeating_the_edge():
    image = np.zeros((5, 5, 3), np.float32)
    image[:, 1] = 1
    kernel = np.zeros((3, 3))
    kernel[1, 0] = 1  # read the left neighbour; correlated, not convolved
    assert degradation.blur(image, kernel)[:, 0].max() == pytest.approx(1)
    assert degradation.blur(image, kernel)[:, 2].min() == pytest.approx(1)


@pytest.mark.parametrize("quality", [60, 75, 99])
def test_jpeg_swaps_red_and_blue(quality):
    """Pillow, told the truth about the order, must be given the channels reversed."""
    image = face()

    def pillow(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return np.asarray(Image.open(file)).astype(np.float32)

    ours = degradation.jpeg(as_float(image), quality) * 255
    swapped = pillow(np.ascontiguousarray(image[:, :, ::-1]))[:, :, ::-1]
    assert np.abs(ours - swapped).max() < 1e-3
    assert np.abs(ours - pillow(image)).mean() > 0.1


def test_red_and_blue_are_swapped_unless_told_otherwise():
    image = face()

    def pillow(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=75, subsampling="4:2:0")
        return np.asarray(Image.open(file)).astype(np.float32)

    ours = degradation.jpeg(as_float(image), 75, swaps_red_blue=False) * 255
    assert np.abs(ours - pillow(image)).max() < 1e-3
    red = np.array([[[1.0, 0.0, 0.0]]], np.float32)
    assert degradation.gray(red, swaps_red_blue=False)[0, 0, 0] == pytest.approx(0.299)
    params = draw_params(STAGE_2, 64, seed=0, key="a")._replace(gray=True)
    noise = draw_noise(params.low_side, seed=0, key="a")
    right = params._replace(swaps_red_blue=False)
    assert not np.array_equal(
        degrade_float(as_float(image), params, noise), degrade_float(as_float(image), right, noise)
    )
    assert not np.array_equal(
        truth_float(as_float(image), params), truth_float(as_float(image), right)
    )


def test_jpeg_rounds_half_to_even():
    flat = np.full((16, 16, 3), 100.5 / 255, np.float32)
    assert degradation.jpeg(flat, 99)[0, 0, 0] * 255 == pytest.approx(100)


def test_haze_fades_towards_white():
    image = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    assert degradation.haze(image, 0.8).ravel().tolist() == pytest.approx([0.2, 0.6, 1.0])


def test_noise_is_clipped_but_not_rounded():
    image = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    field = np.array([[[-1.0, 0.3, 1.0]]], np.float32)
    noisy = degradation.add_noise(image, field, 10.0).ravel()
    assert noisy.tolist() == pytest.approx([0, 0.5 + 3 / 255, 1])


def test_gray_weighs_blue_as_red():
    image = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]], np.float32)
    gray = degradation.gray(image)
    assert np.allclose(gray[0], [[0.114] * 3, [0.587] * 3, [0.299] * 3], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(65, 77), (300, 511), (127, 64), (33, 50)])
def test_fit_leaves_no_border(height, width):
    white = np.full((height, width, 3), 255, np.uint8)
    assert np.array_equal(fit(white, 64), np.full((64, 64, 3), 255, np.uint8))


def test_fit_takes_the_centre():
    image = np.zeros((64, 192, 3), np.uint8)
    image[:, 64:128] = 200
    assert np.array_equal(fit(image, 64), np.full((64, 64, 3), 200, np.uint8))


# ---------------------------------------------------------------------------------- the draws


def draws(config, size=512, count=400):
    return [draw_params(config, size, seed=0, key=str(i)) for i in range(count)]


def test_draws_fill_the_published_ranges():
    drawn = draws(STAGE_2)
    assert {p.kernel_side for p in drawn} == {39, 41}
    assert {p.jpeg_quality for p in drawn} == set(range(60, 100))
    for values, low, high in [
        ([p.sigma_x for p in drawn], 0.1, 10),
        ([p.sigma_y for p in drawn], 0.1, 10),
        ([512 / p.low_side for p in drawn], 0.8, 8.1),
        ([p.noise_sigma for p in drawn], 0, 20),
        ([p.theta for p in drawn], -np.pi, np.pi),
    ]:
        margin = 0.02 * (high - low)
        assert low <= min(values) < low + margin
        assert high - 2 * margin < max(values) <= high
    assert 0.4 < np.mean([p.sigma_x == p.sigma_y for p in drawn]) < 0.6
    assert not any(p.flip or p.gray or p.haze is not None for p in drawn)


def test_free_form_flips_half_and_rarely_fades():
    drawn = draws(FREE_FORM, count=2000)
    assert 0.45 < np.mean([p.flip for p in drawn]) < 0.55
    assert 0.003 < np.mean([p.gray for p in drawn]) < 0.015
    faded = [p.haze for p in drawn if p.haze is not None]
    assert 0.003 < len(faded) / 2000 < 0.015
    assert all(0.75 <= alpha <= 0.95 for alpha in faded)


def test_switching_a_step_on_changes_no_other_draw():
    for plain, free in zip(draws(STAGE_2, count=50), draws(FREE_FORM, count=50), strict=True):
        assert free._replace(flip=False, haze=None, gray=False) == plain


def test_the_draw_of_a_key_never_changes():
    """Data sets made with a seed must be made again with it: a new recipe is a new data set."""
    assert draw_params(STAGE_2, 512, seed=7, key="face-0001") == DegradationParams(
        size=512,
        flip=False,
        kernel_side=39,
        sigma_x=4.449758665565357,
        sigma_y=2.722626615808185,
        theta=-1.4933598600898024,
        haze=None,
        low_side=125,
        noise_sigma=12.99969075396471,
        jpeg_quality=68,
        gray=False,
    )
    noise = draw_noise(2, seed=7, key="face-0001").ravel()[:3]
    assert noise.tolist() == pytest.approx([-0.66155106, 0.94871515, 1.17342556], rel=1e-6)


def test_keys_and_seeds_are_apart():
    drawn = {
        draw_params(STAGE_2, 512, seed=s, key=k).sigma_x for s in (0, 1, 11) for k in ("a", "1|a")
    }
    assert len(drawn) == 6


@pytest.mark.parametrize(
    ("size", "sides", "upper"),
    [
        (1024, (79, 83), 128**0.5),
        (512, (39, 41), 8.0),
        (256, (19, 21), 32**0.5),
        (128, (9, 11), 4.0),
        (64, (5, 5), 8**0.5),
        (16, (3, 3), 2**0.5),
    ],
)
def test_blur_and_reduction_scale_with_the_size(size, sides, upper):
    assert tuple(kernel_side_at(side, size) for side in (39, 41)) == sides
    assert reduction_at(STAGE_2, size) == (0.8, pytest.approx(upper))
    at_512 = draw_params(STAGE_2, 512, seed=0, key="a")
    here = draw_params(STAGE_2, size, seed=0, key="a")
    assert here.sigma_x == pytest.approx(at_512.sigma_x * size / 512)
    assert (here.noise_sigma, here.jpeg_quality) == (at_512.noise_sigma, at_512.jpeg_quality)


def test_a_size_that_cannot_be_reduced_is_refused():
    with pytest.raises(ValueError, match="size 4, expected at least 8"):
        draw_params(STAGE_2, 4, seed=0, key="a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur_sigma": (3, 1)},
        {"blur_sigma": (0, 1)},
        {"jpeg_quality": (0, 90)},
        {"haze_probability": 1.5},
        {"kernel_sides": ()},
        {"noise": (0, 20)},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValidationError):
        DegradationConfig(**wrong)


# ---------------------------------------------------------------------------------- the chain


def test_equal_arguments_give_equal_bytes_whatever_happened_before():
    image = face(64)
    kept = image.copy()
    first = degrade(image, "a", seed=3, size=64)
    random.seed(5)
    np.random.seed(5)
    cv2.setRNGSeed(5)
    degrade(image, "b", seed=3, size=64)
    assert np.array_equal(degrade(image, "a", seed=3, size=64), first)
    assert np.array_equal(image, kept)
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert not np.array_equal(degrade(image, "b", seed=3, size=64), first)
    assert not np.array_equal(degrade(image, "a", seed=4, size=64), first)


def test_global_generators_are_left_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    degrade(face(64), "a", size=64, config=FREE_FORM)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_opencv_threads_do_not_matter():
    image, threads = face(512), cv2.getNumThreads()
    try:
        results = []
        for count in (1, 2):
            cv2.setNumThreads(count)
            results.append(degrade(image, "a"))
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(*results)


def test_the_chain_is_its_steps():
    params = draw_params(FREE_FORM, 64, seed=0, key="a")
    params = params._replace(flip=True, haze=0.8, gray=True)
    clean, noise = as_float(face(64)), draw_noise(params.low_side, seed=0, key="a")
    x = degradation.blur(
        np.ascontiguousarray(clean[:, ::-1]),
        gaussian_kernel(params.kernel_side, params.sigma_x, params.sigma_y, params.theta),
    )
    x = degradation.resize(degradation.haze(x, 0.8), params.low_side)
    x = degradation.jpeg(degradation.add_noise(x, noise, params.noise_sigma), params.jpeg_quality)
    x = degradation.gray(degradation.quantise(degradation.resize(x, 64)))
    assert np.array_equal(degrade_float(clean, params, noise), x)


def test_flip_and_gray_happen_to_the_truth_too():
    clean = as_float(face(64))
    params = draw_params(STAGE_2, 64, seed=0, key="a")
    assert np.array_equal(truth_float(clean, params._replace(haze=0.8)), clean)
    assert np.array_equal(truth_float(clean, params._replace(flip=True)), clean[:, ::-1])
    grayed = truth_float(clean, params._replace(gray=True))
    assert np.array_equal(grayed, degradation.gray(clean))


def test_a_mild_draw_keeps_the_face_and_a_harsh_one_costs_it():
    image = face(128)
    mild = DegradationConfig(
        blur_sigma=(0.1, 0.1), reduction=(1, 1), noise_sigma=(0, 0), jpeg_quality=(99, 99)
    )
    harsh = DegradationConfig(blur_sigma=(10, 10), reduction=(8, 8), noise_sigma=(20, 20))
    errors = [
        np.abs(degrade(image, "a", size=128, config=c).astype(int) - image).mean()
        for c in (mild, harsh)
    ]
    assert errors[0] < 1.5 < 4 < errors[1], errors


def test_another_size_is_fitted():
    assert degrade(face(96), "a", size=64).shape == (64, 64, 3)

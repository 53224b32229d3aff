import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.metrics.bands import DETAIL, FINEST, band_db, band_power
from pipeline.metrics.pixels import _STRIP_ROWS, psnr, ssim


@pytest.fixture
def pair():
    stream = np.random.default_rng(0)
    truth = np.kron(stream.integers(0, 256, (12, 9, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    noise = stream.normal(0, 12, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


def psnr_by_the_book(image, truth):
    """Every value of every colour by itself."""
    squares = [(int(a) - int(b)) ** 2 for a, b in zip(image.ravel(), truth.ravel(), strict=True)]
    return 10 * math.log10(255**2 / (sum(squares) / len(squares)))


def ssim_by_the_book(image, truth):
    """Wang et al. 2004, Eq. 13 to 16, window by window."""
    places = np.arange(11) - 5
    weights = np.exp(-(places[:, None] ** 2 + places[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    height, width, num_colors = image.shape
    found = []
    for color in range(num_colors):
        for top in range(height - 10):
            for left in range(width - 10):
                x, y = (
                    each[top : top + 11, left : left + 11, color].astype(float)
                    for each in (image, truth)
                )
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                var_x = (weights * (x - mean_x) ** 2).sum()
                var_y = (weights * (y - mean_y) ** 2).sum()
                covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                found.append(likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return float(np.mean(found))


def test_psnr_and_ssim_are_the_formulas_of_the_restoration_field(pair):
    image, truth = (each[:22, :19] for each in pair)
    assert psnr(image, truth) == pytest.approx(psnr_by_the_book(image, truth), abs=1e-10)
    assert ssim(image, truth) == pytest.approx(ssim_by_the_book(image, truth), abs=1e-10)


@pytest.mark.parametrize("places", [1, _STRIP_ROWS, _STRIP_ROWS + 1, 2 * _STRIP_ROWS - 1])
def test_ssim_counts_every_place_once_however_it_is_cut_into_strips(places):
    stream = np.random.default_rng(places)
    image, truth = stream.integers(0, 256, (2, places + 10, 12, 3)).astype(np.uint8)
    assert ssim(image, truth) == pytest.approx(ssim_by_the_book(image, truth), abs=1e-10)


def test_psnr_and_ssim_are_scikit_images(pair):
    decibels = peak_signal_noise_ratio(pair[1], pair[0], data_range=255)
    assert psnr(*pair) == pytest.approx(decibels, abs=1e-10)
    expected = structural_similarity(
        *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*pair) == pytest.approx(expected, abs=1e-10)
    assert ssim(pair[1], pair[1]) == pytest.approx(1)


def test_psnr_of_a_constant_error_is_as_computed_by_hand():
    dark = np.full((4, 4, 3), 10, np.uint8)
    assert psnr(dark + 5, dark) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(dark, dark) == math.inf


def test_psnr_of_a_large_picture_does_not_overflow():
    black = np.zeros((1500, 1500, 3), np.uint8)
    assert psnr(black, black + 255) == 0


def test_another_size_is_refused(pair):
    with pytest.raises(ValueError, match="truth"):
        psnr(pair[0], pair[1][1:])
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pair[0][:8], pair[1][:8])


def stripes(cycles_per_px: float) -> np.ndarray:
    wave = 128 + 60 * np.cos(2 * np.pi * cycles_per_px * np.arange(64) + 0.3)
    return np.repeat(np.tile(wave, (64, 1))[:, :, None], 3, axis=2).astype(np.uint8)


def test_a_band_sees_the_frequencies_in_it():
    detail, finest = band_power(stripes(0.25), (DETAIL, FINEST))
    assert detail > 1000 * finest
    detail, finest = band_power(stripes(0.42), (DETAIL, FINEST))
    assert finest > 1000 * detail


def test_half_the_contrast_is_a_quarter_of_the_power():
    wave = stripes(0.25)
    faint = (128 + (wave.astype(float) - 128) / 2).round().astype(np.uint8)
    assert band_db(faint, wave)[0] == pytest.approx(-6.02, abs=0.1)
    assert band_db(wave, wave) == pytest.approx([0, 0])

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.metrics.bands import DETAIL, FINEST, band_db, band_power
from pipeline.metrics.pixels import psnr, ssim


@pytest.fixture
def pair():
    stream = np.random.default_rng(0)
    truth = np.kron(stream.integers(0, 256, (12, 9, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    noise = stream.normal(0, 12, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


def test_psnr_is_scikit_images(pair):
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(pair[1], pair[0], data_range=255))


def test_psnr_of_a_constant_error_is_as_computed_by_hand(pair):
    dark = np.full((4, 4, 3), 10, np.uint8)
    assert psnr(dark + 5, dark) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(dark, dark) == math.inf


def test_ssim_is_scikit_images_of_the_restoration_field(pair):
    expected = structural_similarity(
        *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*pair) == pytest.approx(expected, abs=1e-12)
    assert ssim(pair[1], pair[1]) == pytest.approx(1)


def test_another_size_is_refused(pair):
    with pytest.raises(ValueError, match="truth"):
        psnr(pair[0], pair[1][1:])
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pair[0][:8], pair[1][:8])


def stripes(cycles_per_px: float) -> np.ndarray:
    wave = 128 + 60 * np.cos(2 * np.pi * cycles_per_px * np.arange(64) + 0.3)
    return np.repeat(np.tile(wave, (64, 1))[:, :, None], 3, axis=2).astype(np.uint8)


def test_a_band_sees_the_frequencies_in_it():
    wave = stripes(0.25)
    assert band_power(wave, DETAIL) > 1000 * band_power(wave, FINEST)
    assert band_power(stripes(0.42), FINEST) > 1000 * band_power(stripes(0.42), DETAIL)


def test_half_the_contrast_is_a_quarter_of_the_power():
    wave = stripes(0.25)
    faint = (128 + (wave.astype(float) - 128) / 2).round().astype(np.uint8)
    assert band_db(faint, wave) == pytest.approx(-6.02, abs=0.1)
    assert band_db(wave, wave) == 0

import numpy as np
import pytest

from pipeline.metrics.frechet import Moments, frechet, frechet_of, kernel_distance
from pipeline.metrics.intervals import difference_interval, draws, mean_interval, spread


@pytest.fixture
def stream():
    return np.random.default_rng(0)


def test_frechet_of_two_diagonal_gaussians_is_the_formula():
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    one = Moments(11, np.zeros(3), np.diag(10 * first))
    other = Moments(21, np.array([1.0, 2.0, 0.0]), np.diag(20 * second))
    expected = 5 + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet(one, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "error"), [(20, 1e-5), (200, 1e-8)])
def test_both_routes_agree_and_are_symmetric(stream, count, error):
    one, other = stream.normal(0, 1, (count, 32)), stream.normal(0.3, 2, (count, 32))
    full = frechet(Moments.of(one), Moments.of(other))
    assert frechet_of(one, other) == pytest.approx(full, rel=error)
    assert frechet_of(other, one) == pytest.approx(full, rel=error)
    assert frechet_of(one, one) == pytest.approx(0, abs=1e-6)


def test_merged_moments_are_those_of_the_union(stream):
    features = stream.normal(3, 2, (50, 8))
    merged = Moments.of(features[:1]).merge(Moments.of(features[1:20]))
    merged = merged.merge(Moments.of(features[20:]))
    whole = Moments.of(features)
    assert merged.count == whole.count
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12)
    assert merged.covariance == pytest.approx(np.cov(features, rowvar=False), rel=1e-12, abs=1e-12)


def test_kernel_distance_is_unbiased(stream):
    same = [kernel_distance(*stream.normal(0, 1, (2, 30, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert kernel_distance(stream.normal(0, 1, (40, 4)), stream.normal(1, 1, (60, 4))) > 1


def test_the_interval_covers_the_true_mean_as_often_as_it_says(stream):
    covered = 0
    drawn = draws(60, seed=3, resamples=500)
    for _ in range(300):
        interval = mean_interval(stream.exponential(2, 60), drawn)
        covered += interval.low <= 2 <= interval.high
    assert 0.88 < covered / 300 < 0.98


def test_equal_seeds_draw_the_same_and_others_do_not():
    assert np.array_equal(draws(9, seed=1), draws(9, seed=1))
    assert not np.array_equal(draws(9, seed=1), draws(9, seed=2))


def test_images_of_a_group_come_together():
    drawn = draws(5, seed=0, groups=["a", "b", "a", "c", "b"])
    assert np.array_equal(drawn[:, 0], drawn[:, 2])
    assert np.array_equal(drawn[:, 1], drawn[:, 4])
    assert not np.array_equal(drawn[:, 0], drawn[:, 1])


def test_a_difference_is_taken_image_by_image(stream):
    hard = stream.normal(0, 50, 40)
    interval = difference_interval(hard + 1, hard, draws(40, seed=0))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((1, 1, 1))


def test_what_has_no_value_is_not_counted():
    interval = mean_interval(np.array([1.0, np.nan, 3.0]), draws(3, seed=0))
    assert (interval.mean, interval.count) == (2, 2)
    assert mean_interval(np.full(3, np.nan), draws(3, seed=0)).count == 0


def test_spread_of_a_mean_is_its_standard_error(stream):
    values = stream.normal(0, 1, 400)
    error = spread(lambda places: values[places].mean(), 400, seed=0, resamples=400)
    assert error == pytest.approx(values.std() / 20, rel=0.15)

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.metrics.frechet import (
    Gaussian,
    frechet,
    frechet_between,
    frechet_error,
    frechet_low_rank,
    frechet_of,
    frechet_of_few,
    load_reference,
)
from pipeline.metrics.intervals import (
    difference_interval,
    draw_blocks,
    draws,
    mean_interval,
    resampled_means,
    spread,
)
from pipeline.metrics.kernel import paired_kernel_distance
from pipeline.metrics.moments import Moments, merge_all


@pytest.fixture
def stream():
    return np.random.default_rng(0)


def gaussian_of(features):
    return Gaussian.of(Moments.of(features))


def test_frechet_of_two_diagonal_gaussians_is_the_formula():
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    one = Gaussian.of(Moments(11, np.zeros(3), np.diag(10 * first)))
    other = Gaussian.of(Moments(21, np.array([1.0, 2.0, 0.0]), np.diag(20 * second)))
    expected = 5 + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet(one, other).value == pytest.approx(expected, rel=1e-12)
    assert frechet(one, other).note == ""


@pytest.mark.parametrize(("count", "error"), [(20, 1e-5), (200, 1e-8)])
def test_both_routes_agree_and_are_symmetric(stream, count, error):
    one, other = stream.normal(0, 1, (count, 32)), stream.normal(0.3, 2, (count, 32))
    full = frechet(gaussian_of(one), gaussian_of(other)).value
    assert frechet_of_few(one, other).value == pytest.approx(full, rel=error)
    assert frechet_of(one, other) == pytest.approx(full, rel=error)
    assert frechet_of(other, one) == pytest.approx(full, rel=error)
    assert frechet_of(one, one) == pytest.approx(0, abs=1e-6)


def test_sets_of_other_sizes_take_the_route_of_the_smaller(stream):
    few, many = stream.normal(0, 1, (20, 32)), stream.normal(0.3, 2, (200, 32))
    full = frechet(gaussian_of(many), gaussian_of(few)).value
    assert frechet_low_rank(few, gaussian_of(many)).value == pytest.approx(full, rel=1e-5)
    assert frechet_of(few, many) == pytest.approx(full, rel=1e-5)
    assert frechet_of(many, few) == pytest.approx(full, rel=1e-5)


def test_frechet_is_that_of_torchmetrics(stream):
    torchmetrics = pytest.importorskip("torchmetrics.image.fid")

    class Toy(torch.nn.Module):
        num_features = 12

        def forward(self, pictures):
            return pictures.flatten(1).double()

    distance = torchmetrics.FrechetInceptionDistance(Toy(), antialias=False)
    distance.set_dtype(torch.float64)
    sets = stream.integers(0, 256, (2, 60, 3, 2, 2), np.uint8)
    for is_real, pictures in enumerate(sets):
        distance.update(torch.from_numpy(pictures), real=bool(is_real))
    one, other = (pictures.reshape(60, 12) for pictures in sets)
    assert frechet_of(one, other) == pytest.approx(float(distance.compute()), rel=1e-8)


def test_cut_off_eigenvalues_are_told():
    indefinite = Gaussian(np.zeros(2), np.diag([1.0, -0.5]))
    found = frechet(Gaussian(np.zeros(2), np.eye(2)), indefinite)
    assert found.clipped == pytest.approx(1 / 3)
    assert "smallest -5.0e-01" in found.note


def test_merged_moments_are_those_of_the_union(stream):
    features = stream.normal(3, 2, (50, 8))
    ids = [f"{number:02}" for number in range(50)]
    cuts = [0, 0, 1, 2, *sorted(stream.integers(2, 50, 5)), 50]
    parts = [Moments.of(features[a:b], ids[a:b], "net") for a, b in pairwise(cuts)]
    parts = [parts[place] for place in stream.permutation(len(parts))]
    merged, whole = merge_all(parts), Moments.of(features, ids, "net")
    assert (merged.count, merged.ids) == (whole.count, whole.ids)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12)
    assert merged.covariance == pytest.approx(np.cov(features, rowvar=False), rel=1e-12, abs=1e-12)


def test_equal_orders_of_merging_give_equal_bits(stream):
    parts = [Moments.of(stream.normal(0, 1, (9, 4))) for _ in range(7)]
    assert np.array_equal(merge_all(parts).scatter, merge_all(parts).scatter)
    with pytest.raises(ValueError, match="no moments"):
        merge_all([])


def test_sets_that_do_not_belong_together_are_not_merged(stream):
    features = stream.normal(0, 1, (3, 4))
    one = Moments.of(features, ["a", "b", "c"], "net")
    with pytest.raises(UserError, match="1 images stand in both sets"):
        one.merge(Moments.of(features, ["c", "d", "e"], "net"))
    with pytest.raises(UserError, match="cannot be merged"):
        one.merge(Moments.of(features, ["d", "e", "f"], "other net"))


def test_moments_come_back_from_their_file(stream, tmp_path):
    moments = Moments.of(stream.normal(0, 1, (9, 5)), list("abcdefghi"), "net 1234")
    moments.save(tmp_path / "moments.npz")
    again = Moments.load(tmp_path / "moments.npz")
    assert np.array_equal(again.scatter, moments.scatter)
    assert np.array_equal(again.mean, moments.mean)
    assert (again.count, again.ids, again.extractor) == (9, moments.ids, "net 1234")


def test_reference_statistics_are_read_from_every_format(stream, tmp_path):
    features = stream.normal(2, 1, (30, 4))
    moments = Moments.of(features)
    moments.save(tmp_path / "ours.npz")
    np.savez(tmp_path / "usual.npz", mu=moments.mean, sigma=moments.covariance)
    facts = {"name": "FFHQ", "mean": torch.from_numpy(moments.mean), "cov": moments.covariance}
    facts["cov"] = torch.from_numpy(facts["cov"])
    torch.save(facts, tmp_path / "basicsr.pth")
    for name in ("ours.npz", "usual.npz", "basicsr.pth"):
        gaussian = load_reference(tmp_path / name)
        assert np.array_equal(gaussian.mean, moments.mean)
        assert np.array_equal(gaussian.covariance, moments.covariance)


@pytest.mark.parametrize("name", ["absent.npz", "empty.npz", "text.pth", "misshapen.npz"])
def test_other_files_are_refused_in_one_line(name, tmp_path):
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.pth").write_text("no statistics")
    np.savez(tmp_path / "misshapen.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(UserError, match=name) as refusal:
        load_reference(tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("has_truths", [True, False])
def test_the_error_of_few_features_is_that_of_resampling_them(stream, has_truths):
    features, truths = stream.normal(0, 1, (2, 24, 40))
    reference = gaussian_of(stream.normal(0, 1, (90, 40)))
    other = truths if has_truths else reference
    drawn = draws(24, seed=3, resamples=30).astype(int)
    plain = []
    for counts in drawn:
        places = np.repeat(np.arange(24), counts)
        found = (
            frechet_between(features[places], truths[places])
            if has_truths
            else frechet_low_rank(features[places], reference)
        )
        plain.append(found.value)
    error = frechet_error(features, other, seed=3, resamples=30)
    assert error == pytest.approx(np.std(plain, ddof=1), rel=1e-6)


def test_many_features_of_many_dimensions_have_no_error(stream):
    wide = stream.normal(0, 1, (602, 600))
    assert frechet_error(wide, wide, seed=0) is None
    assert frechet_error(wide[:, :3], wide[:, 3:6], seed=0, resamples=5) > 0


def test_kernel_distance_is_unbiased(stream):
    same = [paired_kernel_distance(*stream.normal(0, 1, (2, 30, 4)))[0] for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert paired_kernel_distance(*(stream.normal(m, 1, (60, 4)) for m in (0, 1)))[0] > 1


def test_kernel_distance_of_pairs_is_the_formula(stream):
    one, other = stream.normal(0, 1, (2, 6, 3))

    def mean(a, b):
        kernels = (a @ b.T / 3 + 1) ** 3
        return (kernels.sum() - np.trace(kernels)) / 30

    expected = mean(one, one) + mean(other, other) - 2 * mean(one, other)
    assert paired_kernel_distance(one, other)[0] == pytest.approx(expected, rel=1e-12)


def test_the_error_of_the_kernel_distance_is_its_scatter(stream):
    found = [paired_kernel_distance(*stream.normal(0, 1, (2, 60, 3))) for _ in range(200)]
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.3)


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


def test_blocks_of_draws_are_draws_with_replacement():
    drawn = np.concatenate(list(draw_blocks(5, seed=1, resamples=4000)))
    assert drawn.shape == (4000, 5)
    assert (drawn.sum(axis=1) == 5).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(5), abs=0.06)
    assert drawn.var(axis=0) == pytest.approx(np.full(5, 0.8), abs=0.08)


def test_a_resampled_mean_is_over_what_was_drawn():
    values = np.array([[1.0, np.nan], [3.0, 8.0]])
    drawn = np.array([[2.0, 0.0], [1.0, 1.0]])
    found = resampled_means(values, drawn)
    assert found[1].tolist() == [2, 8]
    assert found[0, 0] == 1
    assert np.isnan(found[0, 1])


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

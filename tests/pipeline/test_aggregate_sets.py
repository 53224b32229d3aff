"""What a metric of sets does with features at hand; test_aggregate.py has the way through files."""

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.metrics.frechet import frechet_of
from pipeline.metrics.moments import Moments
from pipeline.metrics.table import BY_NAME
from pipeline.scoring import aggregate_sets
from pipeline.scoring.aggregate_sets import ReferenceFile, Sets, outcome_of


class Index:
    """Features in memory in place of a folder of files."""

    extractor = "toy 1234"

    def __init__(self, features):
        self._features, self.dim = features, features.shape[1]

    def read(self, pairs):
        return self._features[pairs]

    def moments(self, pairs):
        return Moments.of(self.read(pairs))


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(0, 1, (24, 5)).astype(np.float32)


def sets_of(features, count=12):
    places = np.arange(count)
    return Sets(Index(features), places, places + 12, seed=0, resamples=50)


def test_frechet_needs_not_gather_what_others_must(features, monkeypatch):
    monkeypatch.setattr(aggregate_sets, "MAX_GATHERED", 11)
    sets = sets_of(features)
    found = outcome_of(BY_NAME["squeeze-fd"], sets, None)
    assert found.value == pytest.approx(frechet_of(features[:12], features[12:]), rel=1e-9)
    assert found.error is None
    refused = outcome_of(BY_NAME["squeeze-kd"], sets, None)
    assert (refused.value, refused.note) == (None, "not computed of more than 11 images")


def test_no_set_is_of_two_images(features):
    found = outcome_of(BY_NAME["squeeze-fd"], sets_of(features, 2), None)
    assert (found.value, found.note) == (None, "2 images with features; needs 3")


def test_found_again_is_a_share_with_an_interval(features):
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[12:] = features[:12]
    features[12] = -features[0]
    found = outcome_of(BY_NAME["found-again"], sets_of(features), None)
    assert found.value == pytest.approx(11 / 12)
    assert found.low < found.value < found.high
    assert found.note == "among 12 truths"


@pytest.mark.parametrize(
    ("dim", "extractor", "fault"),
    [(5, "other", "statistics of other .5., to compare with toy 1234 .5."), (4, "", "unknown")],
)
def test_statistics_of_other_features_are_refused(features, tmp_path, dim, extractor, fault):
    path = tmp_path / "clean.npz"
    Moments.of(features[:, :dim], extractor=extractor).save(path)
    with pytest.raises(UserError, match=fault):
        ReferenceFile(path, Index(features))


def test_statistics_of_the_same_features_are_taken(features, tmp_path):
    path = tmp_path / "clean.npz"
    Moments.of(features[12:], extractor="toy 1234").save(path)
    found = outcome_of(BY_NAME["fid"], sets_of(features), ReferenceFile(path, Index(features)))
    assert found.value == pytest.approx(frechet_of(features[:12], features[12:]), rel=1e-9)
    assert found.note == "against clean.npz"

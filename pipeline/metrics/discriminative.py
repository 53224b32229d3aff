"""U-IDS and P-IDS: how well a linear classifier tells restored features from true ones.

After Zhao et al. 2021 (CoModGAN): 0.5 is indistinguishable, 0 is told apart without a mistake.
Their form judges the classifier on what it was fitted on. As many points as dimensions can always
be parted, so that a perfect restorer scores 0 with few images: there the form says nothing and is
refused. The other form judges pairs that the classifier has not seen.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.moments import Features
from pipeline.metrics.pixels import Values
from vsp_model.randomness import generator_for

MIN_PAIRS = 2049
"""Below, the reference form is refused: 2048 dimensions part the points whatever they are."""
FOLDS = 5
_C_REFERENCE, _C_HELD_OUT = 1.0, 0.01


class Discriminative(NamedTuple):
    """Both scores, ideally 0.5."""

    unpaired: float
    """U-IDS: share of features on the wrong side."""
    paired: float
    """P-IDS: share of pairs whose restored feature looks truer than the true one."""


def resubstitution(features: Features, truths: Features) -> Discriminative:
    """The reference form: fitted and judged on all pairs.

    Args:
        features: (N, D) of the restored images.
        truths: (N, D), row i the truth of row i.

    Raises:
        ValueError: For fewer pairs than `MIN_PAIRS`.
    """
    if len(features) < MIN_PAIRS:
        raise ValueError(f"{len(features)} pairs; the reference form needs {MIN_PAIRS}")
    everything = np.arange(len(features))
    margins = _margins(features, truths, everything, everything, _C_REFERENCE)
    return _scores(*margins)


def held_out(features: Features, truths: Features, *, seed: int) -> Discriminative:
    """The cross-validated form: every pair is judged by a classifier that has not seen it.

    Args:
        features: (N, D) of the restored images.
        truths: (N, D), row i the truth of row i.
        seed: Equal seeds make the same folds.

    Raises:
        ValueError: For fewer pairs than `FOLDS`.
    """
    count = len(features)
    if count < FOLDS:
        raise ValueError(f"{count} pairs; {FOLDS} folds need as many")
    order = generator_for(seed, "folds", "metrics").permutation(count)
    restored, true = np.empty(count), np.empty(count)
    for fold in np.array_split(order, FOLDS):
        rest = np.setdiff1d(np.arange(count), fold)
        restored[fold], true[fold] = _margins(features, truths, rest, fold, _C_HELD_OUT)
    return _scores(restored, true)


def _margins(
    features: Features, truths: Features, fitted: NDArray[np.intp], judged: NDArray[np.intp],
    c: float,
) -> tuple[Values, Values]:  # fmt: skip
    """How true the judged restored and true features look to a classifier of the fitted pairs."""
    from sklearn.svm import LinearSVC

    points = np.concatenate([truths[fitted], features[fitted]], dtype=np.float64)
    labels = np.repeat([1, 0], len(fitted))
    classifier = LinearSVC(dual=False, C=c).fit(points, labels)
    restored, true = (
        classifier.decision_function(np.asarray(each[judged], np.float64))
        for each in (features, truths)
    )
    return restored, true


def _scores(restored: Values, true: Values) -> Discriminative:
    wrong = np.mean(np.concatenate([restored > 0, true <= 0]))
    return Discriminative(float(wrong), float(np.mean(restored > true)))

"""Frechet's distance of two sets of features: of the Gaussians with their moments.

It is too large for finite sets, and more so the fewer and the more varied they are: compare methods
on the same ids only, never data sets.

No root of a matrix is taken. The trace of (S1 S2)^(1/2) is a sum of roots of real eigenvalues, or
of singular values, of a symmetric product; which one depends on the sizes (`frechet_between`).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.metrics.intervals import draws, spread
from pipeline.metrics.moments import Features, Moments
from pipeline.metrics.pixels import Values

RESAMPLES = 50  # for a standard error, which needs no more
MAX_DIM_RESAMPLED = 512  # a full route takes seconds above
_NOTICEABLE = 1e-6  # share of the eigenvalues' sum that is rounding, not data


@dataclass(frozen=True, slots=True)
class Frechet:
    """A distance and how sound its eigenvalues were.

    Attributes:
        value: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).
        smallest: The smallest eigenvalue of the product; below 0 by rounding only.
        clipped: Sum of the negative ones, which count as 0, as a share of all; 0 or positive.
    """

    value: float
    smallest: float = 0.0
    clipped: float = 0.0

    @property
    def note(self) -> str:
        """A line where more than rounding was cut off, else ""."""
        if self.clipped <= _NOTICEABLE:
            return ""
        return (
            f"negative eigenvalues cut off: {self.clipped:.1e} of their sum, "
            f"smallest {self.smallest:.1e}"
        )


class Gaussian:
    """Mean and covariance of a set; the factor is computed once and serves many distances."""

    def __init__(self, mean: Values, covariance: Values, extractor: str = "") -> None:
        """Take (D,) and (D, D), and what made the features, if that is known."""
        self.mean, self.covariance, self.extractor = mean, covariance, extractor

    @classmethod
    def of(cls, moments: Moments) -> "Gaussian":
        """With the moments of a set."""
        return cls(moments.mean, moments.covariance, moments.extractor)

    @cached_property
    def factor(self) -> Values:
        """(D, D) L with L L^T the covariance.

        Cholesky's is the fastest and, without the usual jitter, exact; a singular covariance has
        none, and is factored by its eigenvectors.
        """
        try:
            return np.asarray(np.linalg.cholesky(self.covariance), np.float64)
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(self.covariance)
            return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)), np.float64)


def frechet(reference: Gaussian, other: Gaussian) -> Frechet:
    """The full route, for sets of more features than dimensions: eigenvalues of L^T S L."""
    product = reference.factor.T @ other.covariance @ reference.factor
    traces = float(np.trace(reference.covariance) + np.trace(other.covariance))
    return _distance(reference.mean - other.mean, traces, _eigenvalues(product))


def frechet_low_rank(features: Features, reference: Gaussian) -> Frechet:
    """Of (N, D) features with N <= D: eigenvalues of the N x N matrix Xc S Xc^T."""
    mean, centred = _centred(features)
    product = centred @ reference.covariance @ centred.T
    traces = float(np.square(centred).sum() + np.trace(reference.covariance))
    return _distance(mean - reference.mean, traces, _eigenvalues(product))


def frechet_of(features: Features, truths: Features) -> float:
    """The value of `frechet_between`."""
    return frechet_between(features, truths).value


def frechet_between(features: Features, truths: Features) -> Frechet:
    """Between two sets of features, (N, D) and (M, D), by the route that is exact and fastest.

    With fewer features than dimensions no D x D matrix is made: exact where covariances are
    singular, and far cheaper.
    """
    dim = features.shape[1]
    if len(features) > dim and len(truths) > dim:
        return frechet(Gaussian.of(Moments.of(truths)), Gaussian.of(Moments.of(features)))
    if len(features) > dim:
        return frechet_low_rank(truths, Gaussian.of(Moments.of(features)))
    if len(truths) > dim:
        return frechet_low_rank(features, Gaussian.of(Moments.of(truths)))
    return frechet_of_few(features, truths)


def frechet_of_few(features: Features, truths: Features) -> Frechet:
    """Of (N, D) and (M, D) features, by the singular values of an N x M matrix."""
    (mean, first), (other_mean, second) = _centred(features), _centred(truths)
    singular = np.linalg.svd(first @ second.T, compute_uv=False)
    traces = float(np.square(first).sum() + np.square(second).sum())
    return _distance(mean - other_mean, traces, np.square(singular))


def _centred(features: Features) -> tuple[Values, Values]:
    """Mean, and X with X^T X the covariance."""
    exact = np.asarray(features, np.float64)
    mean = exact.mean(axis=0)
    return mean, (exact - mean) / math.sqrt(len(exact) - 1)


def _eigenvalues(symmetric: Values) -> Values:
    return np.asarray(np.linalg.eigvalsh(symmetric), np.float64)


def _distance(step: Values, traces: float, eigenvalues: Values) -> Frechet:
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    negative, total = -eigenvalues[eigenvalues < 0].sum(), np.abs(eigenvalues).sum()
    return Frechet(
        float(step @ step + traces - 2 * overlap),
        float(eigenvalues.min()),
        float(negative / total) if total else 0.0,
    )


def frechet_error(
    features: Features, other: Features | Gaussian, *, seed: int, resamples: int = RESAMPLES
) -> float | None:
    """Standard error of the distance, by resampling images; None where that takes too long.

    Resampling repeats images, which biases the distance upwards: this gives no interval.

    Args:
        features: (N, D).
        other: (N, D), the truths of the same images, resampled with them; or a reference, which
            is not resampled.
        seed: Equal seeds give equal draws.
        resamples: How many.
    """
    count, dim = features.shape
    if count <= dim:
        return _low_rank_error(features, other, draws(count, seed=seed, resamples=resamples))
    if dim > MAX_DIM_RESAMPLED:
        return None

    def resampled(places: np.ndarray) -> float:
        gaussian = Gaussian.of(Moments.of(features[places]))
        if isinstance(other, Gaussian):
            return frechet(other, gaussian).value
        return frechet(Gaussian.of(Moments.of(other[places])), gaussian).value

    return spread(resampled, count, seed=seed, resamples=resamples)


def _low_rank_error(features: Features, other: Features | Gaussian, drawn: Values) -> float:
    """The products of all pairs of images are taken once; a resample weights rows and columns."""
    first = np.asarray(features, np.float64)
    if isinstance(other, Gaussian):
        gram = first @ other.covariance @ first.T
        fixed = float(np.trace(other.covariance))
        found = [
            _trace(first, weights) + fixed
            + _step(first, weights, other.mean) - 2 * _root_trace(gram, weights)
            for weights in drawn
        ]  # fmt: skip
    else:
        second = np.asarray(other, np.float64)
        gram = first @ second.T
        found = [
            _trace(first, weights) + _trace(second, weights)
            + _step(first, weights, weights @ second / len(first)) - 2 * _nuclear(gram, weights)
            for weights in drawn
        ]  # fmt: skip
    return float(np.std(found, ddof=1))


def _trace(features: Values, weights: Values) -> float:
    mean = weights @ features / len(features)
    squares = np.einsum("nd,nd->n", features, features)
    return float((weights @ squares - len(features) * mean @ mean) / (len(features) - 1))


def _step(features: Values, weights: Values, other_mean: Values) -> float:
    step = weights @ features / len(features) - other_mean
    return float(step @ step)


def _weighted(gram: Values, weights: Values) -> Values:
    """Products of the drawn images about their mean; an image drawn k times is one row, heavier."""
    count = len(weights)
    rows, columns = gram @ weights / count, weights @ gram / count
    centred = gram - rows[:, None] - columns + weights @ rows / count
    drawn = weights > 0
    heavy = np.sqrt(weights[drawn])
    return centred[np.ix_(drawn, drawn)] * heavy * heavy[:, None] / (count - 1)


def _root_trace(gram: Values, weights: Values) -> float:
    eigenvalues = _eigenvalues(_weighted(gram, weights))
    return float(np.sqrt(np.clip(eigenvalues, 0, None)).sum())


def _nuclear(gram: Values, weights: Values) -> float:
    """Sum of singular values, by eigenvalues: half the time, and exact enough for an error."""
    product = _weighted(gram, weights)
    return float(np.sqrt(np.clip(_eigenvalues(product @ product.T), 0, None)).sum())


def load_reference(path: Path) -> Gaussian:
    """Statistics of a reference set.

    Args:
        path: `Moments.save`'s file, an .npz with `mu` and `sigma` (pytorch-fid), or a .pth with
            `mean` and `cov` (BasicSR, as `inception_FFHQ_512.pth`).

    Raises:
        UserError: If it is not there, or holds none of these.
    """
    try:
        gaussian = _pth(path) if path.suffix in (".pth", ".pt") else _npz(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such statistics file") from None
    except Exception as error:  # zipfile, numpy and torch fail in ways of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no statistics of a reference set ({reason})") from None
    mean, covariance = gaussian.mean, gaussian.covariance
    if covariance.shape != (*mean.shape, *mean.shape) or not np.isfinite(covariance).all():
        raise UserError(f"{path}: mean {mean.shape} and covariance {covariance.shape} do not fit")
    return gaussian


def _pth(path: Path) -> Gaussian:
    import torch

    held = torch.load(path, map_location="cpu", weights_only=True)
    return Gaussian(np.asarray(held["mean"], np.float64), np.asarray(held["cov"], np.float64))


def _npz(path: Path) -> Gaussian:
    with np.load(path, allow_pickle=False) as held:
        if "mu" in held:
            return Gaussian(held["mu"].astype(np.float64), held["sigma"].astype(np.float64))
    return Gaussian.of(Moments.load(path))

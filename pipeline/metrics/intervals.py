"""How sure a mean is: bootstrap over images, the same draws for every method.

Differences of two methods are taken image by image, which leaves out what all images share.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pixels import Values
from vsp_model.randomness import generator_for

RESAMPLES = 2000
_TAILS = (2.5, 97.5)
_BLOCK = 2_000_000  # counts held at once, 16 MB; fewer than 2^31


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: Over the images that have a value.
        low: Its 2.5th percentile over resamples.
        high: The 97.5th.
        count: Images that have a value.
    """

    mean: float
    low: float
    high: float
    count: int


def draws(
    count: int, *, seed: int, resamples: int = RESAMPLES, groups: Sequence[Hashable] | None = None
) -> Values:
    """How often each image is in each resample, (resamples, count).

    Args:
        count: Images.
        seed: Equal seeds give equal draws.
        resamples: How many.
        groups: One an image; images of a group (a person) come together. None: each by itself.
    """
    stream = generator_for(seed, "bootstrap", "metrics")
    names = list(dict.fromkeys(groups)) if groups is not None else list(range(count))
    drawn = stream.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    if groups is None:
        return drawn.astype(np.float64)
    number = {name: place for place, name in enumerate(names)}
    return drawn[:, [number[group] for group in groups]].astype(np.float64)


def draw_blocks(count: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[Values]:
    """Such draws of many images, some resamples at a time.

    They are tallied, which is three times as fast as drawing how often each image is in; they are
    other draws than those of `draws`.
    """
    stream = generator_for(seed, "bootstrap", "tallied")
    size = max(1, _BLOCK // count)
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        picked = stream.integers(count, size=(rows, count), dtype=np.int32)
        picked += np.arange(rows, dtype=np.int32)[:, None] * count
        tally = np.bincount(picked.ravel(), minlength=rows * count)
        yield tally.reshape(rows, count).astype(np.float64)


def resampled_means(values: Values, drawn: Values) -> Values:
    """Means of some columns in each resample, (resamples, columns); NaN for one of no image.

    Args:
        values: (count, columns), NaN for an image that has no value there.
        drawn: (resamples, count) of `draws`.
    """
    there = ~np.isnan(values)
    counted = there[:, :1] if there.all() else there
    sums, totals = drawn @ np.where(there, values, 0), drawn @ counted
    return np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)


def tails(samples: Values) -> tuple[Values, Values]:
    """The 2.5th and 97.5th percentile of each column of (resamples, columns); NaN for none."""
    if not np.isnan(samples).any():
        low, high = np.percentile(samples, _TAILS, axis=0)
        return low, high
    columns = [column[~np.isnan(column)] for column in samples.T]
    found = [np.percentile(c, _TAILS) if len(c) else (np.nan, np.nan) for c in columns]
    low, high = np.array(found).T
    return low, high


def mean_interval(values: Values, drawn: Values) -> Interval:
    """Mean and 95 % interval of one value an image, (count,); NaN for one that has none."""
    there = np.isfinite(values)
    if not there.any():
        return Interval(np.nan, np.nan, np.nan, 0)
    finite = np.where(there, values, np.nan)[:, None]
    (low,), (high,) = tails(resampled_means(finite, drawn))
    return Interval(float(values[there].mean()), float(low), float(high), int(there.sum()))


def difference_interval(values: Values, reference: Values, drawn: Values) -> Interval:
    """Mean and interval of `values` minus `reference`, over images that have both."""
    return mean_interval(values - reference, drawn)


def spread(
    statistic: Callable[[NDArray[np.intp]], float], count: int, *, seed: int, resamples: int = 50
) -> float:
    """Standard error of a value of a whole set, by resampling images.

    Resampling repeats images, which biases set distances upwards: this gives no interval.

    Args:
        statistic: Of the places of the images that were drawn, (count,).
        count: Images.
        seed: Equal seeds give equal draws.
        resamples: How many.
    """
    stream = generator_for(seed, "spread", "metrics")
    found = [statistic(stream.integers(count, size=count)) for _ in range(resamples)]
    return float(np.std(found, ddof=1))

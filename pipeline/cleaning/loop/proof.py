"""The proof that cleaning helped, or not: a generator trained on raw and on cleaned faces.

Distances of drawn faces to two references, because cleaning moves the one: the raw set, and faces
of top quality that nobody trains on. Runs are paired by their seed, which fixes the first weights
and what is drawn.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from pipeline import images
from pipeline.cleaning.loop.rounds import number
from pipeline.images import Pixels
from pipeline.metrics.pixels import Values
from pipeline.replica import Frozen
from vsp_model.networks import load_part
from vsp_model.randomness import noise_maps
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train.inversion import picture
from vsp_model.train.stage import normal

_BATCH = 32
CONFIDENCE = 0.95
MIN_SEEDS_OF_SIGNS = 6  # of fewer even a unanimous sign test is above 5 %
Verdict = Literal["better", "worse", "no difference can be detected at this budget"]


class Arm(Frozen):
    """One generator's distance to one reference.

    Attributes:
        arm: "raw" or "cleaned".
        seed: Of its training.
        reference: "raw set" or "held-out".
        distance: Frechet's.
        error: Standard error over the drawn faces; None where it takes too long.
    """

    arm: str
    seed: int
    reference: str
    distance: float
    error: float | None


class Comparison(Frozen):
    """Cleaned minus raw over paired seeds, to one reference; below 0 cleaning helped.

    Attributes:
        reference: "raw set" or "held-out".
        raw: Mean distance of the generators trained on raw faces.
        cleaned: Of those trained on cleaned ones.
        difference: Cleaned minus raw.
        low: End of its 95 % interval by Student's t over the seeds; None for a single seed.
        high: The other end.
        p_value: Two-sided, of the paired t test.
        num_seeds: Pairs.
        same_sign: Pairs that differ in the direction of the mean.
        verdict: In words.
    """

    reference: str
    raw: float
    cleaned: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    num_seeds: int
    same_sign: int
    verdict: Verdict


def drawn_faces(bundle: Path, count: int, seed: int) -> Iterator[Pixels]:
    """Draw faces from a trained generator, z by z, without truncation.

    Args:
        bundle: Holds a prior.
        count: How many.
        seed: Fixes z and noise of each, by its number.
    """
    prior = cast(StyleGAN2, load_part(bundle, "prior")).eval()
    names = [f"drawn {number}" for number in range(count)]
    for start in range(0, count, _BATCH):
        yield from _draw(prior, tuple(names[start : start + _BATCH]), seed)


@torch.no_grad()
def _draw(prior: StyleGAN2, names: tuple[str, ...], seed: int) -> list[Pixels]:
    z = normal(names, (prior.config.style_dim,), seed, "drawn face")
    codes = prior.mapping(z)[:, None].expand(-1, prior.config.num_slots, -1)
    noise = noise_maps(prior.noise_sides(), names, seed, "drawn face")
    return list(images.to_uint8(picture(prior, codes, noise)))


def compare(arms: Sequence[Arm], reference: str) -> Comparison:
    """Compare the two arms by the seeds that both have.

    Raises:
        ValueError: If they share none.
    """
    found = {
        arm: {each.seed: each.distance for each in arms
              if each.arm == arm and each.reference == reference}
        for arm in ("raw", "cleaned")
    }  # fmt: skip
    seeds = sorted(found["raw"].keys() & found["cleaned"].keys())
    if not seeds:
        raise ValueError(f"no seed was trained on both sets (reference {reference})")
    raw, cleaned = (np.array([found[arm][seed] for seed in seeds]) for arm in ("raw", "cleaned"))
    differences = cleaned - raw
    low, high, p_value = _student(differences)
    mean = float(differences.mean())
    return Comparison(
        reference=reference,
        raw=float(raw.mean()),
        cleaned=float(cleaned.mean()),
        difference=mean,
        low=low,
        high=high,
        p_value=p_value,
        num_seeds=len(seeds),
        same_sign=int((np.sign(differences) == np.sign(mean)).sum()),
        verdict=_verdict(low, high),
    )


def _student(differences: Values) -> tuple[float | None, float | None, float | None]:
    """Interval and two-sided p of the mean, by Student's t; None for a single difference."""
    from scipy import stats

    count = len(differences)
    if count < 2:
        return None, None, None
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(count)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    if error == 0:
        return float(mean), float(mean), float(mean == 0)
    p_value = 2 * float(stats.t.sf(abs(mean / error), count - 1))
    return float(mean - reach), float(mean + reach), p_value


def _verdict(low: float | None, high: float | None) -> Verdict:
    if high is not None and high < 0:
        return "better"
    if low is not None and low > 0:
        return "worse"
    return "no difference can be detected at this budget"


HEAD = ("reference", "raw", "cleaned", "cleaned - raw (95 %)", "p", "seeds", "verdict")


def row_of(comparison: Comparison) -> list[str]:
    """A comparison's cells under `HEAD`."""
    each = comparison
    ends = (number(value, sign=True) for value in (each.low, each.high))
    interval = "" if each.low is None else f" ({' to '.join(ends)})"
    return [
        each.reference,
        number(each.raw),
        number(each.cleaned),
        f"{number(each.difference, sign=True)}{interval}",
        "-" if each.p_value is None else f"{each.p_value:.3f}",
        f"{each.same_sign} of {each.num_seeds} the same way",
        each.verdict,
    ]


def caution(num_seeds: int) -> str:
    """What the test can't say with so few seeds, in one line."""
    line = (
        f"Paired t test over {num_seeds} seed(s): it takes the differences for normal, "
        "and with few seeds finds only large ones."
    )
    if num_seeds < MIN_SEEDS_OF_SIGNS:
        line += f" A sign test cannot reach 5 % with fewer than {MIN_SEEDS_OF_SIGNS}."
    return line

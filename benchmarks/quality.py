"""How well the quality score of `vsp clean` ranks known damage, and whether it knows clean faces.

    OMP_NUM_THREADS=1 python benchmarks/quality.py \
        --set 'Congress, held out=faces-train/*.tar' --keys 'congress_*' --held-out \
        --set 'AAF=faces-train/*.tar' --keys 'aaf_*' --limit 60
    OMP_NUM_THREADS=1 python benchmarks/quality.py --scale \
        --set 'Congress=faces-train/*.tar' --keys 'congress_*' --limit 64

A set is a name and shards of clean aligned faces; the options behind it are its own: which keys,
only those that training left out, how many. Each face is damaged by each kind at the severities
0.1, 0.2 ... 1 (`pipeline.cleaning.damage`) and scored at 128 pixels, or at `--size`. Printed as
Markdown: Spearman's correlation of severity and falling quality (pooled: all faces, kinds and
severities of a set together, clean ones too), what undamaged faces are scored, by the labels of
their JSON member where it has any, and what quality the severities and the five levels of
`vsp clean --calibrate` get. `--scale` prints instead the kinds' own strengths at equal
severity, as they stand in `pipeline/cleaning/quality/damage.py`. A set of 60 faces takes about two
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.stats import spearmanr

from pipeline import images
from pipeline.cleaning.calibration import levels
from pipeline.cleaning.quality.damage import (
    FULL_DIFFERENCE,
    KINDS,
    STRENGTH_RANGES,
    TRAINED,
    UNSEEN,
    Kind,
    apply,
    damage,
    difference,
)
from pipeline.cleaning.quality.fit import is_held_out
from pipeline.cleaning.quality.measures import classic_quality, measure
from pipeline.cleaning.quality.scorer import QualityScorer
from pipeline.images import Pixels
from pipeline.plan import find_shards
from pipeline.shards import read_shard

SEVERITIES = tuple(step / 10 for step in range(1, 11))
MILD = 0.3
"""A face whose quality is above that of this severity (median of the first set) is judged clean."""
LABELS = ("gender", "ethnicity", "age")
AGE_YEARS = 20
MIN_GROUP = 5
SEED = 1  # training draws from others


class Face(NamedTuple):
    """A clean face and what its JSON member says of it."""

    key: str
    pixels: Pixels
    labels: Mapping[str, str]


class SetOf(argparse.Action):
    """`--set` begins a set; the options behind it belong to it."""

    def __call__(self, parser, space, value, option=None) -> None:
        """Begin it."""
        name, _, shards = value.partition("=")
        space.sets = [*(space.sets or []), {"name": name, "shards": shards}]


class OfSet(argparse.Action):
    """An option of the set before it."""

    def __call__(self, parser, space, value, option=None) -> None:
        """Note it."""
        if not space.sets:
            parser.error(f"{option} stands behind the --set it belongs to")
        space.sets[-1][self.dest] = True if self.nargs == 0 else value


def main() -> None:
    """Read the sets, score them, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", dest="sets", action=SetOf, required=True, metavar="NAME=SHARDS")
    parser.add_argument("--keys", action=OfSet)
    parser.add_argument("--held-out", dest="held_out", action=OfSet, nargs=0)
    parser.add_argument("--limit", action=OfSet, type=int)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--weights", type=Path, help="another network than the built-in one")
    parser.add_argument("--classic", action="store_true", help="score by the classic measures")
    parser.add_argument("--scale", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sets = {each["name"]: list(read_set(each, given.size)) for each in given.sets}
    if given.scale:
        print_scale(next(iter(sets.values())))
        return
    scorer = QualityScorer(given.weights)
    score = classic if given.classic else scorer.score
    scored = {name: Scored(faces, score) for name, faces in sets.items()}
    print_tables(scored)
    if not given.classic:
        print_speed(scorer, next(iter(sets.values())))


def classic(pixels: Pixels) -> float:
    """By the measures that need no network."""
    return classic_quality(measure(pixels, b"", "png"))


def read_set(given: Mapping[str, object], size: int) -> Iterator[Face]:
    """The faces of a set, at one size."""
    wanted, left = str(given.get("keys", "*")), int(given.get("limit", 0) or 10**9)
    for shard in find_shards(str(given["shards"])):
        for sample in read_shard(shard):
            taken = fnmatchcase(sample.key, wanted) and sample.image is not None
            if not taken or (given.get("held_out") and not is_held_out(sample.key)):
                continue
            if left == 0:
                return
            left -= 1
            pixels = images.resize(images.decode(sample.image.data)[1], size)
            yield Face(sample.key, pixels, labels_of(sample.members))


def labels_of(members: Sequence) -> dict[str, str]:
    """Of the JSON member, ages in steps of 20 years."""
    data = next((member.data for member in members if member.name.endswith(".json")), b"{}")
    labels = json.loads(data).get("labels", {})
    found = {name: str(labels[name]) for name in LABELS if name in labels}
    if "age" in found:
        low = int(float(found["age"])) // AGE_YEARS * AGE_YEARS
        found["age"] = f"{low} to {low + AGE_YEARS - 1}"
    return found


class Scored:
    """The qualities of a set: clean, by kind and severity, by level."""

    def __init__(self, faces: Sequence[Face], score) -> None:
        self.faces = faces
        self.clean = np.array([score(face.pixels) for face in faces])
        self.damaged: dict[tuple[Kind, float], np.ndarray] = {}
        for kind in KINDS:
            for severity in SEVERITIES:
                copies = (damage(f.pixels, kind, severity, seed=SEED, key=f.key) for f in faces)
                self.damaged[kind, severity] = np.array([score(copy) for copy in copies])
        self.levels = {
            level.number: np.array(
                [score(levels.damage(f.pixels, level.number, seed=SEED, key=f.key)) for f in faces]
            )
            for level in levels.LEVELS
        }

    def spearman(self, kinds: Sequence[Kind]) -> float:
        """Of severity and falling quality, all faces and severities together, clean ones too."""
        told, severities = [self.clean], [np.zeros(len(self.clean))]
        for (kind, severity), qualities in self.damaged.items():
            if kind in kinds:
                told.append(qualities)
                severities.append(np.full(len(qualities), severity))
        return float(-spearmanr(np.concatenate(told), np.concatenate(severities))[0])

    def median(self, severity: float, kinds: Sequence[Kind] = TRAINED) -> float:
        """Median quality at a severity, the kinds together."""
        return float(np.median(np.concatenate([self.damaged[kind, severity] for kind in kinds])))


# -------------------------------------------------------------------------------------- tables


def print_tables(scored: Mapping[str, Scored]) -> None:
    """Everything, as Markdown."""
    print("### Spearman of severity and falling quality\n")
    print_row("", *scored)
    print_row(*["---"] * (len(scored) + 1))
    print_row("faces", *(len(each.faces) for each in scored.values()))
    rows = {"pooled, trained kinds": TRAINED, "pooled, all kinds": KINDS}
    rows |= {kind: (kind,) for kind in TRAINED}
    rows |= {f"{kind} (never trained)": (kind,) for kind in UNSEEN}
    for name, kinds in rows.items():
        print_row(name, *(f"{each.spearman(kinds):.3f}" for each in scored.values()))
    print("\n### Median quality\n")
    print_row("", *scored)
    print_row(*["---"] * (len(scored) + 1))
    print_row("clean", *(f"{np.median(each.clean):.3f}" for each in scored.values()))
    for severity in SEVERITIES:
        told = (f"{each.median(severity):.3f}" for each in scored.values())
        print_row(f"severity {severity}", *told)
    for level in levels.LEVELS:
        told = (f"{np.median(each.levels[level.number]):.3f}" for each in scored.values())
        print_row(f"level {level.number}, {level.name}", *told)
    print_clean(scored)


def print_clean(scored: Mapping[str, Scored]) -> None:
    """What undamaged faces are scored, and what share is judged clean."""
    least = next(iter(scored.values())).median(MILD)
    print(
        f"\n### Undamaged faces; judged clean above {least:.3f}, the quality at severity {MILD}\n"
    )
    print_row("set", "group", "faces", "5th percentile", "median", "judged clean")
    print_row(*["---"] * 6)
    for name, each in scored.items():
        groups: dict[str, list[int]] = {"all": list(range(len(each.faces)))}
        for number, face in enumerate(each.faces):
            for label, value in sorted(face.labels.items()):
                groups.setdefault(f"{label} {value}", []).append(number)
        for group, numbers in sorted(groups.items()):
            if len(numbers) >= MIN_GROUP:
                told = each.clean[numbers]
                low, middle = np.quantile(told, (0.05, 0.5))
                clean = f"{np.mean(told > least):.1%}"
                print_row(name, group, len(numbers), f"{low:.3f}", f"{middle:.3f}", clean)


def print_row(*cells: object) -> None:
    """One row of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def print_speed(scorer: QualityScorer, faces: Sequence[Face]) -> None:
    """Milliseconds a face, on one thread."""
    print()
    for size in (128, 512):
        face = images.resize(faces[0].pixels, size)
        for name, work in (("score", scorer.score), ("measure", classic)):
            work(face)
            times = []
            for _ in range(30):
                start = time.perf_counter()
                work(face)
                times.append(time.perf_counter() - start)
            print(f"{name} at {size} px: {1000 * np.median(times):.1f} ms a face, one thread")


def print_scale(faces: Sequence[Face]) -> None:
    """The strength of each kind at the severities 0, 0.1 ... 1, from the mean difference."""
    wanted = FULL_DIFFERENCE * np.linspace(0, 1, 11) ** 2
    for kind in KINDS:
        low, high = STRENGTH_RANGES[kind]
        strengths = low + (high - low) * np.linspace(0, 1, 41) ** (1 if kind == "jpeg" else 2)
        means = [mean_difference(faces, kind, strength) for strength in strengths.tolist()]
        means = np.maximum.accumulate(means)
        rising = np.r_[True, np.diff(means) > 0]
        found = np.interp(wanted, means[rising], strengths[rising])
        print(f'    "{kind}": ({", ".join(f"{value:.4g}" for value in found)}),')


def mean_difference(faces: Sequence[Face], kind: Kind, strength: float) -> float:
    """Of faces under one kind of one strength."""
    copies = (apply(face.pixels, kind, strength, seed=0, key=face.key) for face in faces)
    pairs = zip(copies, faces, strict=True)
    return float(np.mean([difference(copy, face.pixels) for copy, face in pairs]))


if __name__ == "__main__":
    main()

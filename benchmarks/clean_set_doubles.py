"""Restorers that go astray, at the thresholds of a finished cleaning run.

Some answer with somebody else's face, some with the truth, but moved, tinted, or with a part of
somebody else. One answers with the truth itself: what it is denied is the price of the checks.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from constructed_set import Record

from pipeline import images
from pipeline.cleaning.accept import Verified, accept, content_change
from pipeline.cleaning.calibration.derive import wilson
from pipeline.cleaning.calibration.levels import damage
from pipeline.cleaning.calibration.thresholds import Thresholds
from pipeline.cleaning.look import Look, likeness, points_of
from pipeline.images import Pixels
from pipeline.shards import read_shard
from pipeline.stages.clean import load_thresholds
from pipeline.storage import open_store

ROLES = ("good", "near", "exact", "flip")
# The j-th answers for the i-th, at several distances: neighbours in a set are no chance pairs.
STEPS = (1, 7, 31)


def stranger_lines(
    args: argparse.Namespace, truth: Mapping[str, Record], look: Look
) -> Iterable[str]:
    """What each double gets accepted, by the identity check alone and by all checks.

    Every person is answered for once by each double, at each level that is restored, by another
    person's face: undamaged, and as damaged; then with its own truth, whole and altered.
    """
    thresholds = load_thresholds(open_store(str(args.out / "out")))
    if thresholds is None or thresholds.refusal:
        yield "nothing is restored, so nothing can be mistaken"
        return
    faces = people(args.out / "made" / "set", truth, args.strangers)
    yield "| level | answer | n | passes identity | passes content | accepted |"
    yield "|--:|---|--:|---|---|---|"
    for level in (each.level for each in thresholds.levels if not each.refusal):
        damaged = [damage(face, level, seed=1, key=key) for key, face in faces]
        clean = [face for _, face in faces]
        others = [clean[other_place(place, len(clean))] for place in range(len(clean))]
        ruined = [damaged[other_place(place, len(clean))] for place in range(len(clean))]
        doubles = {"another's clean face": others, "another's damaged face": ruined} | {
            name: [alter(*pair) for pair in zip(clean, others, strict=True)]
            for name, alter in ALTERED.items()
        }
        for name, answers in doubles.items():
            yield double_line(level, name, damaged, answers, thresholds, look)


def other_place(place: int, count: int) -> int:
    """Whose face is handed in for this one's."""
    return (place + STEPS[place % len(STEPS)]) % count


ALTERED: Mapping[str, Callable[[Pixels, Pixels], Pixels]] = {
    "the truth": lambda truth, other: truth,
    "the truth, moved 3 px": lambda truth, other: np.roll(truth, 3, axis=1),
    "the truth, tinted": lambda truth, other: tinted(truth),
    "the truth, other mouth": lambda truth, other: spliced(truth, other, slice(84, 108)),
    "the truth, other background": lambda truth, other: surrounded(truth, other),
}


def tinted(truth: Pixels) -> Pixels:
    """A little redder."""
    return np.clip(truth.astype(np.int16) + np.array([12, 0, -12]), 0, 255).astype(np.uint8)


def spliced(truth: Pixels, other: Pixels, rows: slice) -> Pixels:
    """Some rows are another's; both are aligned crops of 128 pixels."""
    done = truth.copy()
    done[rows] = images.resize(other, len(truth))[rows]
    return done


def surrounded(truth: Pixels, other: Pixels) -> Pixels:
    """What lies outside the face's ellipse is another's."""
    rows, columns = np.mgrid[: len(truth), : len(truth)] / len(truth)
    face = ((columns - 0.5) / 0.34) ** 2 + ((rows - 0.55) / 0.45) ** 2 < 1
    return np.where(face[:, :, None], truth, images.resize(other, len(truth)))


def double_line(
    level: int, name: str, damaged: list[Pixels], answers: list[Pixels], thresholds: Thresholds,
    look: Look,
) -> str:  # fmt: skip
    """One double at one level."""
    bound, limit = thresholds.at(level).identity_threshold, thresholds.at(level).max_change
    assert bound is not None, "a restored level has one"
    seen = [verified(*pair, look) for pair in zip(damaged, answers, strict=True)]
    same = sum(each.identity is not None and each.identity >= bound for each in seen)
    content = sum(each.content_change <= (limit or 0) for each in seen)
    taken = sum(accept(each, level, thresholds) == "" for each in seen)
    shares = " | ".join(_share(hits, len(seen)) for hits in (same, content, taken))
    return f"| {level} | {name} | {len(seen)} | {shares} |"


def verified(lq: Pixels, answer: Pixels, look: Look) -> Verified:
    """What the cleaning stage would see of an answer."""
    points = points_of(look.faces(lq))
    return Verified(
        identity=likeness(look.identity(lq, points), look.identity(answer, points)),
        classic_before=look.classic(lq),
        classic_after=look.classic(answer),
        num_faces_after=len(look.faces(answer)),
        content_change=content_change(lq, answer),
    )


def people(folder: Path, truth: Mapping[str, Record], count: int) -> list[tuple[str, Pixels]]:
    """One undamaged face a person, at most `count`."""
    found: list[tuple[str, Pixels]] = []
    for path in sorted(folder.glob("*.tar")):
        for sample in read_shard(str(path)):
            record = truth[sample.key]
            if record.role in ROLES and not record.is_copy and sample.image and len(found) < count:
                found.append((sample.key, images.decode(sample.image.data)[1]))
    return found


def _share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits} ({hits / count:.2%}) [{low:.2%}, {high:.2%}]"

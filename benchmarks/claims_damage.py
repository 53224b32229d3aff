"""Training faces of which two in three carry known damage, and what a cleaner makes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from card_judges import scores_of
from iterate import Face, facts_of, write_shard
from model_card import restore

from pipeline import degradation, images
from pipeline.metrics.judge import Face as Pair
from pipeline.metrics.judge import Judge
from pipeline.metrics.perceptual import PerceptualJudge
from pipeline.metrics.pixels import PixelJudge, Values
from pipeline.plan import find_shards
from pipeline.replica import Replica
from pipeline.training.index import build_index
from vsp_model.randomness import generator_for

SIZE, SEED, NUM_SHARDS = 64, 0, 2
DAMAGED, PRISTINE, UPPER = "damaged", "pristine", "upper"
"""Sets of faces: what is trained on, what it once was, what the best of gates would make of it."""
SHARE_DAMAGED, WORTH_IT = 2 / 3, 0.6
BLUR_PX, NOISE, JPEG_BEST, JPEG_WORST = 1.2, 16.0, 95, 45  # at strength 1, faces of 64 pixels
BUCKETS = (0.0, 0.3, 0.6, 0.8, 1.0)


def strength_of(key: str) -> float:
    """How strong a face's damage is: 0 for none, else up to 1."""
    stream = generator_for(SEED, key, "claims: damage")
    return 0.0 if stream.random() >= SHARE_DAMAGED else float(1 - stream.random())


def damaged(face: Face) -> Face:
    """The face with its damage: blur, noise, JPEG, all of one strength."""
    strength = strength_of(face.key)
    if not strength:
        return face
    sigma = BLUR_PX * strength
    kernel = degradation.gaussian_kernel(2 * math.ceil(3 * sigma) + 1, sigma, sigma)
    noise = degradation.draw_noise(SIZE, seed=SEED, key=f"{face.key}|claims")
    x = degradation.blur(face.pixels.astype(np.float32) / np.float32(255), kernel)
    x = degradation.add_noise(x, noise, NOISE * strength)
    quality = round(JPEG_BEST + (JPEG_WORST - JPEG_BEST) * strength)
    x = degradation.quantise(degradation.jpeg(x, quality, swaps_red_blue=False))
    return face._replace(pixels=np.rint(x * np.float32(255)).astype(np.uint8))


def faces_of(shard: str) -> Iterator[Face]:
    """The faces of a shard at `SIZE` pixels."""
    index = build_index([shard])
    for number in range(len(index)):
        record = index.read(number)
        _, pixels = images.decode(record.image)
        facts = facts_of(record, json.loads(record.facts), SIZE / len(pixels))
        yield Face(record.key, images.resize(pixels, SIZE), facts)


def prepare(faces: str, out: Path) -> None:
    """Write the first shards as they were and with their damage, unless that was done before."""
    for shard in find_shards(faces)[:NUM_SHARDS]:
        for name, change in ((PRISTINE, _as_it_was), (DAMAGED, damaged)):
            path = out / name / Path(shard).name
            if not path.exists():
                write_shard(path, list(faces_of(shard)), change)


def _as_it_was(face: Face) -> Face:
    return face


def read(folder: Path) -> list[Face]:
    """All faces of a set."""
    return [face for shard in find_shards(str(folder)) for face in faces_of(shard)]


def restored(replica: Replica, faces: list[Face]) -> Callable[[Face], images.Pixels]:
    """What a model makes of each of these faces."""
    pictures = restore(replica, [f.pixels for f in faces], [f.key for f in faces])
    made = {face.key: picture for face, picture in zip(faces, pictures, strict=True)}
    return lambda face: made[face.key]


def clean_all(replica: Replica, sets: Path, seed: int) -> None:
    """Write the set in which all damage beyond `WORTH_IT` is restored, and nothing else.

    The damage is known here, so no gate that goes by its strength can choose better.
    """
    for shard in find_shards(str(sets / DAMAGED)):
        path = sets / f"{UPPER}-{seed}" / Path(shard).name
        if path.exists():
            continue
        faces = list(faces_of(shard))
        made = restored(replica, [f for f in faces if strength_of(f.key) > WORTH_IT])
        write_shard(path, [_exchanged(face, made) for face in faces], _as_it_was)


def _exchanged(face: Face, made: Callable[[Face], images.Pixels]) -> Face:
    worth_it = strength_of(face.key) > WORTH_IT
    return face._replace(pixels=made(face)) if worth_it else face


class Bucket(NamedTuple):
    """Faces of about one strength of damage, before and after a restoration, against the truth."""

    name: str
    num_faces: int
    psnr_before: float
    """Infinite where nothing is damaged."""
    psnr_after: float
    closer: float
    """Share that came closer by PSNR."""
    lpips_before: float
    lpips_after: float
    closer_lpips: float


def who_profits(replica: Replica, sets: Path, trunk: Path) -> list[Bucket]:
    """How many damaged training faces come closer to what they were, by strength of the damage."""
    before, truths = read(sets / DAMAGED), read(sets / PRISTINE)
    after = restored(replica, before)
    judges: list[Judge] = [PixelJudge(), PerceptualJudge(trunk, "squeeze")]
    strengths = np.array([strength_of(face.key) for face in before])

    def scores(pictures: list[images.Pixels]) -> dict[str, Values]:
        pairs = [Pair(t.key, p, t.pixels) for t, p in zip(truths, pictures, strict=True)]
        return scores_of(judges, pairs)

    first, second = scores([f.pixels for f in before]), scores([after(f) for f in before])
    edges = list(pairwise(BUCKETS))
    chosen = {"none": strengths == 0}
    chosen |= {f"{a:g} to {b:g}": (strengths > a) & (strengths <= b) for a, b in edges}
    return [_bucket(name, rows, first, second) for name, rows in chosen.items()]


def _bucket(
    name: str, rows: Values, first: dict[str, Values], second: dict[str, Values]
) -> Bucket:  # fmt: skip
    a, b = ({m: each[m][rows] for m in ("psnr", "lpips-squeeze")} for each in (first, second))
    return Bucket(
        name,
        int(rows.sum()),
        float(a["psnr"].mean()) if name != "none" else math.inf,
        float(b["psnr"].mean()),
        float((b["psnr"] > a["psnr"]).mean()),
        float(a["lpips-squeeze"].mean()),
        float(b["lpips-squeeze"].mean()),
        float((b["lpips-squeeze"] < a["lpips-squeeze"]).mean()),
    )

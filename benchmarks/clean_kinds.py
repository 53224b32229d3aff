"""Faces and the damages that a copy must survive, for the benchmarks of `pipeline/cleaning`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg

from pipeline.images import Pixels, decode
from pipeline.plan import find_shards
from pipeline.shards import read_shard

Random = np.random.Generator
Damage = Callable[[Pixels, Random], Pixels]


def read_faces(folder: str) -> Iterator[tuple[Pixels, dict[str, Any]]]:
    """Every face of a folder of shards with its JSON, in order."""
    for shard in find_shards(folder):
        for sample in read_shard(shard):
            facts = next((m.data for m in sample.members if m.name.endswith(".json")), b"{}")
            if sample.image is not None:
                yield decode(sample.image.data)[1], json.loads(facts)


def jpeg(face: Pixels, random: Random) -> Pixels:
    """JPEG of quality 30 to 95, chroma whole or halved."""
    sampling = "420" if random.random() < 0.5 else "444"
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(face), int(random.integers(30, 96)), colorsubsampling=sampling
    )
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def resize(face: Pixels, random: Random) -> Pixels:
    """To 0.5 to 1 of the size by one of three kernels; one of three is brought back."""
    height, width = face.shape[:2]
    scale = random.uniform(0.5, 1)
    kernel = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[random.integers(3)]
    small = cv2.resize(face, (round(width * scale), round(height * scale)), interpolation=kernel)
    if random.random() < 1 / 3:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return small


def cut(face: Pixels, parts: np.ndarray, random: Random) -> Pixels:
    """Cut off parts (left, right, top, bottom); one of two is brought back to its size."""
    height, width = face.shape[:2]
    left, right, top, bottom = parts
    rows = slice(round(height * top), height - round(height * bottom))
    columns = slice(round(width * left), width - round(width * right))
    kept = np.ascontiguousarray(face[rows, columns])
    if random.random() < 0.5:
        kept = cv2.resize(kept, (width, height), interpolation=cv2.INTER_CUBIC)
    return kept


def crop(face: Pixels, random: Random) -> Pixels:
    """Cut off 0 to 5 % of each side."""
    return cut(face, random.uniform(0, 0.05, 4), random)


def hard_crop(face: Pixels, random: Random) -> Pixels:
    """Cut off 5 % of one to four sides."""
    sides = random.permutation(4) < random.integers(1, 5)
    return cut(face, 0.05 * sides, random)


def gamma(face: Pixels, random: Random) -> Pixels:
    """A power of 0.7 to 1.4."""
    power = np.exp(random.uniform(np.log(0.7), np.log(1.4)))
    return cv2.LUT(face, np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8))


PLAIN: tuple[Damage, ...] = (jpeg, resize, crop, gamma)


def two(face: Pixels, random: Random) -> Pixels:
    """Two different damages, one after the other."""
    first, second = random.choice(len(PLAIN), 2, replace=False)
    return PLAIN[second](PLAIN[first](face, random), random)


def flip(face: Pixels, random: Random) -> Pixels:
    """The mirror image with one damage."""
    damage = PLAIN[random.integers(len(PLAIN))]
    return np.ascontiguousarray(damage(face, random)[:, ::-1])


KINDS: dict[str, Damage] = {
    "JPEG 30 to 95": jpeg,
    "resize 0.5 to 1": resize,
    "crop 0 to 5 % a side": crop,
    "crop of just 5 %, 1 to 4 sides": hard_crop,
    "gamma 0.7 to 1.4": gamma,
    "two of them": two,
    "mirror image and one of them": flip,
}

"""The faces of a model card's table, how they are degraded, and the classic methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline import images
from pipeline.degradation import STAGE_2, DegradationConfig, degrade
from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.pixels import Values
from pipeline.plan import find_shards
from pipeline.shards import read_shard

HQ_SUFFIX = ".hq.png"
NLM_H, UNSHARP_SIGMA, UNSHARP_AMOUNT = 6.0, 1.5, 3.0
BILATERAL_COLOR, BILATERAL_SPACE = 20.0, 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A clean face and its name."""

    key: str
    pixels: Pixels
    points: Values
    """(5, 2) in pixels of it; NaN where nobody knows."""
    person: str
    licence: str


def read_faces(pattern: str, count: int = 0) -> list[Face]:
    """The first `count` clean faces of shards (0: all), as stored."""
    faces: list[Face] = []
    for shard in find_shards(pattern):
        for record in read_shard(shard):
            if record.fault or record.image is None:
                raise UserError(f"{shard}: {record.key}: {record.fault or 'no image'}")
            parts = [member.data for member in record.members if member.name.endswith(".json")]
            facts = json.loads(parts[0]) if parts else {}
            labels = facts.get("labels") or {}
            person = labels.get("person") if isinstance(labels, dict) else None
            points = np.array(facts.get("landmarks5") or np.full((5, 2), np.nan), np.float64)
            _, pixels = images.decode(record.image.data)
            licence = str(facts.get("licence", ""))
            faces.append(Face(record.key, pixels, points, person or record.key, licence))
            if len(faces) == count:
                return faces
    return faces


def at_size(face: Face, size: int) -> Face:
    """The face averaged down to (size, size, 3), its points with it."""
    if min(face.pixels.shape[:2]) < size:
        raise UserError(f"{face.key}: smaller than {size} px; give faces of at least that")
    points = face.points * (size / face.pixels.shape[0])
    return Face(face.key, images.resize(face.pixels, size), points, face.person, face.licence)


def read_degraded(pattern: str, size: int) -> dict[str, tuple[Pixels, Pixels | None]]:
    """Key -> the degraded face and, where the record holds it, its truth; both at `size`."""
    found = {}
    for shard in find_shards(pattern):
        for record in read_shard(shard):
            named = {m.name[len(record.key) :]: m.data for m in record.members if m.is_image}
            hq = named.pop(HQ_SUFFIX, None)
            if named:
                _, lq = images.decode(next(iter(named.values())))
                truth = images.resize(images.decode(hq)[1], size) if hq else None
                found[record.key] = images.resize(lq, size), truth
    return found


def degraded(face: Face, size: int, seed: int, ranges: DegradationConfig = STAGE_2) -> Pixels:
    """As `vsp degrade --size SIZE --seed SEED`."""
    return degrade(face.pixels, face.key, seed, size, ranges)


def paired(
    faces: Sequence[Face], made: dict[str, tuple[Pixels, Pixels | None]]
) -> tuple[list[Face], list[Pixels]]:  # fmt: skip
    """Truths and degraded faces by key."""
    absent = [face.key for face in faces if face.key not in made]
    if absent:
        raise UserError(f"--degraded: no face of {absent[0]} (and {len(absent) - 1} others)")
    truths = []
    for face in faces:
        hq = made[face.key][1]
        pixels = face.pixels if hq is None else hq
        truths.append(Face(face.key, pixels, face.points, face.person, face.licence))
    return truths, [made[face.key][0] for face in faces]


# ------------------------------------------------------------------------------------ classic


def bilateral(lq: Pixels, color: float = BILATERAL_COLOR, space: float = BILATERAL_SPACE) -> Pixels:
    """Edge-keeping blur."""
    return cv2.bilateralFilter(lq, -1, color, space).astype(np.uint8, copy=False)


def nlm(lq: Pixels, h: float = NLM_H) -> Pixels:
    """Non-local means, OpenCV's windows of 7 and 21."""
    return cv2.fastNlMeansDenoisingColored(lq, None, h, h).astype(np.uint8, copy=False)


def unsharp(
    image: Pixels, sigma: float = UNSHARP_SIGMA, amount: float = UNSHARP_AMOUNT
) -> Pixels:  # fmt: skip
    """What a Gaussian takes away, added `amount` times."""
    soft = cv2.GaussianBlur(image, (0, 0), sigma)
    return cv2.addWeighted(image, 1 + amount, soft, -amount, 0).astype(np.uint8, copy=False)


CLASSIC: dict[str, Callable[[Pixels], Pixels]] = {
    "degraded": lambda lq: lq,
    f"bilateral ({BILATERAL_COLOR:g}, {BILATERAL_SPACE:g})": bilateral,
    f"non-local means (h {NLM_H:g})": nlm,
    f"non-local means + unsharp ({UNSHARP_SIGMA:g}, {UNSHARP_AMOUNT:g})": lambda lq: unsharp(
        nlm(lq)
    ),
}

"""Which of a set's own faces are damaged on purpose, so that the gate is derived from them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.plan import Unit
from pipeline.replica import Frozen
from pipeline.storage import OWN_FOLDER, Store, load_json

WORK = f"{OWN_FOLDER}/work"
NUM_UNITS = 16  # shards that faces are taken from, at most: each is read once


class SampleConfig(Frozen):
    """Which faces are good enough to stand for the truth.

    Attributes:
        faces: How many, at most; each is damaged at every level.
        best_share: They are among this share of the set, by quality.
        min_detail: Least resolution that their pixels carry, as part of the model's size.
        max_yaw_deg: Most turn of the head.
    """

    faces: int = Field(128, ge=1)
    best_share: float = Field(0.5, gt=0, le=1)
    min_detail: float = Field(0.6, ge=0)
    max_yaw_deg: float = Field(45, gt=0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Faces of one shard that are tried together.

    Attributes:
        shard: The shard's name.
        source: Path or URL of its tar.
        indices: Their records, ascending.
        version: What identifies the tar's contents.
    """

    shard: str
    source: str
    indices: tuple[int, ...]
    version: str = ""

    @property
    def name(self) -> str:
        """The unit's name: it follows from the contents."""
        digest = hashlib.sha256(
            json.dumps([self.shard, self.indices, self.version]).encode()
        ).hexdigest()
        return f"{self.shard}.{digest[:12]}"

    def save(self, store: Store) -> None:
        """Write it where its worker looks for it."""
        store.write(f"{WORK}/{self.name}.json", json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, store: Store, name: str) -> "Batch":
        """Read what `save` wrote."""
        facts = load_json(store, f"{WORK}/{name}.json")
        indices: Any = facts["indices"]
        place = str(facts["shard"]), str(facts["source"])
        return cls(*place, tuple(indices), str(facts["version"]))

    def as_unit(self) -> Unit:
        """The unit as the engine counts it."""
        return Unit(self.name, self.source, len(self.indices), self.version)


def choose_faces(
    seen: pa.Table, units: Mapping[str, Unit], model_size: int, seed: int, config: SampleConfig
) -> list[Batch]:
    """Choose among the best faces of the set, from a few shards spread over it.

    Args:
        seen: shard, index, key, status, num_faces, quality, native_side_px, yaw_deg.
        units: The shards by their names.
        model_size: Side on which the model works, in pixels.
        seed: With the keys it draws the faces.
        config: Which are good enough.
    """
    good = pc.and_(pc.equal(seen["status"], "inspected"), pc.equal(seen["num_faces"], 1))
    detailed = pc.greater_equal(seen["native_side_px"], config.min_detail * model_size)
    frontal = pc.less_equal(pc.abs(seen["yaw_deg"]), config.max_yaw_deg)
    usable = seen.filter(pc.and_(pc.and_(good, detailed), frontal))
    if not len(usable):
        return []
    qualities = usable["quality"].to_numpy(zero_copy_only=False)
    least = float(np.quantile(qualities, 1 - config.best_share))
    best = usable.filter(pc.greater_equal(usable["quality"], least))
    return _batches(best, units, seed, config.faces)


def _batches(best: pa.Table, units: Mapping[str, Unit], seed: int, num_faces: int) -> list[Batch]:
    """An equal number of faces of each chosen shard, drawn by their keys."""
    found: dict[str, list[tuple[bytes, int]]] = {}
    names = ("shard", "index", "key")
    for shard, index, key in zip(*(best[name].to_pylist() for name in names), strict=True):
        draw = hashlib.sha256(f"{seed} {shard} {key}".encode()).digest()
        found.setdefault(shard, []).append((draw, index))
    shards = sorted(found)
    at = np.linspace(0, len(shards) - 1, min(NUM_UNITS, len(shards))).round().astype(int)
    chosen = [shards[place] for place in at]
    # What a poor shard cannot give the richer ones do: the shares are dealt out face by face.
    counts = _shares([len(found[shard]) for shard in chosen], num_faces)
    return [
        _batch(units[shard], [index for _, index in sorted(found[shard])[:count]])
        for shard, count in zip(chosen, counts, strict=True)
        if count
    ]


def _batch(unit: Unit, indices: Sequence[int]) -> Batch:
    return Batch(unit.shard, unit.source, tuple(sorted(indices)), unit.version)


def _shares(there: Sequence[int], wanted: int) -> list[int]:
    """How many each gives, as equal as can be."""
    counts = [0] * len(there)
    while sum(counts) < min(wanted, sum(there)):
        for place, most in enumerate(there):
            if counts[place] < most and sum(counts) < wanted:
                counts[place] += 1
    return counts

"""A data set of known composition: what a cleaning run should find is written beside it.

    OUT/set/000000.tar ...    the set: WebDataset, JPEG and JSON
    OUT/truth.csv             what each record is
    OUT/originals/*.jpg       the undamaged faces of the damaged ones; never in the set

Every person plays exactly one role, so no decision about one role can be right for another's
reason. The benchmark takes the faces of `../shared/data`, where one person's photos come under
several names: who is who is then asked of an identity net, generously (`SAME_PERSON`). Tests take
faces of nobody.
"""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from constructed_pictures import NEAR, Draw, Source, broken, mirrored, no_face, side_by_side

from pipeline import images
from pipeline.cleaning.quality.damage import Kind, damage
from pipeline.metrics.identity import FaceNet
from pipeline.metrics.judge import Face
from pipeline.tar import TarWriter
from vsp_model.randomness import generator_for

Role = Literal[
    "good", "degraded", "exact", "near", "flip", "no_face", "two_faces", "corrupt", "known",
    "intruder",
]  # fmt: skip
SHARES: dict[Role, float] = {
    "degraded": 0.2, "exact": 0.08, "near": 0.2, "flip": 0.04, "no_face": 0.04, "two_faces": 0.02,
    "corrupt": 0.03,
}  # fmt: skip
"""Of the set's records; copies count with their originals. The rest is good faces."""
KINDS: tuple[Kind, ...] = (
    "chain", "blur", "noise", "jpeg", "reduction", "chain", "motion", "pixelate",
)  # fmt: skip
"""How faces are damaged; the last two the quality net was never taught."""
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
SHARD_RECORDS = 256
# Photos at least this alike may show one person: they play one role together.
SAME_PERSON = 0.55
# Photos of a known person: so alike that it is the same one, grown up, and several of them.
SURE_PERSON, KNOWN_AGE, KNOWN_PHOTOS, KNOWN_PERSONS = 0.65, 16, 4, 24


@dataclass(frozen=True, slots=True)
class Record:
    """What one record of the set is.

    Attributes:
        key: Its name in the set; it tells nothing.
        role: See `Role`; an original of a copy has the copy's role.
        kind: Of damage, copy, object or fault, "" where there is only one.
        severity: Of the damage, 0 for none.
        group: Copies and their original share it, "" alone.
        is_copy: Whether it is the copy, not the original.
        source: Key of the photo it was made of, "" for none.
        person: What its field of that name says, "" without one.
        shard: Where it lies.
    """

    key: str
    role: Role
    kind: str = ""
    severity: float = 0.0
    group: str = ""
    is_copy: bool = False
    source: str = ""
    person: str = ""
    shard: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    record: Record
    data: bytes
    facts: Source | None
    original: bytes = b""


def build(
    out: Path, sources: Sequence[Source], *, size: int, seed: int = 0, persons: bool = False
) -> list[Record]:
    """Make a set; equal arguments give equal bytes.

    Args:
        out: Folder that does not exist yet.
        sources: Photos; those of one person share `Source.person`.
        size: Records, about.
        seed: Of everything that is drawn.
        persons: Whether known persons and intruders are part of it: `sources` then holds several
            photos of some.

    Raises:
        ValueError: If there are too few persons.
    """
    draw = generator_for(seed, "set", "constructed")
    cast = _Cast(sources, draw)
    made = list(_known(cast, size)) if persons else []
    for role, share in SHARES.items():
        made += _MAKERS[role](cast, round(share * size), seed)
    good = [cast.next() for _ in range(size - len(made))]
    made += [_Made(Record("", "good", source=each.key), each.data, each) for each in good]
    order = [made[place] for place in draw.permutation(len(made))]
    return _write(out, order)


class _Cast:
    """Hands out persons, each once; a person of several photos by the first of them."""

    def __init__(self, sources: Sequence[Source], draw: Draw) -> None:
        photos: dict[str, list[Source]] = defaultdict(list)
        for source in sources:
            photos[source.person].append(source)
        names = sorted(photos)
        self._photos = {
            names[place]: photos[names[place]] for place in draw.permutation(len(names))
        }
        self.draw = draw

    def next(self) -> Source:
        """One photo of a person who has played no role."""
        if not self._photos:
            raise ValueError("too few persons for a set of this size")
        return self._photos.pop(next(iter(self._photos)))[0]

    def known(self, count: int) -> list[list[Source]]:
        """Persons of several photos; not so many that they might be several persons."""
        fitting = range(KNOWN_PHOTOS, 2 * KNOWN_PHOTOS)
        names = [name for name, photos in self._photos.items() if len(photos) in fitting]
        sure = [name for name in names if self._photos[name][0].facts.get("sure")]
        return [self._photos.pop(name) for name in sure[:count]]


# --------------------------------------------------------------------------------------- roles


def _degraded(cast: _Cast, count: int, seed: int) -> Iterator[_Made]:
    for number in range(count):
        source = cast.next()
        kind = KINDS[number // len(SEVERITIES) % len(KINDS)]
        severity = SEVERITIES[number % len(SEVERITIES)]
        lq = damage(source.pixels, kind, severity, seed=seed, key=source.key)
        record = Record("", "degraded", kind, severity, source=source.key)
        yield _Made(record, images.encode(lq, "jpeg"), source, source.data)


def _copied(role: Role, copy: Callable[[Source, int, Draw], tuple[str, bytes]]) -> "_Maker":
    def make(cast: _Cast, count: int, seed: int) -> Iterator[_Made]:
        for number in range(count // 2):
            source, group = cast.next(), f"{role}{number:04}"
            yield _Made(Record("", role, group=group, source=source.key), source.data, source)
            kind, data = copy(source, number, cast.draw)
            record = Record("", role, kind, group=group, is_copy=True, source=source.key)
            yield _Made(record, data, source)

    return make


def _near_copy(source: Source, number: int, draw: Draw) -> tuple[str, bytes]:
    kind = tuple(NEAR)[number % len(NEAR)]
    return kind, NEAR[kind](source, draw)


def _no_face(cast: _Cast, count: int, seed: int) -> Iterator[_Made]:
    for number in range(count):
        kind, data = no_face(number, cast.draw, 128)
        yield _Made(Record("", "no_face", kind), data, None)


def _two_faces(cast: _Cast, count: int, seed: int) -> Iterator[_Made]:
    for _ in range(count):
        one, other = cast.next(), cast.next()
        yield _Made(Record("", "two_faces", source=one.key), side_by_side(one, other), one)


def _corrupt(cast: _Cast, count: int, seed: int) -> Iterator[_Made]:
    for number in range(count):
        source = cast.next()
        kind, data = broken(source, number, cast.draw)
        yield _Made(Record("", "corrupt", kind, source=source.key), data, source)


def _known(cast: _Cast, size: int) -> Iterator[_Made]:
    """Persons of several photos; with three of four of them comes a photo of somebody else."""
    for number, photos in enumerate(cast.known(min(KNOWN_PERSONS, size // 25))):
        person = f"person{number:03}"
        for photo in photos:
            yield _Made(Record("", "known", source=photo.key, person=person), photo.data, photo)
        if number % 4:
            other = cast.next()
            record = Record("", "intruder", source=other.key, person=person)
            yield _Made(record, other.data, other)


_Maker = Callable[[_Cast, int, int], Iterator[_Made]]
_MAKERS: dict[Role, _Maker] = {
    "degraded": _degraded,
    "exact": _copied("exact", lambda source, number, draw: ("", source.data)),
    "near": _copied("near", _near_copy),
    "flip": _copied("flip", lambda source, number, draw: ("", mirrored(source))),
    "no_face": _no_face,
    "two_faces": _two_faces,
    "corrupt": _corrupt,
}


# ------------------------------------------------------------------------------------- writing


def _write(out: Path, made: Sequence[_Made]) -> list[Record]:
    (out / "set").mkdir(parents=True)
    (out / "originals").mkdir()
    records = []
    for start in range(0, len(made), SHARD_RECORDS):
        shard = f"{start // SHARD_RECORDS:06}"
        with (out / "set" / f"{shard}.tar").open("wb") as file:
            writer = TarWriter(file)
            for number, each in enumerate(made[start : start + SHARD_RECORDS], start):
                record = replace(each.record, key=f"{number:06}", shard=shard)
                writer.add(f"{record.key}.jpg", each.data)
                writer.add(f"{record.key}.json", _json(each, record))
                if each.original:
                    (out / "originals" / f"{record.key}.jpg").write_bytes(each.original)
                records.append(record)
            writer.finish()
    with (out / "truth.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [each.name for each in fields(Record)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(record) for record in records)
    return records


def _json(each: _Made, record: Record) -> bytes:
    facts = each.facts.facts if each.facts else {"source": "scikit-image", "licence": "see there"}
    told = {name: facts[name] for name in ("source", "licence", "author") if name in facts}
    if record.person:
        told["labels"] = {"person": record.person}
    return json.dumps(told, sort_keys=True).encode()


def read_truth(out: Path) -> list[Record]:
    """What `build` wrote into `truth.csv`."""
    with (out / "truth.csv").open(newline="") as file:
        return [
            Record(
                **(row | {"severity": float(row["severity"]), "is_copy": row["is_copy"] == "True"})
            )
            for row in csv.DictReader(file)
        ]


# ------------------------------------------------------------------------------------- persons


def with_persons(sources: Sequence[Source], network: Path) -> list[Source]:
    """The same photos with who is who, as far as an identity net can say.

    Photos linked by a likeness of `SAME_PERSON` play one role. A person is known for sure if all
    photos are grown-up ones, linked by `SURE_PERSON`, and alike on average.

    Args:
        sources: With `landmarks5` among their facts.
        network: Weights of MobileFaceNet.
    """
    embeddings = embed(sources, network)
    alike = embeddings @ embeddings.T
    loose, close = _linked(alike >= SAME_PERSON), _linked(alike >= SURE_PERSON)
    places: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(loose):
        places[number].append(place)
    sure = {
        number: len({close[place] for place in members}) == 1
        and alike[np.ix_(members, members)].mean() >= SAME_PERSON
        and all((sources[place].facts.get("age") or 99) >= KNOWN_AGE for place in members)
        for number, members in places.items()
    }
    return [
        replace(source, person=f"{loose[place]:06}",
                facts=dict(source.facts) | {"sure": sure[loose[place]]})
        for place, source in enumerate(sources)
    ]  # fmt: skip


def embed(sources: Sequence[Source], network: Path) -> np.ndarray:
    """Identity embeddings, (N, 128) of length 1; set torch to one thread before."""
    net = FaceNet(network)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(partial(_embedding, net), sources)))


def _embedding(net: FaceNet, source: Source) -> np.ndarray:
    points = np.array(source.facts["landmarks5"]) + 0.5  # the first pixel spans 0 to 1
    found = net.embedding(Face(source.key, source.pixels, points=points), "restored")
    assert found is not None, "the points are known"
    return found


def _linked(near: np.ndarray) -> list[int]:
    """Number of each place's component: the first place in it."""
    numbers = list(range(len(near)))

    def first(place: int) -> int:
        while numbers[place] != place:
            place = numbers[place]
        return place

    for one, other in zip(*np.nonzero(np.triu(near, 1)), strict=True):
        low, high = sorted((first(int(one)), first(int(other))))
        numbers[high] = low
    return [first(place) for place in range(len(near))]

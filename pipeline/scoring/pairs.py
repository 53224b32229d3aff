"""Which restored image belongs to which truth: paired by key, never by place in a list."""

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.scoring.sources import NOWHERE, Found, Place
from pipeline.scoring.tables import PAIRS, PAIRS_SCHEMA
from pipeline.storage import Store

_SHOWN = 5
_HASH_DIGITS = 16
MAX_GROUPS = 100


@dataclass(frozen=True, slots=True)
class Pair:
    """One image of a method.

    Attributes:
        image_id: The key that restored image, truth and input share.
        restored: The method's image; `NOWHERE` for one that it has not made.
        gt: Its truth, or `NOWHERE`.
        lq: What the method was given, for the eye alone; or `NOWHERE`.
        group: What scores may be grouped by, or "".
    """

    image_id: str
    restored: Place
    gt: Place = NOWHERE
    lq: Place = NOWHERE
    group: str = ""


@dataclass(frozen=True, slots=True)
class PairSet:
    """All images of one method on one data set.

    Attributes:
        method: Its name.
        dataset: Its name.
        pairs: Sorted by image id.
        dataset_rev: What the data set is; of the truths' contents unless given.
    """

    method: str
    dataset: str
    pairs: tuple[Pair, ...]
    dataset_rev: str

    @property
    def method_rev(self) -> str:
        """Hash of what the method made."""
        return _revision((pair.image_id, pair.restored.sha256) for pair in self.pairs)

    @property
    def slug(self) -> str:
        """A name for files."""
        return f"{slug(self.dataset)}/{slug(self.method)}"


def pair_up(
    restored: Found, gt: Found | None, lq: Found | None = None, groups: Mapping[str, str] = {}
) -> tuple[Pair, ...]:
    """Pair by key; what is on one side only is a pair that lacks the other."""
    keys = sorted(restored.keys() | (gt or {}).keys())
    return tuple(
        Pair(
            key,
            restored.get(key, NOWHERE),
            (gt or {}).get(key, NOWHERE),
            (lq or {}).get(key, NOWHERE),
            groups.get(key, ""),
        )
        for key in keys
    )


def check_complete(pairs: Sequence[Pair], source: str, gt: str) -> None:
    """Refuse a method whose images are not exactly the truths'.

    Raises:
        UserError: Naming the first images that are missing, and the first that are too many.
    """
    missing = [pair.image_id for pair in pairs if pair.restored is NOWHERE]
    extra = [pair.image_id for pair in pairs if pair.gt is NOWHERE]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}"
        for names, what in ((missing, "missing"), (extra, f"not in {gt}"))
        if names
    ]
    if parts:
        raise UserError(
            f"{source}: {'; '.join(parts)}; names must agree but for their suffix "
            "(a method's own ending is taken off by a key regex)"
        )


def truths_revision(pairs: Iterable[Pair]) -> str:
    """What a data set is: its truths; where there are none, the inputs; else the ids alone."""
    return _revision((pair.image_id, pair.gt.sha256 or pair.lq.sha256) for pair in pairs)


def read_groups(path: Path) -> dict[str, str]:
    """Groups of images from a CSV with the columns `key` and `group`.

    Raises:
        UserError: If it is not there, or has no such columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not rows or not {"key", "group"} <= rows[0].keys():
        raise UserError(f"{path}:1: expected the columns key,group")
    groups = {row["key"]: row["group"] or "" for row in rows}
    if (num_groups := len(set(groups.values()))) > MAX_GROUPS:
        raise UserError(
            f"{path}: {num_groups} groups; at most {MAX_GROUPS} have columns of their own"
        )
    return groups


def write_pairs(store: Store, pair_set: PairSet) -> None:
    """Make this the current view of a method on a data set."""
    columns: dict[str, list[object]] = {name: [] for name in PAIRS_SCHEMA.names}
    shared: dict[str, object] = {
        "method": pair_set.method,
        "method_rev": pair_set.method_rev,
        "dataset": pair_set.dataset,
        "dataset_rev": pair_set.dataset_rev,
    }
    for pair in pair_set.pairs:
        row = shared | {"image_id": pair.image_id, "group": pair.group}
        for role, place in (("restored", pair.restored), ("gt", pair.gt), ("lq", pair.lq)):
            row.update(_place_columns(role, place))
        for name, values in columns.items():
            values.append(row[name])
    table = pa.table(
        [pa.array(columns[field.name], field.type) for field in PAIRS_SCHEMA], schema=PAIRS_SCHEMA
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.write(f"{PAIRS}/{pair_set.slug}.parquet", sink.getvalue().to_pybytes())


def made_by_others(store: Store, joining: PairSet) -> dict[str, set[str]]:
    """The ids of the images that each other method of a data set has made."""
    found: dict[str, set[str]] = {}
    own = f"{PAIRS}/{joining.slug}.parquet"
    for name in store.list(own.rpartition("/")[0]):
        if name == own:
            continue
        with store.open(name) as file:
            table = pq.read_table(file, columns=["method", "image_id", "restored_path"])
        for method, image_id, path in zip(*table.to_pydict().values(), strict=True):
            if path:
                found.setdefault(method, set()).add(image_id)
    return found


def _place_columns(role: str, place: Place) -> dict[str, object]:
    return {
        f"{role}_path": place.path,
        f"{role}_offset": place.offset,
        f"{role}_size": max(place.size_bytes, 0),
        f"{role}_sha256": place.sha256,
    }


def slug(name: str) -> str:
    """A name that is safe in every file system: what is plain of it, and a hash if that is less."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:48]
    if plain and plain == name:
        return plain
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


def _revision(items: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for key, sha256 in items:
        digest.update(f"{len(key)}:{key}:{sha256}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()[:_HASH_DIGITS]

"""What `vsp verify` asks of a cleaned shard beside its checksums."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.removal.pending import PLACEHOLDER
from pipeline.cleaning.removal.tombstones import Tombstones, digest_of
from pipeline.cleaning.tables import MANIFEST
from pipeline.plan import Unit
from pipeline.sample import Sample
from pipeline.shards import read_shard
from pipeline.sidecar import Row, sha256
from pipeline.storage import Store, stat_input

_COLUMNS = ("index", "key", "member", "outcome", "sha256", "sha256_out")


def check_cleaned(store: Store, unit: Unit, rows: Sequence[Row]) -> Iterator[str]:
    """Hold a shard against its manifest, its input and what was forgotten.

    Args:
        store: The cleaning run's OUT.
        unit: The shard.
        rows: Its sidecar.

    Yields:
        One line for everything that is wrong.
    """
    try:
        entries = _entries(store, unit.shard)
    except (FileNotFoundError, pa.ArrowException):
        yield f"{MANIFEST}/{unit.shard}.parquet: missing, or no manifest"
        return
    yield from _check_manifest(unit, rows, entries)
    yield from _check_input(store, unit, rows)
    yield from _check_tar(store, unit, entries)


def _entries(store: Store, shard: str) -> list[dict[str, Any]]:
    with store.open(f"{MANIFEST}/{shard}.parquet") as file:
        entries: list[dict[str, Any]] = parquet.read(file, _COLUMNS).to_pylist()
    return entries


def _check_manifest(
    unit: Unit, rows: Sequence[Row], entries: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The manifest has the sidecar's rows, and says the same of what was written."""
    name = f"{MANIFEST}/{unit.shard}.parquet"
    if [(row.index, row.key) for row in rows] != [(e["index"], e["key"]) for e in entries]:
        yield f"{name}: not the rows of the sidecar"
        return
    for row, entry in zip(rows, entries, strict=True):
        restored = entry["outcome"] == "restored"
        if restored != (row.status == "restored"):
            yield f"{name}: {row.key}: {entry['outcome']}, the sidecar says {row.status}"
        elif restored and row.sha256_out != entry["sha256_out"]:
            yield f"{name}: {row.key}: another sha256 than the sidecar's"
        elif entry["outcome"] in ("kept", "fallback") and entry["sha256_out"] != entry["sha256"]:
            yield f"{name}: {row.key}: {entry['outcome']}, yet not the original's bytes"


def _check_input(store: Store, unit: Unit, rows: Sequence[Row]) -> Iterator[str]:
    """One row for each record of the input; a blank one only where a tombstone stands."""
    if stat_input(unit.source) is None:
        yield f"{unit.source}: the input is gone, so it was not compared"
        return
    stones = Tombstones.load(store)
    num_records = 0
    for sample in islice(read_shard(unit.source), unit.limit or None):
        row = rows[num_records] if num_records < len(rows) else None
        num_records += 1
        if row is None or row.key == sample.key != "":
            continue
        if row.status != "forgotten" and row.key != sample.key:
            yield f"{unit.shard}: record {sample.index} is {sample.key}, its row {row.key}"
        elif row.status == "forgotten" and not _is_covered(stones, unit.shard, sample):
            yield f"{unit.shard}: record {sample.index} ({sample.key}): its row says forgotten, "\
                  "no tombstone does"  # fmt: skip
    if num_records != len(rows):
        yield f"{unit.shard}: {len(rows)} rows for {num_records} input records"


def _is_covered(stones: Tombstones, shard: str, sample: Sample) -> bool:
    image = sample.image
    digest = digest_of(shard, sample.key, sha256(image.data) if image else None)
    return sample.key.startswith(PLACEHOLDER) or stones.covers(digest)


def _check_tar(store: Store, unit: Unit, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every image that stays is in the tar as its row says, and nothing of what was left out."""
    tar = f"{unit.shard}.tar"
    wanted = {e["member"]: e["sha256_out"] for e in entries if e["sha256_out"]}
    known: dict[str, set[str]] = {}
    for entry in entries:
        known.setdefault(entry["key"], set()).add(entry["outcome"])
    for sample in read_shard(f"{store.url.rstrip('/')}/{tar}"):
        outcomes = known.get(sample.key)
        if sample.fault:
            yield f"{tar}: {sample.key}: {sample.fault}"
        elif outcomes is None:
            yield f"{tar}: {sample.key}: no row"
        elif outcomes == {"rejected"}:
            yield f"{tar}: {sample.key}: left out by its row"
        for member in sample.members:
            digest = wanted.pop(member.name, None)
            if digest not in (None, sha256(member.data)):
                yield f"{tar}: {member.name}: not what its row says"
    for name in wanted:
        yield f"{tar}: {name}: missing"

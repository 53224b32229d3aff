"""Another copy of a set cleaned by somebody's manifest: what is known of an image is its sha256.

Shards and keys may differ. What the manifest kept is kept, what it left out is left out, what it
restored is restored again; what it does not know stays. The tables that a cleaning run would have
made are written, so that the last step of one can carry them out.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.cleaning import tables
from pipeline.cleaning.metadata import FieldMap, metadata_of
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.cleaning.tables import Decision, Inspected
from pipeline.errors import UserError
from pipeline.plan import Unit
from pipeline.sample import Sample
from pipeline.shards import read_shard
from pipeline.sidecar import sha256
from pipeline.storage import OWN_FOLDER, Store, load_json

APPLIED = f"{OWN_FOLDER}/applied.json"  # by which manifest OUT was made
UNKNOWN = "not in the manifest that was applied"
AS_BEFORE = "as the manifest says that was applied"
_STAYS = ("kept", "fallback", "restored")
_OWN = ("index", "key", "member", "status", "reason", "source", "licence", "author", "person",
        "fields")  # fmt: skip
_SEEN = tuple(each.name for each in fields(Inspected) if each.name not in _OWN)
COLUMNS = ("shard", "key", *_SEEN, "source", "licence", "author", "person", "fields", "level",
           "decision_reason", "outcome", "sha256_out", "operations")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """What the manifest's faces were restored with.

    Attributes:
        model: The model's name.
        sha256: Of the weights.
        seed: Of the run.
    """

    model: str
    sha256: str
    seed: int


@dataclass(slots=True)
class Applied:
    """What was written.

    Attributes:
        counts: Images by what the manifest says: kept, restored, rejected, unknown, copies.
        wanted: sha256 -> sha256 of what the manifest's restoring made of it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wanted: dict[str, str] = field(default_factory=dict)


class Known:
    """A manifest by sha256 of the images; of several rows one that stays counts."""

    def __init__(self, manifest: pa.Table) -> None:
        """Index a table with the columns `COLUMNS`."""
        self._table = manifest
        self._rows: dict[str, int] = {}
        outcomes = manifest["outcome"].to_pylist()
        for place, digest in enumerate(manifest["sha256"].to_pylist()):
            if digest is None or outcomes[place] in ("forgotten", "failed"):
                continue
            if digest not in self._rows or (
                outcomes[place] in _STAYS and outcomes[self._rows[digest]] not in _STAYS
            ):
                self._rows[digest] = place

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, digest: str) -> Mapping[str, Any] | None:
        """What the manifest says of an image."""
        place = self._rows.get(digest)
        if place is None:
            return None
        row: Mapping[str, Any] = self._table.slice(place, 1).to_pylist()[0]
        return row

    def weights(self) -> Weights | None:
        """What restored its faces; None where none was.

        Raises:
            UserError: If they are several: no one run can make them again.
        """
        found = set()
        texts = set(self._table.filter(_is_restored(self._table))["operations"].to_pylist())
        for text in texts:
            for each in json.loads(text):
                if each.get("operation") == "restore":
                    found.add(Weights(each.get("model", ""), each["model_sha256"], each["seed"]))
        if len(found) > 1:
            raise UserError("the manifest's faces were restored with several weights or seeds; "
                            "apply the manifest of each run by itself")  # fmt: skip
        return next(iter(found), None)


def _is_restored(table: pa.Table) -> pa.Array:
    return pa.array([outcome == "restored" for outcome in table["outcome"].to_pylist()])


def claim(store: Store, digest: str) -> None:
    """Note by which manifest OUT is made.

    Args:
        store: OUT.
        digest: What identifies the manifest.

    Raises:
        UserError: If OUT is of something else.
    """
    try:
        there = load_json(store, APPLIED).get("sha256")
    except FileNotFoundError:
        there = None
        if store.stat(f"{OWN_FOLDER}/plan.json") is not None:
            raise UserError(f"{store.url}: begun by another command; choose another OUT") from None
    if there not in (None, digest):
        raise UserError(f"{store.url}: another manifest was applied there; choose another OUT")
    store.write(APPLIED, json.dumps({"sha256": digest}).encode())


def write_tables(store: Store, units: Sequence[Unit], known: Known) -> Applied:
    """Hash every image of the input, and write what was seen and what is decided.

    Args:
        store: OUT.
        units: The input's shards.
        known: The manifest.
    """
    applied = Applied()
    stones = Tombstones.load(store)
    first: dict[str, str] = {}  # sha256 of what stays -> where it stands first
    for unit in units:
        pairs = list(_judge(unit, known, stones, first, applied))
        _write(store, f"{tables.INSPECT}/{tables.INSPECTED}/{unit.shard}.parquet",
               [seen for seen, _ in pairs], Inspected)  # fmt: skip
        _write(store, f"{tables.DECISIONS}/{unit.shard}.parquet",
               [decided for _, decided in pairs], Decision)  # fmt: skip
    return applied


def _write(store: Store, name: str, rows: Sequence[Any], record: type) -> None:
    file = io.BytesIO()
    tables.write_rows(file, rows, record)
    store.write(name, file.getvalue())


def _judge(
    unit: Unit, known: Known, stones: Tombstones, first: dict[str, str], applied: Applied
) -> Iterator[tuple[Inspected, Decision]]:
    """What is seen and decided of a shard's records."""
    for sample in islice(read_shard(unit.source), unit.limit or None):
        seen, row = _seen(sample, known, stones)
        name = f"{unit.shard}/{sample.key}"
        before = first.get(seen.sha256 or "")
        if before is not None:
            applied.counts["copies"] += 1
            yield seen, Decision(seen.index, seen.key, "reject", "duplicate_exact",
                                 f"copy of {before}", copy_kind="exact", copy_of=before,
                                 copy_likeness=1.0)  # fmt: skip
            continue
        decision, word = _decision(seen, row)
        applied.counts[word] += 1
        if seen.sha256 and decision.decision != "reject":
            first[seen.sha256] = name
        if row is not None and decision.decision == "restore":
            applied.wanted[row["sha256"]] = row["sha256_out"]
        yield seen, decision


def _seen(
    sample: Sample, known: Known, stones: Tombstones
) -> tuple[Inspected, Mapping[str, Any] | None]:
    """The record's row, with what the manifest measured of the same bytes."""
    image = sample.image
    digest = sha256(image.data) if image else None
    if digest is not None and stones.covers(digest):
        return Inspected(sample.index, "", "forgotten"), None
    if sample.fault:
        status: Any = "truncated" if sample.truncated else "refused"
        return Inspected(sample.index, sample.key, status, sample.fault), None
    if image is None or digest is None:
        return Inspected(sample.index, sample.key, "copied", "no image member"), None
    metadata = metadata_of(sample, FieldMap())
    row = known.row(digest)
    values: dict[str, Any] = {"sha256": digest, "size_bytes": len(image.data)}
    if row is not None:
        values = {n: tuple(row[n]) if isinstance(row[n], list) else row[n] for n in _SEEN}
    for name in ("source", "licence", "author", "person", "fields"):
        values[name] = getattr(metadata, name) or (row[name] if row is not None else None)
    seen = Inspected(sample.index, sample.key, "inspected", member=image.name, **values)
    return seen, row


def _decision(seen: Inspected, row: Mapping[str, Any] | None) -> tuple[Decision, str]:
    """What is done with a record, and under which word it is counted."""
    place = seen.index, seen.key
    if seen.status == "forgotten":
        return Decision(*place, "reject", "forgotten"), "forgotten"
    if seen.status in ("refused", "truncated"):
        return Decision(*place, "reject", "unusable"), "unusable"
    if seen.sha256 is None:
        return Decision(*place, "keep", "no_image"), "kept"
    if row is None:
        return Decision(*place, "keep", "uncalibrated", UNKNOWN), "unknown"
    if row["outcome"] == "restored":
        decision = Decision(*place, "restore", "overruled", AS_BEFORE, row["level"])
        return decision, "restored"
    if row["outcome"] == "rejected":
        return Decision(*place, "reject", row["decision_reason"], AS_BEFORE), "rejected"
    return Decision(*place, "keep", "overruled", AS_BEFORE, row["level"]), "kept"


def compare(store: Store, applied: Applied) -> tuple[int, int]:
    """How many restored faces came out as the manifest has them, and how many did not."""
    from pipeline.cleaning.manifest.read import read_manifest

    made = read_manifest(store, ["sha256", "sha256_out", "outcome"])
    same = other = 0
    for row in made.filter(_is_restored(made)).to_pylist():
        wanted = applied.wanted.get(row["sha256"])
        same += wanted == row["sha256_out"]
        other += wanted != row["sha256_out"]
    return same, other

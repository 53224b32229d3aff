"""The one step that looks at the whole set: copies, persons, then the gate, in sorted order.

What needs embeddings is found once and kept as numbers of groups, so that embeddings can go and
another threshold, or a person's verdict, costs seconds.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.cleaning.calibration.thresholds import Thresholds
from pipeline.cleaning.copies.find import CopyConfig, find_copies
from pipeline.cleaning.copies.groups import Copy, group_copies
from pipeline.cleaning.copies.prints import PRINT_BYTES
from pipeline.cleaning.gate import GateConfig, decide
from pipeline.cleaning.overrule import Overrules
from pipeline.cleaning.persons.identities import IdentityConfig, Merge, Persons, find_persons
from pipeline.cleaning.tables import (
    DECISIONS,
    EMBEDDING_DIM,
    GROUPS,
    IDENTITIES,
    INSPECT,
    INSPECTED,
    PRIVATE,
    THRESHOLDS,
    Decision,
    Inspected,
    as_matrix,
    schema_of,
    write_rows,
)
from pipeline.replica import Frozen
from pipeline.storage import Store, load_json

NO_GROUP = -1
# Long texts of every image are not needed here, and a million rows of them are gigabytes.
NOT_NEEDED = ("fields", "source", "licence", "author", "face_points", "face_box")
PROVENANCE = ("source", "licence", "author", "person")
STEPS_PER_OCTAVE = 3  # what `native_side_px` can tell apart
QUALITY_STEP = 0.05


class DecideConfig(Frozen):
    """What is decided by.

    Attributes:
        copies: When two images are copies.
        identities: When two faces are one person.
        gate: What is restored, and what is left out.
    """

    copies: CopyConfig = CopyConfig()
    identities: IdentityConfig = IdentityConfig()
    gate: GateConfig = GateConfig()


@dataclass(frozen=True, slots=True)
class Situation:
    """What the gate must know beside the images.

    Attributes:
        thresholds: Of the calibration; None without one.
        overrules: What a person decided.
        model_size: Side on which the model works, in pixels.
        has_identity: Whether persons can be told apart.
    """

    thresholds: Thresholds | None
    overrules: Overrules
    model_size: int
    has_identity: bool


@dataclass(frozen=True, slots=True)
class Groups:
    """What was found by comparing images with each other, one entry an image."""

    copies: list[Copy | None]
    persons: Persons | None


def load_seen(store: Store, shards: Sequence[str]) -> pa.Table:
    """What was seen of all images, sorted by shard and index.

    Args:
        store: The cleaning run's output folder.
        shards: Names of all shards.

    Returns:
        Columns of `Inspected`, `shard`, and `provenance`: how many of `PROVENANCE` are known.
    """
    columns = [name for name in schema_of(Inspected).names if name not in NOT_NEEDED]
    tables = []
    for shard in sorted(shards):
        with store.open(f"{INSPECT}/{INSPECTED}/{shard}.parquet") as file:
            table = pq.read_table(file, columns=list({*columns, *PROVENANCE}))
        known = sum(table[name].is_valid().to_numpy().astype(np.int8) for name in PROVENANCE)
        names = pa.array([shard] * len(table), pa.string())
        table = table.select(columns).append_column("provenance", pa.array(known, pa.int8()))
        tables.append(table.append_column(pa.field("shard", pa.string(), False), names))
    return pa.concat_tables(tables)


def decide_all(
    store: Store, shards: Sequence[str], seen: pa.Table, groups: Groups, situation: Situation,
    config: GateConfig,
) -> list[Decision]:  # fmt: skip
    """Decide about every image and write the tables, one a shard, of empty shards too.

    Returns:
        One decision an image, in the order of `seen`.
    """
    decisions = decide(
        seen,
        groups.copies,
        groups.persons,
        situation.thresholds,
        situation.overrules,
        situation.model_size,
        situation.has_identity,
        config,
    )
    by_shard: dict[str, list[Decision]] = {shard: [] for shard in shards}
    for shard, decision in zip(seen["shard"].to_pylist(), decisions, strict=True):
        by_shard[shard].append(decision)
    for shard, rows in by_shard.items():
        file = io.BytesIO()
        write_rows(file, rows, Decision)
        _write_if_new(store, f"{DECISIONS}/{shard}.parquet", file.getvalue())
    return decisions


def _write_if_new(store: Store, name: str, data: bytes) -> None:
    try:
        if store.read(name) == data:
            return
    except FileNotFoundError:
        pass
    store.write(name, data)


# ------------------------------------------------------------------------------------- groups


def version_of(store: Store, unit_version: str, shard: str) -> str:
    """The version of a shard under the decisions about it, and what they are verified by.

    Args:
        store: The cleaning run's output folder.
        unit_version: Of the shard's input.
        shard: Its name.
    """
    digest = hashlib.sha256(store.read(f"{DECISIONS}/{shard}.parquet"))
    with suppress(FileNotFoundError):  # nothing was calibrated
        digest.update(store.read(THRESHOLDS))
    return f"{unit_version} {digest.hexdigest()[:16]}"


def has_groups(store: Store, digest: str) -> bool:
    """Whether the groups that were kept are those known by this digest."""
    try:
        with store.open(GROUPS) as file:
            return (pq.read_schema(file).metadata or {}).get(GROUPS_OF) == digest.encode()
    except FileNotFoundError:
        return False


def find_groups(store: Store, seen: pa.Table, digest: str, config: DecideConfig) -> Groups:
    """Compare all images with each other, and keep what was found.

    Args:
        store: The cleaning run's output folder, with its private tables.
        seen: What `load_seen` gave.
        digest: What they will be known by.
        config: How images are compared.
    """
    prints, has_prints = _private(store, seen, "prints", np.uint8, PRINT_BYTES)
    pairs = find_copies(prints, has_prints, config.copies)
    del prints  # the largest thing held: 720 bytes an image
    vectors, has_identity = _private(store, seen, "identity", np.float32, EMBEDDING_DIM)
    known = vectors if has_identity.any() else None
    copies = group_copies(seen["sha256"].to_pylist(), pairs, _rank(seen), known)
    persons = None
    if known is not None:
        persons = find_persons(seen["person"].to_pylist(), known, has_identity, config.identities)
    groups = Groups(copies, persons)
    _save_groups(store, seen, groups, digest)
    return groups


def _private(
    store: Store, seen: pa.Table, name: str, dtype: Any, dim: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column of the private tables as one matrix, and where it holds something."""
    matrix, has = np.zeros((len(seen), dim), dtype), np.zeros(len(seen), np.bool_)
    start = 0
    for shard in sorted(set(seen["shard"].to_pylist())):
        with store.open(f"{INSPECT}/{PRIVATE}/{shard}.parquet") as file:
            packed = pq.read_table(file, columns=[name])[name].to_pylist()
        rows = slice(start, start + len(packed))
        matrix[rows] = as_matrix(packed, dtype, dim)
        has[rows] = [value is not None for value in packed]
        start += len(packed)
    return matrix, has


def _rank(seen: pa.Table) -> list[tuple[float, ...]]:
    """Which of several copies is the best.

    Detail first, as far as it can be told apart; then whose origin is known; then quality, pixels,
    bytes.
    """
    detail, quality, origin, width, size = (
        np.nan_to_num(seen[name].cast(pa.float64()).to_numpy(zero_copy_only=False), nan=0.0)
        for name in ("native_side_px", "quality", "provenance", "width_px", "size_bytes")
    )
    steps = np.round(np.log2(np.maximum(detail, 1)) * STEPS_PER_OCTAVE)
    columns = (steps, origin, np.round(quality / QUALITY_STEP), width, size)
    return list(zip(*(column.tolist() for column in columns), strict=True))


_GROUPS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("copy_group", pa.int64(), nullable=False),
        pa.field("copy_kind", pa.string()),
        pa.field("copy_of", pa.int64(), nullable=False),
        pa.field("copy_likeness", pa.float64(), nullable=False),
        pa.field("identity_group", pa.int64(), nullable=False),
        pa.field("identity_likeness", pa.float64(), nullable=False),
        pa.field("is_outlier", pa.bool_(), nullable=False),
    ]
)
GROUPS_OF = b"vsp.of"  # metadata of the Parquet schema: what the groups were found in


def _save_groups(store: Store, seen: pa.Table, groups: Groups, digest: str) -> None:
    """One row an image; what they were found in stands in the same file, so that both are new."""
    copies, persons, count = groups.copies, groups.persons, len(seen)
    columns = {
        "shard": seen["shard"],
        "index": seen["index"],
        "copy_group": [copy.group if copy else NO_GROUP for copy in copies],
        "copy_kind": [copy.kind if copy else None for copy in copies],
        "copy_of": [copy.of if copy else NO_GROUP for copy in copies],
        "copy_likeness": [copy.likeness if copy else 0.0 for copy in copies],
        "identity_group": persons.group if persons else np.full(count, NO_GROUP),
        "identity_likeness": persons.likeness if persons else np.full(count, np.nan),
        "is_outlier": persons.is_outlier if persons else np.zeros(count, np.bool_),
    }
    schema = _GROUPS_SCHEMA.with_metadata({GROUPS_OF: digest.encode()})
    table = pa.table(columns, schema=schema)
    store.write(IDENTITIES, _identities_json(seen, persons))
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    store.write(GROUPS, file.getvalue())


def _identities_json(seen: pa.Table, persons: Persons | None) -> bytes:
    """Images that are not who their field says, and persons that are one."""
    facts: dict[str, list[object]] = {"outliers": [], "merges": []}
    if persons is not None:
        columns = [seen[name].to_pylist() for name in ("shard", "key", "person")]
        for place in np.flatnonzero(persons.is_outlier):
            row: list[object] = [column[place] for column in columns]
            facts["outliers"].append([*row, float(persons.likeness[place])])
        facts["merges"] = [[m.person, m.other, m.likeness] for m in persons.merges]
    return json.dumps(facts, indent=1).encode()


def load_groups(store: Store) -> Groups:
    """Read what `find_groups` kept."""
    with store.open(GROUPS) as file:
        table = pq.read_table(file)
    names = ("copy_group", "copy_kind", "copy_of", "copy_likeness")
    copies = [
        None if group == NO_GROUP else Copy(group, kind, of, likeness)
        for group, kind, of, likeness in zip(*(table[n].to_pylist() for n in names), strict=True)
    ]
    group = table["identity_group"].to_numpy()
    outlier = table["is_outlier"].to_numpy(zero_copy_only=False)
    if (group == NO_GROUP).all() and not outlier.any():
        return Groups(copies, None)
    facts = load_json(store, IDENTITIES)
    merges = [Merge(str(a), str(b), float(c)) for a, b, c in _lists(facts, "merges")]
    return Groups(copies, Persons(group, table["identity_likeness"].to_numpy(), outlier, merges))


def _lists(facts: Mapping[str, object], name: str) -> list[Any]:
    found = facts.get(name)
    return found if isinstance(found, list) else []

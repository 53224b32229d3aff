"""The one step that looks at the whole set: copies, persons, then the gate, in sorted order.

What needs embeddings is found once and kept as numbers of groups, so that embeddings can go and
another threshold, or a person's verdict, costs seconds.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    GROUPS_OF,
    IDENTITIES,
    INSPECT,
    INSPECTED,
    PRIVATE,
    CopyKind,
    Decision,
    Inspected,
    as_matrix,
    schema_of,
    write_columns,
    write_rows,
)
from pipeline.replica import Frozen
from pipeline.storage import Store, load_json

NO_GROUP = -1
# Long texts of every image are not needed here, and a million rows of them are gigabytes.
NOT_NEEDED = ("fields", "source", "licence", "author", "face_points", "face_box")


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
    """
    columns = [name for name in schema_of(Inspected).names if name not in NOT_NEEDED]
    tables = []
    for shard in sorted(shards):
        with store.open(f"{INSPECT}/{INSPECTED}/{shard}.parquet") as file:
            table = pq.read_table(file, columns=columns)
        names = pa.array([shard] * len(table), pa.string())
        tables.append(table.append_column(pa.field("shard", pa.string(), False), names))
    return pa.concat_tables(tables)


def decide_all(
    store: Store, seen: pa.Table, groups: Groups, situation: Situation, config: GateConfig
) -> list[Decision]:
    """Decide about every image and write the tables, one a shard.

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
    by_shard: dict[str, list[Decision]] = {}
    for shard, decision in zip(seen["shard"].to_pylist(), decisions, strict=True):
        by_shard.setdefault(shard, []).append(decision)
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


def has_groups(store: Store, digest: str) -> bool:
    """Whether the groups that were kept are those known by this digest."""
    try:
        return load_json(store, GROUPS_OF).get("digest") == digest
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
    private = _load_private(store, seen)
    packed = private["prints"].to_pylist()
    has_prints = np.array([value is not None for value in packed])
    pairs = find_copies(as_matrix(packed, np.uint8, PRINT_BYTES), has_prints, config.copies)
    embeddings = private["identity"].to_pylist()
    has_identity = np.array([value is not None for value in embeddings])
    vectors = as_matrix(embeddings, np.float32, EMBEDDING_DIM) if has_identity.any() else None
    copies = group_copies(seen["sha256"].to_pylist(), pairs, _rank(seen), vectors)
    persons = None
    if vectors is not None:
        named = seen["person"].to_pylist()
        persons = find_persons(named, vectors, has_identity, config.identities)
    groups = Groups(copies, persons)
    _save_groups(store, seen, groups)
    store.write(GROUPS_OF, json.dumps({"digest": digest}).encode())
    return groups


def _load_private(store: Store, seen: pa.Table) -> pa.Table:
    tables = []
    for shard in sorted(set(seen["shard"].to_pylist())):
        with store.open(f"{INSPECT}/{PRIVATE}/{shard}.parquet") as file:
            tables.append(pq.read_table(file))
    return pa.concat_tables(tables)


def _rank(seen: pa.Table) -> list[tuple[float, ...]]:
    """Which of several copies is the best: detail, then quality, then pixels, then bytes."""
    names = ("native_side_px", "quality", "width_px", "size_bytes")
    columns = [
        np.nan_to_num(seen[name].cast(pa.float64()).to_numpy(zero_copy_only=False), nan=-1.0)
        for name in names
    ]
    return list(zip(*(column.tolist() for column in columns), strict=True))


_GROUPS_SCHEMA = pa.schema(
    [
        pa.field("copy_group", pa.int64(), nullable=False),
        pa.field("copy_kind", pa.string()),
        pa.field("copy_of", pa.int64(), nullable=False),
        pa.field("copy_likeness", pa.float64(), nullable=False),
        pa.field("identity_group", pa.int64(), nullable=False),
        pa.field("identity_likeness", pa.float64(), nullable=False),
        pa.field("is_outlier", pa.bool_(), nullable=False),
    ]
)


def _save_groups(store: Store, seen: pa.Table, groups: Groups) -> None:
    alone = Copy(NO_GROUP, None, NO_GROUP, 0.0)
    persons = groups.persons
    rows = []
    for place, found in enumerate(groups.copies):
        copy = found or alone
        rows.append(
            {
                "copy_group": copy.group,
                "copy_kind": copy.kind,
                "copy_of": copy.of,
                "copy_likeness": copy.likeness,
                "identity_group": int(persons.group[place]) if persons else NO_GROUP,
                "identity_likeness": float(persons.likeness[place]) if persons else np.nan,
                "is_outlier": bool(persons.is_outlier[place]) if persons else False,
            }
        )
    file = io.BytesIO()
    write_columns(file, rows, _GROUPS_SCHEMA)
    store.write(GROUPS, file.getvalue())
    store.write(IDENTITIES, _identities_json(seen, persons))


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
    rows = table.to_pylist()
    facts = load_json(store, IDENTITIES)
    copies = [_copy(row) for row in rows]
    group = table["identity_group"].to_numpy()
    if (group == NO_GROUP).all() and not any(row["is_outlier"] for row in rows):
        return Groups(copies, None)
    merges = [Merge(str(a), str(b), float(c)) for a, b, c in _lists(facts, "merges")]
    likeness = table["identity_likeness"].to_numpy()
    outlier = table["is_outlier"].to_numpy(zero_copy_only=False)
    return Groups(copies, Persons(group, likeness, outlier, merges))


def _lists(facts: Mapping[str, object], name: str) -> list[Any]:
    found = facts.get(name)
    return found if isinstance(found, list) else []


def _copy(row: Mapping[str, object]) -> Copy | None:
    if row["copy_group"] == NO_GROUP:
        return None
    kind: CopyKind | None = row["copy_kind"]  # type: ignore[assignment]
    values = row["copy_group"], kind, row["copy_of"], row["copy_likeness"]
    return Copy(*values)  # type: ignore[arg-type]

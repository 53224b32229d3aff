"""A removal request carried out: what is derived of an image goes from everywhere in OUT.

What goes is written down first, by place and keyed hash, and crossed out last. In between every
step can be done again, so a removal that was interrupted is finished by whoever comes next, before
anything else. The originals are never touched.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cleaning import overrule, tables
from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.removal.chosen import Plain
from pipeline.cleaning.removal.pending import PENDING, Removal
from pipeline.cleaning.removal.rewrite import Edit, replace_table, rewrite_unit, write_table
from pipeline.cleaning.removal.scan import Report, Sought, scan
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.ledger import JOURNAL, Ledger
from pipeline.locks import wait_exclusive
from pipeline.plan import Plan, Unit
from pipeline.storage import OWN_FOLDER, Store, load_json, open_store, stat_input

WORKERS_S = 60.0
REMOVED = "removed with a forgotten image"


@dataclass(frozen=True, slots=True)
class _Step:
    """One of the run's output folders.

    Attributes:
        folder: Below OUT, "" for OUT itself.
        ledger: What it keeps.
        plan: Its plan.
    """

    folder: str
    ledger: Ledger
    plan: Plan

    def shard_of(self, unit: str) -> str:
        """The shard of the input that a unit is of; the calibration's are parts of one."""
        return unit.rpartition(".")[0] if self.folder == tables.CALIBRATE else unit

    def sidecar(self, unit: str) -> str:
        """Name of a unit's sidecar."""
        apart = self.folder in (tables.CALIBRATE, tables.INSPECT)
        return f"{OWN_FOLDER}/records/{unit}.parquet" if apart else f"{unit}.parquet"


def forget(store: Store, removal: Removal, stones: Tombstones, plain: Plain) -> Report:
    """Remove, and prove it; who calls holds the lock.

    Args:
        store: The cleaning run's OUT.
        removal: What goes.
        stones: The tombstones so far, which keyed it.
        plain: What the proof looks for beside.

    Returns:
        What the proof read and found.

    Raises:
        RunError: If workers of a dead run still live.
    """
    stones.save(store)  # its key must be there before anything is keyed by it
    removal = replace(removal, current=_current(store))
    removal.save(store)
    return _carry_out(store, removal, stones, plain)


def finish_pending(store: Store) -> Report | None:
    """Finish a removal that was interrupted; who calls holds the lock.

    Returns:
        What the proof read and found; None where nothing was pending.
    """
    removal = Removal.load(store)
    if removal is None:
        return None
    return _carry_out(store, removal, Tombstones.load(store), Plain())


def is_pending(store: Store) -> bool:
    """Whether a removal was begun and did not end."""
    return store.stat(PENDING) is not None


def _carry_out(store: Store, removal: Removal, stones: Tombstones, plain: Plain) -> Report:
    steps = list(_steps(store))
    for step in steps:
        _quiet(step)
    stones = stones.with_images(removal.images)
    stones.save(store)
    orphans = _orphans(store, removal, stones)
    for step in steps:
        _rewrite(step, removal, orphans)
        _redact(step, removal)
    _edit_seen(store, removal)
    _edit_decisions(store, removal, orphans)
    _edit_groups(store, removal)
    _edit_identities(store, removal, stones)
    _edit_overrules(store, removal, stones)
    for step in steps:
        _refresh_versions(store, step, removal)
    report = scan(store, Sought(removal, stones, plain))
    store.remove(PENDING)
    return report


def _steps(store: Store) -> Iterator[_Step]:
    """The run's folders that were begun, in the order of the steps."""
    for folder in (tables.ALIGNED, tables.INSPECT, tables.CALIBRATE, ""):
        url = f"{store.url.rstrip('/')}/{folder}" if folder else store.url
        ledger = Ledger(open_store(url) if folder else store)
        plan = ledger.plan()
        if plan is not None:
            yield _Step(folder, ledger, plan)


def _quiet(step: _Step) -> None:
    """See that nobody works there, finish what was decided, and remove what was not."""
    folder = step.ledger.folder
    if folder is not None:
        wait_exclusive(folder / "actors.lock", WORKERS_S)
        shutil.rmtree(folder / "workers", ignore_errors=True)
    step.ledger.recover(step.plan, discard=True)


# ------------------------------------------------------------------------------ what was committed


def _rewrite(step: _Step, removal: Removal, orphans: Mapping[str, Mapping[int, str]]) -> None:
    """Write the units anew in which something goes, or is a copy of what goes."""
    for record in step.ledger.commits(step.plan):
        unit = record["shard"]
        edit = _edit(step, unit, removal, orphans)
        if edit != Edit():
            rewrite_unit(step.ledger.store, step.plan, record, step.sidecar(unit), edit)


def _edit(
    step: _Step, unit: str, removal: Removal, orphans: Mapping[str, Mapping[int, str]]
) -> Edit:
    shard = step.shard_of(unit)
    rows = removal.rows.get(shard, frozenset())
    if step.folder == tables.ALIGNED:
        faces = tuple(removal.faces.get(shard, ()))
        return Edit(gone=removal.photos.get(shard, frozenset()), crops=rows, faces=faces)
    if step.folder in (tables.INSPECT, tables.CALIBRATE):
        return Edit(gone=rows, keys=_keys(step, unit, rows))
    return Edit(gone=rows, keys=_keys(step, unit, rows), orphans=orphans.get(shard, {}))


def _keys(step: _Step, unit: str, rows: frozenset[int]) -> frozenset[str]:
    """The keys of some rows, as the unit's sidecar has them."""
    if not rows:
        return frozenset()
    with step.ledger.store.open(step.sidecar(unit)) as file:
        table = parquet.read(file, ["index", "key"])
    pairs = zip(table["index"].to_pylist(), table["key"].to_pylist(), strict=True)
    return frozenset(key for index, key in pairs if index in rows and key)


def _orphans(store: Store, removal: Removal, stones: Tombstones) -> dict[str, dict[int, str]]:
    """Rows that are copies of what goes, by shard and index, with the reason of their decision."""
    found: dict[str, dict[int, str]] = {}
    for folder, reason in ((tables.MANIFEST, "decision_reason"), (tables.DECISIONS, "reason")):
        for name in store.list(folder):
            shard = name.rpartition("/")[2].removesuffix(".parquet")
            with store.open(name) as file:
                table = parquet.read(file, ["index", "copy_of", reason])
            table = table.filter(pc.is_valid(table["copy_of"]))
            columns = (table[each].to_pylist() for each in table.column_names)
            for index, copy_of, word in zip(*columns, strict=True):
                if removal.has_name(stones, copy_of):
                    found.setdefault(shard, {})[index] = word
    return found


def _redact(step: _Step, removal: Removal) -> None:
    """Take what is said of forgotten records out of the journal, and what errors say of shards."""
    store = step.ledger.store
    for part in list(store.parts(JOURNAL)):
        before = store.read(part).decode(errors="replace")
        kept = [line for line in before.splitlines() if line]
        lines = [new for line in kept if (new := _redacted(step, line, removal))]
        after = "".join(f"{line}\n" for line in lines)
        if after != before:
            store.write(part, after.encode())


def _redacted(step: _Step, line: str, removal: Removal) -> str:
    """A line of the journal as it may stay, "" if it may not."""
    try:
        event = json.loads(line)
    except ValueError:
        return ""  # torn by a kill: no reader takes it
    rows = removal.rows.get(step.shard_of(str(event.get("shard", ""))), frozenset())
    if event.get("index") in rows:
        return ""
    if rows and "error" in event and event["error"] != REMOVED:
        return json.dumps(event | {"error": REMOVED})
    return line


def _current(store: Store) -> frozenset[str]:
    """Shards whose last step was planned by the decisions that lie there, before anything changes.

    Of the others a run has decided anew and was not carried out yet: that must still happen.
    """
    plan = Ledger(store).plan()
    units = plan.units if plan else ()
    return frozenset(unit.shard for unit in units if _decided(store, unit) == unit.version)


def _decided(store: Store, unit: Unit) -> str | None:
    """The last step's version of a unit under the decisions that lie there; None without any."""
    from pipeline.cleaning.decide import version_of  # finds copies and persons too: seconds to load

    try:
        return version_of(store, unit.version.rpartition(" ")[0], unit.shard)
    except FileNotFoundError:
        return None


def _refresh_versions(store: Store, step: _Step, removal: Removal) -> None:
    """Have the plans know their input again, so that nothing is done anew without a need.

    Crops are the next steps' input: their tars have another size and time now. The last step's
    input has a third part, what was decided; it follows from the tables as they are now.
    """
    inside = f"{store.url.rstrip('/')}/{tables.ALIGNED}/"
    units = []
    for unit in step.plan.units:
        ends = unit.source.endswith(f"{tables.ALIGNED}/{unit.shard}.tar")
        stat = stat_input(f"{inside}{unit.shard}.tar") if ends and unit.version else None
        size, *rest = unit.version.split(" ")
        if stat is not None:
            size, rest[:1] = str(stat.size_bytes), [stat.version]
        unit = replace(unit, version=" ".join([size, *rest]))
        if not step.folder and unit.shard in removal.current:
            unit = replace(unit, version=_decided(store, unit) or unit.version)
        units.append(unit)
    if tuple(units) != step.plan.units:
        step.ledger.save(replace(step.plan, units=tuple(units)))


# ------------------------------------------------------------------------------ what was decided


def _edit_decisions(
    store: Store, removal: Removal, orphans: Mapping[str, Mapping[int, str]]
) -> None:
    """Write the tables anew."""
    for name in list(store.list(tables.DECISIONS)):
        shard = name.rpartition("/")[2].removesuffix(".parquet")
        rows = removal.rows.get(shard, frozenset())
        if rows or shard in orphans:
            replace_table(store, name, Edit(gone=rows, orphans=orphans.get(shard, {})))


def _edit_seen(store: Store, removal: Removal) -> None:
    """Blank what was seen where no commit covers it, as under a manifest that was applied."""
    inspect = open_store(f"{store.url.rstrip('/')}/{tables.INSPECT}")
    ledger = Ledger(inspect)
    plan = ledger.plan()
    commits = ledger.commits(plan) if plan else ()
    covered = {file["name"] for record in commits for file in record["files"]}
    for folder in (tables.INSPECTED, tables.PRIVATE):
        for name in list(inspect.list(folder)):
            shard = name.rpartition("/")[2].removesuffix(".parquet")
            if name not in covered and shard in removal.rows:
                replace_table(inspect, name, Edit(gone=removal.rows[shard]))


def _edit_groups(store: Store, removal: Removal) -> None:
    """Blank the rows of what goes; a group that loses its best gets the next best."""
    name = tables.GROUPS
    if store.stat(name) is None:
        return
    with store.open(name) as file:
        table = parquet.read(file)
    if not {"shard", "index"} <= set(table.column_names):
        store.remove(name)  # of an earlier version, whose rows say nothing of their images
        return
    rows = table.to_pylist()
    gone = frozenset(
        place for place, row in enumerate(rows)
        if row["index"] in removal.rows.get(row["shard"], frozenset())
    )  # fmt: skip
    for place in gone:
        rows[place] |= {"copy_group": -1, "copy_kind": None, "copy_of": -1, "copy_likeness": 0.0,
                        "identity_group": -1, "identity_likeness": np.nan,
                        "is_outlier": False}  # fmt: skip
    _elect(rows, gone)
    after = pa.Table.from_pylist(rows, schema=table.schema)
    out = pa.BufferOutputStream()
    write_table(after, out)
    store.write(name, out.getvalue().to_pybytes())


def _elect(rows: list[dict[str, Any]], gone: frozenset[int]) -> None:
    """Give every group whose best is gone another one: what was most like the old one.

    To a mirrored one what was upright is the flip, as in `gate.py`. How like the new best the
    others are nobody measured, and the column holds no null: the likeness to the old one stays.
    """
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if row["copy_group"] != -1:
            groups.setdefault(row["copy_group"], []).append(place)
    for members in groups.values():
        if len(members) == 1:
            rows[members[0]] |= {"copy_group": -1, "copy_kind": None, "copy_of": -1,
                                 "copy_likeness": 0.0}  # fmt: skip
        elif any(rows[place]["copy_of"] in gone for place in members):
            best = max(members, key=lambda place: (rows[place]["copy_likeness"], -place))
            is_mirrored = rows[best]["copy_kind"] == "flip"
            for place in members:
                rows[place]["copy_of"] = best
                if is_mirrored:
                    is_flip = rows[place]["copy_kind"] == "flip"
                    rows[place]["copy_kind"] = "near" if is_flip else "flip"
            rows[best] |= {"copy_kind": None, "copy_likeness": 1.0}


def _edit_identities(store: Store, removal: Removal, stones: Tombstones) -> None:
    name = tables.IDENTITIES
    if store.stat(name) is None:
        return
    facts: dict[str, Any] = dict(load_json(store, name))
    facts["outliers"] = [
        each for each in facts.get("outliers", [])
        if not removal.has_name(stones, f"{each[0]}/{each[1]}")
    ]  # fmt: skip
    facts["merges"] = [
        each for each in facts.get("merges", [])
        if not any(removal.has_person(stones, str(person)) for person in each[:2])
    ]  # fmt: skip
    store.write(name, json.dumps(facts, indent=1).encode())


def _edit_overrules(store: Store, removal: Removal, stones: Tombstones) -> None:
    """Verdicts about what goes; one about a key in every shard goes with the key."""
    verdicts = overrule.load(store)
    kept = {
        (shard, key): verdict
        for (shard, key), verdict in verdicts.items()
        if not removal.has_name(stones, f"{shard}/{key}") and not removal.has_key(stones, key)
    }
    if kept != verdicts:
        overrule.save(store, kept)

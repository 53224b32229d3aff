"""Taking records out of what was committed: the files anew, then the commit, then their names.

A row stays where it was, so that indices and counts still fit; nothing stands in it but that it
was forgotten. The commit record is written over in one step and names the new files; whoever finds
it finishes the renames, as after any try (`pipeline/commit.py`).
"""

import io
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cleaning import tables
from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.removal.pending import PLACEHOLDER
from pipeline.cleaning.tables import Cleaned, Decision, Entry, Inspected, Private
from pipeline.commit import Attempt, commit_name, roll_forward
from pipeline.plan import Plan
from pipeline.sample import split_name
from pipeline.sidecar import LAYOUTS, REPEATING, Row, read_rows
from pipeline.stage import Task
from pipeline.storage import OWN_FOLDER, Store, trouble
from pipeline.tar import Entry as TarEntry
from pipeline.tar import TarWriter, read_tar
from pipeline.worker import MAX_REASONS, without_name

NO_LONGER = "of an image that was forgotten"
BY_INDEX = (f"{tables.REVIEW}/", f"{OWN_FOLDER}/quarantine/")  # members are called INDEX.suffix
Changes = Mapping[int, Mapping[str, Any]]  # index -> columns with new values


@dataclass(frozen=True, slots=True)
class Edit:
    """What changes in one unit's files.

    Attributes:
        gone: Indices of the rows that are forgotten.
        orphans: Rows that were copies of a forgotten image -> why they are left out.
        keys: Names of the records that leave the tar.
        crops: Places of records of the tar whose faces go and whose place something keeps.
        faces: [photo, number] of faces whose place in a photo that stays is blanked.
    """

    gone: frozenset[int] = frozenset()
    orphans: Mapping[int, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    crops: frozenset[int] = frozenset()
    faces: Sequence[list[int]] = ()


class Rewrite(Attempt):
    """New versions of some files of a commit that was made before."""

    def __init__(self, store: Store, plan: Plan, record: Mapping[str, Any]) -> None:
        """Plan it; nothing is written yet."""
        token = secrets.token_hex(4)
        super().__init__(store, Task(record["shard"], "", store.url, plan.id, attempt=token))
        self._record_before = record

    def written(self, name: str) -> Path:
        """A file that was written, closed."""
        self._files[name].close()
        return self.path(name)

    def decide(self, names: Iterable[str], facts: Mapping[str, Any]) -> None:
        """Make the files durable, write the decision over, and give them their names.

        Args:
            names: The files that were written.
            facts: What the record says otherwise from now on.
        """
        with trouble(self._store.url):
            for file in self._files.values():
                file.close()
        fresh = {name: self._facts_of(name) for name in names}
        self._store.stage(self._name, list(fresh))
        before = self._record_before
        files = [fresh.get(file["name"], file) for file in before["files"]]
        record = {**before, **facts, "attempt": self._task.attempt, "files": files}
        data = json.dumps(record, indent=1, sort_keys=True).encode()
        self._decided = True  # unless told otherwise: recovery knows what became of it
        self._store.write(commit_name(self._task.plan, self._task.shard), data)
        roll_forward(self._store, record)


def rewrite_unit(
    store: Store, plan: Plan, record: Mapping[str, Any], sidecar: str, edit: Edit
) -> bool:
    """Write every file of a commit anew in which something changes.

    Args:
        store: The step's output folder.
        plan: Its plan.
        record: The commit.
        sidecar: Name of the unit's sidecar.
        edit: What changes.

    Returns:
        Whether anything did.
    """
    rewrite = Rewrite(store, plan, record)
    with rewrite:
        changed = [name for name in _names(store, record) if _edited(store, name, edit, rewrite)]
        if not changed:
            return False
        facts: dict[str, Any] = {}
        if sidecar in changed:
            with rewrite.written(sidecar).open("rb") as file:
                facts = _counted(file)
        rewrite.decide(changed, facts)
        return True


def _counted(sidecar: BinaryIO) -> dict[str, Any]:
    """What a commit says of its rows as a whole, as `pipeline/worker.py` counts it."""
    rows = read_rows(sidecar)
    reasons = Counter(f"{row.status}: {without_name(row)}" for row in rows if row.reason)
    counts = Counter(row.status for row in rows)
    return {"counts": dict(counts), "reasons": dict(reasons.most_common(MAX_REASONS))}


def _names(store: Store, record: Mapping[str, Any]) -> Iterator[str]:
    """The commit's files that are there: embeddings were removed when the run ended."""
    for file in record["files"]:
        if store.stat(file["name"]) is not None:
            yield file["name"]


def _edited(store: Store, name: str, edit: Edit, rewrite: Rewrite) -> bool:
    """Write a file anew without what goes; returns whether anything did."""
    change = _edit_table if name.endswith(".parquet") else _edit_tar
    return change(store, name, edit, lambda: rewrite.open(name))


# ------------------------------------------------------------------------------------- tables


def edit_table(table: pa.Table, edit: Edit) -> pa.Table:
    """A table without what is forgotten; rows keep their places, trials go."""
    names = tuple(table.column_names)
    if "index" not in names:
        kept = [key not in edit.keys for key in table["key"].to_pylist()]
        return table if all(kept) else table.filter(pa.array(kept))
    blank = _BLANKS.get(names)
    assert blank, f"a table of unknown columns: {names}"
    changes: dict[int, Mapping[str, Any]] = {
        index: _orphan(names, word) for index, word in edit.orphans.items()
    }
    changes |= {index: blank(index) for index in edit.gone}
    return _blank_faces(_with_rows(table, changes), edit.faces)


def write_table(table: pa.Table, file: BinaryIO) -> None:
    """Write a table as the module that made it does."""
    is_sidecar = tuple(table.column_names) in LAYOUTS
    pq.write_table(
        table, file, compression="zstd", compression_level=3, write_page_checksum=True,
        use_dictionary=REPEATING if is_sidecar else True,
    )  # fmt: skip


def replace_table(store: Store, name: str, edit: Edit) -> bool:
    """Write a table that belongs to no commit anew; returns whether it changed."""
    with store.open(name) as file:
        before = parquet.read(file)
    after = edit_table(before, edit)
    if after.equals(before):
        return False
    out = io.BytesIO()
    write_table(after, out)
    store.write(name, out.getvalue())
    return True


def _edit_table(store: Store, name: str, edit: Edit, make: Callable[[], BinaryIO]) -> bool:
    with store.open(name) as file:
        before = parquet.read(file)
    after = edit_table(before, edit)
    if after.equals(before):
        return False
    write_table(after, make())
    return True


def _with_rows(table: pa.Table, changes: Changes) -> pa.Table:
    """The table with other values in some rows, found by their index."""
    if not changes:
        return table
    places = {index: place for place, index in enumerate(table["index"].to_pylist())}
    columns = []
    for column in table.schema:
        values = table[column.name].to_pylist()
        for index, row in changes.items():
            if index in places and column.name in row:
                values[places[index]] = row[column.name]
        columns.append(pa.array(values, column.type))
    return pa.table(columns, schema=table.schema)


def _values(record: Any) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _blank_entry(index: int) -> dict[str, Any]:
    """The manifest's row, but for its shard."""
    entry = Entry(
        "",
        Inspected(index, "", "forgotten"),
        Decision(index, "", "reject", "forgotten"),
        Cleaned("forgotten"),
    )
    return {n: v for n, v in tables.manifest_values(entry).items() if n != "shard"}


_BLANKS: dict[tuple[str, ...], Callable[[int], dict[str, Any]]] = {
    **dict.fromkeys(LAYOUTS, lambda index: _values(Row(index, "", "forgotten", "forgotten"))),
    tuple(tables.MANIFEST_SCHEMA.names): _blank_entry,
    tuple(tables.schema_of(Inspected).names): lambda i: _values(Inspected(i, "", "forgotten")),
    tuple(tables.schema_of(Private).names): lambda index: _values(Private(index)),
    tuple(tables.schema_of(Decision).names): lambda index: _values(
        Decision(index, "", "reject", "forgotten")
    ),
}


def _orphan(names: tuple[str, ...], word: str) -> dict[str, Any]:
    """What a copy of a forgotten image says from now on."""
    if names in LAYOUTS:
        return {"reason": f"{word}: {NO_LONGER}"}
    values = {"copy_of": None, "decision_detail": NO_LONGER}
    return values if "decision_detail" in names else {"copy_of": None, "detail": NO_LONGER}


def _blank_faces(table: pa.Table, wanted: Sequence[list[int]]) -> pa.Table:
    """Take the place of single faces out of the rows of photos."""
    if not wanted or "faces" not in table.column_names:
        return table
    rows = dict(zip(table["index"].to_pylist(), table["faces"].to_pylist(), strict=True))
    for photo, number in wanted:
        found = rows.get(photo) or []
        if number < len(found):
            found[number] = {"box": [], "points": [], "score": 0.0, "decision": "forgotten"}
    return _with_rows(table, {photo: {"faces": rows[photo]} for photo, _ in wanted})


# --------------------------------------------------------------------------------------- tars


def _edit_tar(store: Store, name: str, edit: Edit, make: Callable[[], BinaryIO]) -> bool:
    """Copy a tar without what is forgotten; nothing is written where all of it stays."""
    with store.open(name) as file:
        goes = [is_gone for _, _, is_gone in _members(file, name, edit)]
    if not any(goes):
        return False
    with store.open(name) as file:
        writer = TarWriter(make())
        kept = -1  # the last record that left something behind to keep its place
        for entry, place, is_gone in _members(file, name, edit):
            if not is_gone:
                writer.add(entry.name, entry.data)
            elif edit.crops and place != kept:
                writer.add(f"{PLACEHOLDER}{place:06d}.txt", b"")
                kept = place
        writer.finish()
    return True


def _members(file: BinaryIO, tar: str, edit: Edit) -> Iterator[tuple[TarEntry, int, bool]]:
    """Every member, the place of its record, and whether it goes."""
    place, last = -1, ""
    for entry in read_tar(file):
        found = split_name(entry.name)
        key = found[0] if found else entry.name
        if key != last or place < 0:
            place, last = place + 1, key
        if tar.startswith(BY_INDEX):
            number = PurePosixPath(entry.name).name.partition(".")[0]
            yield entry, place, number.isdigit() and int(number) in edit.gone
        elif edit.crops:
            yield entry, place, place in edit.crops and not key.startswith(PLACEHOLDER)
        else:
            yield entry, place, key in edit.keys

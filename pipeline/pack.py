"""Images into shards, as a function of names and contents alone; run again to go on.

OUT/000000.tar ...       the shards
OUT/manifest.json        last: records and sha256 of every shard, and what was left out
OUT/_vsp/pack.json       what is being packed, and how
OUT/_vsp/inputs.jsonl    every input with its size: a changed one is refused
OUT/_vsp/packed/*.json   the manifest's lines of the shards that are finished
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.errors import UserError
from pipeline.gather import PackPlan, Read, Record, Unpackable, open_source
from pipeline.locks import RUN_LOCK, run_lock
from pipeline.sources import LeftOut
from pipeline.storage import OWN_FOLDER, LocalStore
from pipeline.tar import TarWriter
from vsp_model.files import whole_or_absent

MANIFEST = "manifest.json"
FORMAT = 1
_UNFINISHED = re.compile(r"\.(\d{6,}\.tar|manifest\.json)\.\d+\.tmp")


@dataclass(frozen=True, slots=True)
class PackProgress:
    """How far packing is.

    Attributes:
        num_shards: Of all.
        num_done: Shards that are finished, those of earlier runs included.
        num_skipped: Of them, finished by earlier runs.
        num_records: Packed by this run.
        num_bytes: Read by this run.
    """

    num_shards: int
    num_done: int = 0
    num_skipped: int = 0
    num_records: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """What lies in OUT.

    Attributes:
        tars: The shards.
        num_records: In all of them.
        left_out: What could not be packed, and why.
        progress: What this run did.
    """

    tars: tuple[Path, ...]
    num_records: int
    left_out: tuple[LeftOut, ...]
    progress: PackProgress


class _HashingFile:
    """Passes bytes on and hashes them, so that no shard is read again for its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def pack(
    plan: PackPlan,
    out: Path,
    records_per_shard: int,
    tell: Callable[[PackProgress], None] = lambda progress: None,
) -> Packed:
    """Write what is missing of the shards, and last the manifest.

    Args:
        plan: From `plan_pack`.
        out: Empty, absent, or left by an earlier run over the same inputs.
        records_per_shard: At most; a record that cannot be read leaves its place empty.
        tell: Called after every record.

    Raises:
        UserError: If `out` holds anything else, or the inputs have changed since.
        RunError: If a file changes while it is packed.
    """
    check_out(plan, out, records_per_shard)
    _make_out(out)
    with run_lock(LocalStore(out)):
        check_out(plan, out, records_per_shard)  # nobody else writes from here on
        _begin(plan, out, records_per_shard)
        parts, progress = _write_missing(plan, out, records_per_shard, tell)
        left_out = [*plan.left_out, *(LeftOut(**row) for part in parts for row in part["left_out"])]
        num_records = sum(part["num_records"] for part in parts)
        manifest = {
            "num_records": num_records,
            "shards": [{name: part[name] for name in part if name != "left_out"} for part in parts],
            "left_out": [asdict(row) for row in left_out],
            "ignored": plan.ignored,
        }
        _write_json(out / MANIFEST, manifest)
    tars = tuple(out / part["name"] for part in parts)
    return Packed(tars, num_records, tuple(left_out), progress)


def _write_missing(
    plan: PackPlan, out: Path, records_per_shard: int, tell: Callable[[PackProgress], None]
) -> tuple[list[dict[str, Any]], PackProgress]:
    """Write the shards that are not finished; returns the manifest's lines of all."""
    shards = _shards(plan, records_per_shard)
    parts, progress = [], PackProgress(num_shards=len(shards))
    with open_source(plan.source) as read:
        for name, records in shards:
            part = finished_part(out, name)
            if part is None:
                part, progress = _write_shard(out, name, records, read, progress, tell)
            else:
                progress = _plus(progress, num_done=1, num_skipped=1)
                tell(progress)
            parts.append(part)
    return parts, progress


def _shards(plan: PackPlan, records_per_shard: int) -> list[tuple[str, Sequence[Record]]]:
    starts = range(0, len(plan.records), records_per_shard)
    return [
        (f"{number:06d}.tar", plan.records[start : start + records_per_shard])
        for number, start in enumerate(starts)
    ]


def _plus(progress: PackProgress, **more: int) -> PackProgress:
    return replace(progress, **{name: getattr(progress, name) + more[name] for name in more})


def _write_shard(
    out: Path,
    name: str,
    records: Sequence[Record],
    read: Read,
    progress: PackProgress,
    tell: Callable[[PackProgress], None],
) -> tuple[dict[str, Any], PackProgress]:
    """Write one tar, and beside the plan what the manifest will say of it."""
    left_out: list[LeftOut] = []
    num_records = 0
    with whole_or_absent(out / name) as raw:
        file = _HashingFile(raw)
        tar = TarWriter(cast(BinaryIO, file))
        for record in records:
            members = list(_members(record, read, left_out))
            for member, data in members:
                tar.add(member, data)
            num_records += bool(members)
            size_bytes = sum(len(data) for _, data in members)
            progress = _plus(progress, num_records=bool(members), num_bytes=size_bytes)
            tell(progress)
        tar.finish()
    part = {
        "name": name,
        "num_records": num_records,
        "num_bytes": file.num_bytes,
        "sha256": file.sha256,
        "left_out": [asdict(row) for row in left_out],
    }
    _write_json(_part(out, name), part)
    progress = _plus(progress, num_done=1)
    tell(progress)
    return part, progress


def _members(record: Record, read: Read, left_out: list[LeftOut]) -> Iterator[tuple[str, bytes]]:
    """Read a record's files; without its image nothing of it is packed."""
    for item in record:
        try:
            data = item.data if item.data is not None else read(item)
        except Unpackable as fault:
            left_out.append(LeftOut(item.place, str(fault)))
            if item is record[0]:
                return
        else:
            yield item.name, data


# ----------------------------------------------------------------------------- run it again


def check_out(plan: PackPlan, out: Path, records_per_shard: int) -> None:
    """See whether `plan` can be packed into `out`; nothing is written.

    Raises:
        UserError: If not, with the difference.
    """
    if plan.source.is_dir() and out.resolve().is_relative_to(plan.source.resolve()):
        raise UserError(f"{out}: lies in the input {plan.source}; choose another OUT")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; OUT must be a folder")
    begun = _begun(out)
    if not begun.is_file():
        if out.is_dir() and not _is_empty(out):
            raise UserError(f"{out}: not an empty folder; choose another OUT")
        return
    if difference := _difference(begun, _lines(plan, records_per_shard)):
        raise UserError(
            f"{out}: was begun with other inputs ({difference}); "
            "choose another OUT, or delete this one to start over"
        )
    known = {MANIFEST, OWN_FOLDER, *(name for name, _ in _shards(plan, records_per_shard))}
    for path in sorted(out.iterdir()):
        if path.name not in known and not _UNFINISHED.fullmatch(path.name):
            raise UserError(f"{path}: foreign file in the output folder; choose another OUT")


def finished_part(out: Path, name: str) -> dict[str, Any] | None:
    """What the manifest says of a shard that is finished; None if it has to be written."""
    part, tar = _part(out, name), out / name
    if not part.is_file() or not tar.is_file():
        return None
    facts: dict[str, Any] = json.loads(part.read_text("utf-8"))
    return facts if tar.stat().st_size == facts["num_bytes"] else None


def _make_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / OWN_FOLDER / "packed").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another OUT") from None


def _begun(out: Path) -> Path:
    return out / OWN_FOLDER / "pack.jsonl"


def _part(out: Path, name: str) -> Path:
    return out / OWN_FOLDER / "packed" / f"{name}.json"


def _is_empty(out: Path) -> bool:
    """Whether there is nothing but what a run leaves that is killed as it begins."""
    files = (path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    temporary = re.compile(rf"{OWN_FOLDER}/\.pack\.jsonl\.\d+\.tmp")
    return all(name == RUN_LOCK or temporary.fullmatch(name) for name in files)


def _begin(plan: PackPlan, out: Path, records_per_shard: int) -> None:
    """Note what is packed, unless an earlier run did; remove what a killed one left half."""
    begun = _begun(out)
    unfinished = [path for path in out.iterdir() if _UNFINISHED.fullmatch(path.name)]
    for path in [*unfinished, *begun.parent.rglob(".*.tmp")]:
        path.unlink(missing_ok=True)
    if not begun.is_file():
        with whole_or_absent(begun) as file:
            for line in _lines(plan, records_per_shard):
                file.write(line.encode() + b"\n")


def _lines(plan: PackPlan, records_per_shard: int) -> Iterator[str]:
    """The settings, then every input in the order of packing: name, place, size, version."""
    yield json.dumps(["", "per shard", records_per_shard, str(FORMAT)])
    for record in plan.records:
        for item in record:
            facts = (item.name, item.place, item.size_bytes, item.version)
            yield json.dumps(facts, ensure_ascii=False)


def _difference(begun: Path, lines: Iterator[str]) -> str:
    """What differs between the inputs as they were and as they are, each kind with an example."""
    with begun.open(encoding="utf-8", newline="\n") as file:
        pairs = zip_longest((line[:-1] for line in file), lines)
        differing = [pair for pair in pairs if pair[0] != pair[1]]
    before = {facts[0]: facts[1:] for facts in (json.loads(old) for old, _ in differing if old)}
    now = {facts[0]: facts[1:] for facts in (json.loads(new) for _, new in differing if new)}
    if "" in before and "" in now:
        return f"--per-shard {before[''][1]}, now {now[''][1]}"
    kinds = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [name for name in before if name in now and before[name] != now[name]],
    }
    told = [
        f"{len(names)} {kind}, as {names[0]}{_sizes(before, now, names[0])}"
        for kind, names in kinds.items()
        if names
    ]
    return ", ".join(told) or ("another order" if differing else "")


def _sizes(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> str:
    if name not in before or name not in now:
        return ""
    (_, old, _), (_, new, _) = before[name], now[name]
    return (
        f" ({old} bytes, now {new})" if old != new else f" (still {new} bytes, but written again)"
    )


def _write_json(path: Path, value: object) -> None:
    with whole_or_absent(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

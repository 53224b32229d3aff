"""The plan of a run: which shards, under which settings; fixed when the output folder is begun."""

import glob
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.shards import read_shard
from pipeline.sidecar import Provenance
from pipeline.storage import OWN_FOLDER, Store, is_remote, stat_input

PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Unit:
    """One shard of the input.

    Attributes:
        shard: Its name, without folder and suffix; for photos the chunk's.
        source: Path or URL of the tar; for photos the folder.
        weight: What it counts for in progress: bytes of a tar, photos of a chunk.
        version: What identifies its content: size and time or ETag, one a file.
        files: The photos of a chunk, relative to `source`.
        limit: Records that are looked at, from the first; 0 for all.
        redo: Only its failed records are to be done.
    """

    shard: str
    source: str
    weight: int
    version: str
    files: tuple[str, ...] = ()
    limit: int = 0
    redo: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names in the output folder that belong to it."""
        return self.files or (f"{self.shard}.tar", f"{self.shard}.parquet")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run on one output folder is to do.

    Attributes:
        job: The command, such as "restore".
        config: Canonical JSON of everything that decides the output's bytes.
        units: The input, in order.
        model: Name of the model, for people.
        model_sha256: What identifies its weights.
        versions: Versions of what computes; another one may change the last bits.
        id: Tells it from any other plan.
        created: Seconds since 1970.
    """

    job: str
    config: str
    units: tuple[Unit, ...]
    model: str = ""
    model_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    created: float = field(default_factory=time.time)

    @property
    def settings(self) -> dict[str, Any]:
        """`config` as a dict."""
        settings: dict[str, Any] = json.loads(self.config)
        return settings

    def to_json(self) -> dict[str, Any]:
        """The plan as it is stored."""
        return {"format": PLAN_FORMAT} | asdict(self) | {"config": self.settings}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """Read what `to_json` made.

        Raises:
            UserError: If it is of another format.
        """
        if value.get("format") != PLAN_FORMAT:
            raise UserError("the output folder was begun by another version; choose another OUT")
        fields = {name: item for name, item in value.items() if name != "format"}
        units = tuple(Unit(**unit | {"files": tuple(unit["files"])}) for unit in fields["units"])
        config = json.dumps(fields["config"], sort_keys=True, separators=(",", ":"))
        return cls(**fields | {"units": units, "config": config})


def new_plan(
    job: str, provenance: Provenance, units: Sequence[Unit], versions: Mapping[str, str]
) -> Plan:
    """A plan of its own id."""
    return Plan(
        job=job,
        config=provenance.config,
        units=tuple(units),
        model=provenance.model,
        model_sha256=provenance.model_sha256,
        versions=versions,
    )


def find_shards(pattern: str) -> tuple[str, ...]:
    """Find the tars that `pattern` names, sorted: a tar, a folder of tars, braces, wildcards.

    Args:
        pattern: A path or URL, with or without braces and wildcards.

    Raises:
        UserError: If a named file is missing, nothing is found, or two shards share a name.
    """
    # An existing path is taken as it is, so that braces and brackets in real names do no harm.
    is_path = not is_remote(pattern) and Path(pattern).exists()
    words = [pattern] if is_path else list(expand_braces(pattern))
    found = sorted({path for word in words for path in _tars(word)})
    by_name: dict[str, str] = {}
    for path in found:
        name = shard_name(path)
        if name in by_name:
            raise UserError(
                f"{path}: another shard is called {name} too ({by_name[name]}); "
                "restore the two folders in two runs"
            )
        by_name[name] = path
    return tuple(found)


def shard_name(path: str) -> str:
    """A tar's name without folder and suffix."""
    return PurePosixPath(path).name.removesuffix(".tar")


def shard_units(sources: Sequence[str]) -> tuple[Unit, ...]:
    """The tars as units, in order.

    Raises:
        UserError: If one is gone, or has a name that sidecars and records cannot hold.
    """
    units = []
    for source in sources:
        _check_shard_name(source)
        stat = stat_input(source)
        if stat is None:
            raise UserError(f"{source}: no such shard")
        place = source if is_remote(source) else str(Path(source).resolve())
        version = f"{stat.size_bytes} {stat.version}"
        units.append(Unit(shard_name(source), place, stat.size_bytes, version))
    return tuple(units)


def _check_shard_name(source: str) -> None:
    """A shard's name stands in Parquet, which wants text, and in the lines of a worker's notes."""
    name = shard_name(source)
    shown = name.encode(errors="backslashreplace").decode()
    if shown != name or not name.isprintable():
        raise UserError(f"{shown!a}: not UTF-8, or not printable; rename the shard")


def limited(units: Sequence[Unit], limit: int) -> tuple[Unit, ...]:
    """The first `limit` records of the units, as units; all of them for 0.

    Every shard up to there is read once, to count its records.
    """
    if not limit:
        return tuple(units)
    kept, left = [], limit
    for unit in units:
        num_records = sum(1 for _ in islice(read_shard(unit.source), left))
        kept.append(replace(unit, limit=num_records) if num_records else unit)
        left -= num_records
        if not left:
            break
    return tuple(kept)


def _tars(word: str) -> list[str]:
    if is_remote(word):
        from pipeline.remote import find_remote

        return find_remote(word)
    path = Path(word)
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        if not tars:
            raise UserError(f"{word}: no .tar in this folder; make shards with `vsp pack`")
        return [str(tar) for tar in tars]
    if path.is_file():
        if path.suffix != ".tar":
            raise UserError(f"{word}: not a .tar; make shards of images with `vsp pack`")
        return [word]
    matches = [match for match in glob.glob(word) if match.endswith(".tar")]
    if not matches:
        raise UserError(f"{word}: no such shard; give a .tar, a folder of them, or a pattern")
    return matches


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand `{000..011}` (zeros kept) and `{a,b}` as a shell does, first brace outermost."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    if words is None:
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        choices = words.split(",")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def check_apart(sources: Sequence[str], out: str, root: str | None = None) -> None:
    """Refuse an output folder that is, holds or lies in the input.

    Args:
        sources: The input files.
        out: The output folder.
        root: The folder the user named as input, if it was one.

    Raises:
        UserError: One line.
    """
    if is_remote(out):
        place = out.rstrip("/")
        if place in {source.rpartition("/")[0] for source in sources}:
            raise UserError(f"{out}: holds the input; choose another OUT")
        return
    place_path = Path(out).resolve()
    if place_path in {Path(source).resolve().parent for source in sources if not is_remote(source)}:
        raise UserError(f"{out}: holds the input; choose another OUT")
    if root is not None and Path(root).resolve() in (place_path, *place_path.parents):
        raise UserError(f"{out}: lies in the input folder {root}; choose another OUT")
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"{out}: is a file; OUT must be a folder")


def make_out(out: Path) -> None:
    """Make the output folder.

    Raises:
        UserError: If it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another OUT") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out}: no permission to write; choose another OUT or change its mode")


def check_own(store: Store, plan: Plan | None, known: Set[str]) -> None:
    """Refuse an output folder with files that no run of ours has put there.

    Args:
        store: The output folder.
        plan: The plan it was begun with, if any.
        known: Shards whose files may be there: they are done, or were and are done again.

    Raises:
        UserError: Naming the first foreign file.
    """
    if plan is None:
        foreign = next(iter(store.list()), None)
    else:
        pending = (unit for unit in plan.units if unit.shard not in known)
        reserved = {name for unit in pending for name in unit.outputs}
        foreign = next((name for name in store.list() if name in reserved), None)
    if foreign is not None:
        raise UserError(f"{store.url}/{foreign}: foreign file in the output folder; "
                        "choose an empty OUT")  # fmt: skip


def check_same(there: Plan, here: Plan, out: str) -> None:
    """Refuse to go on with a folder under other settings or with another input.

    Raises:
        UserError: Naming each field with both values, or the first shards that differ.
    """
    if there.job != here.job:
        raise UserError(f"{out}: begun by `vsp {there.job}`; choose another OUT")
    changed = difference(there.settings, here.settings) or _changed_input(there, here)
    if changed:
        raise UserError(
            f"{out}: begun with other settings ({changed}); "
            "choose another OUT, or start over with --restart"
        )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Every setting that differs, as `name: old, now new`."""
    before, after = _flat(old), _flat(new)
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return "; ".join(f"{name}: {before.get(name)}, now {after.get(name)}" for name in names)


def _changed_input(there: Plan, here: Plan) -> str:
    old = {unit.shard: (unit.version, unit.files) for unit in there.units}
    new = {unit.shard: (unit.version, unit.files) for unit in here.units}
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    parts = []
    for names, what in ((gone, "gone"), (added, "new"), (changed, "changed")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"input {names[0]}{more} {what}")
    if changed:
        parts.append(f"size and time {old[changed[0]][0]}, now {new[changed[0]][0]}")
    return "; ".join(parts)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def photo_units(root: Path, files: Sequence[str], per_chunk: int) -> tuple[Unit, ...]:
    """Photos as chunks of neighbours, in order.

    Args:
        root: The folder they lie below.
        files: Their paths relative to it, sorted.
        per_chunk: Photos that are committed together.
    """
    units = []
    for start in range(0, len(files), per_chunk):
        chunk = tuple(files[start : start + per_chunk])
        stats = [stat_input(str(root / name)) for name in chunk]
        version = " ".join(f"{s.size_bytes} {s.version}" if s else "gone" for s in stats)
        name = f"photos-{start // per_chunk:06d}"
        units.append(Unit(name, str(root.resolve()), len(chunk), version, chunk))
    return tuple(units)


def find_photos(root: Path, suffixes: Sequence[str]) -> tuple[str, ...]:
    """Photos below a folder, as sorted relative paths; hidden ones and a run's own are left out.

    What has a photo's name and cannot be read, such as a link to nothing, is found too: it gets a
    row that says so.

    Raises:
        UserError: If there is none.
    """
    found = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix[1:].lower() in suffixes and not path.is_dir()
    ]
    shown = [name for name in found if not any(_is_hidden(p) for p in PurePosixPath(name).parts)]
    if not shown:
        wanted = ", ".join(f".{suffix}" for suffix in suffixes)
        raise UserError(f"{root}: no photo in this folder (looked for {wanted})")
    return tuple(sorted(shown))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == OWN_FOLDER

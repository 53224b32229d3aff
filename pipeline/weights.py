"""Weight files in one folder, known by their sha256. Nothing is downloaded and nothing unpickled.

FOLDER/NAME           a file, copied in whole
FOLDER/NAME.sha256    its checksum when it was added, as `sha256sum -c` reads it; another file is
                      refused under this name as long as it is there
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from pipeline.errors import UserError
from pipeline.known_weights import KNOWN, KnownFile, known_content, known_file
from vsp_model.files import (
    CheckpointError,
    checksum_path,
    record_checksum,
    sha256_of,
    verify,
    whole_or_absent,
)

FOLDER_VARIABLE = "VSP_WEIGHTS"
BUNDLE_SUFFIX = ".safetensors"
State = Literal["present", "bundled", "missing", "unrecorded", "damaged"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, known or found in the folder.

    Attributes:
        name: In the folder.
        state: "unrecorded" has no checksum beside it; "damaged" is told by `verify_all` alone.
        path: Where it lies, None if it is missing.
        size_bytes: Its size, None if it is missing.
        sha256: As recorded, "" if it is not.
        known: What is known of it, None for a file of the user's own.
        problem: One line for a damaged file.
    """

    name: str
    state: State
    path: Path | None = None
    size_bytes: int | None = None
    sha256: str = ""
    known: KnownFile | None = None
    problem: str = ""


def default_folder() -> Path:
    """The folder that `VSP_WEIGHTS` names, or `vsp/weights` where the platform keeps caches."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vsp" / "weights"


def entries(folder: Path | None = None) -> list[Entry]:
    """Every known file and every other in the folder; nothing is hashed."""
    folder = folder or default_folder()
    own = [name for name in _names(folder) if known_file(name) is None]
    return [_entry(folder, name) for name in [*(known.name for known in KNOWN), *own]]


def _names(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix != ".sha256" and not path.name.startswith("."):
                yield path.name


def _entry(folder: Path, name: str) -> Entry:
    path, known = folder / name, known_file(name)
    if path.is_file():
        recorded = _recorded(path)
        state: State = "present" if recorded else "unrecorded"
        return Entry(name, state, path, path.stat().st_size, recorded, known)
    if known and known.bundled and known.bundled.is_file():
        size_bytes = known.bundled.stat().st_size
        return Entry(name, "bundled", known.bundled, size_bytes, known.sha256, known)
    return Entry(name, "missing", known=known)


def _recorded(path: Path) -> str:
    """The checksum beside a file, "" if there is none."""
    record = checksum_path(path)
    words = record.read_text("utf-8", errors="replace").split() if record.is_file() else []
    return words[0] if words else ""


def verify_all(folder: Path | None = None) -> list[Entry]:
    """Hash every file that is there; those that are not what they should be are "damaged"."""
    return [_verified(entry) for entry in entries(folder) if entry.path is not None]


def _verified(entry: Entry) -> Entry:
    assert entry.path is not None
    digest, problem = sha256_of(entry.path), ""
    if entry.sha256 and entry.sha256 != digest:
        problem = f"sha256 {digest}, recorded as {entry.sha256}: changed or damaged"
    elif entry.known and not digest.startswith(entry.known.sha256):
        problem = f"sha256 {digest}, expected {entry.known.sha256}: another file, or damaged"
    state: State = "damaged" if problem else entry.state
    return Entry(
        entry.name, state, entry.path, entry.size_bytes, digest, entry.known, problem
    )  # fmt: skip


def find(name: str, folder: Path | None = None) -> Path:
    """The file of a name.

    Raises:
        UserError: If it is not there, in one line with the way to get it.
    """
    folder = folder or default_folder()
    entry = _entry(folder, name)
    if entry.path is not None:
        return entry.path
    if entry.known is None:
        raise UserError(f"{name}: not in {folder}{_there(folder)}; add it with `vsp weights add`")
    raise UserError(
        f"{name}: not in {folder}; get it from {entry.known.source}, then `vsp weights add {name}`"
    )


def resolve(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """A model's file: a path that exists, or a name in the folder, its `.safetensors` left out.

    Raises:
        UserError: If it is neither.
    """
    folder = folder or default_folder()
    path = Path(name_or_path)
    if path.exists():
        return path
    name = str(name_or_path)
    if path.name == name:
        for candidate in (name, name + BUNDLE_SUFFIX):
            if (folder / candidate).is_file():
                return folder / candidate
    raise UserError(
        f"{name}: no such model; give a .safetensors bundle, a model's .yaml, "
        f"or a name in {folder}{_there(folder, BUNDLE_SUFFIX)}"
    )


def _there(folder: Path, suffix: str = "") -> str:
    names = [name for name in _names(folder) if name.endswith(suffix)]
    return f" (there: {', '.join(names)})" if names else " (which holds none)"


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did or would do.

    Attributes:
        path: Where the file is.
        sha256: Its checksum.
        known: What is known of it.
        is_new: False if it was there already.
    """

    path: Path
    sha256: str
    known: KnownFile | None
    is_new: bool


def add(
    source: Path, name: str = "", folder: Path | None = None, *, dry_run: bool = False
) -> Added:
    """Copy a file into the folder, whole or not at all, and record its checksum.

    Args:
        source: The file.
        name: Under which it is kept; that of the known file with its checksum, or its own.
        folder: Where to.
        dry_run: Check everything and write nothing.

    Raises:
        UserError: If it is no file, another one has the name, or it is not what its name promises.
    """
    folder = folder or default_folder()
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the path of a weight file")
    _check_recorded(source)
    digest = sha256_of(source)
    by_content = known_content(digest, source.name)
    name = name or (by_content.name if by_content else source.name)
    _check_name(name)
    known = known_file(name)
    if known and not digest.startswith(known.sha256):
        raise UserError(
            f"{source}: sha256 {digest} is not that of {name} ({known.sha256}); "
            f"get it again from {known.source}, or keep it under another --name"
        )
    target = folder / name
    there = sha256_of(target) if target.is_file() else ""
    pinned = _recorded(target) or there
    if pinned and pinned != digest:
        raise UserError(
            f"{target}: another file has this name, sha256 {pinned}; give another --name, or "
            f"remove it and {checksum_path(target).name}"
        )
    if not dry_run:
        _add(source, target, digest, is_whole=there == digest)
    return Added(target, digest, known, is_new=there != digest)


def _check_name(name: str) -> None:
    plain = name == Path(name).name and "\\" not in name and not name.startswith(".")
    if not plain or name.endswith(".sha256"):
        raise UserError(f"--name {name}: expected a plain file name, as vspbfr-512{BUNDLE_SUFFIX}")


def _check_recorded(source: Path) -> None:
    """A file that comes with a checksum has to be as it says."""
    if checksum_path(source).is_file():
        try:
            verify(source)
        except CheckpointError as error:
            raise UserError(str(error)) from None


def _add(source: Path, target: Path, digest: str, *, is_whole: bool) -> None:
    """Put a file in its place, unless it is there whole, and its checksum beside it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent}: {error.strerror}; set {FOLDER_VARIABLE}") from None
    if not is_whole:
        with source.open("rb") as here, whole_or_absent(target) as there:
            copied = _Hashing(there)
            shutil.copyfileobj(here, cast(BinaryIO, copied), 2**20)
            if copied.digest.hexdigest() != digest:
                raise UserError(f"{source}: changed while it was copied; add it again")
    record_checksum(target)


class _Hashing:
    """Passes bytes on and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

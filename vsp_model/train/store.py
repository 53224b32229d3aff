"""Checkpoints: one folder each, whole or absent, verified before it is believed.

``step-000001000/`` holds files and ``manifest.json`` with the size and sha256 of each, which is
written last. The newest checkpoint whose manifest holds is the one to go on from.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vsp_model.files import sha256_of

MANIFEST = "manifest.json"
PREFIX = "step-"
_NO_PROBE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Checkpoint(NamedTuple):
    """One checkpoint on disk."""

    step: int
    folder: Path
    facts: dict[str, Any]
    """What its writer wanted known: validation figures, the configuration."""


class Store(Protocol):
    """Where checkpoints go.

    Attributes:
        notes: what ``newest`` passed over, one line each.
    """

    notes: list[str]

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, its files on this machine."""

    def best(self, figure: str) -> Checkpoint | None:
        """The whole checkpoint with the lowest figure, its files on this machine."""

    def write(self, step: int, facts: dict[str, Any]) -> AbstractContextManager[Path]:
        """A context that gives a folder to fill; it becomes the checkpoint when the block ends."""

    def prune(self, keep: int, best: str) -> None:
        """Forget all but the newest ``keep`` and the one with the lowest figure ``best``."""

    def probe(self, num_bytes: int) -> None:
        """See that there is room for so many bytes, where that can be told.

        Raises:
            OSError: if there is not.
        """


class FolderStore:
    """Checkpoints in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def names(self) -> list[str]:
        """Folders of checkpoints, whole or not, oldest first."""
        return sorted(path.name for path in self.folder.glob(f"{PREFIX}*"))

    def newest(self) -> Checkpoint | None:
        """See ``Store``."""
        self.notes = []
        for name in reversed(self.names()):
            if checkpoint := open_checkpoint(self.folder / name):
                return checkpoint
            self.notes.append(f"{self.folder / name}: damaged, the checkpoint before it is used")
        return None

    def best(self, figure: str) -> Checkpoint | None:
        """See ``Store``."""
        name = best_of(self._facts(), figure)
        return open_checkpoint(self.folder / name) if name else None

    def _facts(self) -> dict[str, dict[str, Any]]:
        """What the manifests say, by folder, oldest first; the files are not read."""
        found = {name: read_manifest(self.folder / name) for name in self.names()}
        return {name: manifest["facts"] for name, manifest in found.items() if manifest}

    @contextmanager
    def write(self, step: int, facts: dict[str, Any]) -> Iterator[Path]:
        """See ``Store``."""
        final = self.folder / checkpoint_name(step)
        for left_over in self.folder.glob(f".{PREFIX}*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        temporary = self.folder / f".{final.name}.{os.getpid()}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _seal(temporary, step, facts)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(self.folder)

    def prune(self, keep: int, best: str) -> None:
        """See ``Store``."""
        for name in superfluous(self._facts(), keep, best):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def probe(self, num_bytes: int) -> None:
        """See ``Store``; the file system is asked for the blocks, which heeds quotas too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".probe"
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, num_bytes))
        except OSError as error:
            if error.errno not in _NO_PROBE:
                raise
        finally:
            path.unlink(missing_ok=True)


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint; names sort as steps do."""
    return f"{PREFIX}{step:09d}"


def open_checkpoint(folder: Path) -> Checkpoint | None:
    """A checkpoint whose files are all as its manifest says; None for any other."""
    manifest = read_manifest(folder)
    try:
        whole = manifest and all(
            (folder / name).stat().st_size == file["size"]
            and sha256_of(folder / name) == file["sha256"]
            for name, file in manifest["files"].items()
        )
        return Checkpoint(manifest["step"], folder, manifest["facts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; empty where it says nothing sensible."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return manifest if isinstance(manifest.get("facts"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def best_of(facts: dict[str, dict[str, Any]], figure: str) -> str | None:
    """The name with the lowest figure, the newest of equals; None where nobody has one."""
    scored = {name: told.get(figure) for name, told in facts.items()}
    known = {n: v for n, v in scored.items() if isinstance(v, int | float) and math.isfinite(v)}
    return min(reversed(known), key=lambda name: known[name]) if known else None


def superfluous(facts: dict[str, dict[str, Any]], keep: int, figure: str) -> Sequence[str]:
    """Names, given oldest first, that are neither among the newest ``keep`` nor the best."""
    kept = {*list(facts)[-keep:], best_of(facts, figure)}
    return [name for name in facts if name not in kept]


def _seal(folder: Path, step: int, facts: dict[str, Any]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    for path in folder.iterdir():
        _sync(path)
    manifest = {"step": step, "facts": facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

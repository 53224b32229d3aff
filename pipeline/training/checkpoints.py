"""A run's checkpoints where the run is: a folder of this machine, or an object store."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.remote import RemoteStore
from pipeline.scratch import scratch_folder
from pipeline.storage import LocalStore, Store, trouble
from vsp_model.files import CheckpointError
from vsp_model.train.store import (
    MANIFEST,
    PREFIX,
    Checkpoint,
    FolderStore,
    best_of,
    open_checkpoint,
    superfluous,
)

FOLDER = "checkpoints"
RESULT = "model.safetensors"


class RemoteCheckpoints:
    """Checkpoints on an object store (`vsp_model.train.store.Store`).

    One is built in a local scratch folder, then sent: its files first, its manifest last, so that
    one with a manifest is whole. It is fetched and verified before it is believed.
    """

    def __init__(self, store: RemoteStore) -> None:
        """Nothing is asked of the store yet."""
        self._store = store
        self.notes: list[str] = []

    def newest(self) -> Checkpoint | None:
        """See `Store`."""
        self.notes = []
        for name in reversed(self._names()):
            if checkpoint := self._fetch(name):
                return checkpoint
            self.notes.append(f"{name}: damaged, the checkpoint before it is used")
        return None

    def best(self, figure: str) -> Checkpoint | None:
        """See `Store`."""
        name = best_of(self._facts(), figure)
        return self._fetch(name) if name else None

    @contextmanager
    def write(self, step: int, facts: dict[str, Any]) -> Iterator[Path]:
        """See `Store`."""
        built = FolderStore(scratch_folder() / "written")
        with trouble(str(built.folder)):
            with built.write(step, facts) as folder:
                yield folder
            (name,) = built.names()
        try:
            self._remove(name)  # a damaged one of that step: its manifest must not outlive it
            for path in sorted((built.folder / name).iterdir(), key=lambda p: p.name == MANIFEST):
                self._store.objects.upload(path, self._store.path(f"{FOLDER}/{name}/{path.name}"))
        finally:
            shutil.rmtree(built.folder, ignore_errors=True)

    def prune(self, keep: int, best: str) -> None:
        """See `Store`."""
        for name in superfluous(self._facts(), keep, best):
            self._remove(name)

    def probe(self, num_bytes: int) -> None:
        """See `Store`; there must be room here to build one."""
        FolderStore(scratch_folder() / "written").probe(num_bytes)

    def _names(self) -> list[str]:
        """Checkpoints with a manifest, oldest first."""
        paths = [name.split("/") for name in self._store.list(FOLDER)]
        return sorted(
            path[1]
            for path in paths
            if len(path) == 3 and path[2] == MANIFEST and path[1].startswith(PREFIX)
        )

    def _facts(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name in self._names():
            with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
                manifest = json.loads(self._store.read(f"{FOLDER}/{name}/{MANIFEST}"))
                found[name] = dict(manifest["facts"])
        return found

    def _fetch(self, name: str) -> Checkpoint | None:
        folder = scratch_folder() / "fetched" / name
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in self._store.list(f"{FOLDER}/{name}"):
            fetch(self._store, path, folder / path.rpartition("/")[2])
        return open_checkpoint(folder)

    def _remove(self, name: str) -> None:
        paths = list(self._store.list(f"{FOLDER}/{name}"))
        for path in sorted(paths, key=lambda p: not p.endswith(f"/{MANIFEST}")):
            self._store.remove(path)


def open_checkpoints(store: Store) -> FolderStore | RemoteCheckpoints:
    """The checkpoints of a run.

    Args:
        store: The run's folder.
    """
    if isinstance(store, LocalStore):
        return FolderStore(store.path(FOLDER))
    assert isinstance(store, RemoteStore)
    return RemoteCheckpoints(store)


def fetch(store: Store, name: str, target: Path) -> None:
    """Copy a file of a store into a local one."""
    with trouble(str(target)), store.open(name) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, 2**20)


def trained_bundle(url: str) -> Path:
    """The bundle that `--from` names, on this machine.

    Args:
        url: Of a bundle, or of a run: its result, or its newest checkpoint's where it has not
            ended.

    Raises:
        UserError: If there is none.
        CheckpointError: If the newest checkpoint of a run has none.
    """
    from pipeline.storage import is_remote, open_store

    if url.endswith(".safetensors"):
        return _bundle_file(url)
    store = open_store(url)
    if store.stat(RESULT):
        return _bundle_file(f"{url.rstrip('/')}/{RESULT}")
    checkpoint = open_checkpoints(store).newest()
    if checkpoint is None:
        what = "no such run" if not is_remote(url) and not Path(url).exists() else "no run's folder"
        raise UserError(f"{url}: {what}; give the OUT of `vsp train`, or a .safetensors bundle")
    found = checkpoint.folder / RESULT
    if not found.is_file():
        raise CheckpointError(f"{checkpoint.folder}: a checkpoint without {RESULT}")
    return found


def _bundle_file(url: str) -> Path:
    from pipeline.storage import is_remote, open_store

    folder, _, name = url.rpartition("/")
    if not is_remote(url):
        if not Path(url).is_file():
            raise UserError(f"{url}: no such bundle; give one, or the OUT of `vsp train`")
        return Path(url)
    target = scratch_folder() / f"from-{abs(hash(url)):x}-{name}"
    fetch(open_store(folder), name, target)
    return target

"""Copies of remote shards on this machine's disk, made once and shared by its processes."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage import Stat, StoreTrouble, is_remote, open_input, stat_input, sync

_ADVICE = "set data.cache to a folder with room, or data.streamed"


def cache_folder(wanted: str = "") -> Path:
    """The folder of copies, made if need be.

    Args:
        wanted: What the user asked for; empty for one of the user's own below `$VSP_SCRATCH`.

    Raises:
        UserError: If it can't be made, or belongs to somebody else.
    """
    root = Path(os.environ.get("VSP_SCRATCH") or tempfile.gettempdir()) / f"vsp-{os.getuid()}"
    folder = Path(wanted) if wanted else root / "shards"
    try:
        if not wanted:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid != os.getuid():
                raise UserError(f"{root}: belongs to somebody else; set data.cache")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; {_ADVICE}") from None
    return folder


def local_copy(source: str, cache: str = "") -> Path:
    """Where a shard can be read on this machine: itself, or a copy of the remote one.

    A copy is called after URL, size and ETag, so another version is another copy, and is there
    only when it is whole.

    Raises:
        UserError: If there is no such shard, or no room for it.
        StoreTrouble: If the object store doesn't answer.
    """
    if not is_remote(source):
        return Path(source)
    there = stat_input(source)
    if there is None:
        raise UserError(f"{source}: no such shard")
    identity = f"{source}|{there.size_bytes}|{there.version}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    copy = cache_folder(cache) / f"{name}.tar"
    try:
        with _alone(copy.with_suffix(".lock")):
            if not copy.exists():
                _fetch(source, there, copy)
    except StoreTrouble:
        raise
    except OSError as error:
        raise UserError(f"{copy.parent}: {error.strerror or error}; {_ADVICE}") from None
    return copy


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for other processes that copy the same; a second copy would do no harm but cost time."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _fetch(source: str, there: Stat, copy: Path) -> None:
    part = copy.with_name(f".{copy.name}.{os.urandom(4).hex()}")
    try:
        with open_input(source) as remote, part.open("xb") as file:
            shutil.copyfileobj(remote, file, 2**20)
        if part.stat().st_size != there.size_bytes:
            raise UserError(f"{source}: changed while it was copied; start again")
        sync(part)
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)

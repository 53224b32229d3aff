"""One driver at a time on an output folder, and no worker left over from a driver that is gone.

A lock on a disk is `flock`: the kernel lets it go with the process, however that ends. On NFS it
holds between machines where the server does locks (NFSv4, or v3 with lockd) and the mount does not
say `local_lock=flock` or `nolock`; where a file system has none, the run goes on with a warning. On
an object store the lock is an object that its holder keeps fresh. Locks only spare double work:
that no output is lost or doubled rests on the commits (`pipeline/commit.py`).
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import RunError
from pipeline.storage import OWN_FOLDER, LocalStore, Store, StoreTrouble, make_folder, trouble

if TYPE_CHECKING:
    from pipeline.remote import RemoteStore

log = logging.getLogger(__name__)

RUN_LOCK = f"{OWN_FOLDER}/run.lock"
BEAT_S = 20.0
STALE_S = 90.0
POLL_S = 0.1
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """A driver's claim on an output folder; a context manager.

    Attributes:
        is_lost: Whether another driver has taken the lock over since. Only a lock on an object
            store can be lost: when its holder could not renew it for `STALE_S`.
    """

    is_lost = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunError: If another driver has it, naming its host, process and start.
            StoreTrouble: If the store does not answer.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Let the lock go."""
        raise NotImplementedError

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def run_lock(store: Store, beat_s: float = BEAT_S, stale_s: float = STALE_S) -> RunLock:
    """The lock of an output folder.

    Args:
        store: The folder.
        beat_s: How often the holder says that it lives; object stores only.
        stale_s: After what silence, by the store's clock, another driver may take it over.
    """
    if isinstance(store, LocalStore):
        return _LocalLock(store)
    from pipeline.remote import RemoteStore

    assert isinstance(store, RemoteStore)
    return _RemoteLock(store, beat_s, stale_s)


def lock_holder(store: Store) -> str:
    """Who holds an output folder's lock: host, process and start, or "" for nobody.

    Only read, never tried: that could be in the way of a run that begins. So a driver that died on
    another machine counts as holding it.
    """
    try:
        holder = _parsed(store.read(RUN_LOCK))
    except FileNotFoundError:
        return ""
    return "" if _is_dead(holder) else _described(holder)


class _LocalLock(RunLock):
    """`flock` on a file that holds who has it. The file stays: removing it would let two in."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        file = _open_lock(self._store.path(RUN_LOCK))
        if not _try_lock(file):
            holder = _parsed(file.read())
            file.close()
            raise _taken(self._store.url, holder)
        with trouble(self._store.url):
            file.seek(0)
            file.truncate()
            file.write(json.dumps(_ourselves()).encode())
            file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)  # nobody holds it, and `lock_holder` sees that
            self._file.close()
            self._file = None


class _RemoteLock(RunLock):
    """An object that its holder writes again every `beat_s`, always on the version before."""

    def __init__(self, store: "RemoteStore", beat_s: float, stale_s: float) -> None:
        self._store = store
        self._path = store.path(RUN_LOCK)
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._holder: dict[str, Any] = {}
        self._version = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        self._holder = _ourselves() | {"token": os.urandom(8).hex()}
        if not self._store.create(RUN_LOCK, self._data()) and not self._take_over():
            try:
                holder = _parsed(self._store.read(RUN_LOCK))
            except FileNotFoundError:
                holder = {}  # released this moment; the user may simply start again
            raise _taken(self._store.url, holder)
        self._version = self._version_if_ours() or ""
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, name="vsp-run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(self._beat_s)
        self._thread = None
        with contextlib.suppress(StoreTrouble):  # it will be found stale
            if not self.is_lost and self._version_if_ours():
                self._store.remove(RUN_LOCK)

    def _data(self) -> bytes:
        return json.dumps(self._holder | {"beat": _now()}).encode()

    def _version_if_ours(self) -> str | None:
        """The version of the lock object, None if it is not ours."""
        info = self._store.objects.info(self._path)
        try:
            holder = _parsed(self._store.read(RUN_LOCK))
        except FileNotFoundError:
            return None
        return info.version if info and holder.get("token") == self._holder["token"] else None

    def _take_over(self) -> bool:
        """Replace the lock of a driver that is gone; False if it lives, or another was faster."""
        info = self._store.objects.info(self._path)
        if info is None:
            return self._store.create(RUN_LOCK, self._data())
        try:
            holder = _parsed(self._store.read(RUN_LOCK))
        except FileNotFoundError:
            return False
        if not _is_dead(holder) and self._age_s(info.modified) < self._stale_s:
            return False
        # A lost answer makes `replace` say no to what it did.
        data = self._data()
        return self._store.objects.replace(self._path, data, info.version) or (
            self._version_if_ours() is not None
        )

    def _age_s(self, modified: datetime | None) -> float:
        """How long ago the store says something was written; asked by writing, not of our clock."""
        if modified is None:
            return 0.0
        name = f"{OWN_FOLDER}/clock.{os.urandom(8).hex()}"
        self._store.write(name, b"")
        info = self._store.objects.info(self._store.path(name))
        self._store.remove(name)
        return (info.modified - modified).total_seconds() if info and info.modified else 0.0

    def _renew(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                self._beat()
            except StoreTrouble as error:
                log.warning("%s: run lock not renewed: %s", self._store.url, error)
            except Exception as error:  # the thread must outlive whatever the store says
                log.warning("%s: run lock not renewed: %r", self._store.url, error)
            if self.is_lost:
                log.error(
                    "%s: another run has taken the lock over; the commits keep both apart",
                    self._store.url,
                )
                return

    def _beat(self) -> None:
        self._store.objects.replace(self._path, self._data(), self._version)
        version = self._version_if_ours()
        self.is_lost = version is None
        self._version = version or ""


def hold_shared(path: Path) -> BinaryIO:
    """Hold a lock beside others who do so, until the file returned is closed or the process ends.

    Args:
        path: The lock file; made, with its folder, if there is none.
    """
    file = _open_lock(path)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError as error:
        _warn_or_raise(error, path)
    return file


def wait_exclusive(path: Path, timeout_s: float) -> None:
    """Wait until nobody holds a lock any more.

    Args:
        path: The lock file.
        timeout_s: For how long.

    Raises:
        RunError: If somebody still does then.
    """
    deadline = time.monotonic() + timeout_s
    with _open_lock(path) as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise RunError(
                    f"{path}: workers of an earlier run still live after {timeout_s:.0f} s; "
                    "end them (`fuser` names them) and run again"
                )
            time.sleep(POLL_S)


def _open_lock(path: Path) -> BinaryIO:
    """Open for reading and writing, which NFS wants for an exclusive lock."""
    with trouble(str(path)):
        make_folder(path.parent)
        return open(
            path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)
        )


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _warn_or_raise(error, Path(str(file.name)))
    return True


def _warn_or_raise(error: OSError, path: Path) -> None:
    if error.errno not in NO_LOCKS:
        raise error
    log.warning("%s: this file system has no locks; start no second run on this folder", path)


def _taken(url: str, holder: Mapping[str, Any]) -> RunError:
    who = _described(holder) or "unknown"
    return RunError(f"{url}: another run is at work here ({who}); wait for its end")


def _described(holder: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {holder[key]}" for key in ("host", "pid", "since") if key in holder)


def _ourselves() -> dict[str, Any]:
    """Who holds a lock; `space` tells apart containers of one host, whose pids mean nothing."""
    space = Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": _now(),
        "space": os.readlink(space) if space.is_symlink() else "",
    }


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether the process is one of this machine and gone; False if that cannot be known."""
    ours = _ourselves()
    pid = holder.get("pid")
    if any(holder.get(key) != ours[key] for key in ("host", "space")) or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}

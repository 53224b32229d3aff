"""An output folder as named files: on a disk here, on an object store in `pipeline/remote.py`.

Names are relative, with `/` between parts. What a store promises is what the commit protocol
(docs/engine.md) needs: a file is whole or absent under its name, `create` succeeds for exactly one
of many callers, and an attempt's files are durable before anything points to them.
"""

import errno
import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import UserError

OWN_FOLDER = "_vsp"  # what a run keeps in an output folder beside what users read
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PROBE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
CANCELLED = "\x18"  # ends a line of a log whose writer was killed before it was whole


class StoreTrouble(OSError):
    """The disk or object store cannot serve now and may later; one line. No record's fault."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What identifies a stored file's content without reading it.

    Attributes:
        size_bytes: Its length.
        version: Modification time in nanoseconds on a disk, the ETag on an object store.
    """

    size_bytes: int
    version: str


class Store(Protocol):
    """One output folder."""

    @property
    def url(self) -> str:
        """How the user names the folder."""

    @property
    def is_local(self) -> bool:
        """Whether the names are files of this machine's file system."""

    def begin(self, attempt: str) -> Path:
        """Make the empty local folder in which an attempt builds its files."""

    def stage(self, attempt: str, names: Sequence[str]) -> None:
        """Make the named files of an attempt's folder durable, so that `publish` finds them.

        Raises:
            StoreTrouble: If that cannot be done now.
        """

    def publish(self, attempt: str, name: str) -> None:
        """Give an attempt's staged file its final name, replacing what has it.

        Does nothing where the file is not staged any more: another worker was faster.
        """

    def discard(self, attempt: str) -> None:
        """Remove an attempt's folder and staged files, if there are any."""

    def attempts(self) -> list[str]:
        """Attempts of which something is left."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, durably, unless the name is taken.

        Returns:
            Whether the name has this content now; False where it was taken, with other content.

        Raises:
            StoreTrouble: It is then unknown whether the file was made.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, replacing what has the name."""

    def append(self, name: str, line: str) -> None:
        """Add a line to a log, durably."""

    def parts(self, name: str) -> Sequence[str]:
        """Names of the files that make up a log, in the order they were begun."""

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: If there is none.
        """

    def open(self, name: str) -> BinaryIO:
        """Open a file for seeking reads."""

    def stat(self, name: str) -> Stat | None:
        """Size and version of a file, None if there is none."""

    def list(self, folder: str = "") -> Iterator[str]:
        """Names of all files below a folder, in an order that does not change between calls.

        The root's list leaves out `OWN_FOLDER`.
        """

    def remove(self, name: str) -> None:
        """Remove a file; none there is no error."""


class LocalStore:
    """An output folder on this machine's file system, or one mounted there."""

    is_local = True

    def __init__(self, root: Path) -> None:
        """Take `root`, which need not exist yet."""
        self.root = root

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where the file of a name lies."""
        return self.root / name

    def _attempt(self, attempt: str) -> Path:
        return self.root / OWN_FOLDER / "attempts" / attempt

    def begin(self, attempt: str) -> Path:
        """Make the attempt's folder, beside the final names, so that publishing is a rename."""
        folder = self._attempt(attempt)
        with trouble(self.url):
            make_folder(folder.parent)
            folder.mkdir()
        return folder

    def probe(self, attempt: str, num_bytes: int) -> None:
        """See that there is room for so many bytes, where the file system can tell.

        Raises:
            StoreTrouble: If there is not.
        """
        path = self._attempt(attempt) / ".probe"
        with trouble(self.url):
            try:
                with path.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                if error.errno not in NO_PROBE:
                    raise
            finally:
                path.unlink(missing_ok=True)

    def stage(self, attempt: str, names: Sequence[str]) -> None:
        """Sync the files and their folders."""
        folder = self._attempt(attempt)
        with trouble(self.url):
            for name in names:
                sync(folder / name)
            inner = {(folder / name).parent for name in names}
            parents = {parent for path in inner for parent in (path, *path.parents)}
            for parent in {path for path in parents if path.is_relative_to(folder)}:
                sync(parent)
            sync(folder.parent)

    def publish(self, attempt: str, name: str) -> None:
        """Rename the file; the folder is synced so that the name survives a crash."""
        target = self.path(name)
        with trouble(self.url):
            make_folder(target.parent)
            try:
                os.replace(self._attempt(attempt) / name, target)
            except FileNotFoundError:
                return
            sync(target.parent)

    def discard(self, attempt: str) -> None:
        """Remove the attempt's folder."""
        shutil.rmtree(self._attempt(attempt), ignore_errors=True)

    def attempts(self) -> list[str]:
        """Names of the folders of attempts."""
        folder = self._attempt("")
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def create(self, name: str, data: bytes) -> bool:
        """Write beside and link: a link never replaces, and appears with its content."""
        target = self.path(name)
        with trouble(self.url), _beside(target, data) as beside:
            try:
                os.link(beside, target)
            except FileExistsError:
                return target.read_bytes() == data
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                raise UserError(
                    f"{self.url}: this file system has no hard links ({error.strerror}); "
                    "put OUT on another one"
                ) from None
            sync(target.parent)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write beside and rename."""
        target = self.path(name)
        with trouble(self.url), _beside(target, data) as beside:
            os.replace(beside, target)
            sync(target.parent)

    def append(self, name: str, line: str) -> None:
        """Write to the end of the file, then sync; a torn line found there is closed first."""
        target = self.path(name)
        with trouble(self.url):
            make_folder(target.parent)
            with target.open("a+b", buffering=0) as file:
                size_bytes = file.seek(0, os.SEEK_END)
                is_torn = size_bytes > 0 and os.pread(file.fileno(), 1, size_bytes - 1) != b"\n"
                data = f"{CANCELLED}\n{line}\n" if is_torn else f"{line}\n"
                _write_all(file.fileno(), data.encode())
                os.fsync(file.fileno())

    def parts(self, name: str) -> Sequence[str]:
        """The file, if it is there."""
        return [name] if self.path(name).exists() else []

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return self.path(name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """Open the file."""
        return self.path(name).open("rb")

    def stat(self, name: str) -> Stat | None:
        """Size and modification time."""
        try:
            there = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stat(there.st_size, str(there.st_mtime_ns))

    def list(self, folder: str = "") -> Iterator[str]:
        """Walk the folder; nothing is yielded where there is none."""
        for place, folders, files in os.walk(self.root / folder):
            folders.sort()
            if Path(place) == self.root and OWN_FOLDER in folders:
                folders.remove(OWN_FOLDER)
            for file in sorted(files):
                yield Path(place, file).relative_to(self.root).as_posix()

    def remove(self, name: str) -> None:
        """Unlink the file."""
        self.path(name).unlink(missing_ok=True)


def is_remote(url: str) -> bool:
    """Whether a path is a URL of an object store."""
    return "://" in url


def open_store(url: str) -> Store:
    """The output folder that a path or URL names."""
    return _open_remote(url) if is_remote(url) else LocalStore(Path(url))


@functools.cache  # what a store can do is asked once a process, not once a shard
def _open_remote(url: str) -> Store:
    from pipeline.remote import RemoteStore

    return RemoteStore(url)


def open_input(url: str) -> BinaryIO:
    """Open an input file, local or remote, for seeking reads; the caller closes it.

    Raises:
        StoreTrouble: If an object store does not answer.
        FileNotFoundError: If there is no such file.
        OSError: If it is no plain file: a named pipe would be waited for, a device has no end.
    """
    if not is_remote(url):
        path = Path(url)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a plain file", url)
        return path.open("rb")
    from pipeline.remote import open_remote

    return open_remote(url)


def stat_input(url: str) -> Stat | None:
    """Size and version of an input file, None if there is none, or only a link to nothing."""
    if not is_remote(url):
        try:
            return LocalStore(Path(url).parent).stat(Path(url).name)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return None
    from pipeline.remote import stat_remote

    return stat_remote(url)


def sync(path: Path) -> None:
    """Have a file or folder on the disk, not only in the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and what it lies in, so that their names survive a crash."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync(each.parent)


@contextmanager
def _beside(target: Path, data: bytes) -> Iterator[Path]:
    """A durable file with the data in the target's folder; what is left of it goes away."""
    beside = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    make_folder(target.parent)
    try:
        beside.write_bytes(data)
        sync(beside)
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes: a full disk may take some of them without an error."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def trouble(where: str) -> Iterator[None]:
    """Turn a full disk or quota into `StoreTrouble`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise StoreTrouble(error.errno, f"{where}: {error.strerror}") from None
        raise


def load_json(store: Store, name: str) -> dict[str, object]:
    """Read a JSON object that a run keeps in the output folder.

    Raises:
        UserError: If the file is damaged.
        FileNotFoundError: If there is none.
    """
    try:
        value = json.loads(store.read(name))
    except ValueError:
        raise UserError(f"{store.url}/{name}: damaged; start over with --restart") from None
    if not isinstance(value, dict):
        raise UserError(f"{store.url}/{name}: damaged; start over with --restart")
    return value


def read_log(store: Store, name: str) -> list[str]:
    """Read a log as `Store.append` wrote it.

    Args:
        store: The output folder.
        name: The log's name.

    Returns:
        Its whole lines: by part in the order the parts were begun, in a part as they were written.
        A line torn by a kill is left out. A line may come twice, if its writer was told that it
        had failed and wrote it again.
    """
    lines = []
    for part in store.parts(name):
        whole = store.read(part).decode(errors="replace").split("\n")[:-1]
        lines += [line for line in whole if line and not line.endswith(CANCELLED)]
    return lines

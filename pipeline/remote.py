"""Object stores: an output folder on one, and shards read from one.

`s3://` (any store that speaks S3) through s3fs, tested against a real server on loopback; `gs://`
through gcsfs by the same calls, untested: nobody has tried it yet. Credentials and endpoint come
from the libraries' usual places (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`,
`AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL`, ...).

A worker that is killed while it uploads more than 32 MiB leaves the parts of an open multipart
upload, which no listing shows; let the bucket's lifecycle rule remove such after some days.
"""

import errno
import io
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.errors import RunError, UserError
from pipeline.objects import (
    PATIENCE,
    ConditionFailed,
    Info,
    Objects,
    Patience,
    as_info,
    split_url,
)
from pipeline.scratch import scratch_folder
from pipeline.storage import OWN_FOLDER, Stat, StoreTrouble, trouble

log = logging.getLogger(__name__)

BLOCK_BYTES = 8 * 2**20
SEGMENT_LINES = 200
WILDCARDS = "*?["


@dataclass(slots=True)
class _Segment:
    """The part of a log that one process is writing: an object that is put again with each line."""

    stem: str
    number: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.stem}-{self.number:06d}"

    def turn(self) -> None:
        self.number += 1
        self.lines.clear()


class RemoteStore:
    """An output folder on an object store (`pipeline.storage.Store`).

    Files are built in a local scratch folder and uploaded when they are complete. Every method may
    raise `StoreTrouble` (later it may work) and `UserError` (bucket, credentials, region).
    """

    is_local = False

    def __init__(self, url: str, patience: Patience = PATIENCE) -> None:
        """Nothing is asked of the store yet.

        Args:
            url: `s3://bucket/prefix`; the prefix need not exist.
            patience: How long to go on asking a store that does not answer.

        Raises:
            UserError: If it is no such URL.
        """
        self._url = url.rstrip("/")
        kind, self._root = split_url(url)
        self.objects = Objects(kind, patience)
        self._scratch: dict[str, Path] = {}
        self._segments: dict[tuple[int, str], _Segment] = {}
        self._lock = threading.Lock()
        self._is_conditional: bool | None = None

    @property
    def url(self) -> str:
        """The folder's URL."""
        return self._url

    def path(self, name: str) -> str:
        """Where the object of a name lies, as `bucket/key`."""
        return f"{self._root}/{name}"

    def _staged(self, attempt: str, name: str) -> str:
        return self.path(f"{OWN_FOLDER}/attempts/{attempt}/{name}")

    def begin(self, attempt: str) -> Path:
        """Make a local folder; it is gone when the process is."""
        folder = scratch_folder() / f"{attempt}-{os.urandom(4).hex()}"
        with trouble(str(folder)):
            folder.mkdir()
        self._scratch[attempt] = folder
        return folder

    def stage(self, attempt: str, names: Sequence[str]) -> None:
        """Upload the complete files under the attempt's own keys and check their lengths."""
        for name in names:
            self.objects.upload(self._scratch[attempt] / name, self._staged(attempt, name))

    def publish(self, attempt: str, name: str) -> None:
        """Copy inside the store, then remove the staged object."""
        staged = self._staged(attempt, name)
        try:
            self.objects.copy(staged, self.path(name))
        except FileNotFoundError:
            return
        self.objects.remove(staged)

    def discard(self, attempt: str) -> None:
        """Remove the attempt's staged objects, and its local folder if it is this process's."""
        folder = self._scratch.pop(attempt, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.objects.names(self.path(f"{OWN_FOLDER}/attempts/{attempt}")):
            self.objects.remove(path)

    def attempts(self) -> list[str]:
        """Attempts with staged objects."""
        folder = self.path(f"{OWN_FOLDER}/attempts")
        names = self.objects.names(folder)
        return sorted({name.removeprefix(f"{folder}/").partition("/")[0] for name in names})

    def create(self, name: str, data: bytes) -> bool:
        """Put on the condition that the name is free; what has it may be our own lost answer's."""
        path = self.path(name)
        with self._lock:
            if self._is_conditional is None:
                self._is_conditional = self._probe()
        if self._is_conditional:
            if self.objects.create(path, data):
                return True
        elif self.objects.info(path) is None:
            self.objects.write(path, data)
            return True
        try:
            return self.objects.read(path) == data
        except FileNotFoundError:
            return False

    def _probe(self) -> bool:
        """Whether the store refuses to create what exists; some overwrite it without a word."""
        path = self.path(f"{OWN_FOLDER}/probe.{os.urandom(8).hex()}")
        try:
            self.objects.create(path, b"1")
            is_conditional = not self.objects.create(path, b"2")
        except RunError:  # it knows no such header
            is_conditional = False
        self.objects.remove(path)
        if not is_conditional:
            log.warning(
                "%s: this store has no conditional writes; start no second run on it", self.url
            )
        return is_conditional

    def write(self, name: str, data: bytes) -> None:
        """Put; an object appears whole."""
        self.objects.write(self.path(name), data)

    def append(self, name: str, line: str) -> None:
        """Put this process's part of the log again, one line longer.

        Objects cannot be appended to. The parts are called `<name>.<start time><chance>-<number>`,
        so that sorting them by name sorts by the time their process began to write. After trouble a
        new part is begun: a put that was given up may still arrive, and would take later lines
        away. A line whose `append` raised may be there or not.
        """
        with self._lock:
            key = (os.getpid(), name)
            stem = f"{name}.{time.time_ns():020d}{os.urandom(4).hex()}"
            segment = self._segments.setdefault(key, _Segment(stem))
            before = self.objects.num_repeats
            data = "".join(f"{each}\n" for each in [*segment.lines, line]).encode()
            try:
                self.objects.write(self.path(segment.name), data)
            except BaseException:
                segment.turn()
                raise
            segment.lines.append(line)
            if len(segment.lines) >= SEGMENT_LINES or self.objects.num_repeats != before:
                segment.turn()

    def parts(self, name: str) -> list[str]:
        """Names of the objects that make up a log, oldest process first."""
        folder, _, base = name.rpartition("/")
        found = self.objects.names(self.path(folder).rstrip("/"), prefix=f"{base}.")
        return [path.removeprefix(f"{self._root}/") for path in found]

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        return self.objects.read(self.path(name))

    def open(self, name: str) -> BinaryIO:
        """Open an object for seeking reads."""
        return open_remote(f"{self.url}/{name}", self.objects.patience)

    def stat(self, name: str) -> Stat | None:
        """Size and ETag."""
        return _as_stat(self.objects.info(self.path(name)))

    def list(self, folder: str = "") -> Iterator[str]:
        """Names of all objects below a folder; one listing, held in memory."""
        top = self.path(folder).rstrip("/")
        for path in self.objects.names(top):
            name = path.removeprefix(f"{self._root}/")
            if folder or not name.startswith(f"{OWN_FOLDER}/"):
                yield name

    def remove(self, name: str) -> None:
        """Delete the object."""
        self.objects.remove(self.path(name))


class _RemoteFile(io.RawIOBase):
    """An object read in blocks, the next one fetched in a thread meanwhile.

    Only that thread uses the library's file object, whose requests ask for the version that was
    there when it was opened.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__()
        self._url = url
        kind, self._path = split_url(url)
        self._objects = Objects(kind, patience)
        self._file: Any = self._objects.request(
            self._path, lambda fs: fs.open(self._path, "rb", cache_type="none")
        )
        info = as_info(self._file.details)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "is a folder", url)
        self._info = info
        self._position = 0
        self._number = -1
        self._block = memoryview(b"")
        self._ahead: dict[int, Future[bytes]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vsp-read-ahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.size_bytes}
        position = start[whence] + offset
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        number, offset = divmod(self._position, BLOCK_BYTES)
        if self._position >= self._info.size_bytes:
            return 0
        if number != self._number:
            self._turn_to(number)
        piece = self._block[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _turn_to(self, number: int) -> None:
        """Take a block; where blocks are read in order, begin to fetch the one behind it."""
        wanted = self._ahead.pop(number, None) or self._thread.submit(self._fetch, number)
        is_in_order = number == self._number + 1
        if is_in_order and (number + 1) * BLOCK_BYTES < self._info.size_bytes:
            self._ahead = {number + 1: self._thread.submit(self._fetch, number + 1)}
        self._block = memoryview(wanted.result())
        self._number = number

    def _fetch(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        num_bytes = min(BLOCK_BYTES, self._info.size_bytes - start)

        def get(fs: Any) -> bytes:
            self._file.seek(start)
            data = cast(bytes, self._file.read(num_bytes))
            if len(data) != num_bytes:
                raise ConnectionError(f"{len(data)} bytes came of {num_bytes}")
            return data

        try:
            data = self._objects.request(self._path, get)
            # Only s3fs puts the version into its requests.
            is_same = self._objects.kind == "s3" or self._objects.info(self._path) == self._info
        except (ConditionFailed, FileNotFoundError):
            is_same = False
        if not is_same:
            raise StoreTrouble(errno.EIO, f"{self._url}: changed while it was read")
        return data

    def close(self) -> None:
        if not self.closed and hasattr(self, "_thread"):
            self._objects.close()
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._block = memoryview(b"")
        super().close()


def open_remote(url: str, patience: Patience = PATIENCE) -> BinaryIO:
    """Open an object for seeking reads, in blocks of 8 MiB with one read ahead.

    Args:
        url: The object.
        patience: How long to go on asking a store that does not answer.

    Raises:
        FileNotFoundError: If there is none.
        StoreTrouble: Also by reads; "changed while it was read" if its ETag is another meanwhile.
    """
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(url, patience), 64 * 1024))


def stat_remote(url: str, patience: Patience = PATIENCE) -> Stat | None:
    """Size and ETag of an object, None if there is none."""
    kind, path = split_url(url)
    return _as_stat(Objects(kind, patience).info(path))


def find_remote(pattern: str, patience: Patience = PATIENCE) -> list[str]:
    """Find the objects that a URL names: one, the tars directly in a folder, or those of a glob.

    Args:
        pattern: A URL, in which `*`, `?` and `[]` are wildcards; braces are not.
        patience: How long to go on asking a store that does not answer.

    Returns:
        Their URLs, sorted.

    Raises:
        UserError: If there is none.
    """
    kind, path = split_url(pattern)
    objects = Objects(kind, patience)
    if not any(mark in path for mark in WILDCARDS):
        if "/" in path and objects.info(path) is not None:
            return [pattern]
        path = f"{path}/*.tar"
    found = objects.request(path, lambda fs: fs.glob(path, detail=True))
    scheme = pattern.partition("://")[0]
    urls = sorted(f"{scheme}://{name}" for name, info in found.items() if info["type"] == "file")
    if not urls:
        raise UserError(f"{pattern}: no such object, and no .tar there; make shards: `vsp pack`")
    return urls


def _as_stat(info: Info | None) -> Stat | None:
    return Stat(info.size_bytes, info.version) if info else None

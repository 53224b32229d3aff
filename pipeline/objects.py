"""Requests to an object store through fsspec: our patience, our error classes, no caches.

The libraries' own retries are off (s3fs would send 25 requests for one, and lets classes out that
are no `OSError`). What is left of a fault after our back-off is one of four exceptions:
`StoreTrouble` (later it may work), `UserError` (bucket, credentials, region), `RunError` (the store
refuses for another reason), or `FileNotFoundError`. Below botocore aiohttp still repeats a request
once, at once, when its connection breaks.
"""

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import RunError, UserError, one_line
from pipeline.storage import StoreTrouble

T = TypeVar("T")
log = logging.getLogger(__name__)

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # scheme of a URL -> our extra
PACKAGES = {"s3": "s3fs", "gcs": "gcsfs"}
# Four parts of 16 MiB at once bound the memory of an upload; s3fs would take ten of 50 MiB.
UPLOAD: dict[str, dict[str, Any]] = {
    "s3": {"chunksize": 16 * 2**20, "max_concurrency": 4},
    "gcs": {},
}
# s3fs asks for the size before it reads, to read in parallel; what is read whole here is small.
DOWNLOAD: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}, "gcs": {}}
AGAIN_STATUS = (408, 409, 429)
AGAIN_CODES = {
    "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted",
    "ConditionalRequestConflict", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    "NoSuchUpload",
}  # fmt: skip
REGION_CODES = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301"}
CREDENTIAL_FAULTS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
NETWORK = {"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "s3fs", "urllib3"}


class ConditionFailed(RunError):
    """A request was conditional and its condition does not hold; who made it, caught it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on asking a store that does not answer, or answers that it is busy.

    Attributes:
        tries: Requests sent at most for one.
        first_s: Pause after the first; each is twice the one before, times 0.5 to 1 by chance.
        longest_s: No pause is longer.
        total_s: No try begins later; one that has begun may last `read_s` more.
        connect_s: Time for a connection to come about.
        read_s: Time in which no byte comes.
    """

    tries: int = 8
    first_s: float = 0.25
    longest_s: float = 12.0
    total_s: float = 60.0
    connect_s: float = 5.0
    read_s: float = 30.0


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Info:
    """What a store says about an object.

    Attributes:
        size_bytes: Its length.
        version: Its ETag: another one, other content.
        modified: When it was written, by the store's clock.
    """

    size_bytes: int
    version: str
    modified: datetime | None


def split_url(url: str) -> tuple[str, str]:
    """Split `s3://bucket/prefix` into the kind of store and `bucket/prefix`.

    Raises:
        UserError: If the scheme is unknown or there is no bucket.
    """
    scheme, _, path = url.partition("://")
    kind = SCHEMES.get(scheme)
    if kind is None:
        raise UserError(f"{url}: unknown store {scheme}://; known are s3:// and gs://")
    path = path.strip("/")
    if not path:
        raise UserError(f"{url}: names no bucket; write {scheme}://bucket/folder")
    return kind, path


class Objects:
    """The objects of a store, by `bucket/key`.

    Usable from several threads, and on both sides of a fork: every process has its own
    connections. Every method may raise `StoreTrouble`, `UserError` or `RunError`.
    """

    def __init__(self, kind: str, patience: Patience = PATIENCE) -> None:
        """Nothing is asked of the store yet.

        Args:
            kind: `s3` or `gcs`, as `split_url` gives it.
            patience: How long to go on asking.
        """
        self.kind = kind
        self.patience = patience
        self.num_repeats = 0
        self._closing = threading.Event()

    @property
    def fs(self) -> Any:
        """This process's file system object."""
        surroundings = tuple(sorted(i for i in os.environ.items() if i[0].startswith("AWS_")))
        patience = self.patience
        return _filesystem(
            self.kind, patience.connect_s, patience.read_s, os.getpid(), surroundings
        )

    def request(self, place: str, call: Callable[[Any], T]) -> T:
        """Call with the file system, again and again while that makes sense.

        Args:
            place: What the request is about, for messages.
            call: Must bear being repeated.

        Raises:
            FileNotFoundError: If the store says so.
            ConditionFailed: If a condition of the request does not hold.
        """
        begun = time.monotonic()
        pause_s = self.patience.first_s
        for number in range(1, self.patience.tries + 1):
            try:
                return call(self.fs)
            except Exception as error:
                final = judge(error, f"{self.kind}://{place}")
                if final is not None:
                    raise final from error
                last = error
            wait_s = min(pause_s, self.patience.longest_s) * random.uniform(0.5, 1)
            spent_s = time.monotonic() - begun
            if number == self.patience.tries or spent_s + wait_s > self.patience.total_s:
                break
            if number == 4:
                log.warning("%s://%s: %s; trying on", self.kind, place, one_line(last))
            if self._closing.wait(wait_s):
                break
            pause_s *= 2
            self.num_repeats += 1
        text = f"{self.kind}://{place}: no answer in {number} tries and {spent_s:.0f} s"
        raise StoreTrouble(errno.EIO, f"{text} ({one_line(last)})") from last

    def close(self) -> None:
        """Let requests that other threads are repeating end."""
        self._closing.set()

    def read(self, path: str) -> bytes:
        """A whole small object."""
        kind = self.kind
        return self.request(path, lambda fs: bytes(fs.cat_file(path, **DOWNLOAD[kind])))

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing what has the key."""
        self.request(path, lambda fs: fs.pipe_file(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object on the condition that the key is free.

        Returns:
            Whether it was; False also where our own first request did it and its answer was lost.
        """
        try:
            self.request(path, lambda fs: fs.pipe_file(path, data, mode="create"))
        except ConditionFailed:
            return False
        return True

    def replace(self, path: str, data: bytes, version: str) -> bool:
        """Write an object on the condition that it has `version`.

        Returns:
            Whether it had; False also where our own first request changed it. A store other than
            S3 is asked for the version before: two callers may then both be told yes.
        """
        if self.kind != "s3":
            there = self.info(path)
            if there is None or there.version != version:
                return False
            self.write(path, data)
            return True
        bucket, _, key = path.partition("/")
        put = {"Bucket": bucket, "Key": key, "Body": data, "IfMatch": version}
        try:
            self.request(path, lambda fs: fs.call_s3("put_object", **put))
        except (ConditionFailed, FileNotFoundError):
            return False
        return True

    def upload(self, local: Path, path: str) -> None:
        """Store a complete local file, and see that its length arrived."""
        size_bytes = local.stat().st_size
        begun = False

        def put(fs: Any) -> None:
            nonlocal begun
            if begun and _size(fs, path) == size_bytes:
                return  # it had arrived, only the answer was lost
            begun = True
            fs.put_file(str(local), path, **UPLOAD[self.kind])
            if _size(fs, path) != size_bytes:
                raise ConnectionError("the object stored is not as long as the file sent")

        self.request(path, put)

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, replacing what has the target's key.

        s3fs copies 150 MiB and more in parts of 50 MiB: the limit is 488 GiB.

        Raises:
            FileNotFoundError: If there is no source.
        """
        self.request(target, lambda fs: fs.cp_file(source, target))

    def remove(self, path: str) -> None:
        """Remove an object; none there is no error."""
        try:
            self.request(path, lambda fs: fs.rm_file(path))
        except FileNotFoundError:
            return

    def info(self, path: str) -> Info | None:
        """Size, version and age of an object, None if there is none."""
        try:
            return as_info(self.request(path, lambda fs: fs.info(path)))
        except FileNotFoundError:
            return None

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        """Paths of the objects below a folder, sorted; with `prefix` those that go on with it."""
        top = folder
        if not prefix and "/" in folder:  # s3fs asks twice more about a folder that is empty
            top, _, base = folder.rpartition("/")
            prefix = f"{base}/"
        found = self.request(folder, lambda fs: fs.find(top, prefix=prefix))
        return (name for name in sorted(found) if not name.endswith("/") and name != folder)


@lru_cache(maxsize=8)
def _filesystem(
    kind: str, connect_s: float, read_s: float, pid: int, surroundings: tuple[Any, ...]
) -> Any:
    """Make the file system object of one process (`pid`) in one environment (`surroundings`)."""
    try:
        import fsspec

        if kind == "gcs":
            return fsspec.filesystem("gcs", use_listings_cache=False, skip_instance_cache=True)
        fs = fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": connect_s,
                "read_timeout": read_s,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            },
        )
    except ImportError as error:
        raise UserError(
            f"{kind}: object stores need {PACKAGES[kind]} ({error}); "
            f"install it with: pip install -e '.[{kind}]'"
        ) from None
    fs.retries = 1
    return fs


def as_info(raw: dict[str, Any]) -> Info | None:
    """What fsspec says about a path; None for a folder."""
    if raw["type"] != "file":
        return None
    version = raw.get("ETag") or raw.get("etag") or ""
    return Info(int(raw["size"]), str(version), raw.get("LastModified") or raw.get("mtime"))


def _size(fs: Any, path: str) -> int | None:
    try:
        info = as_info(fs.info(path))
    except FileNotFoundError:
        return None
    return info.size_bytes if info else None


def judge(error: Exception, place: str) -> Exception | None:
    """Decide what an exception of fsspec means: what to raise, or None to try again."""
    if isinstance(error, UserError | RunError):
        return error
    status, code, text = _answer(error)
    if status is None:
        return _judge_without_answer(error, place)
    if (status >= 500 and status != 501) or status in AGAIN_STATUS or code in AGAIN_CODES:
        return None
    if status == 412:
        return ConditionFailed(f"{place}: {text}")
    if code == "NoSuchBucket":
        return UserError(f"{place}: no such bucket; check the name, or make it first")
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "no such object", place)
    if status in (401, 403):
        return UserError(f"{place}: access denied ({text}); check the credentials and their rights")
    if status in (301, 307) or code in REGION_CODES:
        return UserError(f"{place}: lies in another region ({text}); set AWS_DEFAULT_REGION")
    return RunError(f"{place}: the store refuses: {code} {text}")


def _judge_without_answer(error: Exception, place: str) -> Exception | None:
    kind = type(error)
    if kind.__name__ in CREDENTIAL_FAULTS:
        return UserError(
            f"{place}: {one_line(error)}; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, FileExistsError):
        return ConditionFailed(f"{place}: is there already")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object", place)
    if isinstance(error, PermissionError):
        return UserError(f"{place}: {one_line(error)}; check the credentials and their rights")
    if isinstance(error, ValueError) or kind.__name__ == "ParamValidationError":
        return UserError(f"{place}: {one_line(error)}; check the URL and the AWS_* variables")
    if isinstance(error, OSError | EOFError) or kind.__module__.partition(".")[0] in NETWORK:
        return None
    return error  # a fault of this program


def _answer(error: BaseException) -> tuple[int | None, str, str]:
    """HTTP status, error code and text of the store's answer behind an exception.

    The status is None where no answer came, or one of success whose body did not.
    """
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            fault = response.get("Error", {})
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = str(fault.get("Code", ""))
            text = " ".join(str(fault.get("Message") or code).split())
            return status if isinstance(status, int) and status >= 300 else None, code, text
        if seen is error and isinstance(getattr(seen, "code", None), int):  # gcsfs's HttpError
            return int(seen.code), "", one_line(seen)  # type: ignore[attr-defined]
        seen = seen.__cause__
    return None, "", ""

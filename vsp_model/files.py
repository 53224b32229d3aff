"""Files that are whole or absent, and the checksum that tells whether they still are.

The checksum of ``model.safetensors`` stands beside it in ``model.safetensors.sha256``, in the
format of ``sha256sum``: a file cannot hold its own digest, and ``sha256sum -c`` checks it anywhere.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class CheckpointError(ValueError):
    """A checkpoint that can't be used, in one line: the file, what is wrong, what is expected."""


@contextmanager
def whole_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``path`` that takes its name when the block ends without an error.

    The bytes are on the disk before the name is, so a crash leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # has no handles of folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path | str) -> str:
    """The file's digest, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: Path) -> Path:
    """Where the checksum of ``path`` is recorded."""
    return path.with_name(f"{path.name}.sha256")


def record_checksum(path: Path) -> str:
    """Write the checksum beside the file; returns the digest."""
    digest = sha256_of(path)
    with whole_or_absent(checksum_path(path)) as file:
        file.write(f"{digest}  {path.name}\n".encode())
    return digest


def verify(path: Path | str) -> str:
    """Compare a file with the checksum beside it; returns the digest.

    Raises:
        CheckpointError: if no checksum is recorded, or another one.
    """
    path = Path(path)
    record = checksum_path(path)
    if not record.is_file():
        raise CheckpointError(f"{path}: no checksum recorded; expected it in {record.name}")
    recorded = record.read_text("utf-8", errors="replace").split()
    digest = sha256_of(path)
    if recorded[:1] != [digest]:
        wanted = recorded[0] if recorded else "nothing"
        raise CheckpointError(
            f"{path}: sha256 {digest}, but {record.name} says {wanted}: changed or damaged"
        )
    return digest

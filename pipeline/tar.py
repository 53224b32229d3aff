"""Tar archives: a reader that hides no loss, and a writer whose bytes depend on the content alone.

`tarfile` and webdataset stop in silence at a cut or broken header. This reader demands what the
format promises (header checksums, whole bodies, two end blocks) and says where it broke.
"""

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 512
END = bytes(BLOCK_BYTES)
MEMBER_BUDGET_BYTES = 256 * 2**20
EXTENSION_BUDGET_BYTES = 2**20  # a PAX or GNU long-name header is a few hundred bytes

REGULAR = b"0\x007"
DIRECTORY = b"5"
EXTENSION = b"xgLK"
SPECIAL = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
}


class TarFault(ValueError):
    """The archive breaks the format; the text says how and at which byte."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive member that is not a directory.

    Attributes:
        name: The path as stored; bytes that are not UTF-8 are spelled `\\xNN`.
        data: The body; empty where it is no plain file or too large to hold.
        fault: Why the entry must not be used, or "".
    """

    name: str
    data: bytes
    fault: str = ""


class Place(NamedTuple):
    """Where one archive member that is not a directory lies.

    Attributes:
        name: As `Entry.name`.
        head: Byte of its first header; an extended one comes before the member's own.
        body: Byte of its body.
        size_bytes: Of the body.
        fault: Why the member must not be used, or "".
        is_plain: Whether the body is a file's, and small enough to hold.
    """

    name: str
    head: int
    body: int
    size_bytes: int
    fault: str = ""
    is_plain: bool = True


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    kind: bytes
    size_bytes: int


def read_tar(file: BinaryIO) -> Iterator[Entry]:
    """Yield the members of a seekable, uncompressed tar (ustar, PAX or GNU) in stored order.

    Raises:
        TarFault: At the first byte that breaks the format. What was yielded before is whole.
    """
    blocks = _Blocks(file)
    for place in _places(blocks):
        if place.is_plain:
            yield Entry(place.name, blocks.body(place.size_bytes), place.fault)
        else:
            blocks.skip(place.size_bytes)
            yield Entry(place.name, b"", place.fault)


def walk_tar(file: BinaryIO) -> Iterator[Place]:
    """Yield where the members lie, in stored order; no body is read.

    Raises:
        TarFault: As `read_tar`, after the same members.
    """
    blocks = _Blocks(file)
    for place in _places(blocks):
        blocks.skip(place.size_bytes)
        yield place


def read_name(head: bytes) -> str:
    """The name of the member whose headers, from `Place.head` on, these bytes begin with.

    Raises:
        TarFault: If they are no headers.
    """
    return next(_places(_Blocks(io.BytesIO(head)))).name


def _places(blocks: "_Blocks") -> Iterator[Place]:
    """Yield the members; who takes one moves `blocks` behind its body."""
    extension: dict[str, bytes] = {}
    head = blocks.at
    while (header := blocks.header()) is not None:
        if header.kind in EXTENSION:
            if header.size_bytes > EXTENSION_BUDGET_BYTES:
                raise TarFault(f"extended header of {header.size_bytes} bytes at byte {blocks.at}")
            extension |= _extension(header.kind, blocks.body(header.size_bytes), blocks.at)
            continue
        place = _place(header, extension, head, blocks.at)
        if place is not None:
            yield place
        extension, head = {}, blocks.at


class _Blocks:
    """The archive as blocks; `at` is the byte offset of the next one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = file.seek(0, os.SEEK_END)
        self.at = file.seek(0)

    def _read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self.at += len(data)
        if len(data) < num_bytes:
            raise TarFault(f"truncated at byte {self.at}")
        return data

    def header(self) -> _Header | None:
        """Read one header; None at the two end blocks."""
        at = self.at
        block = self._read(BLOCK_BYTES)
        if block != END:
            return _parse(block, at)
        if self._read(BLOCK_BYTES) != END:
            raise TarFault(f"one end block instead of two at byte {at}")
        self._check_padding()
        return None

    def _check_padding(self) -> None:
        """After the end only padding may follow: a second archive appended there would be lost."""
        at = self.at
        while chunk := self._file.read(2**20):
            if chunk.strip(b"\0"):
                raise TarFault(f"data after the end blocks at byte {at}, not read")

    def _padded(self, num_bytes: int) -> int:
        padded = -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
        if self.at + padded > self._end:  # looked at before any memory is asked for
            raise TarFault(f"truncated at byte {self._end}")
        return padded

    def body(self, num_bytes: int) -> bytes:
        return self._read(self._padded(num_bytes))[:num_bytes]

    def skip(self, num_bytes: int) -> None:
        self.at = self._file.seek(self._padded(num_bytes), os.SEEK_CUR)


def _parse(block: bytes, at: int) -> _Header:
    field = block[148:156]  # the checksum counts its own field as blanks
    missing = _number(field, at) - (sum(block) - sum(field) + 8 * ord(" "))
    # Some old tars sum signed bytes.
    if missing and missing != -256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise TarFault(f"broken header at byte {at}")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and prefix:  # GNU keeps other fields in that place
        name = prefix + b"/" + name
    return _Header(name, block[156:157], _number(block[124:136], at))


def _number(field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU's binary form of what octal cannot hold
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    if not digits.isdigit() or digits.strip(b"01234567"):
        raise TarFault(f"broken header at byte {at}")
    return int(digits, 8)


def _extension(kind: bytes, body: bytes, at: int) -> Mapping[str, bytes]:
    """What a PAX (x, g) or GNU (L, K) header says about the next member."""
    if kind == b"L":
        return {"path": body.partition(b"\0")[0]}
    if kind != b"x":  # a global header carries comments, K the target of a link
        return {}
    records: dict[str, bytes] = {}
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(body):
            raise TarFault(f"broken extended header before byte {at}")
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "backslashreplace")] = value
        body = body[int(length) :]
    return records


def _place(header: _Header, extension: Mapping[str, bytes], head: int, body: int) -> Place | None:
    """What a header says of its member; None for a directory."""
    raw = extension.get("path", header.name)
    name = raw.decode("utf-8", "backslashreplace")
    if header.kind == DIRECTORY or (header.kind == b"\0" and raw.endswith(b"/")):
        return None
    if header.kind in SPECIAL:
        return Place(name, head, body, 0, f"{SPECIAL[header.kind]}, not a file", False)
    size_bytes = header.size_bytes
    if "size" in extension:
        size_bytes = _pax_size(extension["size"], body)
    fault = _unreadable(header.kind, size_bytes, extension)
    return Place(name, head, body, size_bytes, fault or _name_fault(raw), not fault)


def _pax_size(value: bytes, at: int) -> int:
    if not value.isdigit():
        raise TarFault(f"broken extended header before byte {at}")
    return int(value)


def _unreadable(kind: bytes, size_bytes: int, extension: Mapping[str, bytes]) -> str:
    """Why a member's body is not read, or ""."""
    if kind not in REGULAR or any(key.startswith("GNU.sparse") for key in extension):
        return f"not a plain file (type {kind.decode('latin-1')!r})"
    if size_bytes > MEMBER_BUDGET_BYTES:
        return f"{size_bytes} bytes, over the budget of {MEMBER_BUDGET_BYTES} for one member"
    return ""


def _name_fault(raw: bytes) -> str:
    """Why a member must not be used under its name, or ""."""
    parts = raw.split(b"/")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "name is not UTF-8"
    if raw.startswith(b"/"):
        return "absolute name"
    if b".." in parts:
        return "name leaves the archive through '..'"
    if not parts[-1] or b"\0" in raw:
        return "empty name" if not parts[-1] else "name holds a zero byte"
    return ""


class TarWriter:
    """Write a tar that is a function of names and bodies: no clock, no owner, no padding choice."""

    def __init__(self, file: BinaryIO) -> None:
        """Write to `file`, which the caller opens, syncs and closes."""
        self._file = file

    def add(self, name: str, data: bytes) -> None:
        """Append one regular file; a long or non-ASCII name goes into a PAX header."""
        raw = name.encode()
        if len(raw) > 100 or not name.isascii():
            self._write(b"PaxHeader", b"x", _pax_record(b"path", raw))
            raw = name.encode("ascii", "replace")[:100]
        self._write(raw, b"0", data)

    def finish(self) -> None:
        """Write the two end blocks: without them a reader must call the archive truncated."""
        self._file.write(END + END)

    def _write(self, name: bytes, kind: bytes, data: bytes) -> None:
        self._file.write(_header(name, kind, len(data)))
        self._file.write(data)
        self._file.write(bytes(-len(data) % BLOCK_BYTES))


def _header(name: bytes, kind: bytes, size_bytes: int) -> bytes:
    """A ustar header: mode 0644, owner 0:0, mtime 0."""
    fields = (
        name.ljust(100, b"\0")
        + b"0000644\0" + b"0000000\0" + b"0000000\0"
        + b"%011o\0" % size_bytes
        + b"00000000000\0"
        + b" " * 8  # the checksum counts its own field as blanks
        + kind + bytes(100)
        + b"ustar\x0000"
    )  # fmt: skip
    block = bytearray(fields.ljust(BLOCK_BYTES, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax_record(key: bytes, value: bytes) -> bytes:
    """`LENGTH key=value\\n`, where LENGTH counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)

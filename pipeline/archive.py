"""A strict reader of zip archives that nobody vouches for: no name, size or count is believed.

Everything is taken from the central directory and checked against the bytes: entries may not
overlap, inflating stops at the declared size, the checksum must hold. One bad entry costs itself.
"""

import itertools
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from pipeline.tar import MEMBER_BUDGET_BYTES

STORED, DEFLATED = 0, 8
UNIX = 3
ENCRYPTED = 0x41  # bit 0, and bit 6 for the strong kind
UTF8 = 0x800
ZIP64 = 0xFFFFFFFF
CHUNK_BYTES = 2**18
_END = struct.Struct("<4s4H2LH")
_END_BEFORE = 2**16 + _END.size  # a comment of at most 64 KiB follows the end record
_LOCATOR = struct.Struct("<4sLQL")  # says where the 64-bit end record is: right before it
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class ZipFault(ValueError):
    """The archive, or one entry of it, cannot be used; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class ZipLimits:
    """What an archive may cost.

    Attributes:
        num_entries: Entries in the directory; each costs memory.
        directory_bytes: Length of the directory.
        member_bytes: One entry, inflated.
        total_bytes: All entries, inflated.
        ratio: Inflated to stored bytes, of an entry and of the whole archive. Images and metadata
            stay below 30; a bomb needs more, and deflate reaches 1,032.
        free_bytes: Up to this size the ratio does not matter: a flat mask shrinks a lot.
    """

    num_entries: int = 2_000_000
    directory_bytes: int = 512 * 2**20
    member_bytes: int = MEMBER_BUDGET_BYTES
    total_bytes: int = 2**40
    ratio: int = 100
    free_bytes: int = 2**20


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One file of the directory.

    Attributes:
        name: With `/` between parts; bytes that are not of the declared encoding are `\\xNN`.
        size_bytes: Declared size of the content; `read` holds the entry to it.
        packed_bytes: Its size in the archive.
        crc: CRC-32 of the content, as declared.
        method: 0 stored, 8 deflated.
        offset: Of its local header.
        fault: Why it must not be read, or "".
    """

    name: str
    size_bytes: int
    packed_bytes: int
    crc: int
    method: int
    offset: int
    fault: str = ""


class ZipArchive:
    """The files of a zip, in the directory's order; folders are left out.

    Attributes:
        entries: All files, the unusable ones with their fault.
    """

    def __init__(self, file: BinaryIO, limits: ZipLimits | None = None) -> None:
        """Read and check the directory of an open, seekable file.

        Raises:
            ZipFault: If it is no zip, or over a limit as a whole.
        """
        self._file = file
        self._limits = limits or ZipLimits()
        self._size_bytes = file.seek(0, os.SEEK_END)
        start, length = self._find_directory()
        if length > self._limits.directory_bytes:
            raise ZipFault(f"directory of {length} bytes, over {self._limits.directory_bytes}")
        file.seek(start)
        entries = self._checked(list(_parse(file.read(length), self._limits, self._shift)))
        self.entries = tuple(_without_overlaps(entries, start))
        self._check_total()

    def read(self, entry: ZipEntry) -> bytes:
        """Inflate one entry.

        Raises:
            ZipFault: If it has a fault, or does not hold exactly what the directory declares.
        """
        if entry.fault:
            raise ZipFault(entry.fault)
        data = b"".join(self._inflated(entry))
        if len(data) != entry.size_bytes:
            raise ZipFault(f"holds {len(data)} bytes where {entry.size_bytes} are declared")
        if zlib.crc32(data) != entry.crc:
            raise ZipFault("damaged: the checksum differs")
        return data

    def _inflated(self, entry: ZipEntry) -> Iterator[bytes]:
        """Yield the content piece by piece, never more than a byte beyond the declared size."""
        self._seek_data(entry)
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        left, room = entry.packed_bytes, entry.size_bytes + 1
        while left and room:
            packed = self._file.read(min(left, CHUNK_BYTES))
            if not packed:
                raise ZipFault("the archive is cut")
            left -= len(packed)
            deflated = entry.method == DEFLATED
            piece = _decompress(inflate, packed, room) if deflated else packed[:room]
            room -= len(piece)
            yield piece
        if not room:
            raise ZipFault(f"inflates to more than the {entry.size_bytes} bytes it declares")

    def _seek_data(self, entry: ZipEntry) -> None:
        """Go to an entry's content: its local header has lengths of its own."""
        self._file.seek(entry.offset)
        head = self._file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
            raise ZipFault("no local header where the directory says")
        *_, name_bytes, extra_bytes = _LOCAL.unpack(head)
        start = entry.offset + _LOCAL.size + name_bytes + extra_bytes
        if start + entry.packed_bytes > self._size_bytes:
            raise ZipFault("the archive is cut")
        self._file.seek(start)

    def _find_directory(self) -> tuple[int, int]:
        """Place and length of the central directory."""
        tail_at = max(0, self._size_bytes - _END_BEFORE)
        self._file.seek(tail_at)
        tail = self._file.read(_END_BEFORE)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) < at + _END.size:
            raise ZipFault("not a zip archive, or cut at its end")
        _, disk, first_disk, _, count, length, offset, _ = _END.unpack_from(tail, at)
        end = tail_at + at
        if ZIP64 in (length, offset) or count == 0xFFFF:
            end, disk, first_disk, count, length, offset = self._find_end64(
                end, (end, disk, first_disk, count, length, offset)
            )
        if disk or first_disk:
            raise ZipFault("one part of several; join the parts first")
        if count > self._limits.num_entries:
            raise ZipFault(f"{count} entries, over {self._limits.num_entries}; split the archive")
        self._shift = end - length - offset  # what was put before the archive, as by an installer
        if self._shift < 0:
            raise ZipFault("damaged: the directory is not where the end record says")
        return end - length, length

    def _find_end64(self, end: int, plain: tuple[int, ...]) -> tuple[int, ...]:
        """The same of a large archive: end, disks, count, length, offset."""
        at = end - _LOCATOR.size - _END64.size
        if at < 0:
            return plain
        self._file.seek(at)
        head = self._file.read(_END64.size)
        if not (head.startswith(b"PK\6\6") and self._file.read(4) == b"PK\6\7"):
            return plain
        *_, disk, first_disk, _, count, length, offset = _END64.unpack(head)
        return at, disk, first_disk, count, length, offset

    def _checked(self, entries: list[ZipEntry]) -> list[ZipEntry]:
        """Give every entry that may not be read its fault; a name counts once."""
        seen: set[str] = set()
        checked = []
        for entry in entries:
            fault = entry.fault or self._size_fault(entry)
            if not fault and entry.name in seen:
                fault = "the name appears again; the first one counts"
            seen.add(entry.name)
            checked.append(replace(entry, fault=fault))
        return checked

    def _size_fault(self, entry: ZipEntry) -> str:
        limits = self._limits
        if entry.size_bytes > limits.member_bytes:
            return f"{entry.size_bytes} bytes, over {limits.member_bytes} for one file"
        large = entry.size_bytes > limits.free_bytes
        if large and entry.size_bytes > limits.ratio * entry.packed_bytes:
            return (
                f"inflates {entry.packed_bytes} bytes to {entry.size_bytes}, over {limits.ratio}:1"
            )
        if entry.offset + _LOCAL.size + entry.packed_bytes > self._size_bytes:
            return "the archive is cut"
        return ""

    def _check_total(self) -> None:
        """Declared sizes may be added up, because `read` lets no entry hold more."""
        total = sum(entry.size_bytes for entry in self.entries if not entry.fault)
        limits = self._limits
        roomy = limits.ratio * self._size_bytes + 64 * limits.free_bytes
        if total > min(limits.total_bytes, roomy):
            raise ZipFault(f"inflates {self._size_bytes} bytes to {total}: looks like a bomb")


def _decompress(inflate: "zlib._Decompress", data: bytes, max_bytes: int) -> bytes:
    try:
        return inflate.decompress(data, max_bytes)
    except zlib.error as error:
        raise ZipFault(f"damaged ({error})") from None


def _parse(directory: bytes, limits: ZipLimits, shift: int) -> Iterator[ZipEntry]:
    """Yield the files of a central directory; folders are passed over."""
    at = count = 0
    while at < len(directory):
        if len(directory) < at + _CENTRAL.size or directory[at : at + 4] != b"PK\1\2":
            raise ZipFault(f"damaged directory at its byte {at}")
        fields = _CENTRAL.unpack_from(directory, at)
        name_at = at + _CENTRAL.size
        extra_at = name_at + fields[10]
        at = extra_at + fields[11] + fields[12]
        if at > len(directory):
            raise ZipFault("damaged directory: cut inside its last entry")
        count += 1
        if count > limits.num_entries:
            raise ZipFault(f"over {limits.num_entries} entries; split the archive")
        entry = _entry(fields, directory[name_at:extra_at], directory[extra_at:at], shift)
        if entry is not None:
            yield entry


def _entry(fields: tuple[int, ...], raw: bytes, extra: bytes, shift: int) -> ZipEntry | None:
    _, made_by, _, flags, method, _, _, crc, packed, size = fields[:10]
    mode, system = fields[15] >> 16, made_by >> 8
    size, packed, offset = _wide(extra, size, packed, fields[16])
    encoding = "utf-8" if flags & UTF8 else "cp437"
    name = raw.decode(encoding, "backslashreplace")
    if system != UNIX:
        name = name.replace("\\", "/")  # archives made on Windows by old tools
    if name.endswith("/") or (system == UNIX and stat.S_ISDIR(mode)):
        return None
    fault = _name_fault(name, raw, flags) or _kind_fault(
        flags, method, mode if system == UNIX else 0
    )
    return ZipEntry(name, size, packed, crc, method, offset + shift, fault)


def _wide(extra: bytes, *values: int) -> list[int]:
    """Sizes and offset, the 64-bit ones taken from the extra field where marked so."""
    wide: Iterator[int] = iter(())
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            body = extra[4 : 4 + length]
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
        extra = extra[4 + length :]
    return [next(wide, value) if value == ZIP64 else value for value in values]


def _name_fault(name: str, raw: bytes, flags: int) -> str:
    """Why an entry must not be used under its name, or ""."""
    if flags & UTF8:
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            return "name is not UTF-8"
    if name.startswith("/") or name[1:2] == ":":
        return "absolute name"
    if ".." in name.split("/"):
        return "name leaves the archive through '..'"
    if "\0" in name or "\\" in name:
        return "name holds a zero byte" if "\0" in name else "name holds a backslash"
    return "" if name else "empty name"


def _kind_fault(flags: int, method: int, mode: int) -> str:
    if flags & ENCRYPTED:
        return "encrypted"
    if stat.S_ISLNK(mode):
        return "a symbolic link, not a file"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "not a plain file"
    if method not in (STORED, DEFLATED):
        return f"compression method {method}; only stored and deflated entries are read"
    return ""


def _without_overlaps(entries: list[ZipEntry], end: int) -> Iterator[ZipEntry]:
    """Refuse entries whose bytes reach into another's: that is how a small file holds terabytes."""
    pairs = list(itertools.pairwise([*sorted(entry.offset for entry in entries), end]))
    doubled = {here for here, after in pairs if here == after}
    next_at = dict(pairs)
    for entry in entries:
        reach = entry.offset + _LOCAL.size + entry.packed_bytes
        if not entry.fault and (entry.offset in doubled or reach > next_at[entry.offset]):
            yield replace(entry, fault="overlaps another entry")
        else:
            yield entry

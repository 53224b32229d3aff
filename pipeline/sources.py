"""What a folder tree, a zip or a list of files holds, as far as it can be packed.

Nothing is read but names, sizes and lists; what should have been packed and cannot be is named with
its reason. Names that begin with a dot are passed over.
"""

import csv
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.archive import ZipArchive, ZipFault
from pipeline.errors import UserError
from pipeline.sample import IMAGE_SUFFIXES
from pipeline.tar import MEMBER_BUDGET_BYTES

COMPANION_SUFFIXES = ("cls", "json", "txt")


@dataclass(frozen=True, slots=True)
class Item:
    """One tar member to be.

    Attributes:
        name: In the tar.
        place: Path below the source, or name in the zip.
        size_bytes: Of the content.
        version: Tells whether the content changed: modification time, or a CRC-32.
        data: The content, where it stands in no file of its own.
    """

    name: str
    place: str
    size_bytes: int
    version: str
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An input that is not packed, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class Found:
    """What a source holds, by its name there: a relative path with `/`."""

    items: dict[str, Item] = field(default_factory=dict)
    columns: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def leave_out(self, name: str, reason: str) -> None:
        """Note an input that cannot be packed."""
        self.left_out.append(LeftOut(name, reason))


# ----------------------------------------------------------------------------------- folder


def from_folder(source: Path) -> Found:
    """Find the files below a folder, sorted by path; links to folders are not followed."""
    found = Found()
    for path in sorted(_files(source, found), key=lambda path: path.relative_to(source).parts):
        name = path.relative_to(source).as_posix()
        if _is_wanted(name, found):
            _add_file(found, name, path)
    return found


def _files(source: Path, found: Found) -> Iterator[Path]:
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                found.leave_out(_text(path.relative_to(source).as_posix()), "a link to a folder")
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _is_wanted(name: str, found: Found) -> bool:
    suffix = PurePosixPath(name).suffix[1:].lower()
    if suffix in IMAGE_SUFFIXES or suffix in COMPANION_SUFFIXES:
        return True
    found.ignored[_text(suffix)] += 1
    return False


def _add_file(found: Found, name: str, path: Path) -> None:
    """Take a file, or say why it is left out; nothing of it is read."""
    try:
        name.encode()
        there = path.stat()
    except UnicodeEncodeError:
        found.leave_out(_text(name), "name is not UTF-8; rename the file")
        return
    except FileNotFoundError:
        broken = path.is_symlink()
        found.leave_out(name, "a link to nothing" if broken else "no such file")
        return
    except (OSError, ValueError) as error:  # the latter for a zero byte
        found.leave_out(name, str(getattr(error, "strerror", error)))
        return
    if not stat.S_ISREG(there.st_mode):
        found.leave_out(name, "not a plain file")
    elif there.st_size > MEMBER_BUDGET_BYTES:
        found.leave_out(name, f"{there.st_size} bytes, over {MEMBER_BUDGET_BYTES} for one file")
    elif not os.access(path, os.R_OK):
        found.leave_out(name, "no permission to read")
    else:
        found.items[name] = Item("", name, there.st_size, str(there.st_mtime_ns))


def _text(name: str) -> str:
    """A name that can be printed, whatever bytes the file system has."""
    return name.encode("utf-8", "backslashreplace").decode()


# -------------------------------------------------------------------------------------- zip


def from_zip(source: Path) -> Found:
    """Find the files of a zip, sorted by path.

    Raises:
        UserError: If it is none, or over a limit as a whole.
    """
    found = Found()
    try:
        with source.open("rb") as file:
            entries = ZipArchive(file).entries
    except ZipFault as fault:
        raise UserError(f"{source}: {fault}") from None
    for entry in sorted(entries, key=lambda entry: entry.name.split("/")):
        if any(part.startswith(".") and part != ".." for part in entry.name.split("/")):
            continue
        if entry.name.startswith("__MACOSX/") or not _is_wanted(entry.name, found):
            continue
        if entry.fault:
            found.leave_out(entry.name, entry.fault)
        else:
            found.items[entry.name] = Item("", entry.name, entry.size_bytes, f"{entry.crc:08x}")
    return found


# ------------------------------------------------------------------------------------- list


def from_list(source: Path) -> Found:
    """Find the files that a list names, in its order; paths are relative to the list's folder.

    Raises:
        UserError: If it is no text, or no CSV with a column `path`.
    """
    found = Found()
    lines: dict[str, int] = {}
    for number, text, columns in _listed(source, found):
        name = _listed_name(source, text)
        where = f"line {number}: {_text(text)}"
        if not name:
            found.leave_out(where, "leaves the list's folder through '..'; give an absolute path")
        elif PurePosixPath(name).suffix[1:].lower() not in IMAGE_SUFFIXES:
            found.leave_out(where, "not the name of an image")
        elif name in lines:
            found.leave_out(where, f"listed again; line {lines[name]} counts")
        else:
            lines[name] = number
            _add_listed(found, source, name, text, where)
            if columns and name in found.items:
                found.columns[name] = columns
    return found


def _add_listed(found: Found, source: Path, name: str, text: str, where: str) -> None:
    """Take a listed file under `name`; it is read from where the list says."""
    before = len(found.left_out)
    _add_file(found, name, source.parent / text)
    if len(found.left_out) > before:
        found.left_out[-1] = LeftOut(where, found.left_out[-1].reason)
    else:
        item = found.items[name]
        found.items[name] = Item("", text, item.size_bytes, item.version)


def _listed_name(source: Path, text: str) -> str:
    """The name of a listed file in the shard, "" if it must not be used.

    An absolute path below the list's folder becomes relative to it; another loses its root.
    """
    path = Path(text)
    if ".." in path.parts:
        return ""
    if path.is_absolute():
        root = source.parent.resolve()
        path = (
            path.relative_to(root) if path.is_relative_to(root) else path.relative_to(path.anchor)
        )
    return path.as_posix()


def _listed(source: Path, found: Found) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield line number, path and the other columns of every line that names a file."""
    try:
        text = source.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{source}: not UTF-8 text; save the list as UTF-8") from None
    lines = list(io.StringIO(text))
    kind = source.suffix.lower()
    if kind == ".csv":
        yield from _csv_lines(source, lines, found)
    elif kind == ".jsonl":
        yield from _json_lines(lines, found)
    else:
        paths = (line.rstrip("\r\n") for line in lines)
        yield from ((number, path, {}) for number, path in enumerate(paths, 1) if path)


def _csv_lines(
    source: Path, lines: Sequence[str], found: Found
) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        names = reader.fieldnames or []
        if "path" not in names:
            raise UserError(f"{source}:1: no column `path`; found: {', '.join(names) or 'nothing'}")
        for row in reader:
            path = row.pop("path")
            if not path or None in row or None in row.values():
                found.leave_out(f"line {reader.line_num}", "not as many columns as the first line")
                continue
            yield reader.line_num, path, row
    except csv.Error as error:
        raise UserError(f"{source}:{reader.line_num}: not valid CSV: {error}") from None


def _json_lines(lines: Sequence[str], found: Found) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        path = row.pop("path", None) if isinstance(row, dict) else None
        if isinstance(path, str) and path:
            yield number, path, row
        else:
            found.leave_out(f"line {number}", 'no JSON object with a "path"')

"""What there is to pack: a folder tree, a zip or a list of files, as records in a fixed order.

Nothing is decoded. A record is an image and its companions:

- in a folder tree or zip, files that have the image's name but end in .json, .txt or .cls;
- in a list, the columns beside `path`, as KEY.json.
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.archive import ZipArchive, ZipFault
from pipeline.errors import RunError, UserError
from pipeline.sample import IMAGE_SUFFIXES
from pipeline.sources import Found, Item, LeftOut, from_folder, from_list, from_zip

LIST_SUFFIXES = (".txt", ".csv", ".jsonl")
# A dot would end the key there; the other two must be spelled for the spelling to stay unique.
SPELLED = str.maketrans({"%": "%25", ".": "%2E", "~": "%7E"})


Record = tuple[Item, ...]  # the image first


class Unpackable(ValueError):
    """One input cannot be read; the text says why. It is left out, the rest is packed."""


Read = Callable[[Item], bytes]


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What to pack, in order.

    Attributes:
        source: The folder, zip or list.
        records: Each an image and its companions, under names that share one key.
        left_out: What should have been packed and cannot be.
        ignored: Number of files that are no part of a record, by suffix.
    """

    source: Path
    records: tuple[Record, ...]
    left_out: tuple[LeftOut, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def images(self) -> tuple[tuple[str, Path], ...]:
        """Name in the tar and file of every image of a folder or list."""
        root = folder_of(self.source)
        return tuple((record[0].name, root / record[0].place) for record in self.records)

    @property
    def num_bytes(self) -> int:
        """Size of everything to pack."""
        return sum(item.size_bytes for record in self.records for item in record)


def plan_pack(source: Path) -> PackPlan:
    """Find what there is to pack; a folder and a zip are sorted, a list keeps its order.

    Raises:
        UserError: If `source` is nothing of the kind or holds no image.
    """
    if source.is_dir():
        found = from_folder(source)
    elif not source.is_file():
        raise UserError(f"{source}: no such folder; give a folder of images, a .zip or a list")
    elif source.suffix.lower() == ".zip":
        found = from_zip(source)
    elif source.suffix.lower() in LIST_SUFFIXES:
        found = from_list(source)
    else:
        raise UserError(
            f"{source}: expected a folder, a .zip, or a list ({', '.join(LIST_SUFFIXES)})"
        )
    records = _records(found, companions=source.is_dir() or source.suffix.lower() == ".zip")
    if not records:
        wanted = ", ".join(f".{suffix}" for suffix in IMAGE_SUFFIXES)
        bad = f"; {found.left_out[0].name}: {found.left_out[0].reason}" if found.left_out else ""
        raise UserError(f"{source}: no image in it (looked for {wanted}){bad}")
    return PackPlan(source, records, tuple(found.left_out), dict(sorted(found.ignored.items())))


def folder_of(source: Path) -> Path:
    """The folder below which the files of a source lie."""
    return source if source.is_dir() else source.parent


@contextmanager
def open_source(source: Path) -> Iterator[Read]:
    """Open a source; yields a function that reads an item and raises `Unpackable`.

    Raises:
        RunError: From the function, if a file is not what it was when the plan was made.
    """
    if source.suffix.lower() == ".zip" and source.is_file():
        with source.open("rb") as file:
            archive = ZipArchive(file)
            entries = {entry.name: entry for entry in archive.entries if not entry.fault}

            def inflate(item: Item) -> bytes:
                try:
                    return archive.read(entries[item.place])
                except ZipFault as fault:
                    raise Unpackable(str(fault)) from None

            yield inflate
        return
    root = folder_of(source)
    yield lambda item: _read_file(root / item.place, item)


def _read_file(path: Path, item: Item) -> bytes:
    if item.data is not None:
        return item.data
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path}: vanished while the folder was packed; start again") from None
    except OSError as error:
        raise Unpackable(str(error.strerror)) from None
    if len(data) != item.size_bytes:
        raise RunError(f"{path}: changed while it was packed; start again when nobody writes")
    return data


# ---------------------------------------------------------------------------------- records


def _records(found: Found, *, companions: bool) -> tuple[Record, ...]:
    """Join images and companions and give every record names that no other record has."""
    is_image = {n: _suffix(n) in IMAGE_SUFFIXES for n in found.items}
    images = [name for name, yes in is_image.items() if yes]
    beside: defaultdict[str, list[str]] = defaultdict(list)
    for name, yes in is_image.items():
        if not yes:
            beside[_stem(name)].append(name)
    num_images = Counter(map(_stem, images))
    if companions:
        _leave_out_orphans(found, beside, num_images)
    names = member_names([PurePosixPath(name) for name in images])
    return tuple(
        _record(found, place, name, beside[_stem(place)] if num_images[_stem(place)] == 1 else ())
        for place, name in zip(images, names, strict=True)
    )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _leave_out_orphans(
    found: Found, beside: Mapping[str, Sequence[str]], num_images: Mapping[str, int]
) -> None:
    for stem, names in beside.items():
        count = num_images.get(stem, 0)
        for name in names:
            if count == 0:
                found.ignored[_suffix(name)] += 1
            elif count > 1:
                found.leave_out(name, f"{count} images have that name; whose it is, is not clear")


def _record(found: Found, place: str, name: str, beside: Iterable[str]) -> Record:
    key = name.removesuffix(PurePosixPath(name).suffix)
    image = found.items[place]
    items = [Item(name, image.place, image.size_bytes, image.version)]
    taken: set[str] = set()
    for other in sorted(beside, key=lambda name: (_suffix(name), name)):
        suffix = _suffix(other)
        if suffix in taken:
            found.leave_out(other, "another file differs from it in upper and lower case alone")
            continue
        taken.add(suffix)
        item = found.items[other]
        items.append(Item(f"{key}.{suffix}", item.place, item.size_bytes, item.version))
    if place in found.columns:
        items.append(_columns_item(f"{key}.json", found.columns[place]))
    return tuple(items)


def _columns_item(name: str, columns: Mapping[str, Any]) -> Item:
    data = (json.dumps(columns, ensure_ascii=False, sort_keys=True) + "\n").encode(
        "utf-8", "backslashreplace"
    )
    return Item(name, "", len(data), f"{zlib.crc32(data):08x}", data)


def unspelled(key: str) -> str:
    """A record's key as the file was named that `member_names` made it of."""
    for spelling, sign in (("%7E", "~"), ("%2E", "."), ("%25", "%")):
        key = key.replace(spelling, sign)
    return key


def member_names(paths: Sequence[PurePosixPath]) -> list[str]:
    """Name the tar members of relative image paths so that no two share a key.

    A tar's key ends at the first dot of the file's name: `IMG_1.0.jpg` and `IMG_1.1.jpg` would
    merge, so dots inside a stem are spelled `%2E`. Files that differ in the suffix alone, `a.jpg`
    and `a.png`, keep it in the key: `a~jpg.jpg`, `a~png.png`.
    """
    keys = [path.with_name(path.stem.translate(SPELLED)).as_posix() for path in paths]
    shared = {key for key, count in Counter(keys).items() if count > 1}
    return [
        f"{key}{'~' + path.suffix[1:] if key in shared else ''}{path.suffix}"
        for key, path in zip(keys, paths, strict=True)
    ]

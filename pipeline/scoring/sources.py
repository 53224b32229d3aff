"""Where the images of a folder or of shards lie, each known by its key and its sha256.

A key is the image's path below the folder without its suffix, or its record's key in a shard: so a
folder and the shards that `vsp pack` made of it pair up.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.chunks import photo_key
from pipeline.errors import UserError
from pipeline.gather import unspelled
from pipeline.plan import find_photos, find_shards
from pipeline.sample import IMAGE_SUFFIXES, TRUTH_SUFFIX, split_name
from pipeline.storage import is_remote, open_input
from pipeline.tar import Place as Member
from pipeline.tar import TarFault, walk_tar

NUM_READERS = 8
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of one image are.

    Attributes:
        path: File or URL; "" for an image that is not there.
        offset: Byte of its first byte.
        size_bytes: Its length; -1 for the whole file.
        sha256: Of its bytes.
    """

    path: str
    offset: int = 0
    size_bytes: int = -1
    sha256: str = ""


NOWHERE = Place("")
Found = dict[str, Place]
Progress = Callable[[int, int], None]


def find_images(
    source: str,
    *,
    truths: bool = False,
    key_regex: str = "",
    on_progress: Progress = lambda done, total: None,
) -> Found:
    """Find and hash every image of a source, sorted by key.

    Args:
        source: A folder of images; or a tar, a folder or a pattern of tars, also s3://...
        truths: Prefer a record's `KEY.hq.*` where it holds several images; else its first other.
        key_regex: What of a key counts: the first group, or the whole match.
        on_progress: Called with how many of how many images are hashed.

    Raises:
        UserError: If there is none, a shard is broken, or two images have one key.
    """
    named = _of_folder(source) if _is_folder_of_images(source) else _of_shards(source, truths)
    pattern = _pattern(key_regex)
    found: Found = {}
    for key, place in named:
        short = _shortened(key, pattern, key_regex)
        if short in found:
            raise UserError(
                f"{source}: two images have the key {short!r} ({_name(found[short])} and "
                f"{_name(place)}); rename one, or choose another --key-regex"
            )
        found[short] = place
    if not found:
        raise UserError(f"{source}: no image")
    return _hashed(dict(sorted(found.items())), on_progress)


def read_place(place: Place, opened: BinaryIO | None = None) -> bytes:
    """The bytes of an image.

    Raises:
        OSError: If they cannot be read.
    """
    if opened is None:
        with open_input(place.path) as file:
            return read_place(place, file)
    opened.seek(place.offset)
    return opened.read(place.size_bytes)


def _is_folder_of_images(source: str) -> bool:
    if is_remote(source):
        return False
    path = Path(source)
    if not path.exists() and not set(source) & set("*?[{"):
        raise UserError(f"{source}: no such folder or shard")
    return path.is_dir() and not any(path.glob("*.tar"))


def _of_folder(source: str) -> Iterator[tuple[str, Place]]:
    root = Path(source)
    for name in find_photos(root, IMAGE_SUFFIXES):
        if photo_key(name) != name:
            raise UserError(f"{root}/{photo_key(name)}: name is not UTF-8; rename the file")
        key = PurePosixPath(name).with_suffix("").as_posix()
        yield key, Place(str((root / name).absolute()))


def _of_shards(source: str, truths: bool) -> Iterator[tuple[str, Place]]:
    for shard in find_shards(source):
        place = shard if is_remote(shard) else str(Path(shard).resolve())
        with open_input(shard) as file:
            try:
                members = list(walk_tar(file))
            except TarFault as fault:
                raise UserError(f"{shard}: {fault}; pack it again") from None
        for key, member in _images(members, truths).items():
            yield _checked(unspelled(key), shard), Place(place, member.body, member.size_bytes)


def _checked(key: str, shard: str) -> str:
    """A key that is the path of a file to be: images are written under it."""
    if ".." in PurePosixPath(key).parts:
        raise UserError(f"{shard}: the key {key!r} leaves its folder; pack it again")
    return key


def _images(members: Iterable[Member], truths: bool) -> dict[str, Member]:
    """One image a record: the truth if that is wanted and there, else the first other."""
    chosen: dict[str, tuple[bool, Member]] = {}
    for member in members:
        split = split_name(member.name)
        if split is None or member.fault or not member.is_plain:
            continue
        key, suffix = split
        is_truth = suffix.startswith(f"{TRUTH_SUFFIX}.")
        if suffix.rpartition(".")[2].lower() not in IMAGE_SUFFIXES or (is_truth and not truths):
            continue  # a record that was not restored still holds its truth
        if key not in chosen or (is_truth and not chosen[key][0]):
            chosen[key] = is_truth, member
    return {key: member for key, (_, member) in chosen.items()}


def _pattern(key_regex: str) -> re.Pattern[str] | None:
    try:
        return re.compile(key_regex) if key_regex else None
    except re.error as error:
        raise UserError(f"--key-regex {key_regex}: {error}; as '(.*)_restored'") from None


def _shortened(key: str, pattern: re.Pattern[str] | None, key_regex: str) -> str:
    if pattern is None:
        return key
    match = pattern.fullmatch(key)
    if match is None:
        raise UserError(f"--key-regex {key_regex}: does not match the whole of {key!r}")
    return match[1] if pattern.groups else match[0]


def _name(place: Place) -> str:
    return PurePosixPath(place.path).name


def _hashed(found: Found, on_progress: Progress) -> Found:
    with ThreadPoolExecutor(NUM_READERS) as readers:
        hashed = {}
        for key, place in zip(found, readers.map(_with_sha256, found.values()), strict=True):
            hashed[key] = place
            on_progress(len(hashed), len(found))
    return hashed


def _with_sha256(place: Place) -> Place:
    digest, size_bytes = hashlib.sha256(), 0
    with open_input(place.path) as file:
        file.seek(place.offset)
        left = place.size_bytes
        while left and (data := file.read(min(_CHUNK_BYTES, left) if left > 0 else _CHUNK_BYTES)):
            digest.update(data)
            size_bytes += len(data)
            left -= len(data) if left > 0 else 0
    return Place(place.path, place.offset, size_bytes, digest.hexdigest())

"""The pictures of a row, before and after: found by its number, read from the tars where they lie.

Nothing that a client sends is part of a path. Where the members of a tar lie is read once a shard,
from headers alone, and held as numbers: 20 bytes a picture.
"""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.cleaning.tables import REVIEW
from pipeline.sample import IMAGE_SUFFIXES
from pipeline.storage import Stat, Store, open_input, stat_input
from pipeline.tar import Place, TarFault, walk_tar

Side = Literal["before", "after"]
SIDES: tuple[Side, ...] = get_args(Side)
THUMBNAIL_PX = 96
_SHOWN_BY_BROWSERS = ("jpeg", "png", "webp", "bmp")


class NoPicture(LookupError):
    """Why there is no picture to show, in one line for the page."""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Where the images of a tar lie.

    Attributes:
        version: What identifies the tar's content.
        names: (N,) uint64, digests of the members' names, sorted.
        bodies: (N,) int64, byte of each body.
        sizes: (N,) int64, its bytes.
    """

    version: Stat
    names: NDArray[np.uint64]
    bodies: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def find(self, name: str) -> tuple[int, int] | None:
        """Byte and size of a member's body; None if the tar has none of that name."""
        wanted = _digest(name)
        at = int(np.searchsorted(self.names, np.uint64(wanted)))
        if at == len(self.names) or int(self.names[at]) != wanted:
            return None
        return int(self.bodies[at]), int(self.sizes[at])


class Pictures:
    """The pictures of a cleaning run; usable from several threads."""

    def __init__(self, store: Store, sources: Mapping[str, str]) -> None:
        """Look at nothing yet.

        Args:
            store: The run's output folder.
            sources: Shard -> path or URL of its input tar, of the run's plan.
        """
        self._store = store
        self._sources = sources
        self._indices: dict[str, Members] = {}
        self._lock = threading.Lock()

    def read(self, values: Mapping[str, Any], side: Side) -> bytes:
        """The bytes of a row's picture as they are stored.

        Args:
            values: The row's manifest columns.
            side: Of the input, or of what became of it.

        Raises:
            NoPicture: Where there is none, or it cannot be read now.
        """
        url, name = self._where(values, side)
        try:
            place = self._members(url).find(name)
            if place is None:
                raise NoPicture("not in the tar any more")
            with open_input(url) as file:
                file.seek(place[0])
                return file.read(place[1])
        except FileNotFoundError:
            raise NoPicture("the input is gone" if side == "before" else "not there") from None
        except OSError as error:
            raise NoPicture(f"cannot be read ({error.strerror or 'input/output error'})") from None

    def _where(self, values: Mapping[str, Any], side: Side) -> tuple[str, str]:
        """Tar and name of the member."""
        shard, member, outcome = values["shard"], values["member"], values["outcome"]
        if member is None:
            raise NoPicture(absent(values))
        if side == "before":
            if shard not in self._sources:
                raise NoPicture("the input is gone: the plan does not know this shard")
            return self._sources[shard], member
        if outcome == "restored":
            return self._inside(f"{shard}.tar"), member
        if outcome == "fallback":
            return self._inside(f"{REVIEW}/{shard}.tar"), f"{values['index']:06d}.jpg"
        raise NoPicture("not restored")

    def _inside(self, name: str) -> str:
        return f"{self._store.url.rstrip('/')}/{name}"

    def _members(self, url: str) -> Members:
        version = stat_input(url)
        if version is None:
            raise FileNotFoundError(url)
        with self._lock:
            known = self._indices.get(url)
        if known is None or known.version != version:
            known = _index(url, version)
            with self._lock:
                self._indices[url] = known
        return known


def absent(values: Mapping[str, Any]) -> str:
    """Why a row has no picture at all."""
    if values["outcome"] == "forgotten":
        return "removed on request"
    return values["note"] or "a record without an image"


def servable(data: bytes) -> tuple[str, bytes]:
    """Media type and bytes that a browser shows; what it does not know is made a PNG.

    Raises:
        NoPicture: If the bytes are no image.
    """
    try:
        format = images.read_header(data).format
        if format in _SHOWN_BY_BROWSERS:
            return f"image/{format}", data
        return "image/png", images.encode(images.decode(data)[1], "png")
    except images.ImageFault as fault:
        raise NoPicture(f"no picture in this file: {fault}") from None


def thumbnail(data: bytes) -> tuple[str, bytes]:
    """Media type and bytes of a small copy, its longer side at most `THUMBNAIL_PX`.

    Raises:
        NoPicture: If the bytes are no image.
    """
    try:
        pixels = images.decode(data)[1]
    except images.ImageFault as fault:
        raise NoPicture(f"no picture in this file: {fault}") from None
    height, width = pixels.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    small = images.fit(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
    return "image/jpeg", images.encode(small, "jpeg")


def _index(url: str, version: Stat) -> Members:
    """Walk a tar; of several members of one name the first counts, as in a run."""
    with open_input(url) as file:
        found = [
            (_digest(place.name), place.body, place.size_bytes)
            for place in _until_fault(walk_tar(file))
            if not place.fault and place.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
        ]
    names = np.array([each[0] for each in found], np.uint64)
    bodies, sizes = (np.array([each[i] for each in found], np.int64) for i in (1, 2))
    names, first = np.unique(names, return_index=True)
    return Members(version, names, bodies[first], sizes[first])


def _until_fault(places: Iterable[Place]) -> Iterable[Place]:
    """A tar that breaks has the members before that."""
    try:
        yield from places
    except TarFault:
        return


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest())

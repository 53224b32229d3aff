"""The pictures of a report: read where they are, checked, stored once under names of our making."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator

from PIL import Image

from pipeline import images
from pipeline.containers import ImageFault
from pipeline.scoring.sources import Place, read_place
from pipeline.storage import open_input

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""What browsers show, by the name that `images.read_header` has for it."""
NOTE = "!"  # begins what stands in the place of a picture's name
GONE = f"{NOTE}not found any more"
CHANGED = f"{NOTE}changed since it was scored: left out"
THUMB_PX = 256
THUMB_QUALITY = 75
_NAME_DIGITS = 24

Shelve = Callable[[bytes, str], str]
"""Takes an image's bytes and its sha256, and gives the name under which a page finds it."""


class Album:
    """Pictures by their sha256: one that several methods share is read and kept once."""

    def __init__(self, shelve: Shelve) -> None:
        """`shelve` stores one picture."""
        self._shelve = shelve
        self._names: dict[str, str] = {}

    def name(self, place: Place) -> str:
        """Under which name a page finds it; "" for none, a note behind "!" if it is left out."""
        return self._names[place.sha256] if place.path else ""

    def add(self, places: Iterable[Place]) -> None:
        """Read pictures that are not there yet, file by file and front to back."""
        new = {p.sha256: p for p in places if p.path and p.sha256 not in self._names}
        ordered = sorted(new.values(), key=lambda place: (place.path, place.offset))
        for place, data in _contents(ordered):
            self._names[place.sha256] = self._kept(place, data)

    def _kept(self, place: Place, data: bytes | None) -> str:
        if data is None:
            return GONE
        if hashlib.sha256(data).hexdigest() != place.sha256:
            return CHANGED
        try:
            return self._shelve(data, place.sha256)
        except ImageFault as fault:
            return f"{NOTE}{fault}"


def _contents(places: Iterable[Place]) -> Iterator[tuple[Place, bytes | None]]:
    """The bytes of each, None where they cannot be read; a tar is opened once."""
    path, opened = None, None
    try:
        for place in places:
            if place.path != path:
                if opened:
                    opened.close()
                path, opened = place.path, None
                try:
                    opened = open_input(place.path)
                except OSError:
                    opened = None
            try:
                yield place, read_place(place, opened) if opened else None
            except OSError:
                yield place, None
    finally:
        if opened:
            opened.close()


def showable(data: bytes) -> tuple[bytes, str]:
    """An image's own bytes where browsers show them, else a PNG; and the suffix.

    Raises:
        ImageFault: If it is no image, or a damaged one.
    """
    header = images.read_header(data)
    if header.width * header.height > images.PIXEL_BUDGET:
        raise images.ImageFault(f"{header.width} x {header.height}: too large to be shown")
    if header.format in SUFFIXES:
        return data, SUFFIXES[header.format]
    return images.encode(images.decode(data)[1], "png"), "png"


def file_name(sha256: str, suffix: str) -> str:
    """Where a picture lies below the folder of pictures; hexadecimal whatever the row said."""
    digest = sha256[:_NAME_DIGITS]
    return f"{digest[:2]}/{digest[2:]}.{suffix}"


def thumbnail(data: bytes) -> bytes:
    """A WebP of at most 256 pixels a side.

    Raises:
        ImageFault: If it is no image, or a damaged one.
    """
    pixels = images.decode(data)[1]
    height, width = pixels.shape[:2]
    share = min(1.0, THUMB_PX / max(height, width))
    small = images.fit(pixels, max(1, round(width * share)), max(1, round(height * share)))
    file = io.BytesIO()
    Image.fromarray(small).save(file, "WEBP", quality=THUMB_QUALITY)
    return file.getvalue()

"""The directory of a TIFF: read without decoding a pixel, and written anew around other pixels.

Pillow writes no 16-bit colours and OpenCV no tags; hence a reader and a writer of our own. Only
what TIFF 6.0 calls baseline is written: one picture, strips, no compression or deflate.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline.containers import ImageFault, Samples

Order = Literal["<", ">"]
SIGNATURES = (b"II*\0", b"MM\0*")
(SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, ORIENTATION,
 NUM_SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES,
 SAMPLE_FORMAT) = (
    254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 317, 322, 323, 338, 339,
)  # fmt: skip
GRAY, RGB, CMYK = 1, 2, 5
_UNCOMPRESSED, _DEFLATE, _HORIZONTAL, _UNASSOCIATED = 1, 8, 2, 2
# They describe how the old pixels were stored, or point at other pictures.
_PIXEL_TAGS = {
    WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, NUM_SAMPLES, ROWS_PER_STRIP,
    STRIP_BYTES, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT, *range(322, 326), 263, 264, 265, 266,
    280, 281, 284, *range(288, 294), 320, 330, *range(332, 335), 336, 337, 340, 341, 347,
    *range(512, 522), *range(529, 533),
}  # fmt: skip
_DIRECTORY_TAGS = {34665, 34853, 40965}  # EXIF, GPS, interoperability
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SHORT, _LONG = 3, 4
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I"}
_MAX_DEPTH, _MAX_FRAMES = 3, 1000
_STRIP_BYTES_WANTED = 2**20


class Tag(NamedTuple):
    """One entry of a directory: its values as the bytes of the file, or a directory of its own."""

    type: int
    num_values: int
    payload: bytes
    directory: Mapping[int, "Tag"] | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """The first picture's tags.

    Attributes:
        order: "<" or ">", as in `struct`.
        tags: By number.
        orientation_at: Where the file holds the value of the orientation tag, 0 without one.
    """

    order: Order
    tags: Mapping[int, Tag]
    orientation_at: int

    def values(self, number: int, default: int = 0) -> tuple[int, ...]:
        """Return a tag's integers, `(default,)` where it is absent or no integer."""
        tag = self.tags.get(number)
        if tag is None or tag.type not in _INTEGERS or not tag.num_values:
            return (default,)
        return struct.unpack(f"{self.order}{tag.num_values}{_INTEGERS[tag.type]}", tag.payload)

    def value(self, number: int, default: int = 0) -> int:
        """Return a tag's first integer."""
        return self.values(number, default)[0]


def read_directory(data: bytes) -> Directory:
    """Read the tags of the only picture in a TIFF.

    A second page that calls itself a reduced copy (a thumbnail) doesn't count as a picture.

    Raises:
        ImageFault: If the directory is damaged, or there are several pictures.
    """
    if data[2:4] in (b"+\0", b"\0+"):
        raise ImageFault("BigTIFF; save it as a plain TIFF")
    order: Order = "<" if data.startswith(b"II") else ">"
    try:
        start = struct.unpack_from(f"{order}I", data, 4)[0]
        first = Directory(
            order, _read_tags(data, order, start), _orientation_at(data, order, start)
        )
        refuse_pages(data, order, start)
    except struct.error:
        raise ImageFault("damaged TIFF directory") from None
    return first


def refuse_pages(data: bytes, order: Order, start: int) -> None:
    """Raise `ImageFault` where full-size pictures follow the one whose directory is at `start`."""
    num_pictures, seen = 0, {0}
    while start not in seen and len(seen) < _MAX_FRAMES:
        seen.add(start)
        (num_tags,) = struct.unpack_from(f"{order}H", data, start)
        kind = 0
        for at in range(start + 2, start + 2 + 12 * num_tags, 12):
            number, value_type = struct.unpack_from(f"{order}HH", data, at)
            if number == SUBFILE and value_type == _LONG:
                kind = struct.unpack_from(f"{order}I", data, at + 8)[0]
        num_pictures += not (kind & 1 and num_pictures)
        (start,) = struct.unpack_from(f"{order}I", data, start + 2 + 12 * num_tags)
    if num_pictures > 1:
        raise ImageFault(f"{num_pictures} frames; give one picture")


def _read_tags(data: bytes, order: Order, start: int, depth: int = 0) -> dict[int, Tag]:
    tags = {}
    (num_tags,) = struct.unpack_from(f"{order}H", data, start)
    for at in range(start + 2, start + 2 + 12 * num_tags, 12):
        number, value_type, count = struct.unpack_from(f"{order}HHI", data, at)
        size = _TYPE_BYTES.get(value_type, 0) * count
        if not size:
            continue
        (offset,) = struct.unpack_from(f"{order}I", data, at + 8)
        place = offset if size > 4 else at + 8
        if place + size > len(data):
            raise ImageFault(f"damaged or cut TIFF (tag {number})")
        payload = data[place : place + size]
        inner = None
        if number in _DIRECTORY_TAGS:
            if depth == _MAX_DEPTH or size != 4:
                continue
            inner = _read_tags(data, order, offset, depth + 1)
        tags[number] = Tag(value_type, count, payload, inner)
    return tags


def _orientation_at(data: bytes, order: Order, start: int) -> int:
    (num_tags,) = struct.unpack_from(f"{order}H", data, start)
    for at in range(start + 2, start + 2 + 12 * num_tags, 12):
        if struct.unpack_from(f"{order}HH", data, at) == (ORIENTATION, _SHORT):
            return at + 8
    return 0


def unturned(data: bytes, directory: Directory) -> bytes:
    """Return the file with its orientation tag set to 1, because both codecs turn the pixels."""
    at = directory.orientation_at
    if directory.value(ORIENTATION, 1) == 1 or not at:
        return data
    return data[:at] + struct.pack(f"{directory.order}H", 1) + data[at + 2 :]


def write_tiff(samples: Samples, original: bytes) -> bytes:
    """Write (H, W, 1 to 4) samples as a TIFF with the tags of `original`.

    Uncompressed stays uncompressed; any other compression becomes deflate, without loss.

    Args:
        samples: Gray, gray + alpha, RGB or RGBA, 8 or 16 bits.
        original: The TIFF whose other tags are kept, EXIF and GPS directories included.
    """
    directory = read_directory(original)
    order = directory.order
    compression = _UNCOMPRESSED if directory.value(COMPRESSION, 1) == _UNCOMPRESSED else _DEFLATE
    num_rows, strips = _strips(samples, order, compression)
    out = bytearray(b"II*\0" if order == "<" else b"MM\0*") + bytes(4)
    offsets = []
    for strip in strips:
        offsets.append(len(out))
        out += strip
    tags = {number: tag for number, tag in directory.tags.items() if number not in _PIXEL_TAGS}
    sizes = [len(strip) for strip in strips]
    layout = _layout(samples, directory, compression, num_rows)
    for number, values in (layout | {STRIP_OFFSETS: offsets, STRIP_BYTES: sizes}).items():
        wide = number in (WIDTH, HEIGHT, ROWS_PER_STRIP, STRIP_OFFSETS, STRIP_BYTES)
        payload = struct.pack(f"{order}{len(values)}{'I' if wide else 'H'}", *values)
        tags[number] = Tag(_LONG if wide else _SHORT, len(values), payload)
    start = _append_directory(out, order, tags)
    out[4:8] = struct.pack(f"{order}I", start)
    return bytes(out)


def _layout(
    samples: Samples, directory: Directory, compression: int, num_rows: int
) -> dict[int, list[int]]:
    height, width, num_samples = samples.shape
    layout = {
        WIDTH: [width], HEIGHT: [height], BITS: [8 * samples.itemsize] * num_samples,
        COMPRESSION: [compression], NUM_SAMPLES: [num_samples], ROWS_PER_STRIP: [num_rows],
        PHOTOMETRIC: [RGB if num_samples > 2 else GRAY],
    }  # fmt: skip
    if compression == _DEFLATE:
        layout[PREDICTOR] = [_HORIZONTAL]
    if num_samples % 2 == 0:
        # Pillow gives 8-bit colours free of their alpha; OpenCV leaves 16-bit ones as they are.
        kept = directory.value(EXTRA_SAMPLES, _UNASSOCIATED)
        layout[EXTRA_SAMPLES] = [kept if samples.itemsize == 2 else _UNASSOCIATED]
    return layout


def _strips(samples: Samples, order: Order, compression: int) -> tuple[int, list[bytes]]:
    height, width, num_samples = samples.shape
    num_rows = min(height, max(1, _STRIP_BYTES_WANTED // (width * num_samples * samples.itemsize)))
    strips = []
    for top in range(0, height, num_rows):
        rows = np.ascontiguousarray(samples[top : top + num_rows])
        if compression == _DEFLATE:
            rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1)
        stored = rows.astype(rows.dtype.newbyteorder(order), copy=False).tobytes()
        strips.append(zlib.compress(stored) if compression == _DEFLATE else stored)
    return num_rows, strips


def _append_directory(out: bytearray, order: Order, tags: Mapping[int, Tag]) -> int:
    """Append what a directory's tags point at, then the directory; return where it starts."""
    entries = bytearray()
    for number, tag in sorted(tags.items()):
        payload = tag.payload
        if tag.directory is not None:
            payload = struct.pack(f"{order}I", _append_directory(out, order, tag.directory))
        if len(payload) > 4:
            out += bytes(len(out) % 2)
            place = struct.pack(f"{order}I", len(out))
            out += payload
            payload = place
        entries += struct.pack(f"{order}HHI", number, tag.type, tag.num_values)
        entries += payload.ljust(4, b"\0")
    out += bytes(len(out) % 2)
    start = len(out)
    out += struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return start

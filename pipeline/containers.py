"""What lies around the pixels in a file: PNG chunks, JPEG segments, WebP chunks, BMP fields.

Read, checked and carried over byte for byte; nothing here decodes a pixel. TIFF tags are in
`tiff.py`.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
"""(H, W, C), uint8 or uint16: gray, gray + alpha, RGB or RGBA."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GRAY, PNG_RGB, PNG_PALETTE, PNG_GRAY_ALPHA, PNG_RGBA = 0, 2, 3, 4, 6  # PNG, table 11.1
_PNG_COLOR_TYPES = {1: PNG_GRAY, 2: PNG_GRAY_ALPHA, 3: PNG_RGB, 4: PNG_RGBA}
# In the order in which they have to come.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Their meaning hangs on the colour type and the depth, which a palette or 1, 2, 4 bits lose.
_PNG_TIED = {b"bKGD", b"hIST", b"sBIT"}
_PNG_ANCILLARY = 0x20  # the case of the first letter of a chunk's kind
_PNG_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
# A filter that needs the left neighbour alone, and runs only: what OpenCV takes, and as quick.
_PNG_SUB = 1
_PNG_BAND_BYTES = 4 * 2**20


class ImageFault(ValueError):
    """The bytes are no image that can be used; the text says why, in one line."""


class Chunk(NamedTuple):
    """One piece of a file: `data[start:end]`, length and checksum included."""

    kind: bytes
    start: int
    end: int


# ---------------------------------------------------------------------------------------- PNG


def png_chunks(data: bytes) -> list[Chunk]:
    """List the chunks of a PNG up to its end; those that make the pixels have right checksums.

    Raises:
        ImageFault: If a chunk is cut or damaged, or there are several frames.
    """
    chunks: list[Chunk] = []
    start, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise ImageFault("cut PNG")
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if end > len(data):
            raise ImageFault("cut PNG")
        if kind in _PNG_PIXELS:
            checksum = int.from_bytes(data[end - 4 : end], "big")
            if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != checksum:
                raise ImageFault(f"damaged PNG (checksum of {kind.decode()})")
        elif kind == b"acTL":
            refuse_frames(int.from_bytes(data[start + 8 : start + 12], "big"))
        elif not kind[0] & _PNG_ANCILLARY:
            raise ImageFault("damaged PNG (unknown chunk)")
        chunks.append(Chunk(kind, start, end))
        start = end
    _check_order(chunks, data[25])
    return chunks


def _check_order(chunks: Sequence[Chunk], color_type: int) -> None:
    found = [chunk.kind for chunk in chunks if chunk.kind in _PNG_PIXELS]
    once = [kind for place, kind in enumerate(found) if kind != b"IDAT" or found[place - 1] != kind]
    wanted = [kind for kind in _PNG_PIXELS if kind in found]
    if once != wanted or b"IDAT" not in found:
        raise ImageFault("damaged PNG (order of chunks)")
    if color_type == PNG_PALETTE and b"PLTE" not in found:
        raise ImageFault("damaged PNG (no palette)")


def refuse_frames(num_frames: int) -> None:
    """Raise `ImageFault` if there are more frames than one."""
    if num_frames > 1:
        raise ImageFault(f"{num_frames} frames; give one picture")


def png_pixels_only(data: bytes) -> bytes:
    """Leave out every chunk that does not make the pixels.

    libpng complains about colour profiles and the like on stderr, and OpenCV can't silence it.

    Raises:
        ImageFault: As `png_chunks`.
    """
    chunks = png_chunks(data)
    kept = [chunk for chunk in chunks if chunk.kind in _PNG_PIXELS]
    if len(kept) == len(chunks):
        return data
    return PNG_SIGNATURE + b"".join(data[chunk.start : chunk.end] for chunk in kept)


def png_payload(data: bytes, kind: bytes) -> bytes:
    """Return what the first chunk of a kind holds, b"" without one."""
    found = (chunk for chunk in png_chunks(data) if chunk.kind == kind)
    return next((data[chunk.start + 8 : chunk.end - 4] for chunk in found), b"")


def write_png(samples: Samples, original: bytes) -> bytes:
    """Write (H, W, 1 to 4) samples as a PNG with the ancillary chunks of `original`.

    OpenCV writes no gray with alpha, and Pillow no 16-bit colours; hence a writer of our own.

    Args:
        samples: Gray, gray + alpha, RGB or RGBA, 8 or 16 bits.
        original: The PNG whose other chunks are kept, byte for byte and in their order.
    """
    height, width, num_samples = samples.shape
    layout = (8 * samples.itemsize, _PNG_COLOR_TYPES[num_samples])
    left_out = _PNG_ANIMATION.union(_PNG_PIXELS)
    if layout != (original[24], original[25]):
        left_out |= _PNG_TIED
    before: list[bytes] = []
    after: list[bytes] = []
    seen = False
    for chunk in png_chunks(original):
        seen = seen or chunk.kind == b"IDAT"
        if chunk.kind not in left_out:
            (after if seen else before).append(original[chunk.start : chunk.end])
    header = struct.pack(">IIBBBBB", width, height, *layout, 0, 0, 0)
    parts = [PNG_SIGNATURE, _png_chunk(b"IHDR", header), *before]
    parts += [_png_chunk(b"IDAT", part) for part in _png_stream(samples)]
    return b"".join([*parts, *after, _png_chunk(b"IEND", b"")])


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(payload, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", checksum)])


def _png_stream(samples: Samples) -> Iterator[bytes]:
    """Filter and compress in bands of rows, so that no second copy of the image is made."""
    height, width, num_samples = samples.shape
    step = num_samples * samples.itemsize
    deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    num_rows = max(1, _PNG_BAND_BYTES // (width * step))
    for top in range(0, height, num_rows):
        band = np.ascontiguousarray(samples[top : top + num_rows])
        rows = band.astype(band.dtype.newbyteorder(">"), copy=False)
        stored = rows.view(np.uint8).reshape(len(rows), width * step)
        filtered = np.empty((len(rows), 1 + width * step), np.uint8)
        filtered[:, 0] = _PNG_SUB
        filtered[:, 1 : 1 + step] = stored[:, :step]
        np.subtract(stored[:, step:], stored[:, :-step], out=filtered[:, 1 + step :])
        yield deflate.compress(filtered.data)
    yield deflate.flush()


# --------------------------------------------------------------------------------------- JPEG

_APP0, _APP1, _APP2, _APP15, _COMMENT, _SCAN = 0xE0, 0xE1, 0xE2, 0xEF, 0xFE, 0xDA


def jpeg_segments(data: bytes) -> list[Chunk]:
    """List the segments of a JPEG between its first marker and its first scan.

    Raises:
        ImageFault: If it ends before a scan.
    """
    segments: list[Chunk] = []
    start = 2
    while True:
        while data[start : start + 2] == b"\xff\xff":  # fill bytes
            start += 1
        if start + 4 > len(data) or data[start] != 0xFF:
            raise ImageFault("cut or damaged JPEG")
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if data[start + 1] == _SCAN:
            return segments
        segments.append(Chunk(data[start + 1 : start + 2], start, end))
        start = end


def jpeg_exif(data: bytes) -> bytes:
    """Return the EXIF block of a JPEG, b"" without one."""
    for kind, start, end in jpeg_segments(data):
        if kind[0] == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return data[start + 10 : end]
    return b""


def splice_jpeg(encoded: bytes, original: bytes) -> bytes:
    """Give a JPEG the application segments and comments of another, byte for byte.

    Only the index of a multi-picture file is left out, because the pictures behind the first one
    that it points at are not kept.
    """
    kept = [original[start:end] for kind, start, end in jpeg_segments(original)
            if _is_metadata(kind[0]) and not (
                kind[0] == _APP2 and original[start + 4 : start + 8] == b"MPF\0")]  # fmt: skip
    segments = jpeg_segments(encoded)
    tables = [encoded[start:end] for kind, start, end in segments if not _is_metadata(kind[0])]
    return b"".join([b"\xff\xd8", *kept, *tables, encoded[segments[-1].end :]])


def _is_metadata(marker: int) -> bool:
    return _APP0 <= marker <= _APP15 or marker == _COMMENT


# --------------------------------------------------------------------------------------- WebP

_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"ALPH"}
_WEBP_FLAGS = {b"ICCP": 0x20, b"ALPH": 0x10, b"EXIF": 0x08, b"XMP ": 0x04}
_WEBP_ANIMATED, _WEBP_ALPHA = 0x02, 0x10


def webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height of a WebP from its first chunk.

    Raises:
        ImageFault: If the chunk is damaged or of an unknown kind, or there are several frames.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) == 10:
        if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack("<HH", body[6:])
            return width & 0x3FFF, height & 0x3FFF
        if kind == b"VP8L" and body[0] == 0x2F:
            bits = int.from_bytes(body[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8X":
            if body[0] & _WEBP_ANIMATED:
                refuse_frames(sum(chunk.kind == b"ANMF" for chunk in webp_chunks(data)))
                raise ImageFault("animated WebP; give one picture")
            width, height = (int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
            return width + 1, height + 1
    raise ImageFault("damaged WebP header")


def webp_chunks(data: bytes) -> list[Chunk]:
    """List the chunks of a WebP, each with its padding; a cut last one is left out."""
    chunks, start = [], 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        end = start + 8 + size + size % 2
        if start + 8 + size > len(data):
            break
        chunks.append(Chunk(data[start : start + 4], start, end))
        start = end
    return chunks


def webp_payload(data: bytes, kind: bytes) -> bytes:
    """Return what the first chunk of a kind holds, b"" without one."""
    for name, start, _ in webp_chunks(data):
        if name == kind:
            size = int.from_bytes(data[start + 4 : start + 8], "little")
            return data[start + 8 : start + 8 + size]
    return b""


def splice_webp(encoded: bytes, original: bytes, width: int, height: int) -> bytes:
    """Give a WebP every chunk of another that does not make its pixels, byte for byte."""
    pixels = [chunk for chunk in webp_chunks(encoded) if chunk.kind in _WEBP_PIXELS]
    others = [chunk for chunk in webp_chunks(original)
              if chunk.kind not in _WEBP_PIXELS and chunk.kind != b"VP8X"]  # fmt: skip
    if not others:
        return encoded
    flags = 0
    for chunk in [*pixels, *others]:
        flags |= _WEBP_FLAGS.get(chunk.kind, 0)
    lossless = next((chunk for chunk in pixels if chunk.kind == b"VP8L"), None)
    if lossless and encoded[lossless.start + 12] & 0x10:  # its own word about alpha
        flags |= _WEBP_ALPHA
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    head = b"VP8X" + struct.pack("<II", 10, flags) + size
    profile = [chunk for chunk in others if chunk.kind == b"ICCP"]
    rest = [chunk for chunk in others if chunk.kind != b"ICCP"]
    body = b"".join([b"WEBP", head, *_cut(original, profile), *_cut(encoded, pixels),
                     *_cut(original, rest)])  # fmt: skip
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _cut(data: bytes, chunks: Iterable[Chunk]) -> list[bytes]:
    """Cut chunks out of a file; the padding of the last one may be missing there."""
    return [data[start:end].ljust(end - start, b"\0") for _, start, end in chunks]

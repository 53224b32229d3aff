"""A photo of which only some pixels are changed: everything else of its file is kept.

What each format keeps and loses stands at `Photo.encode`.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from pipeline import containers, images, tiff
from pipeline.containers import ImageFault, Samples
from pipeline.images import PIXEL_BUDGET, Format, Header, Pixels

WEBP_QUALITY = 95
_SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}
_EXIF_ORIENTATION = 0x0112
_BMP_RESOLUTION = slice(38, 46)

_Turn = Callable[[Samples], Samples]


def _as_it_is(stored: Samples) -> Samples:
    return stored


def _turn_right(stored: Samples) -> Samples:
    return np.rot90(stored, -1)


def _turn_left(stored: Samples) -> Samples:
    return np.rot90(stored)


def _transpose(stored: Samples) -> Samples:
    return stored.swapaxes(0, 1)


def _transverse(stored: Samples) -> Samples:
    return stored[::-1, ::-1].swapaxes(0, 1)


# EXIF orientation -> what makes the stored pixels upright, and what undoes it; views, no copies.
_TURNS: dict[int, tuple[_Turn, _Turn]] = {
    1: (_as_it_is, _as_it_is),
    2: (np.fliplr, np.fliplr),
    3: (lambda stored: stored[::-1, ::-1], lambda upright: upright[::-1, ::-1]),
    4: (np.flipud, np.flipud),
    5: (_transpose, _transpose),
    6: (_turn_right, _turn_left),
    7: (_transverse, _transverse),
    8: (_turn_left, _turn_right),
}


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo together with its file.

    Attributes:
        data: The file.
        header: Format, and size as stored.
        orientation: EXIF's, 1 to 8.
        stored: (H, W, C) as stored, uint8 or uint16: gray, gray + alpha, RGB or RGBA.
    """

    data: bytes
    header: Header
    orientation: int
    stored: Samples

    @property
    def format(self) -> Format:
        """The file's format, which `encode` keeps."""
        return self.header.format

    @property
    def color(self) -> Samples:
        """(H, W, 3) RGB or (H, W, 1) gray, upright, uint8 or uint16: a view, not to be written."""
        upright = _TURNS[self.orientation][0](self.stored)
        return upright[:, :, : self._num_colors]

    @property
    def num_bytes(self) -> int:
        """What the photo holds in memory: its file and its pixels."""
        return len(self.data) + self.stored.nbytes

    @property
    def _num_colors(self) -> int:
        return 1 if self.stored.shape[2] < 3 else 3

    def rgb8(self) -> Pixels:
        """Return the picture upright as (H, W, 3) uint8 RGB, for detection and alignment."""
        return images.to_rgb8(self.color)

    def encode(self, color: Samples) -> bytes:
        """Make the file again with other colours; for a lossless format they come back bit by bit.

        Always kept: format, size, depth, gray, alpha, EXIF (byte for byte, so the pixels are
        turned back to how they were stored), ICC profile, resolution, XMP, and:

        - JPEG: quantisation tables, subsampling (one that Pillow can't write, such as 4:4:0,
          becomes 4:4:4), progressive or not (above 8 bits a pixel it becomes sequential), every
          application segment and comment. Lost: the further pictures of a multi-picture file.
        - PNG: every ancillary chunk. A palette becomes RGB or RGBA, a transparent colour an alpha
          channel, 1 to 4 bits become 8; bKGD, hIST and sBIT are dropped with them. Lost: interlace.
        - WebP: every further chunk; lossless stays lossless, lossy is written at quality 95.
        - TIFF: every further tag, EXIF and GPS directories included. No compression stays so, any
          other becomes deflate. A palette becomes RGB, 1 to 4 bits become 8, alpha that 8-bit
          colours were multiplied by becomes plain alpha. Lost: thumbnails, tiles, offsets inside
          a maker note that count from the start of the file.
        - BMP: resolution. A palette becomes RGB, unless it is gray. Lost: its colour profile.

        At the peak it takes, beside photo and colours, about 4 bytes a pixel for a JPEG (7 where
        the pixels are turned back), 20 for a lossless WebP, 9 for a plain TIFF of 8 bits, and for
        a PNG no more than the file and one row band; with alpha, one copy of the pixels more.

        Args:
            color: In the shape, type and order of `color`.
        """
        upright = self.color
        if (color.shape, color.dtype) != (upright.shape, upright.dtype):
            raise ValueError(f"{color.shape} {color.dtype}, not {upright.shape} {upright.dtype}")
        samples = _TURNS[self.orientation][1](color)
        alpha = self.stored[:, :, self._num_colors :]
        if alpha.shape[2]:
            samples = np.concatenate([samples, alpha], axis=2)
        return _ENCODERS[self.format](samples, self.data)


def read_photo(data: bytes, pixel_budget: int = PIXEL_BUDGET) -> Photo:
    """Decode a photo with all that has to be kept of it.

    Orientation is read from EXIF (of a TIFF, from its own tag), not from XMP.

    Raises:
        ImageFault: As `images.decode_samples`: damaged, CMYK, float, several frames, too large.
    """
    header, stored = images.decode_samples(data, pixel_budget)
    return Photo(data, header, _orientation(data, header.format), stored)


def _orientation(data: bytes, format: Format) -> int:
    if format == "tiff":
        directory = tiff.read_directory(data)
        found: object = directory.value(tiff.ORIENTATION, 1)
    else:
        block = _exif_block(data, format)
        exif = Image.Exif()
        try:
            exif.load(block)
            found = exif.get(_EXIF_ORIENTATION, 1)
        except Exception:  # Pillow raises whatever it likes over a damaged block; it says nothing
            found = 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _exif_block(data: bytes, format: Format) -> bytes:
    if format == "jpeg":
        return containers.jpeg_exif(data)
    if format == "png":
        return containers.png_payload(data, b"eXIf")
    return containers.webp_payload(data, b"EXIF") if format == "webp" else b""


def _encode_jpeg(samples: Samples, original: bytes) -> bytes:
    source = JpegImagePlugin.JpegImageFile(io.BytesIO(original))
    *_, colorspace, subsampling = simplejpeg.decode_jpeg_header(original)
    # One table a component, in their order; Pillow gives the last one to all that follow.
    tables = [source.quantization[layer[3]] for layer in source.layer]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    options = {"qtables": tables, "keep_rgb": colorspace == "RGB"}
    if samples.shape[2] == 3:
        options["subsampling"] = _SUBSAMPLINGS.get(subsampling, 0)
    # Pillow gives up on a progressive file of more than two bytes a pixel.
    fits = len(original) < source.width * source.height
    options["progressive"] = bool(source.info.get("progressive")) and fits
    file = io.BytesIO()
    _pillow(samples).save(file, "JPEG", **options)
    return containers.splice_jpeg(file.getvalue(), original)


def _encode_webp(samples: Samples, original: bytes) -> bytes:
    chunks = containers.webp_chunks(original)
    lossless = any(chunk.kind == b"VP8L" for chunk in chunks)
    file = io.BytesIO()
    if lossless:
        # Exact: colours under full transparency are kept too.
        _pillow(samples).save(file, "WEBP", lossless=True, exact=True, method=0, quality=0)
    else:
        _pillow(samples).save(file, "WEBP", quality=WEBP_QUALITY, exact=True)
    height, width = samples.shape[:2]
    return containers.splice_webp(file.getvalue(), original, width, height)


def _encode_bmp(samples: Samples, original: bytes) -> bytes:
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    code = codes.get(samples.shape[2])
    stored = np.ascontiguousarray(samples)
    _, buffer = cv2.imencode(".bmp", stored if code is None else cv2.cvtColor(stored, code))
    if int.from_bytes(original[14:18], "little") >= 40:
        buffer[_BMP_RESOLUTION] = np.frombuffer(original[_BMP_RESOLUTION], np.uint8)
    return buffer.tobytes()


def _pillow(samples: Samples) -> Image.Image:
    plain = samples[:, :, 0] if samples.shape[2] == 1 else samples
    return Image.fromarray(np.ascontiguousarray(plain))


_ENCODERS: dict[Format, Callable[[Samples, bytes], bytes]] = {
    "jpeg": _encode_jpeg,
    "png": containers.write_png,
    "webp": _encode_webp,
    "tiff": tiff.write_tiff,
    "bmp": _encode_bmp,
}

__all__ = ["ImageFault", "Photo", "read_photo"]

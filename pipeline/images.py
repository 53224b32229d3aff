"""The only place where pixels change type or range.

Outside: uint8, RGB, (H, W, 3). Inside a network: float32, RGB, (B, 3, S, S), in [-1, 1], stored
channels_last, so that either side is a view of the same memory and no transpose is paid.

Everything here may be called from several threads at once.
"""

import ctypes
import io
import logging
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import PIL
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, TiffImagePlugin
from torch import Tensor

from pipeline import tiff
from pipeline.containers import (
    PNG_GRAY,
    PNG_GRAY_ALPHA,
    PNG_SIGNATURE,
    ImageFault,
    Samples,
    png_payload,
    png_pixels_only,
    webp_size,
)

__all__ = [
    "PIXEL_BUDGET", "Format", "Header", "ImageFault", "Pixels", "Samples", "decode",
    "decode_samples", "encode", "new_batch", "read_header", "resize", "to_model", "to_rgb8",
    "to_uint8",
]  # fmt: skip

Pixels = NDArray[np.uint8]
Format = Literal["jpeg", "png", "webp", "tiff", "bmp"]

PIXEL_BUDGET = 64_000_000
JPEG_QUALITY = 95
CMYK_JPEG = ("CMYK", "YCCK")
# 8-bit value -> model range, exactly as published: x / 255, then (x - 0.5) / 0.5, in float32.
TO_MODEL = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
_16_BITS = 16
_MAX_REASON = 100


def _silence_codecs() -> None:
    """Keep the codecs from saying on stderr what `ImageFault` says.

    Pillow leaves libtiff's handlers as they are, so they are taken off in the library that its
    wheel brings. What is left: libpng's line about a PNG whose checksums are right and whose
    compressed stream is not, which only a broken encoder or malice makes.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for path in Path(PIL.__path__[0]).parent.glob("pillow.libs/libtiff*.so*"):
        library = ctypes.CDLL(str(path))
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


_silence_codecs()


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image say; nothing is decoded for it. Sizes in pixels."""

    format: Format
    width: int
    height: int


# ------------------------------------------------------------------------------------- header


def read_header(data: bytes) -> Header:
    """Read format and size of a JPEG, PNG, WebP, TIFF or BMP; no pixel is decoded for it.

    Raises:
        ImageFault: If the bytes are none of them, the header is damaged, or it speaks of several
            frames.
    """
    header = _header(data)
    if not (header.width and header.height):
        raise ImageFault(f"size {header.width} x {header.height}")
    return header


def _header(data: bytes) -> Header:
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise ImageFault(f"damaged JPEG header ({error})") from None
        return Header("jpeg", width, height)
    if data.startswith(PNG_SIGNATURE):
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise ImageFault("damaged PNG header")
        return Header("png", *struct.unpack(">II", data[16:24]))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Header("webp", *webp_size(data))
    if data.startswith((*tiff.SIGNATURES, b"II+\0", b"MM\0+")):
        return _tiff_header(tiff.read_directory(data))
    if data.startswith(b"BM") and len(data) >= 54:
        return _bmp_header(data)
    raise ImageFault("no JPEG, PNG, WebP, TIFF or BMP" if data else "empty file")


def _tiff_header(directory: tiff.Directory) -> Header:
    width, height = directory.value(tiff.WIDTH), directory.value(tiff.HEIGHT)
    tile = directory.value(tiff.TILE_WIDTH) * directory.value(tiff.TILE_HEIGHT)
    if tile > max(width * height, 2**20):
        raise ImageFault("damaged TIFF (tiles larger than the picture)")
    formats = set(directory.values(tiff.SAMPLE_FORMAT, 1))
    bits = set(directory.values(tiff.BITS, 1))
    if not (formats <= {1, 4} and len(bits) == 1 and bits <= {1, 2, 4, 8, 16}):
        kinds = {1: "unsigned", 2: "signed", 3: "float"}
        kind = "/".join(kinds.get(value, "unknown") for value in sorted(formats))
        raise ImageFault(f"{kind} TIFF of {max(bits)} bits; give 8 or 16 bits, unsigned")
    return Header("tiff", width, height)


def _bmp_header(data: bytes) -> Header:
    if int.from_bytes(data[14:18], "little") == 12:
        return Header("bmp", *struct.unpack("<HH", data[18:22]))
    width, height = struct.unpack("<ii", data[18:26])
    if width < 0:
        raise ImageFault("damaged BMP header")
    return Header("bmp", width, abs(height))


# ------------------------------------------------------------------------------------- decode


def decode(data: bytes, pixel_budget: int = PIXEL_BUDGET) -> tuple[Header, Pixels]:
    """Decode an image to its header and (H, W, 3) RGB, pixels as stored (no EXIF turn).

    Gray, palette and CMYK (without its colour profile) become RGB, 16 bits are rounded to 8
    (v / 257), alpha is dropped, not blended. Of a multi-picture JPEG, as phones write them, the
    first picture is taken.

    Raises:
        ImageFault: If the image is damaged or cut, has several frames, or more than
            `pixel_budget` pixels; the latter is known from the header, before memory is spent.
            Nothing else is raised, whatever the bytes.
    """
    header = _affordable(data, pixel_budget)
    try:
        pixels = _decode_rgb(data, header)
        _check_size(pixels, header)
    except Exception as error:  # the codecs raise whatever they like over damaged bytes
        raise _fault(header, error) from None
    return header, pixels


def decode_samples(data: bytes, pixel_budget: int = PIXEL_BUDGET) -> tuple[Header, Samples]:
    """Decode an image to its header and (H, W, C), uint8 or uint16, losing nothing it can keep.

    C is 1 for gray, 2 for gray + alpha, 3 for RGB, 4 for RGBA. A palette becomes RGB or RGBA, a
    PNG's transparent colour alpha, 1 to 4 bits become 8. 8-bit colours of a TIFF that were
    multiplied by alpha are divided again.

    Raises:
        ImageFault: As `decode`, and for CMYK, whose colours would be lost.
    """
    header = _affordable(data, pixel_budget)
    try:
        samples = _decode_samples(data, header)
        _check_size(samples, header)
    except Exception as error:  # as above
        raise _fault(header, error) from None
    return header, samples


def _affordable(data: bytes, pixel_budget: int) -> Header:
    header = read_header(data)
    if header.width * header.height > pixel_budget:
        raise ImageFault(f"{header.width} x {header.height} is over {pixel_budget} pixels")
    return header


def _fault(header: Header, error: Exception) -> ImageFault:
    if isinstance(error, ImageFault):
        return error
    text = error.err if isinstance(error, cv2.error) else str(error)
    reason = " ".join((text or type(error).__name__).split())[:_MAX_REASON]
    return ImageFault(f"damaged or cut {_NAMES[header.format]} ({reason})")


_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "tiff": "TIFF", "bmp": "BMP"}


def _check_size(samples: Samples, header: Header) -> None:
    if samples.shape[:2] != (header.height, header.width):
        raise ImageFault(f"damaged {_NAMES[header.format]} (sizes contradict each other)")


def _decode_rgb(data: bytes, header: Header) -> Pixels:
    if header.format == "jpeg" and simplejpeg.decode_jpeg_header(data)[2] not in CMYK_JPEG:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
        return pixels
    if header.format == "jpeg":
        return np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB"))
    if header.format == "png" and data[24] < _16_BITS:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        return _opencv(png_pixels_only(data), flags).astype(np.uint8, copy=False)
    return to_rgb8(_decode_samples(data, header, keeps_cmyk=False))


def _decode_samples(data: bytes, header: Header, keeps_cmyk: bool = True) -> Samples:
    if header.format == "jpeg":
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
        if colorspace in CMYK_JPEG:
            raise ImageFault(_CMYK_FAULT)
        kept = "GRAY" if colorspace == "Gray" else "RGB"
        samples: Samples = simplejpeg.decode_jpeg(data, colorspace=kept)
        return samples
    if header.format == "png":
        return _decode_png(data)
    if header.format == "webp":
        return _reordered(_opencv(data, cv2.IMREAD_UNCHANGED))
    if header.format == "bmp":
        return _from_pillow(BmpImagePlugin.BmpImageFile(io.BytesIO(data)))
    return _decode_tiff(data, keeps_cmyk)


_CMYK_FAULT = "CMYK; give RGB or gray"


def _opencv(data: bytes, flags: int) -> Samples:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("not to be decoded")
    return image


def _reordered(image: Samples) -> Samples:
    """Turn OpenCV's gray, BGR or BGRA into (H, W, C) in our order, in place."""
    if image.ndim == 2:
        return image[:, :, None]
    code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(image, code, dst=image)


def _decode_png(data: bytes) -> Samples:
    samples = _reordered(_opencv(png_pixels_only(data), cv2.IMREAD_UNCHANGED))
    depth, color_type = data[24], data[25]
    if color_type == PNG_GRAY_ALPHA and samples.shape[2] == 4:
        return np.ascontiguousarray(samples[:, :, ::3])
    key = png_payload(data, b"tRNS") if color_type == PNG_GRAY else b""
    if not key:
        return samples  # OpenCV made alpha of a transparent colour, though not of a gray
    transparent = int.from_bytes(key[:2], "big")
    if depth < 8:  # spread over 8 bits, as the pixels are
        transparent = transparent * 255 // (2**depth - 1)
    opaque = (samples != transparent) * np.array(np.iinfo(samples.dtype).max, samples.dtype)
    return np.concatenate([samples, opaque], axis=2)


def _decode_tiff(data: bytes, keeps_cmyk: bool) -> Samples:
    directory = tiff.read_directory(data)
    if keeps_cmyk and directory.value(tiff.PHOTOMETRIC) == tiff.CMYK:
        raise ImageFault(_CMYK_FAULT)
    plain = tiff.unturned(data, directory)
    deep = directory.value(tiff.BITS, 1) == _16_BITS
    if deep and directory.value(tiff.NUM_SAMPLES, 1) in (3, 4):  # Pillow would halve the depth
        if directory.value(tiff.PHOTOMETRIC) != tiff.RGB:
            raise ImageFault("16-bit TIFF that is neither gray nor RGB")
        return _reordered(_opencv(plain, cv2.IMREAD_UNCHANGED))
    return _from_pillow(TiffImagePlugin.TiffImageFile(io.BytesIO(plain)))


def _from_pillow(image: Image.Image) -> Samples:
    """Decode what Pillow has opened into (H, W, C)."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[:, :, None]
    if mode in ("P", "PA"):
        see_through = mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if see_through else "RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("CMYK", "YCbCr", "RGBX"):
        image = image.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise ImageFault(f"colours of kind {mode}; give gray or RGB")
    samples: Pixels = np.asarray(image)
    return samples if samples.ndim == 3 else samples[:, :, None]


def to_rgb8(samples: Samples) -> Pixels:
    """Turn (H, W, C) of `decode_samples` into (H, W, 3) RGB: v / 257 to the nearest, no alpha."""
    num_samples = samples.shape[2]
    colors = samples[:, :, :1] if num_samples < 3 else samples[:, :, :3]
    if colors.dtype == np.uint16:
        # The nearest a v / 257 comes to a half is 1 / 514, far more than float32 errs.
        colors = cv2.convertScaleAbs(np.ascontiguousarray(colors), alpha=1 / 257)
    if num_samples < 3:
        colors = cv2.cvtColor(np.ascontiguousarray(colors), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(colors)


# ------------------------------------------------------------------------------------- encode


def encode(image: Pixels, format: Format) -> bytes:
    """Encode (H, W, 3) RGB.

    JPEG: quality 95, 4:4:4. PNG: OpenCV's default. WebP: lossless, the quickest level. TIFF: LZW
    with a predictor. BMP: 24 bits.
    """
    if format == "jpeg":
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=JPEG_QUALITY, colorspace="RGB",
            colorsubsampling="444",
        )  # fmt: skip
        return encoded
    if format == "webp":
        file = io.BytesIO()
        Image.fromarray(image).save(file, "WEBP", lossless=True, method=0, quality=0)
        return file.getvalue()
    done, buffer = cv2.imencode(f".{format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {_NAMES[format]} of shape {image.shape}")
    return buffer.tobytes()


# ------------------------------------------------------------------------------------- resize


def resize(image: Pixels, size: int) -> Pixels:
    """Bring (H, W, 3) to (size, size, 3): area averages downwards, bilinear upwards.

    Bilinear is how the degradation enlarges, so it is what the networks are trained on.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    way = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=way).astype(np.uint8, copy=False)


def fit(image: Pixels, width: int, height: int) -> Pixels:
    """Bring (H, W, 3) to (height, width, 3), as `resize` does."""
    if image.shape[:2] == (height, width):
        return image
    way = cv2.INTER_AREA if min(height, width) < min(image.shape[:2]) else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=way).astype(np.uint8, copy=False)


def blend(restored: Pixels, lq: Pixels, share: float) -> Pixels:
    """`share` of the one and the rest of the other, (H, W, 3) each, rounded."""
    return cv2.addWeighted(restored, share, lq, 1 - share, 0).astype(np.uint8, copy=False)


# -------------------------------------------------------------------------- to and from a model


def new_batch(batch_size: int, size: int) -> Tensor:
    """A zeroed float32 (B, 3, S, S) batch in channels_last, to be filled with `to_model`."""
    batch = torch.zeros(batch_size, 3, size, size)
    return batch.contiguous(memory_format=torch.channels_last)


def to_model(image: Pixels, batch: Tensor, slot: int) -> None:
    """Write (S, S, 3) uint8 into place `slot` of a batch made by `new_batch`, as [-1, 1]."""
    cv2.LUT(image, TO_MODEL, dst=batch.permute(0, 2, 3, 1).numpy()[slot])


def to_uint8(restored: Tensor) -> Pixels:
    """Turn (..., 3, S, S) in [-1, 1] into uint8 (..., S, S, 3), on the CPU.

    As published: clamp to [-1, 1], (x + 1) / 2 * 255 + 0.5, fraction cut off. cv2.convertScaleAbs
    would take a sixth of the time, but rounds some values beside a boundary the other way.

    Args:
        restored: Finite; a batch, or one item of it, which is quicker: it stays in the cache.
    """
    values = restored.detach().to("cpu", torch.float32).movedim(-3, -1).numpy()
    scaled = np.clip(values, -1, 1)
    scaled += 1
    scaled *= 127.5
    scaled += 0.5
    pixels: Pixels = scaled.astype(np.uint8)
    return pixels

"""The only place where pixels change type or range.

Outside: uint8, RGB, (H, W, 3). Inside a network: float32, RGB, (B, 3, S, S), in [-1, 1], stored
channels_last, so that either side is a view of the same memory and no transpose is paid.
"""

import struct
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Format = Literal["jpeg", "png"]

PIXEL_BUDGET = 64_000_000
JPEG_QUALITY = 95
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# 8-bit value -> model range, exactly as published: x / 255, then (x - 0.5) / 0.5, in float32.
TO_MODEL = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


class ImageFault(ValueError):
    """The bytes are no image that can be used; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image say; nothing is decoded for it. Sizes in pixels."""

    format: Format
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Read format and size from the header of a JPEG or PNG.

    Raises:
        ImageFault: If the bytes are neither, or the header is damaged.
    """
    if data.startswith(PNG_SIGNATURE):
        if len(data) < 24 or data[12:16] != b"IHDR":
            raise ImageFault("damaged PNG header")
        width, height = struct.unpack(">II", data[16:24])
        return _checked(Header("png", width, height))
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise ImageFault(f"damaged JPEG header ({error})") from None
        return _checked(Header("jpeg", width, height))
    raise ImageFault("neither JPEG nor PNG" if data else "empty file")


def _checked(header: Header) -> Header:
    if not (header.width and header.height):
        raise ImageFault(f"size {header.width} x {header.height}")
    return header


def decode(data: bytes, pixel_budget: int = PIXEL_BUDGET) -> tuple[Header, Pixels]:
    """Decode a JPEG or PNG to its header and (H, W, 3) RGB, pixels as stored (no EXIF turn).

    Gray and palette become RGB, 16-bit becomes 8-bit, alpha is dropped.

    Raises:
        ImageFault: If the image is damaged or cut, or has more than `pixel_budget` pixels; the
            latter is known from the header, before memory is spent.
    """
    header = read_header(data)
    if header.width * header.height > pixel_budget:
        raise ImageFault(f"{header.width} x {header.height} is over {pixel_budget} pixels")
    if header.format == "png":
        return header, _decode_png(data)
    try:
        return header, simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise ImageFault(f"damaged JPEG ({error})") from None


def _decode_png(data: bytes) -> Pixels:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageFault(f"damaged PNG ({error.err})") from None
    if image is None:
        raise ImageFault("damaged or cut PNG")
    return image.astype(np.uint8, copy=False)


def encode(image: Pixels, format: Format) -> bytes:
    """Encode (H, W, 3) RGB as JPEG (quality 95, 4:4:4) or PNG (OpenCV's default level)."""
    if format == "jpeg":
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=JPEG_QUALITY, colorspace="RGB",
            colorsubsampling="444",
        )  # fmt: skip
        return encoded
    done, buffer = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a PNG of shape {image.shape}")
    return buffer.tobytes()


def resize(image: Pixels, size: int) -> Pixels:
    """Bring (H, W, 3) to (size, size, 3): area averages downwards, bilinear upwards.

    Bilinear is how the degradation enlarges, so it is what the networks are trained on.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    way = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=way).astype(np.uint8, copy=False)


def new_batch(batch_size: int, size: int) -> Tensor:
    """A zeroed float32 (B, 3, S, S) batch in channels_last, to be filled with `to_model`."""
    batch = torch.zeros(batch_size, 3, size, size)
    return batch.contiguous(memory_format=torch.channels_last)


def to_model(image: Pixels, batch: Tensor, slot: int) -> None:
    """Write (S, S, 3) uint8 into place `slot` of a batch made by `new_batch`, as [-1, 1]."""
    cv2.LUT(image, TO_MODEL, dst=batch.permute(0, 2, 3, 1).numpy()[slot])


def to_uint8(restored: Tensor) -> Pixels:
    """Turn (B, 3, S, S) in [-1, 1] into uint8 (B, S, S, 3), on the CPU.

    As published: clamp to [-1, 1], (x + 1) / 2 * 255 + 0.5, fraction cut off.
    """
    values = restored.detach().to("cpu", torch.float32).permute(0, 2, 3, 1).numpy()
    scaled = np.clip(values, -1, 1)
    scaled += 1
    scaled *= 127.5
    scaled += 0.5
    pixels: Pixels = scaled.astype(np.uint8)
    return pixels

"""Hostile pictures for `hostile.py`: cut, damaged, lying, huge by their header, or just unusual."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import simplejpeg
from PIL import Image

SIZE = 32
RESTORED, REFUSED, FAILED = "restored", "refused", "failed"
ANY = "any"  # a decoder may see it either way: never a crash, never an error of the codec's own


@dataclass(frozen=True)
class Picture:
    """One image file; `photo` is what becomes of it among photos, where that differs."""

    name: str
    suffix: str
    data: bytes
    status: str
    photo: str = ""


@cache
def pixels(size: int = SIZE) -> np.ndarray:
    coarse = np.random.default_rng(7).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def saved(image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, format, **options)
    return file.getvalue()


def opencv(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@cache
def good(suffix: str) -> bytes:
    if suffix == "jpg":
        return simplejpeg.encode_jpeg(pixels(), quality=95, colorsubsampling="444")
    names = {"png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
    options = {"webp": {"lossless": True}, "tif": {"compression": "tiff_lzw"}}
    return saved(pixels(), names[suffix], **options.get(suffix, {}))


FORMATS = ("jpg", "png", "webp", "tif", "bmp")


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(width, height, depth=8, color=2, data=b"", extra=b"", interlaced=0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    idat = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + idat + chunk(b"IEND", b"")


def rows_png(depth: int, color: int, row: bytes, extra: bytes = b"") -> bytes:
    return png(8, 8, depth, color, (b"\0" + row) * 8, extra)


def tiff(entries: list[tuple[int, int, int, int]], body: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory; entries are (tag, type, count, value)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + body


def gray_tiff(width: int, height: int, kind: int = 1, bits: int = 8, data: bytes = b"") -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
               (262, 3, 1, 1), (273, 4, 1, 8 + 2 + 9 * 12 + 4), (278, 4, 1, height),
               (279, 4, 1, len(data)), (339, 3, 1, kind)]  # fmt: skip
    return tiff(entries, data)


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(good("jpg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return saved(pixels(), "JPEG", exif=tags.tobytes())


def changed(data: bytes, at: int, by: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


def mutated(data: bytes, seed: int) -> bytes:
    random = np.random.default_rng(seed)
    out = bytearray(data)
    for at in random.integers(0, len(data), 1 + seed % 4):
        out[at] = random.integers(256)
    return bytes(out)


def cut_pictures() -> Iterator[Picture]:
    for suffix in FORMATS:
        data = good(suffix)
        for length in (1, 2, 4, 8, 12, 20, 30, len(data) // 4, len(data) // 2):
            yield Picture(f"cut-{suffix}-{length}", suffix, data[:length], REFUSED)
        for length in (len(data) * 3 // 4, len(data) - 16, len(data) - 1):
            yield Picture(f"cut-{suffix}-{length}", suffix, data[:length], ANY)
        for seed in range(8):
            yield Picture(f"mutated-{suffix}-{seed}", suffix, mutated(data, seed), ANY)


def no_pictures() -> Iterator[Picture]:
    for suffix in ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"):
        yield Picture(f"empty-{suffix}", suffix, b"", REFUSED)
    contents = {
        "text": b"no picture at all\n" * 40, "html": b"<!DOCTYPE html><html></html>",
        "gif": saved(pixels(), "GIF"), "pdf": b"%PDF-1.7\n%%EOF", "svg": b"<svg xmlns=''></svg>",
        "heic": b"\0\0\0\x18ftypheic" + bytes(64), "zip": b"PK\5\6" + bytes(18),
        "elf": b"\x7fELF" + bytes(64), "zeros": bytes(4096), "ones": b"\xff" * 4096,
        "soi": b"\xff\xd8", "soi-eoi": b"\xff\xd8\xff\xd9", "shebang": b"#!/bin/sh\ntouch x\n",
        "postscript": b"%!PS-Adobe-3.0\n(x) (w) file\n",
        "noise": np.random.default_rng(1).bytes(999),
    }  # fmt: skip
    for name, data in contents.items():
        yield Picture(f"{name}-called-jpg", "jpg", data, REFUSED)
    yield Picture("text-called-PNG", "PNG", b"text", REFUSED)
    yield Picture("signature-only", "png", b"\x89PNG\r\n\x1a\n", REFUSED)


def bombs() -> Iterator[Picture]:
    vp8l = struct.pack("<I", 16382 | 16382 << 14)
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 10) + b"/" + vp8l
    data = {
        "png-60000": png(60000, 60000), "png-2g": png(2**31 - 1, 2**31 - 1),
        "png-4g": png(2**32 - 1, 2**32 - 1), "png-0": png(0, 0), "png-0-wide": png(0, 9),
        "png-tall": png(1, 2**31 - 1), "png-62-mp-without-data": png(7900, 7900),
        "png-62-mp-16-bit": png(7900, 7900, 16, 6), "jpg-65535": jpeg_of(65535, 65535),
        "jpg-0": jpeg_of(0, 0), "jpg-0-high": jpeg_of(32, 0), "webp-16383": webp + bytes(30),
        "tif-60000": gray_tiff(60000, 60000), "tif-4g": gray_tiff(2**32 - 1, 2**32 - 1),
        "tif-0": gray_tiff(0, 0), "tif-62-mp-without-data": gray_tiff(7900, 7900),
        "bmp-60000": bmp(60000, 60000), "bmp-negative": bmp(-5, 5), "bmp-lowest": bmp(5, -(2**31)),
        "bmp-62-mp-without-data": bmp(7900, 7900), "tif-no-entries": tiff([]),
        "tif-directory-of-itself": b"II*\0" + struct.pack("<I", 0),
        "tif-count-4g": tiff([(256, 4, 2**32 - 1, 8), (257, 4, 2**32 - 1, 8)]),
        "png-inflates": png(64, 64, data=bytes(64 * 193 - 1)),
    }  # fmt: skip
    for name, content in data.items():
        yield Picture(f"bomb-{name}", name.partition("-")[0], content, REFUSED)
    flood = png(16, 16, data=bytes(50_000_000))  # 50 MB of zeros behind 16 x 16 pixels
    yield Picture("bomb-png-flood", "png", flood, ANY)


def several_frames() -> Iterator[Picture]:
    frames = [Image.fromarray(np.roll(pixels(), step, 1)) for step in (0, 8, 16)]
    many = {"save_all": True, "append_images": frames[1:]}
    yield Picture("apng", "png", saved(frames[0], "PNG", **many), REFUSED)
    yield Picture("animated", "webp", saved(frames[0], "WEBP", **many), REFUSED)
    yield Picture("pages", "tif", saved(frames[0], "TIFF", **many), REFUSED)
    yield Picture("mpo", "jpg", saved(frames[0], "MPO", **many), RESTORED, ANY)


def damaged_png() -> Iterator[Picture]:
    data = good("png")
    yield Picture("crc-ihdr", "png", changed(data, 29), REFUSED)
    yield Picture("crc-idat", "png", changed(data, len(data) - 14), REFUSED)
    yield Picture("crc-iend", "png", changed(data, len(data) - 1), ANY)
    head = data[:33]
    yield Picture("no-idat", "png", head + chunk(b"IEND", b""), REFUSED)
    yield Picture("no-iend", "png", data[:-12], ANY)
    yield Picture("chunk-of-4g", "png", head + b"\xff\xff\xff\xffIDAT", REFUSED)
    yield Picture("color-type-9", "png", png(8, 8, 8, 9, bytes(200)), REFUSED)
    yield Picture("depth-3", "png", png(8, 8, 3, 0, bytes(200)), REFUSED)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000)))
    yield Picture("text-bomb", "png", rows_png(8, 2, bytes(24), text), ANY)
    yield Picture("no-palette", "png", rows_png(8, 3, bytes(8)), ANY)


def unusual() -> Iterator[Picture]:
    """Images that are all right, though not of the usual kind."""
    gray, alpha = pixels()[:, :, 0], np.dstack([pixels(), pixels()[:, :, 0]])
    deep = pixels().astype(np.uint16) * 257
    cmyk = Image.fromarray(pixels()).convert("CMYK")
    palette = Image.fromarray(pixels()).quantize(16)
    colors = chunk(b"PLTE", bytes(range(48)))
    see_through = rows_png(4, 3, bytes(range(4)), colors + chunk(b"tRNS", bytes(8)))
    done = {
        "palette.png": saved(palette, "PNG"), "palette-transparent.png": see_through,
        "gray.png": saved(gray, "PNG"), "alpha.png": saved(alpha, "PNG"),
        "gray-alpha.png": saved(Image.fromarray(alpha).convert("LA"), "PNG"),
        "deep.png": opencv(".png", deep), "deep-gray.png": opencv(".png", deep[:, :, 0]),
        "deep-alpha.png": opencv(".png", np.dstack([deep, deep[:, :, 0]])),
        "1-bit.png": rows_png(1, 0, b"\xaa"), "2-bit.png": rows_png(2, 0, b"\x1b\x1b"),
        "4-bit.png": rows_png(4, 0, bytes(4)),
        "interlaced.png": png(1, 1, data=bytes(4), interlaced=1),
        "1-px.png": rows_png(8, 2, bytes(24)),
        "gray.jpg": saved(gray, "JPEG"), "progressive.jpg": saved(pixels(),
        "JPEG", progressive=True),
        "420.jpg": saved(pixels(), "JPEG", subsampling=2), "icc.jpg": saved(pixels(),
        "JPEG", icc_profile=bytes(200_000)),
        "comment.jpg": saved(pixels(), "JPEG", comment=b"\xff\xd8\0\n" * 99),
        "lossy.webp": saved(pixels(), "WEBP"), "alpha.webp": saved(alpha, "WEBP", lossless=True),
        "deep.tif": opencv(".tif", deep), "gray.tif": saved(gray, "TIFF"),
        "1-bit.tif": saved(Image.fromarray(gray).convert("1"), "TIFF"),
        "deflate.tif": saved(pixels(), "TIFF", compression="tiff_deflate"),
        "jpeg.tif": saved(pixels(), "TIFF", compression="jpeg"),
        "gray.bmp": saved(gray, "BMP"), "palette.bmp": saved(palette, "BMP"),
        "png-called.jpg": good("png"), "jpg-called.png": good("jpg"),
        "bmp-called.WEBP": good("bmp"),
        "1-px.bmp": saved(pixels()[:1, :1], "BMP"), "1-px.jpg": saved(pixels()[:1, :1], "JPEG"),
        "wide.png": saved(np.tile(pixels()[:1], (1, 200, 1)), "PNG"), "JPEG.JPEG": good("jpg"),
    }  # fmt: skip
    done |= {f"exif-{turn}.jpg": exif(turn) for turn in range(10)}
    for name, data in done.items():
        stem, _, suffix = name.rpartition(".")
        yield Picture(f"odd-{stem}-{suffix}", suffix, data, RESTORED, ANY)
    yield Picture("cmyk", "jpg", saved(cmyk, "JPEG"), RESTORED, REFUSED)
    yield Picture("cmyk", "tif", saved(cmyk, "TIFF"), RESTORED, REFUSED)
    yield Picture("tail", "jpg", good("jpg") + b"<?php ?>", ANY)


def float_tiffs() -> Iterator[Picture]:
    nan, inf = struct.pack("<4f", *[np.nan] * 4), struct.pack("<4f", *[np.inf] * 4)
    yield Picture("float-not-a-number", "tif", gray_tiff(2, 2, 3, 32, nan), REFUSED)
    yield Picture("float-without-end", "tif", gray_tiff(2, 2, 3, 32, inf), REFUSED)
    yield Picture("double", "tif", gray_tiff(2, 2, 3, 64, bytes(32)), REFUSED)
    yield Picture("32-bit", "tif", gray_tiff(2, 2, 1, 32, bytes(16)), REFUSED)
    yield Picture("signed", "tif", gray_tiff(2, 2, 2, 16, bytes(8)), REFUSED)


def model_pictures() -> Iterator[Picture]:
    """Good images for which the model gives something that is no picture; see `Model`."""
    for number, value in enumerate(("nan", "inf", "-inf")):
        yield Picture(f"model-gives-{value}", FORMATS[number], good(FORMATS[number]), FAILED)


@cache
def all_pictures() -> tuple[Picture, ...]:
    makers = (cut_pictures, no_pictures, bombs, several_frames, damaged_png, unusual, float_tiffs,
              model_pictures)  # fmt: skip
    return tuple(picture for maker in makers for picture in maker())

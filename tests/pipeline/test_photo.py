"""Photos are made in the test and read back by the libraries that people open them with."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, ImageFile, ImageOps

from pipeline import containers, photo, tiff
from pipeline.images import ImageFault

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = "<x:xmpmeta xmlns:x='adobe:ns:meta/'>žluťoučký 顔</x:xmpmeta>".encode()
HEIGHT, WIDTH = 30, 40


def colors(seed: int = 0, num_samples: int = 3, dtype=np.uint8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, np.iinfo(dtype).max, (4, 4, num_samples), dtype)
    fine = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return fine.reshape(HEIGHT, WIDTH, num_samples)


def exif(orientation: int = 1) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "Příliš 顔"
    block.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    return block.tobytes()


def saved(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def changed(color: np.ndarray) -> np.ndarray:
    """Other colours in a patch, as a restored face would leave them."""
    other = color.copy()
    other[5:12, 7:20] = np.random.default_rng(9).integers(
        0, np.iinfo(color.dtype).max, other[5:12, 7:20].shape, color.dtype, endpoint=True
    )
    return other


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def png_by_hand(samples: np.ndarray, extra: bytes = b"") -> bytes:
    """Every depth and kind that neither Pillow nor OpenCV writes, without filters."""
    height, width, num_samples = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[num_samples]
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in samples)
    body = png_chunk(b"IDAT", zlib.compress(rows))
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return head + extra + body + png_chunk(b"tEXt", b"After\0pixels") + png_chunk(b"IEND", b"")


PNG_EXTRA = b"".join([
    png_chunk(b"gAMA", struct.pack(">I", 45455)),
    png_chunk(b"iCCP", b"name\0\0" + zlib.compress(ICC)),
    png_chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    png_chunk(b"iTXt", b"Title\0\0\0\0\0" + "žluť 顔".encode()),
    png_chunk(b"eXIf", exif()[6:]),
])  # fmt: skip


def deep_and_alpha() -> dict[str, bytes]:
    kinds = [(num, kind) for num in (1, 2, 3, 4) for kind in (np.uint8, np.uint16)]
    return {
        f"png {8 * kind(0).itemsize}x{num}": png_by_hand(colors(4, num, kind), PNG_EXTRA)
        for num, kind in kinds
    }


def lossless() -> dict[str, bytes]:
    rgb, rgba, gray = colors(), colors(1, 4), colors(2, 1)
    deep = colors(3, 3, np.uint16)
    palette = Image.fromarray(rgb).quantize(16)
    tags = {270: "Příliš".encode(), 315: "顔".encode()}
    tiff_options = {"exif": exif(), "icc_profile": ICC, "dpi": (300, 300), "tiffinfo": tags}
    return {
        "png": saved(rgb, "PNG"),
        "png alpha": saved(rgba, "PNG", dpi=(300, 300)),
        "png gray": saved(gray, "PNG"),
        "png 1 bit": saved(Image.fromarray(rgb).convert("1"), "PNG"),
        "png palette": saved(palette, "PNG"),
        "png palette alpha": saved(palette, "PNG", transparency=3),
        "png gray key": saved(gray, "PNG", transparency=int(gray[3, 3, 0])),
        **deep_and_alpha(),
        "tiff": saved(rgb, "TIFF", **tiff_options),
        "tiff lzw alpha": saved(rgba, "TIFF", compression="tiff_lzw", **tiff_options),
        "tiff gray": saved(gray, "TIFF", compression="tiff_adobe_deflate"),
        "tiff gray alpha": saved(Image.fromarray(rgb).convert("LA"), "TIFF"),
        "tiff 16 gray": saved(Image.fromarray(deep[:, :, 0]), "TIFF", dpi=(72, 72)),
        "tiff 16": cv2.imencode(".tiff", deep)[1].tobytes(),
        "tiff 16 alpha": cv2.imencode(".tiff", colors(5, 4, np.uint16))[1].tobytes(),
        "tiff palette": saved(palette, "TIFF"),
        "webp": saved(rgb, "WEBP", lossless=True),
        "webp alpha": saved(rgba, "WEBP", lossless=True, exact=True, exif=exif(), xmp=XMP),
        "bmp": saved(rgb, "BMP", dpi=(300, 300)),
        "bmp gray": saved(gray, "BMP"),
    }


@pytest.mark.parametrize("name", lossless())
def test_a_lossless_photo_gives_back_every_bit(name):
    data = lossless()[name]
    before = photo.read_photo(data)
    color = changed(before.color)
    after = photo.read_photo(before.encode(color))
    assert after.format == before.format == name.split()[0]
    assert after.stored.dtype == before.stored.dtype
    assert after.stored.shape == before.stored.shape
    assert np.array_equal(after.color, color)
    num_colors = color.shape[2]
    assert np.array_equal(after.stored[:, :, num_colors:], before.stored[:, :, num_colors:])
    assert before.num_bytes == len(data) + before.stored.nbytes


@pytest.mark.parametrize("name", lossless())
def test_others_read_a_lossless_photo_as_we_do(name):
    before = photo.read_photo(lossless()[name])
    for data in (lossless()[name], before.encode(before.color)):
        if " 16" in name and "png 16x2" not in name:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            image = image.reshape(HEIGHT, WIDTH, -1)
            swap = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
            assert np.array_equal(image[:, :, swap], before.stored)
        elif " 16" not in name:
            mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[before.stored.shape[2]]
            image = np.asarray(opened(data).convert(mode)).reshape(before.stored.shape)
            assert np.array_equal(image, before.stored)


def chunks_of(data: bytes) -> list[bytes]:
    return [data[start:end] for kind, start, end in containers.png_chunks(data)
            if kind not in (b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS")]  # fmt: skip


def test_a_png_keeps_its_other_chunks_byte_for_byte():
    data = png_by_hand(colors(0, 3, np.uint16), PNG_EXTRA)
    before = photo.read_photo(data)
    written = before.encode(changed(before.color))
    assert chunks_of(written) == chunks_of(data)
    image = opened(written)
    image.load()
    assert image.info["icc_profile"] == ICC
    assert image.text == {"Title": "žluť 顔", "After": "pixels"}
    assert image.getexif()[0x010F] == opened(data).getexif()[0x010F]


def test_a_palette_drops_the_chunks_that_hang_on_it():
    data = saved(Image.fromarray(colors()).quantize(16), "PNG")
    at = containers.png_chunks(data)[1].end
    data = data[:at] + png_chunk(b"bKGD", b"\1") + data[at:]
    written = photo.read_photo(data).encode(photo.read_photo(data).color)
    assert b"bKGD" not in written
    assert opened(written).mode == "RGB"


def test_a_tiff_keeps_its_tags_and_its_exif_directory():
    for name in ("tiff", "tiff lzw alpha"):
        data = lossless()[name]
        before = photo.read_photo(data)
        image, written = opened(data), opened(before.encode(changed(before.color)))
        assert written.info["icc_profile"] == ICC
        assert tuple(map(float, written.info["dpi"])) == (300, 300)
        for tag in (270, 315):
            assert written.tag_v2[tag] == image.tag_v2[tag]
        assert dict(written.getexif().get_ifd(0x8769)) == dict(image.getexif().get_ifd(0x8769))
        assert written.info["compression"] == {"tiff": "raw"}.get(name, "tiff_adobe_deflate")


def big_endian_tiff(samples: np.ndarray, orientation: int) -> bytes:
    height, width, num_samples = samples.shape
    bits = struct.pack(f">{num_samples}H", *[16] * num_samples)
    tags = {256: (4, width), 257: (4, height), 259: (3, 1), 262: (3, 2), 273: (4, 8 + len(bits)),
            274: (3, orientation), 277: (3, num_samples), 278: (4, height),
            279: (4, samples.nbytes)}  # fmt: skip
    entries = {
        number: struct.pack(">HHI", number, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for number, (kind, value) in tags.items()
    }
    entries[258] = struct.pack(">HHII", 258, 3, num_samples, 8)
    body = bits + samples.astype(">u2").tobytes()
    directory = struct.pack(">H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + directory + bytes(4)


def test_a_big_endian_16_bit_tiff_stays_one():
    samples = colors(6, 3, np.uint16)
    before = photo.read_photo(big_endian_tiff(samples, 6))
    assert np.array_equal(before.color, np.rot90(samples, -1))
    written = before.encode(changed(before.color))
    assert written.startswith(b"MM")
    after = photo.read_photo(written)
    assert after.orientation == 6
    assert np.array_equal(after.color, changed(before.color))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_orientation_is_turned_for_us_and_turned_back(kind, orientation):
    lossy = kind == "JPEG"
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if lossy else {}
    data = saved(colors(7), kind, exif=exif(orientation), **options)
    before = photo.read_photo(data)
    upright = np.asarray(ImageOps.exif_transpose(opened(data)))
    assert before.orientation == orientation
    assert np.array_equal(before.color, upright)
    assert np.array_equal(before.rgb8(), upright)
    color = changed(before.color)
    written = before.encode(color)
    after = photo.read_photo(written)
    assert after.orientation == orientation
    assert after.stored.shape == before.stored.shape
    assert np.abs(after.color.astype(int) - color).mean() < (12 if lossy else 1e-9)
    seen = np.asarray(ImageOps.exif_transpose(opened(written)))
    assert np.array_equal(seen, after.color)


def jpeg(subsampling: str = "4:2:0", quality: int = 88, **options) -> bytes:
    image = Image.fromarray(colors(8)).resize((163, 97), Image.Resampling.BICUBIC)
    kept = {"exif": exif(6), "dpi": (300, 300), "icc_profile": ICC, "xmp": XMP}
    kept["comment"] = "Příliš".encode()
    return saved(image, "JPEG", quality=quality, subsampling=subsampling, **kept, **options)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_tables_its_sampling_and_its_segments(subsampling, progressive):
    for quality in (30, 95):
        data = jpeg(subsampling, quality, progressive=progressive)
        before = photo.read_photo(data)
        written = before.encode(before.color)
        old, new = opened(data), opened(written)
        assert new.quantization == old.quantization
        assert simplejpeg.decode_jpeg_header(written) == simplejpeg.decode_jpeg_header(data)
        assert new.info.get("progressive") == old.info.get("progressive")
        for field in ("exif", "icc_profile", "dpi", "comment", "xmp"):
            assert new.info[field] == old.info[field]
        after = photo.read_photo(written)
        assert np.abs(after.color.astype(int) - before.color).mean() < 0.5


def test_gray_and_rgb_jpegs_stay_what_they_are():
    gray = saved(Image.fromarray(colors()).convert("L"), "JPEG", quality=40)
    before = photo.read_photo(gray)
    assert before.color.shape == (HEIGHT, WIDTH, 1)
    assert before.rgb8().shape == (HEIGHT, WIDTH, 3)
    assert opened(before.encode(before.color)).mode == "L"
    assert opened(before.encode(before.color)).quantization == opened(gray).quantization
    plain = saved(colors(), "JPEG", quality=95, keep_rgb=True)
    written = photo.read_photo(plain).encode(photo.read_photo(plain).color)
    assert simplejpeg.decode_jpeg_header(written)[2] == "RGB"
    difference = photo.read_photo(written).color.astype(int) - colors()
    assert np.abs(difference).mean() < 2


def test_a_sampling_that_pillow_cannot_write_becomes_444():
    data = simplejpeg.encode_jpeg(colors(), colorsubsampling="440")
    written = photo.read_photo(data).encode(photo.read_photo(data).color)
    assert simplejpeg.decode_jpeg_header(written)[3] == "444"


def test_a_progressive_jpeg_of_noise_is_written(monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**21)  # or Pillow can't make this file
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), np.uint8)
    data = saved(noise, "JPEG", quality=100, subsampling=0, progressive=True)
    monkeypatch.undo()
    assert photo.read_photo(photo.read_photo(data).encode(noise)).color.shape == noise.shape


def test_the_index_of_a_multi_picture_jpeg_goes_with_its_pictures():
    second = Image.fromarray(colors(1))
    data = saved(colors(), "MPO", save_all=True, append_images=[second])
    written = photo.read_photo(data).encode(photo.read_photo(data).color)
    assert b"MPF\0" in data
    assert b"MPF\0" not in written
    assert opened(written).format == "JPEG"


def test_a_webp_keeps_its_chunks_and_its_kind():
    for lossless_kind in (True, False):
        data = saved(colors(1, 4), "WEBP", lossless=lossless_kind, exif=exif(), xmp=XMP,
                     icc_profile=ICC)  # fmt: skip
        before = photo.read_photo(data)
        written = before.encode(changed(before.color))
        old, new = opened(data), opened(written)
        for field in ("exif", "xmp", "icc_profile"):
            assert new.info[field] == old.info[field]
        assert (b"VP8L" in written) == lossless_kind
        assert np.array_equal(np.asarray(new)[:, :, 3], np.asarray(old)[:, :, 3])


def test_a_bmp_keeps_its_resolution():
    data = lossless()["bmp"]
    before = photo.read_photo(data)
    assert opened(before.encode(before.color)).info["dpi"] == opened(data).info["dpi"]


def test_16_bits_are_rounded_for_the_detector():
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    seen = photo.read_photo(png_by_hand(samples)).rgb8()
    assert np.array_equal(seen[:, :, 1], np.rint(np.arange(65536) / 257).reshape(256, 256))


def refused() -> dict[str, tuple[bytes, str]]:
    frames = [Image.fromarray(colors(seed)) for seed in (0, 1)]
    more = {"save_all": True, "append_images": frames[1:]}
    floats = Image.fromarray(np.full((8, 8), np.nan, np.float32))
    return {
        "cmyk": (saved(frames[0].convert("CMYK"), "JPEG"), "CMYK"),
        "cmyk tiff": (saved(frames[0].convert("CMYK"), "TIFF"), "CMYK"),
        "float": (saved(floats, "TIFF"), "float TIFF of 32 bits"),
        "apng": (saved(frames[0], "PNG", **more), "2 frames"),
        "animated webp": (saved(frames[0], "WEBP", **more), "2 frames"),
        "pages": (saved(frames[0], "TIFF", **more), "2 frames"),
        "text": (b"hello", "no JPEG"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_kept_is_refused_with_a_reason(name):
    data, reason = refused()[name]
    with pytest.raises(ImageFault, match=reason):
        photo.read_photo(data)


def test_a_thumbnail_behind_the_picture_is_no_second_picture():
    """Cameras write one; its directory says that it is a reduced copy."""
    picture, small = Image.fromarray(colors()), Image.fromarray(colors()[::4, ::4])
    small.encoderinfo = {"tiffinfo": {tiff.SUBFILE: 1}}
    file = io.BytesIO()
    picture.save(file, "TIFF", save_all=True, append_images=[small])
    before = photo.read_photo(file.getvalue())
    assert np.array_equal(before.color, colors())


def test_colours_of_another_shape_or_type_are_refused():
    before = photo.read_photo(saved(colors(), "PNG"))
    for wrong in (before.color[1:], before.color.astype(np.uint16)):
        with pytest.raises(ValueError, match="not \\(30, 40, 3\\) uint8"):
            before.encode(wrong)


def test_a_damaged_exif_block_is_kept_and_turns_nothing():
    data = saved(colors(), "JPEG", exif=b"Exif\0\0garbage")
    before = photo.read_photo(data)
    assert before.orientation == 1
    assert b"Exif\0\0garbage" in before.encode(before.color)

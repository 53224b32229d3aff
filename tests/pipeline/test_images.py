import io
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from pipeline import images
from pipeline.images import ImageFault
from pipeline.sample import IMAGE_SUFFIXES


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def kinds(picture: np.ndarray) -> dict[str, bytes]:
    """Files of every kind that is read, 8 bits a sample, made by Pillow."""
    rgb = Image.fromarray(picture)
    rgba = Image.fromarray(np.dstack([picture, 255 - picture[:, :, :1]]))
    gray, palette, bits = rgb.convert("L"), rgb.quantize(16), rgb.convert("1")
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "jpeg": saved(rgb, "JPEG", exif=turned),
        "jpeg progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg gray": saved(gray, "JPEG"),
        "jpeg cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "png": saved(rgb, "PNG", exif=turned),
        "png alpha": saved(rgba, "PNG"),
        "png palette": saved(palette, "PNG", transparency=2),
        "png gray": saved(gray, "PNG", transparency=7),
        "png gray alpha": saved(rgba.convert("LA"), "PNG"),
        "png bits": saved(bits, "PNG"),
        "webp": saved(rgb, "WEBP", exif=turned),
        "webp lossless": saved(rgba, "WEBP", lossless=True, exact=True),
        "tiff": saved(rgb, "TIFF", exif=turned),
        "tiff lzw": saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff alpha": saved(rgba, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": saved(rgb, "TIFF", compression="jpeg"),
        "tiff bits": saved(bits, "TIFF", compression="group4"),
        "tiff palette": saved(palette, "TIFF"),
        "tiff cmyk": saved(rgb.convert("CMYK"), "TIFF"),
        "bmp": saved(rgb, "BMP"),
        "bmp palette": saved(palette, "BMP"),
        "bmp bits": saved(bits, "BMP"),
    }


KINDS = tuple(kinds(np.zeros((8, 8, 3), np.uint8)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_the_rgb_that_pillow_sees(make, kind):
    data = kinds(make.picture(5)[:24])[kind]
    header, pixels = images.decode(data)
    assert (header.format, header.width, header.height) == (kind.split()[0], 32, 24)
    image = Image.open(io.BytesIO(data))
    if image.format == "TIFF":  # Pillow turns it; a turn back is exact
        turned = image.getexif().get(0x0112) == 6
        seen = np.asarray(image.convert("RGB"))
        assert np.array_equal(pixels, np.rot90(seen) if turned else seen)
    else:
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("num_samples", [1, 3, 4])
def test_16_bits_are_rounded_to_the_nearest(suffix, num_samples):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = cv2.imencode(suffix, cv2.merge([values] * num_samples))[1].tobytes()
    _, pixels = images.decode(data)
    nearest = np.rint(np.arange(65536) / 257).reshape(256, 256, 1)
    assert np.array_equal(pixels, np.broadcast_to(nearest, (256, 256, 3)))
    _, samples = images.decode_samples(data)
    assert np.array_equal(samples, np.dstack([values] * num_samples))


def several_frames(kind: str) -> bytes:
    first, second = (Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 255))
    return saved(first, kind, save_all=True, append_images=[second])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind):
    with pytest.raises(ImageFault, match="2 frames; give one picture"):
        images.decode(several_frames(kind))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_known_range_are_refused(dtype):
    data = saved(Image.fromarray(np.zeros((8, 8), dtype)), "TIFF")
    with pytest.raises(ImageFault, match="TIFF of 32 bits"):
        images.decode(data)


def bombs() -> dict[str, bytes]:
    """Small files that claim 16,000 x 16,000 pixels or more."""
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    bmp = bytearray(saved(Image.new("RGB", (4, 4)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    tiff = bytearray(saved(Image.new("RGB", (4, 4)), "TIFF"))
    directory = int.from_bytes(tiff[4:8], "little")
    for at in range(directory + 2, directory + 2 + 12 * tiff[directory], 12):
        if int.from_bytes(tiff[at : at + 2], "little") in (256, 257):
            tiff[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 60_000)
    return {
        "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBP" + webp,
        "bmp": bytes(bmp),
        "tiff": bytes(tiff),
    }


@pytest.mark.parametrize("kind", bombs())
def test_other_bombs_are_refused_from_their_headers(kind):
    with pytest.raises(ImageFault, match="is over 64000000 pixels"):
        images.decode(bombs()[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_file_of_every_kind_is_refused(make, kind):
    data = kinds(make.picture())[kind]
    for end in (1, 3, 9, 20, 30, len(data) // 2):
        with pytest.raises(ImageFault) as fault:
            images.decode(data[:end])
        assert "\n" not in str(fault.value)


def damaged(data: bytes, dice: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        reach = min(len(broken), 120) if dice.random() < 0.5 else len(broken)
        broken[dice.randrange(reach)] = dice.randrange(256)
    return bytes(broken[: dice.randrange(len(broken))] if dice.random() < 0.2 else broken)


def test_damage_of_any_kind_is_a_fault_or_an_image_and_silent(make, capfd):
    dice = random.Random(4)
    files = list(kinds(make.picture()).values())
    cases = [damaged(dice.choice(files), dice) for _ in range(500)]

    def outcome(data: bytes) -> str:
        try:
            header, pixels = images.decode(data, pixel_budget=10**6)
        except ImageFault as fault:
            return str(fault)
        assert pixels.shape == (header.height, header.width, 3)
        return pixels.tobytes().hex()

    alone = [outcome(data) for data in cases]
    assert not any("\n" in text for text in alone)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, cases)) == alone
    assert capfd.readouterr() == ("", "")


def test_a_bad_colour_profile_is_no_reason_to_print(make, capfd):
    """libpng says so on stderr where it gets to see it."""
    data = make.png()
    chunk = b"iCCPname\0\0" + zlib.compress(b"nonsense")
    checksum = struct.pack(">I", zlib.crc32(chunk))
    spoilt = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + checksum + data[33:]
    assert np.array_equal(images.decode(spoilt)[1], images.decode(data)[1])
    assert capfd.readouterr() == ("", "")


def test_pillow_warns_nobody_in_a_run(make):
    """Tests turn warnings into errors, so this looks from outside."""
    data = saved(Image.fromarray(make.picture()), "TIFF")
    program = (
        "import sys, warnings\nfrom pipeline import images\n"
        "warnings.warn_explicit('x', UserWarning, 'f', 1, module='PIL.TiffImagePlugin')\n"
        "print(images.decode(sys.stdin.buffer.read())[0].format)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
    assert (done.stdout, done.stderr) == (b"tiff\n", b"")


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "bmp"])
def test_lossless_formats_give_back_every_bit(make, format):
    assert format in IMAGE_SUFFIXES
    picture = np.ascontiguousarray(make.picture(3)[:, ::-1])
    data = images.encode(picture, format)
    header, pixels = images.decode(data)
    assert header.format == format
    assert np.array_equal(pixels, picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), picture)
    assert images.encode(picture, format) == data


def test_jpeg_and_png_are_decoded_to_rgb(make):
    picture = make.picture(1, 48)
    header, pixels = images.decode(make.png(1, 48))
    assert (header.format, header.width, header.height) == ("png", 48, 48)
    assert np.array_equal(pixels, picture)
    header, pixels = images.decode(make.jpeg(1, 48))
    assert header.format == "jpeg"
    assert np.abs(pixels.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 4)])
def test_gray_and_alpha_and_16_bit_become_rgb(shape):
    image = np.full(shape, 200, np.uint16 if len(shape) == 2 else np.uint8)
    image *= 257 if len(shape) == 2 else 1
    _, pixels = images.decode(cv2.imencode(".png", image)[1].tobytes())
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 200).all()


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_every_cut_image_is_refused_in_one_line(make, kind):
    data = getattr(make, kind)()
    for end in (0, 1, 9, 20, 30, len(data) // 2, len(data) - 5):
        with pytest.raises(ImageFault) as fault:
            images.decode(data[:end])
        assert "\n" not in str(fault.value)


def test_text_called_an_image_is_refused():
    with pytest.raises(ImageFault, match="no JPEG, PNG, WebP, TIFF or BMP"):
        images.decode(b"hello")


def test_a_bomb_is_refused_from_its_header_alone(make, monkeypatch):
    bomb = bytearray(make.png())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    monkeypatch.setattr(cv2, "imdecode", None)  # calling it would raise TypeError
    with pytest.raises(ImageFault, match="60000 x 60000 is over 64000000 pixels"):
        images.decode(bytes(bomb))


def test_values_go_to_the_model_and_back_exactly_as_published():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    batch = images.new_batch(2, 16)
    images.to_model(image, batch, 1)
    published = (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    assert torch.equal(batch[1], published)
    assert not batch[0].any()
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images.to_uint8(batch)[1], image)


def test_floats_become_bytes_as_published():
    torch.manual_seed(3)
    restored = torch.randn(2, 3, 8, 8) * 1.5
    restored[0, 0, 0, :4] = torch.tensor([-1.0, 1.0, 1e9, -1e9])
    published = ((restored.clamp(-1, 1) + 1) / 2 * 255 + 0.5).to(torch.uint8)
    before = restored.clone()
    assert np.array_equal(images.to_uint8(restored), published.permute(0, 2, 3, 1).numpy())
    assert torch.equal(restored, before)
    assert np.array_equal(images.to_uint8(restored[1]), images.to_uint8(restored)[1])


def test_floats_beside_a_boundary_become_bytes_as_published():
    edges = ((np.arange(257) - 0.5) / 127.5 - 1).astype(np.float32)
    values = np.concatenate([np.nextafter(edges, np.float32(way)) for way in (-9, 9)] + [edges])
    for _ in range(6):
        values = np.unique(np.concatenate([values, np.nextafter(values, np.float32(-9)),
                                           np.nextafter(values, np.float32(9))]))  # fmt: skip
    values = np.resize(values, (3, 40, 40))
    published = (torch.from_numpy(values).clamp(-1, 1) + 1) / 2 * 255 + 0.5
    mine = images.to_uint8(torch.from_numpy(values))
    assert np.array_equal(mine, published.to(torch.uint8).permute(1, 2, 0).numpy())


def test_encoding_keeps_the_format_and_444(make):
    picture = make.picture(2)
    assert np.array_equal(images.decode(images.encode(picture, "png"))[1], picture)
    data = images.encode(picture, "jpeg")
    assert simplejpeg.decode_jpeg_header(data)[3] == "444"
    assert np.abs(images.decode(data)[1].astype(int) - picture).mean() < 3


def test_resizing_averages_down_and_leaves_the_right_size_alone(make):
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    small = images.resize(np.dstack([checks] * 3).astype(np.uint8), 16)
    assert small.shape == (16, 16, 3)
    assert np.abs(small.astype(int) - 127).max() <= 1  # sampling would give 0 or 255
    picture = make.picture()
    assert images.resize(picture, picture.shape[0]) is picture
    assert images.resize(picture, 64).shape == (64, 64, 3)

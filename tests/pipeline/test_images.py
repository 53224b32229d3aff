import struct

import cv2
import numpy as np
import pytest
import torch

from pipeline import images
from pipeline.images import ImageFault


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
    with pytest.raises(ImageFault, match="neither JPEG nor PNG"):
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


def test_encoding_keeps_the_format_and_444(make):
    picture = make.picture(2)
    assert np.array_equal(images.decode(images.encode(picture, "png"))[1], picture)
    import simplejpeg

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

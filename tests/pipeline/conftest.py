"""Small real things to feed the data plane: images, tars, a restorer that gives back its input."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from pipeline.stages.restore import Bundle, RestoreConfig
from pipeline.tar import TarWriter

SIZE = 32


def picture(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """A smooth colour picture, so that JPEG changes it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def jpeg(seed: int = 0, size: int = SIZE) -> bytes:
    return simplejpeg.encode_jpeg(picture(seed, size), quality=95, colorsubsampling="444")


def png(seed: int = 0, size: int = SIZE) -> bytes:
    return cv2.imencode(".png", picture(seed, size)[:, :, ::-1])[1].tobytes()


def tar_bytes(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    writer = TarWriter(file)
    for name, data in members.items() if isinstance(members, dict) else members:
        writer.add(name, data)
    writer.finish()
    return file.getvalue()


class Identity:
    """A restorer that gives back its input, and NaN where the key asks for it."""

    size = SIZE

    def __init__(self):
        self.shapes: list[tuple[int, ...]] = []

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        assert len(keys) == len(lq)
        self.shapes.append(tuple(lq.shape))
        restored = lq.clone()
        for slot, key in enumerate(keys):
            if "nan" in key:
                restored[slot, 0, 3, 3] = torch.nan
        return restored


@pytest.fixture
def make():
    """The helpers above by name: test modules are not importable from each other."""

    class Make:
        pass

    Make.picture, Make.jpeg, Make.png = map(staticmethod, (picture, jpeg, png))
    Make.tar_bytes, Make.Identity = staticmethod(tar_bytes), Identity
    return Make


@pytest.fixture
def config() -> RestoreConfig:
    model = Bundle(path=Path("identity.safetensors"), sha256="0" * 64)
    return RestoreConfig(model=model, batch_size=3, threads=1)

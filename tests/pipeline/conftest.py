"""Small real things to feed the data plane: images, tars, a restorer that gives back its input."""

import importlib.util
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from pipeline.replica import Bundle
from pipeline.stages.restore import RestoreConfig
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


@pytest.fixture(scope="session")
def s3_servers():
    """An S3 server on loopback and a proxy before it that can break requests."""
    spec = importlib.util.spec_from_file_location(
        "object_store", Path(__file__).with_name("object_store.py")
    )
    parts = sys.modules["object_store"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parts)
    with parts.S3Server() as server, parts.FaultyProxy(server.url) as proxy:
        yield SimpleNamespace(server=server, proxy=proxy, environment=parts.ENVIRONMENT)


@pytest.fixture
def object_store(s3_servers, monkeypatch, tmp_path):
    """A bucket of the test's own: `url` is `s3://<bucket>`, `proxy` what stands before the server.

    The environment leads every S3 client of this process and its children there.
    """
    bucket = f"b{os.urandom(6).hex()}"
    s3_servers.server.make_bucket(bucket)
    s3_servers.proxy.heal()
    for name, value in s3_servers.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_servers.proxy.url)
    monkeypatch.setenv("VSP_SCRATCH", str(tmp_path / "scratch"))
    yield SimpleNamespace(url=f"s3://{bucket}", bucket=bucket, proxy=s3_servers.proxy)
    s3_servers.proxy.heal()

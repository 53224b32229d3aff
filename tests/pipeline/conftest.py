"""Small real things to feed the data plane: images, tars, a restorer that gives back its input."""

import io
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from engine_doubles import SIZE, Hazard, Identity, load_identity

from pipeline.flow import FlowConfig
from pipeline.ledger import Ledger
from pipeline.plan import find_shards, new_plan, shard_units
from pipeline.pools.base import PoolConfig
from pipeline.pools.local import LocalPool
from pipeline.pools.processes import ProcessPool
from pipeline.replica import Bundle
from pipeline.runner import RunnerConfig, run
from pipeline.stages.restore import RestoreConfig, RestoreStage
from pipeline.storage import LocalStore
from pipeline.tar import TarWriter

PROMPT = RunnerConfig(poll_s=0.05)


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


class Engine:
    """Shards in `folder/in`, and runs over them into `folder/<out>`."""

    def __init__(self, folder: Path, config: RestoreConfig):
        model = config.model.model_copy(update={"path": folder / "identity.safetensors"})
        self.folder, self.config = folder, config.model_copy(update={"model": model})

    def shard(self, name: str, members: dict[str, bytes] | list[tuple[str, bytes]]) -> None:
        path = self.folder / "in" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tar_bytes(members))

    def ledger(self, out: str = "out") -> Ledger:
        return Ledger(LocalStore(self.folder / out))

    def plan(self, out: str = "out"):
        """The plan of an output folder, begun if there is none."""
        ledger = self.ledger(out)
        if (plan := ledger.plan()) is None:
            units = shard_units(find_shards(str(self.folder / "in")))
            plan = new_plan("restore", self.config.provenance, units, {})
            ledger.save(plan)
        return plan

    def pool(self, kind: str, workers: int = 1, flow: FlowConfig | None = None, out: str = "out"):
        config = PoolConfig(self.ledger(out).folder, flow or FlowConfig())
        if kind == "local":
            return LocalPool(config, self.folder)
        if kind == "processes":
            return ProcessPool(workers, config, self.folder)
        from pipeline.pools.ray import Placement, RayPool

        return RayPool(workers, config, Placement())

    def run(self, pool=None, *, factory=None, load=load_identity, out="out", patience=None, **rest):
        """Do what is not committed; in this process with the identity model by default."""
        ledger, plan = self.ledger(out), self.plan(out)
        committed = ledger.committed(plan)
        todo = [unit for unit in plan.units if unit.shard not in committed]
        factory = factory or partial(RestoreStage, self.config, load)
        pool = pool or self.pool("local", out=out)
        return run(factory, ledger, plan, todo, pool, patience or PROMPT, **rest)

    def files(self, out: str = "out") -> dict[str, bytes]:
        """What a user sees in the output folder."""
        store = self.ledger(out).store
        return {name: store.read(name) for name in store.list()}

    def rows(self, shard: str, out: str = "out") -> list[dict]:
        return pq.read_table(self.folder / out / f"{shard}.parquet").to_pylist()


@pytest.fixture
def engine(tmp_path, config) -> Engine:
    return Engine(tmp_path, config)


@pytest.fixture
def make():
    """The helpers above by name: test modules are not importable from each other."""

    class Make:
        pass

    Make.picture, Make.jpeg, Make.png = map(staticmethod, (picture, jpeg, png))
    Make.tar_bytes, Make.Identity = staticmethod(tar_bytes), Identity
    Make.Hazard, Make.load = Hazard, staticmethod(load_identity)
    return Make


@pytest.fixture
def config() -> RestoreConfig:
    model = Bundle(path=Path("identity.safetensors"), sha256="0" * 64)
    return RestoreConfig(model=model, batch_size=3, threads=1)


@pytest.fixture(scope="session")
def s3_servers():
    """An S3 server on loopback and a proxy before it that can break requests."""
    import object_store  # moto takes a second

    with object_store.S3Server() as server, object_store.FaultyProxy(server.url) as proxy:
        yield SimpleNamespace(server=server, proxy=proxy, environment=object_store.ENVIRONMENT)


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

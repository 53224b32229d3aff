"""The Ray pool: the same bytes as the local one, and a death that costs nothing."""

import contextlib
import os
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.replica import Untrained, load_model
from pipeline.stages.restore import RestoreConfig, RestoreStage

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ray_pool(ray_started, engine):
    """Make pools on the one Ray that all tests share."""
    return partial(engine.pool, "ray")


def test_local_and_ray_write_the_same_bytes(ray_pool, engine, make):
    from jobs.config import load_model_config

    path = ROOT / "configs" / "models" / "vspbfr-64.yaml"
    model = Untrained(path=path, config=load_model_config(path))
    engine.config = RestoreConfig(model=model, seed=5, batch_size=2, threads=2)
    members = {f"{n}.{'png' if n % 2 else 'jpg'}": make.png(n, 64) for n in range(3)}
    engine.shard("000000", members | {"z.jpg": b""})
    for out in ("local", "ray"):
        summary = engine.run(engine.pool(out, out=out), load=load_model, out=out)
        assert not summary.errors
        assert summary.counts == {"restored": 3, "refused": 1}
    assert sorted(engine.files("local")) == ["000000.parquet", "000000.tar"]
    assert engine.files("local") == engine.files("ray")


def test_a_killed_actor_is_replaced_and_condemns_nobody(ray_pool, engine, make):
    for shard in "abc":
        engine.shard(shard, {f"{shard}{n}.png": make.png(n) for n in range(4)})
    engine.shard("b", {f"once{n}.png": make.png(n) for n in range(4)})
    engine.run(out="whole")
    stage = partial(make.Hazard, engine.config, make.load)
    summary = engine.run(ray_pool(2), factory=stage)
    assert (summary.num_deaths, summary.num_done, summary.exit_code) == (1, 3, 0)
    assert engine.files() == engine.files("whole")


def test_a_stage_that_cannot_be_set_up_is_one_line(ray_pool, engine, make):
    engine.shard("a", {"a.png": make.png()})
    with pytest.raises(RunError, match="did not start: FileNotFoundError"):
        engine.run(ray_pool(), factory=partial(RestoreStage, engine.config, load_model))


def listening(pid: int) -> set[str]:
    """Local addresses, in the kernel's hex, on which a process and its children listen."""
    try:
        return listening_now(pid)
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return set()


def listening_now(pid: int) -> set[str]:
    folder = Path("/proc") / str(pid)
    links = []
    for link in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed while we looked
            links.append(os.readlink(link))
    below = " ".join(p.read_text() for p in folder.glob("task/*/children")).split()
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in (folder / "net" / table).read_text().splitlines()[1:]
    ]
    ours = {line[1].split(":")[0] for line in lines
            if line[3] == "0A" and f"socket:[{line[9]}]" in links}  # fmt: skip
    return ours.union(*(listening(int(child)) for child in below))


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
def test_ray_listens_on_loopback_only_with_a_secret_of_its_own(ray_pool):
    found = listening(os.getpid())
    assert found
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64

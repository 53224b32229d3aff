"""The Ray pool: the same bytes as the local one, and a death that costs one shard."""

import contextlib
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.plan import Plan, find_shards, make_plan
from pipeline.pools.local import LocalPool
from pipeline.runner import run
from pipeline.stage import Task
from pipeline.stages.restore import RestoreConfig, RestoreStage, Untrained

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ray_pool(ray_started):
    """Make pools on the one Ray that all tests share."""
    ray_started.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    from pipeline.pools.ray import RayPool

    return RayPool


class Mortal:
    """Dies, or fails to start, where the shard's or its own name says so."""

    def __init__(self, name="fine"):
        self.name = name

    def setup(self):
        if self.name == "broken":
            raise ValueError("no\nweights")

    def process(self, task):
        if task.shard == "deadly":
            os._exit(7)
        if task.shard == "error":
            raise OSError(28, "no space")
        return {"restored": 1}

    def close(self):
        pass


def tasks(tmp_path, *names):
    return Plan(tuple(Task(name, tmp_path / name, tmp_path) for name in names), ())


def test_local_and_ray_write_the_same_bytes(ray_pool, tmp_path, make):
    from jobs.config import load_model_config

    path = ROOT / "configs" / "models" / "vspbfr-64.yaml"
    model = Untrained(path=path, config=load_model_config(path))
    config = RestoreConfig(model=model, seed=5, batch_size=2, threads=2)
    (tmp_path / "in").mkdir()
    members = {f"{n}.{'png' if n % 2 else 'jpg'}": make.png(n, 64) for n in range(3)}
    tar = make.tar_bytes(members | {"z.jpg": b""})
    (tmp_path / "in" / "000000.tar").write_bytes(tar)
    found = {}
    for name, pool in {"local": LocalPool(), "ray": ray_pool()}.items():
        plan = make_plan(find_shards(str(tmp_path / "in")), tmp_path / name, "{}")
        summary = run(partial(RestoreStage, config), plan, pool)
        assert not summary.errors
        assert summary.counts == {"restored": 3, "refused": 1}
        found[name] = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()}
    assert sorted(found["local"]) == ["000000.parquet", "000000.tar"]
    assert found["local"] == found["ray"]


def test_a_dead_worker_costs_its_shard_and_the_other_does_the_rest(ray_pool, tmp_path):
    summary = run(Mortal, tasks(tmp_path, "error", "deadly", *"abc"), ray_pool(num_workers=2))
    assert (summary.num_done, summary.exit_code) == (3, 1)
    died, failed = sorted(summary.errors)
    assert died.startswith("deadly: worker died: ActorDiedError")
    assert "\n" not in died
    assert failed == "error: OSError: [Errno 28] no space"


def test_without_a_living_worker_the_rest_is_told(ray_pool, tmp_path):
    summary = run(Mortal, tasks(tmp_path, "deadly", "a", "b"), ray_pool())
    assert (summary.num_done, summary.exit_code) == (0, 1)
    assert summary.errors[-1].startswith("2 shards not begun")


def test_a_stage_that_cannot_be_set_up_is_one_line(ray_pool, tmp_path):
    with pytest.raises(RunError, match="did not start: ValueError: no weights"):
        run(partial(Mortal, "broken"), tasks(tmp_path, "a"), ray_pool())


def listening(pid: int) -> set[str]:
    """Local addresses, in the kernel's hex, on which a process and its children listen."""
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

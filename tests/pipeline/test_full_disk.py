"""A disk that fills up: the run waits for room, or ends in order and goes on when run again.

Two ways to have one: a tmpfs of two megabytes where this process may mount one, and a limit on the
size of files, which anybody may set.
"""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.ledger import Ledger
from pipeline.shards import ShardOutput
from pipeline.stage import Task
from pipeline.storage import LocalStore, StoreTrouble, open_store
from pipeline.verify import verify

MIB = 2**20
DISK_BYTES = 2 * MIB
NUM_SHARDS = 3

# What `vsp restore` runs, with a model that gives back its input; argv: IN OUT PATIENCE FILE_LIMIT.
DRIVER = """
import resource, signal, sys
from functools import partial
from pathlib import Path
import torch
from jobs import cli
from jobs.running import Job, RunFlags, run_job
from pipeline.plan import find_shards, shard_units
from pipeline.replica import Bundle
from pipeline.stages.restore import RestoreConfig, RestoreStage

class Identity:
    size = 32
    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        return lq

def load(config):
    return Identity()

source, out, patience, limit = sys.argv[1:]
torch.set_num_threads(1)
config = RestoreConfig(model=Bundle(path=Path("identity.safetensors"), sha256="0" * 64),
                       batch_size=4, threads=1)
units = shard_units(find_shards(source))
job = Job("restore", partial(RestoreStage, config, load), config.provenance, units, out)
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python sets it: the write fails with EFBIG
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
try:
    sys.exit(run_job(job, RunFlags(pool="local", patience_s=float(patience))).exit_code)
except Exception as error:  # as `vsp` does
    cli.leave_at_once(cli._told(error))
"""


@pytest.fixture
def shards(tmp_path, make):
    """Shards of 130 kB, written back at about the same size."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(NUM_SHARDS):
        random = np.random.default_rng(number)
        members = {}
        for record in range(30):
            members[f"{record:03d}.jpg"] = make.jpeg(record)
            members[f"{record:03d}.bin"] = random.bytes(2000)
        (folder / f"{number:06d}.tar").write_bytes(make.tar_bytes(members))
    return folder


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of two megabytes that holds nothing but ballast: a twentieth is left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here ({error})")
    try:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(DISK_BYTES - DISK_BYTES // 20))
        yield SimpleNamespace(out=folder / "out", ballast=ballast)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def drive(source: Path, out: Path, patience_s: float, file_limit: int = 0, on_line=None):
    """Run the driver in a process of its own; returns its exit code and the lines of stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, source, out, str(patience_s), str(file_limit)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = threading.Timer(100, process.kill)
    deadline.start()
    lines = []
    with process:
        for line in process.stderr:
            lines.append(line.rstrip())
            if on_line:
                on_line(line)
    deadline.cancel()
    return process.returncode, lines


def outputs(out: Path) -> dict[str, bytes]:
    """What a reader sees."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".tar", ".parquet")}


def problems(out: Path) -> list[str]:
    ledger = Ledger(open_store(str(out)))
    verdict = verify(ledger, ledger.plan())
    return verdict.problems + [f"{verdict.num_pending} pending"] * bool(verdict.num_pending)


@pytest.fixture
def undisturbed(shards, tmp_path):
    """The same input on a disk with room."""
    out = tmp_path / "room"
    again = drive(shards, out, 0)
    assert again[0] == 0, again[1]
    return outputs(out)


@pytest.mark.slow
def test_a_run_waits_for_room_and_goes_on(shards, disk, undisturbed):
    def make_room(line: str) -> None:
        if "waiting" in line:
            disk.ballast.unlink(missing_ok=True)

    code, lines = drive(shards, disk.out, 60, on_line=make_room)
    assert code == 0, lines
    assert any("No space left on device; waiting, 60 s at most" in line for line in lines)
    assert outputs(disk.out) == undisturbed
    assert problems(disk.out) == []
    assert not any((disk.out / "_vsp" / "attempts").iterdir())


@pytest.mark.slow
def test_without_patience_a_run_ends_in_one_line_and_can_be_run_again(shards, disk, undisturbed):
    code, lines = drive(shards, disk.out, 0)
    assert code == 1
    assert [line for line in lines if "Traceback" in line] == []
    assert lines[-1].startswith("vsp: ")
    assert "No space left on device" in lines[-1]
    found = outputs(disk.out)
    assert found.items() < undisturbed.items()  # what is there is whole, and something is missing
    disk.ballast.unlink()
    assert drive(shards, disk.out, 0)[0] == 0
    assert outputs(disk.out) == undisturbed
    assert problems(disk.out) == []


@pytest.mark.slow
def test_a_disk_without_a_byte_left_is_one_line(shards, disk):
    with disk.ballast.open("ab", buffering=0) as file:
        assert file.write(bytes(DISK_BYTES)) < DISK_BYTES
    code, lines = drive(shards, disk.out, 0)
    assert code == 1
    assert [line for line in lines if "Traceback" in line] == []
    assert "No space left on device" in lines[-1]
    disk.ballast.unlink()
    assert drive(shards, disk.out, 0)[0] == 0
    assert problems(disk.out) == []


@pytest.mark.slow
def test_a_limit_on_files_ends_a_run_as_a_full_disk_does(shards, tmp_path, undisturbed):
    out = tmp_path / "out"
    code, lines = drive(shards, out, 0, file_limit=64 * 1024)
    assert code == 1
    assert lines[-1].startswith("vsp: ")
    assert "File too large" in lines[-1]
    assert outputs(out) == {}
    again = drive(shards, out, 0)
    assert again[0] == 0, again[1]
    assert outputs(out) == undisturbed
    assert problems(out) == []


@pytest.fixture
def small_files():
    """No file may grow beyond 64 KiB; taken back at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_room_is_looked_for_before_a_shard_is_begun(shards, tmp_path, config, small_files):
    source = shards / "000000.tar"
    output = ShardOutput(Task("000000", str(source), str(tmp_path / "out")), config.provenance)
    with pytest.raises(StoreTrouble, match="File too large"):
        output.__enter__()
    assert LocalStore(tmp_path / "out").attempts() == []


def test_room_for_a_small_shard_is_found_and_given_back(tmp_path, small_files):
    store = LocalStore(tmp_path / "out")
    store.begin("a.1")
    store.probe("a.1", 60_000)
    assert list((tmp_path / "out" / "_vsp" / "attempts" / "a.1").iterdir()) == []

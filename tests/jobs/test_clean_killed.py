"""A cleaning run that is killed, wherever it is, goes on to the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from constructed_pictures import drawn_faces
from constructed_set import build
from safetensors.torch import save_file

from vsp_model.mobilefacenet import MobileFaceNet

EXIT_BAD_RECORDS = 3
# What appears in OUT/_vsp in each step: then the run is killed.
STEPS = (
    "inspect/_vsp/commits/*/000000.json",
    "calibrate/_vsp/commits/*/*.json",
    "decide/groups.parquet",
    "commits/*/000000.json",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    # Two shards: the constructed set is written 256 records to a shard.
    for number in range(2):
        build(folder / f"made-{number}", drawn_faces(40, seed=number), size=30, seed=number)
    (folder / "in").mkdir()
    for number in range(2):
        tar = folder / f"made-{number}" / "set" / "000000.tar"
        tar.rename(folder / "in" / f"{number:06d}.tar")
    torch.manual_seed(0)
    (folder / "weights").mkdir()
    save_file(MobileFaceNet().state_dict(), folder / "weights" / "mobilefacenet_ms1m.safetensors")
    return folder


def command(made: Path, out: str) -> list[str]:
    return [
        sys.executable, "-m", "jobs.cli", "clean", str(made / "in"), str(made / out),
        "--weights", str(made / "weights"), "--threads", "1", "--calibrate-faces", "8",
        "--set", "calibrate.min_trials=2", "--set", "sample.min_detail=0",
    ]  # fmt: skip


def written(out: Path) -> dict[str, str]:
    """Everything but the run's own memory: shards, sidecars, manifest, decisions, thresholds."""
    kept = ("_vsp/decide", "_vsp/review", "_vsp/inspect/inspected")
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
        and ("_vsp" not in (name := path.relative_to(out).as_posix()) or name.startswith(kept))
    }


@pytest.mark.slow
def test_a_run_killed_in_every_step_ends_with_the_same_bytes(made):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ask = {"capture_output": True, "env": environment, "check": False}
    whole = subprocess.run(command(made, "whole"), **ask)
    assert whole.returncode == EXIT_BAD_RECORDS, whole.stderr.decode()
    for place in STEPS:
        run = subprocess.Popen(
            command(made, "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
        while run.poll() is None and not list((made / "out" / "_vsp").glob(place)):
            time.sleep(0.002)
        assert run.poll() is None, f"ended before it came to {place}"
        run.send_signal(signal.SIGKILL)
        run.wait()
    again = subprocess.run(command(made, "out"), **ask)
    assert again.returncode == EXIT_BAD_RECORDS, again.stderr.decode()
    assert written(made / "out") == written(made / "whole")

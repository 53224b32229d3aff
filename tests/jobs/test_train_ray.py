"""Training on Ray Train: what one process computes, and the same after a worker was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Shards and settings, made by the helpers of the default tests."""
    import yaml

    from tests.jobs import test_train as tiny

    folder = tmp_path_factory.mktemp("ray")
    (folder / "faces").mkdir()
    tiny.draw_faces(folder / "faces", 10)
    command = [sys.executable, "-m", "jobs.cli", "pack", folder / "faces", folder / "shards"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    values = {"model": tiny.model(), "run": tiny.RUN, "data": {"size": tiny.SIZE}}
    values |= tiny.STAGES["prior"]
    values["run"] = tiny.RUN | {"num_images": 20 * tiny.BATCH}
    (folder / "prior.yaml").write_text(yaml.safe_dump(values))
    return folder


def start(given, out, *more):
    command = [sys.executable, "-m", "jobs.cli", "train", "prior", given / "prior.yaml", "--data",
               given / "shards", "--out", out, "--device", "cpu", *more]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return err


def result(run):
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [newest / "state.safetensors", newest / "state.json", run / "model.safetensors"]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def alone(given):
    finish(start(given, given / "alone"))
    return result(given / "alone")


def descendants(pid):
    children = " ".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
    for child in map(int, children.split()):
        yield child
        yield from descendants(child)


def training_workers(pid):
    """Ray's training workers among a process's descendants, by their title."""
    found = []
    for child in descendants(pid):
        title = Path(f"/proc/{child}/cmdline")
        if title.exists() and b"RayTrainWorker" in title.read_bytes():
            found.append(child)
    return found


def test_two_workers_compute_what_one_process_does(given, alone):
    finish(start(given, given / "two", "--workers", "2"))
    assert result(given / "two") == alone


def test_a_killed_worker_is_made_up_for(given, alone):
    out = given / "killed"
    process = start(given, out, "--workers", "2")
    deadline = time.monotonic() + 400
    while not list(out.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(training_workers(process.pid)[0], signal.SIGKILL)
    err = finish(process)
    assert "starting again from the newest checkpoint" in err
    assert "going on from step" in err
    assert result(out) == alone


def test_a_mistake_that_a_worker_finds_is_one_line(given, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    process = start(
        given, tmp_path / "out", "--workers", "2", "--set",
        f"judges.lpips.path={tmp_path / 'bad.safetensors'}",
    )  # fmt: skip
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.splitlines()[-1].startswith("vsp: ")
    assert "Traceback" not in err

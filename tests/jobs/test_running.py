"""Runs that are killed, stopped, changed, doubled: `vsp restore` on OUT as a user meets it."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.tar import TarWriter

ROOT = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).resolve().parents[2] / "configs" / "models" / "vspbfr-64.yaml"
FLAGS = ("--pool", "local", "--threads", "1", "--batch-size", "2", "--model", str(SMALL))


@pytest.fixture
def shards(tmp_path):
    """Write shards 000 to N of two faces each; returns their folder."""

    def write(num_shards, **others):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for number in range(num_shards):
            file = io.BytesIO()
            writer = TarWriter(file)
            for n in range(2):
                face = np.random.default_rng([number, n]).integers(0, 256, (16, 16, 3), np.uint8)
                writer.add(f"{number:03}-{n}.png", cv2.imencode(".png", face)[1].tobytes())
            for name, data in others.items():
                writer.add(f"{name}.png", data)
            writer.finish()
            (folder / f"{number:03}.tar").write_bytes(file.getvalue())
        return folder

    return write


@pytest.fixture
def restore(vsp, tmp_path):
    def run(*options, source="in", out="out"):
        return vsp("restore", tmp_path / source, tmp_path / out, *FLAGS, *options)

    return run


@pytest.fixture
def start(tmp_path):
    """Begin `vsp restore` in a process of its own, and wait until so many shards are decided."""
    begun = []

    def run(num_decided, out="out"):
        command = [sys.executable, "-m", "jobs.cli", "restore", "in", out, *FLAGS]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun.append(process)
        deadline = time.monotonic() + 60
        while len(list((tmp_path / out).glob("_vsp/commits/*/[0-9]*.json"))) < num_decided:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


@pytest.mark.slow
def test_a_killed_run_is_finished_by_the_next_and_nobody_is_condemned(
    vsp, shards, restore, start, tmp_path
):
    shards(30)
    assert restore(out="whole")[0] == 0
    process = start(2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert vsp("status", tmp_path / "out")[0] == 75
    code, out, _ = vsp("verify", tmp_path / "out", "--json")
    verdict = json.loads(out)
    assert (code, verdict["problems"]) == (75, [])
    assert 0 < verdict["num_pending"] <= 28
    assert restore()[0] == 0
    assert visible(tmp_path / "out") == visible(tmp_path / "whole")
    code, out, err = vsp("verify", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out == "30 of 30 shards, 60 records (60 restored): all is well\n"
    assert not list((tmp_path / "out" / "_vsp" / "attempts").iterdir())


def test_a_run_that_is_told_to_stop_ends_its_shards_and_the_next_goes_on(
    shards, restore, start, tmp_path
):
    shards(30)
    process = start(1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "stopped; run the same command again to go on" in err
    assert not list((tmp_path / "out" / "_vsp" / "attempts").iterdir())
    code, out, _ = restore("--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["shards_from_before"] > 0
    assert facts["records"] == {"restored": 60}


def test_a_second_driver_is_refused_in_one_line(shards, restore, tmp_path):
    from pipeline.locks import run_lock
    from pipeline.storage import LocalStore

    shards(1)
    assert restore()[0] == 0
    with run_lock(LocalStore(tmp_path / "out")):
        code, _, err = restore()
    last = err.splitlines()[-1]
    assert code == 1
    assert "another run is at work here (host" in last
    assert f"pid {os.getpid()}" in last


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seed", "1"], "seed: 0, now 1"),
        (["--blend", "0.5"], "blend: 1.0, now 0.5"),
        (["--set", "noise=mean"], "noise: seeded, now mean"),
        (["--limit", "1"], "limit: 0, now 1"),
        (["--threads", "2", "--keep-size"], "keep_size: False, now True; threads: 1, now 2"),
    ],
)
def test_a_changed_setting_is_refused_with_both_values(shards, restore, tmp_path, options, told):
    shards(1)
    assert restore()[0] == 0
    before = visible(tmp_path / "out")
    code, _, err = restore(*options)
    assert code == 2
    assert told in err.splitlines()[-1]
    assert "--restart" in err.splitlines()[-1]
    assert visible(tmp_path / "out") == before


def test_what_may_change_may_change(shards, restore):
    shards(1)
    assert restore()[0] == 0
    assert restore("--codec-threads", 4, "--patience", 3)[0] == 0


def test_restart_starts_over_with_other_settings_and_another_input(vsp, shards, restore, tmp_path):
    shards(2)
    assert restore()[0] == 0
    before = visible(tmp_path / "out")
    (tmp_path / "in" / "001.tar").unlink()
    code, _, err = restore()
    assert (code, "input 001 gone" in err) == (2, True)
    assert restore("--restart", "--seed", 5)[0] == 0
    after = visible(tmp_path / "out")
    assert sorted(after) == ["000.parquet", "000.tar"]
    assert after["000.tar"] != before["000.tar"]
    assert vsp("verify", tmp_path / "out")[0] == 0


def test_a_changed_input_is_refused(shards, restore, tmp_path):
    shards(1)
    assert restore()[0] == 0
    os.utime(tmp_path / "in" / "000.tar", (1, 1))
    code, _, err = restore()
    assert code == 2
    assert "input 000 changed" in err


def test_an_output_in_the_input_and_a_foreign_file_are_refused(shards, restore, tmp_path):
    shards(1)
    for out, told in (("in", "the input"), ("in/deep", "lies in the input folder")):
        code, _, err = restore(out=out)
        assert (code, told in err) == (2, True), err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.jpg").touch()
    code, _, err = restore()
    assert (code, "mine.jpg: foreign file" in err) == (2, True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["000.tar", "in", "mine.jpg", "out"]


def test_a_limit_and_the_quarantine(vsp, shards, restore, tmp_path):
    shards(3, broken=b"text")
    code, out, _ = restore("--limit", 5, "--quarantine", "--json")
    assert code == 3
    assert json.loads(out)["records"] == {"restored": 4, "refused": 1}
    assert not (tmp_path / "out" / "002.tar").exists()
    assert (tmp_path / "out" / "_vsp" / "quarantine" / "000.tar").exists()
    assert vsp("verify", tmp_path / "out")[0] == 0
    assert vsp("status", tmp_path / "out")[0] == 3


def test_only_failed_does_shards_with_failed_records_again(vsp, shards, restore, tmp_path):
    """A record that was condemned gets another chance; what was well stays as it is."""
    from pipeline.ledger import Ledger
    from pipeline.storage import LocalStore

    shards(2)
    assert restore(out="whole")[0] == 0
    assert restore()[0] == 0
    ledger = Ledger(LocalStore(tmp_path / "out"))
    plan = ledger.plan()
    ledger.note("condemned", plan=plan.id, shard="001", index=0, reason="killed the worker twice")
    ledger.forget(plan, ["001"], outputs=True)
    assert restore()[0] == 3
    rows = pq.read_table(tmp_path / "out" / "001.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["failed", "restored"]
    untouched = (tmp_path / "out" / "000.tar").stat().st_mtime_ns
    assert restore("--only-failed")[0] == 0
    assert visible(tmp_path / "out") == visible(tmp_path / "whole")
    assert (tmp_path / "out" / "000.tar").stat().st_mtime_ns == untouched
    assert vsp("verify", tmp_path / "out")[0] == 0


def test_status_and_verify_want_the_out_of_a_run(vsp, tmp_path):
    for name in ("status", "verify"):
        code, _, err = vsp(name, tmp_path)
        assert code == 2
        assert err.endswith("no run has begun here; give the OUT of a run\n")


def test_verify_names_what_is_wrong_and_status_what_is_there(vsp, shards, restore, tmp_path):
    shards(2)
    assert restore()[0] == 0
    code, out, _ = vsp("status", tmp_path / "out", "--json")
    facts = json.loads(out)
    assert (code, facts["num_done"], facts["num_pending"]) == (0, 2, 0)
    assert "2 of 2 done" in vsp("status", tmp_path / "out")[1]
    (tmp_path / "out" / "000.tar").unlink()
    (tmp_path / "out" / "mine.txt").touch()
    code, out, err = vsp("verify", tmp_path / "out")
    assert code == 1
    assert err.splitlines() == ["vsp: 000.tar: missing", "vsp: mine.txt: foreign file"]
    assert "2 problems" in out


def test_a_redo_that_was_interrupted_is_finished_by_a_plain_run(shards, restore, tmp_path):
    """The decision is taken back and the old files are still there: they are no foreign files."""
    from pipeline.ledger import Ledger
    from pipeline.storage import LocalStore

    shards(2)
    assert restore()[0] == 0
    before = visible(tmp_path / "out")
    ledger = Ledger(LocalStore(tmp_path / "out"))
    plan = ledger.plan()
    ledger.note("redo", plan=plan.id, shard="001")
    ledger.forget(plan, ["001"], outputs=False)
    assert restore()[0] == 0
    assert visible(tmp_path / "out") == before

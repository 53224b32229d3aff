"""Checkpoints of a training run on an object store: whole or absent, as in a folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.storage import open_store
from pipeline.training.checkpoints import open_checkpoints, trained_bundle

ROOT = Path(__file__).resolve().parents[2]


def write(store, step, **facts):
    with store.write(step, facts) as folder:
        (folder / "state.safetensors").write_bytes(bytes([step]) * 1000)
        (folder / "model.safetensors").write_bytes(b"model")


@pytest.fixture
def remote(object_store):
    """A run's folder on the store, and its checkpoints."""
    store = open_store(f"{object_store.url}/run")
    return store, open_checkpoints(store)


def test_a_checkpoint_comes_back_as_it_was_sent(remote, object_store):
    _, checkpoints = remote
    assert checkpoints.newest() is None
    write(checkpoints, 1, loss=0.5)
    write(checkpoints, 2, loss=0.7)
    newest = checkpoints.newest()
    assert (newest.step, newest.facts) == (2, {"loss": 0.7})
    assert (newest.folder / "state.safetensors").read_bytes() == bytes([2]) * 1000
    assert checkpoints.best("loss").step == 1
    puts = [path for method, path in object_store.proxy.seen if method == "PUT"]
    assert puts[-1].endswith("step-000000002/manifest.json")
    assert trained_bundle(f"{object_store.url}/run").read_bytes() == b"model"


def test_a_damaged_one_is_passed_over_and_can_be_written_again(remote):
    store, checkpoints = remote
    for step in (1, 2, 3):
        write(checkpoints, step)
    store.write("checkpoints/step-000000003/state.safetensors", b"torn")
    store.remove("checkpoints/step-000000002/manifest.json")  # killed before the manifest went
    assert checkpoints.newest().step == 1
    assert checkpoints.notes == ["step-000000003: damaged, the checkpoint before it is used"]
    write(checkpoints, 3)
    assert checkpoints.newest().step == 3


def test_the_newest_and_the_best_are_kept(remote):
    store, checkpoints = remote
    for step, loss in enumerate((0.1, 0.4, 0.3, 0.2), 1):
        write(checkpoints, step, loss=loss)
        checkpoints.prune(2, "loss")
    left = {name.split("/")[1] for name in store.list("checkpoints")}
    assert left == {"step-000000001", "step-000000003", "step-000000004"}


def test_an_upload_that_fails_leaves_no_checkpoint(remote, object_store):
    _, checkpoints = remote
    write(checkpoints, 1)
    object_store.proxy.break_next("PUT", "403", path="state.safetensors")
    with pytest.raises(UserError, match="access denied"):
        write(checkpoints, 2)
    assert checkpoints.newest().step == 1


@pytest.mark.parametrize("name", ["nothing", "model.safetensors"])
def test_from_nothing_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: no such (run|bundle); give"):
        trained_bundle(str(tmp_path / name))


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match="no run's folder; give the OUT of `vsp train`"):
        trained_bundle(str(tmp_path))


def vsp(*arguments):
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr


@pytest.mark.slow
def test_a_run_on_an_object_store_computes_what_one_in_a_folder_does(object_store, tmp_path):
    from tests.jobs import test_train as tiny

    (tmp_path / "faces").mkdir()
    tiny.draw_faces(tmp_path / "faces", 10)
    vsp("pack", tmp_path / "faces", tmp_path / "shards")
    values = {"model": tiny.model(), "run": tiny.RUN, "data": {"size": tiny.SIZE}}
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump(values | tiny.STAGES["prior"]))
    train = ["train", "prior", tmp_path / "prior.yaml", "--data", tmp_path / "shards", "--out"]
    vsp(*train, tmp_path / "run")
    url = f"{object_store.url}/run"
    vsp(*train, url, "--set", f"run.num_images={2 * tiny.BATCH}")
    told = vsp(*train, url)
    assert "going on from step 2 of 4" in told
    assert "tensorboard: off, its files need a folder" in told
    store = open_store(url)
    name = "model.safetensors"
    assert store.read(name) == (tmp_path / "run" / name).read_bytes()
    assert b"2 sitting(s)" in store.read("report.md")
    assert trained_bundle(url).read_bytes() == store.read(name)

import hashlib

import pytest

from pipeline.benchmark.data import keys_of, pack_images, pick, revision, write_portraits
from pipeline.errors import UserError
from pipeline.plan import find_shards
from pipeline.scoring.sources import find_images
from pipeline.shards import read_shard
from pipeline.sidecar import Provenance, Row, write_sidecar
from pipeline.stages.degrade import DegradeConfig
from pipeline.storage import LocalStore


@pytest.fixture
def faces(tmp_path, make):
    folder = tmp_path / "faces"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.png", "sub/c.png")):
        (folder / name).write_bytes(make.png(number))
    return folder


def test_keys_of_a_folder_are_those_of_its_shards(faces, tmp_path):
    pack_images(faces, tmp_path / "packed")
    assert keys_of(str(faces)) == keys_of(str(tmp_path / "packed")) == ("a", "b", "sub/c")
    assert keys_of(str(faces), 2) == ("a", "b")


def test_keys_of_a_broken_shard_end_where_it_breaks(tmp_path, make):
    whole = make.tar_bytes({"a.png": make.png(), "a.hq.png": make.png(), "b.png": make.png()})
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) // 2])
    assert keys_of(str(tmp_path / "x.tar")) == ("a",)
    (tmp_path / "x.tar").write_bytes(whole)
    assert keys_of(str(tmp_path / "x.tar")) == ("a", "b")


def test_only_the_first_images_are_packed_with_a_limit(faces, tmp_path):
    pack_images(faces, tmp_path / "packed", limit=2)
    shards = find_shards(str(tmp_path / "packed"))
    assert [sample.key for shard in shards for sample in read_shard(shard)] == ["a", "b"]


def test_picked_images_keep_their_bytes_under_their_key(faces, tmp_path):
    found = find_images(str(faces), key_regex="(?:sub/)?(.*)")
    pick(found, ["c"], tmp_path / "picked")
    assert [path.name for path in (tmp_path / "picked").iterdir()] == ["c.png"]
    assert (tmp_path / "picked/c.png").read_bytes() == (faces / "sub/c.png").read_bytes()


def test_what_is_no_image_cannot_be_picked(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"text")
    with pytest.raises(UserError, match="a: no JPEG"):
        pick(find_images(str(tmp_path / "in")), ["a"], tmp_path / "out")


def test_portraits_are_written_once(tmp_path):
    write_portraits(tmp_path, 64)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(times) == [f"portrait-{n}.png" for n in range(4)]
    write_portraits(tmp_path, 64)
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def degraded(folder, shards, after="out"):
    """A folder of sidecars: each shard's keys, the hash of a face before being that of its key."""
    folder.mkdir()
    for name, keys in shards.items():
        rows = [
            Row(n, key, "degraded", sha256_in=hashlib.sha256(key.encode()).hexdigest(),
                sha256_out=f"{after} {key}")
            for n, key in enumerate(keys)
        ]  # fmt: skip
        with (folder / f"{name}.parquet").open("wb") as file:
            write_sidecar(file, name, rows, Provenance(0, "", "", "{}"))
    return LocalStore(folder)


def test_a_revision_is_of_faces_degradation_and_seed(tmp_path):
    config = DegradeConfig(size=64, seed=1, keep_hq=True)
    whole = degraded(tmp_path / "whole", {"0": ["a", "b", "c"]})
    parts = degraded(tmp_path / "parts", {"x": ["c"], "y": ["a", "b"]})
    fewer = degraded(tmp_path / "fewer", {"0": ["a", "b"]})
    jpeg = degraded(tmp_path / "jpeg", {"0": ["a", "b", "c"]}, after="another library")
    rev, of_degraded = revision(whole, config)
    assert revision(parts, config) == (rev, of_degraded)
    assert revision(whole, config.model_copy(update={"limit": 3})) == (rev, of_degraded)
    assert revision(fewer, config)[0] != rev
    assert revision(whole, config.model_copy(update={"seed": 2}))[0] != rev
    assert revision(whole, config.model_copy(update={"size": 32}))[0] != rev
    assert revision(jpeg, config)[0] == rev
    assert revision(jpeg, config)[1] != of_degraded

"""The restore stage, with a restorer that gives back its input."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline import images
from pipeline.replica import Untrained
from pipeline.shards import read_shard
from pipeline.stages.restore import RestoreStage
from vsp_model.runtime import RuntimeConfig
from vsp_model.vspbfr import VSPBFRConfig


@pytest.fixture
def restore(tmp_path, engine, make):
    """Restore a tar of these members; returns the rows by key, the output's files, the model."""

    def run(members, data=None, **changes):
        engine.config = engine.config.model_copy(update=changes)
        engine.shard("000000", members or {})
        if data is not None:
            (tmp_path / "in" / "000000.tar").write_bytes(data)
        model = make.Identity()
        summary = engine.run(load=lambda config: model)
        rows = engine.rows("000000")
        assert summary.counts.total() == len(rows)
        files = {
            member.name: member.data
            for sample in read_shard(str(tmp_path / "out" / "000000.tar"))
            for member in sample.members
        }
        return rows, files, model

    return run


def test_the_image_is_restored_in_place_and_the_rest_is_copied(restore, make):
    members = {"a.txt": b"t", "a.png": make.png(1), "a.json": b"{}", "b.jpg": make.jpeg(2)}
    rows, files, _ = restore(members)
    assert list(files) == list(members)
    assert files["a.txt"] == b"t"
    assert np.array_equal(images.decode(files["a.png"])[1], make.picture(1))
    assert files["b.jpg"].startswith(b"\xff\xd8")
    assert [(row["index"], row["key"], row["status"]) for row in rows] == [
        (0, "a", "restored"), (1, "b", "restored")
    ]  # fmt: skip
    assert rows[0]["sha256_in"] == hashlib.sha256(members["a.png"]).hexdigest()
    assert rows[0]["sha256_out"] == hashlib.sha256(files["a.png"]).hexdigest()
    assert rows[0]["member"] == "a.png"


def test_every_batch_has_the_same_shape(restore, make, config):
    rows, _, model = restore({f"{n}.jpg": make.jpeg(n) for n in range(7)})
    assert len(rows) == 7
    assert len(model.shapes) == 1 + 3  # one to warm up; 7 images in batches of 3
    assert set(model.shapes) == {(config.batch_size, 3, 32, 32)}


def test_a_bad_image_costs_one_row_and_no_neighbour(restore, make):
    members = {
        "a.jpg": make.jpeg(1), "b.jpg": make.jpeg(2)[:200], "b.json": b"kept", "c.png": b"",
        "d.jpg": b"text", "nan.png": make.png(3), "nan.json": b"kept too", "e.json": b"no image",
        "f.png": make.png(4),
    }  # fmt: skip
    rows, files, _ = restore(members)
    status = {row["key"]: row["status"] for row in rows}
    assert status == {"a": "restored", "b": "refused", "c": "refused", "d": "refused",
                      "nan": "failed", "e": "copied", "f": "restored"}  # fmt: skip
    assert [row["key"] for row in rows] == ["a", "b", "c", "d", "nan", "e", "f"]
    assert list(files) == ["a.jpg", "b.json", "nan.json", "e.json", "f.png"]
    reason = {row["key"]: row["reason"] for row in rows}
    assert "damaged JPEG" in reason["b"]
    assert reason["c"] == "c.png: empty file"
    assert "NaN" in reason["nan"]
    assert rows[1]["sha256_in"]
    assert rows[1]["sha256_out"] is None


def test_refused_members_leave_a_row_and_nothing_else(restore, make):
    rows, files, _ = restore([
        ("a.jpg", make.jpeg(1)), ("../b.jpg", make.jpeg(2)), ("c.jpg", make.jpeg(3)),
        ("a.jpg", make.jpeg(4)),
    ])  # fmt: skip
    assert sorted((row["key"], row["status"]) for row in rows) == [
        ("../b.jpg", "refused"), ("a", "refused"), ("a", "restored"), ("c", "restored")
    ]  # fmt: skip
    assert sorted(files) == ["a.jpg", "c.jpg"]


def test_a_cut_tar_gives_what_is_whole_and_a_row_for_the_loss(restore, make):
    data = make.tar_bytes({"a.png": make.png(1), "b.png": make.png(2)})
    rows, files, _ = restore(None, data[:-1200])
    assert [row["status"] for row in rows] == ["restored", "truncated"]
    assert rows[1]["reason"] == f"truncated at byte {len(data) - 1200}"
    assert list(files) == ["a.png"]


def test_an_image_of_another_size_comes_out_at_the_models(restore, make):
    rows, files, _ = restore({"a.png": make.png(1, size=100)})
    assert (rows[0]["width_in"], rows[0]["width_out"]) == (100, 32)
    assert images.decode(files["a.png"])[1].shape == (32, 32, 3)


def test_names_that_merge_are_told(restore, make):
    rows, files, _ = restore({"IMG_1.0.png": make.png(1), "IMG_1.1.png": make.png(2)})
    assert [(row["key"], row["status"]) for row in rows] == [("IMG_1", "restored")]
    assert rows[0]["reason"] == "copied as they are: IMG_1.1.png"
    assert files["IMG_1.1.png"] == make.png(2)


def test_the_size_of_the_input_is_given_back_if_asked(restore, make):
    rows, files, _ = restore({"a.png": make.png(1, size=100)}, keep_size=True)
    assert (rows[0]["width_out"], rows[0]["height_out"]) == (100, 100)
    assert images.decode(files["a.png"])[1].shape == (100, 100, 3)


def test_a_blend_of_nothing_is_the_input(restore, make, monkeypatch):
    monkeypatch.setattr(make.Identity, "restore", lambda self, lq, keys, **_: -lq)
    _, files, _ = restore({"a.png": make.png(1)}, blend=0.0)
    assert np.array_equal(images.decode(files["a.png"])[1], make.picture(1))


def test_half_a_blend_lies_between(restore, make, monkeypatch):
    monkeypatch.setattr(make.Identity, "restore", lambda self, lq, keys, **_: torch.ones_like(lq))
    _, files, _ = restore({"a.png": make.png(1)}, blend=0.5)
    wanted = (make.picture(1).astype(int) + 255) / 2
    assert np.abs(images.decode(files["a.png"])[1] - wanted).max() <= 1


def test_bad_records_are_kept_in_the_quarantine_under_safe_names(restore, make, tmp_path):
    members = [("a.jpg", make.jpeg(1)), ("b.jpg", b"text"), ("b.json", b"{}"),
               ("../c.jpg", b"out"), ("nan.png", make.png(2))]  # fmt: skip
    restore(members, quarantine=True)
    kept = {
        member.name: member.data
        for sample in read_shard(str(tmp_path / "out/_vsp/quarantine/000000.tar"))
        for member in sample.members
    }
    assert sorted(kept.values()) == sorted([b"text", b"{}", b"out", make.png(2)])
    assert sorted(kept) == ["000001.0.jpg", "000002.0.jpg", "000002.1.json", "000003.0.png"]


def test_setup_sets_the_threads_and_close_gives_them_back(config, make):
    before = torch.get_num_threads(), cv2.getNumThreads()
    stage = RestoreStage(config, load=lambda config: make.Identity())
    stage.setup()
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (config.threads, 1)
    stage.close()
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_the_hashed_settings_name_the_weights_and_no_path(config):
    moved = config.model_copy(
        update={"model": config.model.model_copy(update={"path": Path("elsewhere.safetensors")})}
    )
    assert moved.provenance.config_hash == config.provenance.config_hash
    hashed = json.loads(config.provenance.config)
    assert set(hashed) == {
        "model", "seed", "noise", "batch_size", "threads", "runtime", "blend", "keep_size",
        "quarantine", "limit",
    }  # fmt: skip
    other_gpu, gpu = (
        config.model_copy(update={"runtime": RuntimeConfig(device=name)})
        for name in ("cuda:1", "cuda")
    )
    assert other_gpu.provenance.config_hash == gpu.provenance.config_hash
    assert gpu.provenance.config_hash != config.provenance.config_hash
    for name, value in {"seed": 9, "noise": "mean", "batch_size": 9, "threads": 9}.items():
        changed = config.model_copy(update={name: value})
        assert changed.provenance.config_hash != config.provenance.config_hash


def test_an_untrained_model_is_identified_by_config_and_seed():
    one = Untrained(path=Path("a.yaml"), config=VSPBFRConfig())
    assert one.sha256 == Untrained(path=Path("b.yaml"), config=VSPBFRConfig()).sha256
    assert one.sha256 != Untrained(path=Path("a.yaml"), config=VSPBFRConfig(), seed=1).sha256

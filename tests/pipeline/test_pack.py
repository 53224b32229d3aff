import hashlib
import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.pack import member_names, pack, plan_pack
from pipeline.sample import split_name
from pipeline.shards import read_shard

TREE = {
    "IMG_1.0.jpg": b"0", "IMG_1.1.jpg": b"1", "IMG_1%2E1.jpg": b"2", "a.jpg": b"3", "a.png": b"4",
    "a~png.png": b"5", "d.e/a.jpg": b"6", "Ä ö.JPG": b"7", "x/deep/y.jpeg": b"8",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    outside = {"notes.txt": b"", ".hidden.jpg": b"", ".git/x.jpg": b""}
    for name, data in (TREE | outside).items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "src"


def test_no_two_files_share_a_key_and_every_byte_arrives(tree, tmp_path):
    plan = plan_pack(tree)
    tars = pack(plan, tmp_path / "out", records_per_shard=4)
    assert [tar.name for tar in tars] == ["000000.tar", "000001.tar", "000002.tar"]
    samples = [sample for tar in tars for sample in read_shard(tar)]
    assert not any(sample.fault for sample in samples)
    assert len({sample.key for sample in samples}) == len(samples)
    assert sorted(sample.image.data for sample in samples) == sorted(TREE.values())
    assert plan.num_left_out == 1


def test_names_are_spelled_so_that_nothing_merges():
    paths = [Path(name) for name in sorted(TREE)]
    named = dict(zip(sorted(TREE), member_names(paths), strict=True))
    assert named["IMG_1.0.jpg"] == "IMG_1%2E0.jpg"
    assert named["a.png"] == "a~png.png"
    assert named["d.e/a.jpg"] == "d.e/a.jpg"
    assert len({split_name(name)[0] for name in named.values()}) == len(TREE)


def test_the_bytes_depend_on_the_tree_alone_and_the_manifest_holds(tree, tmp_path):
    for out in ("x", "y"):
        pack(plan_pack(tree), tmp_path / out, records_per_shard=5)
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["num_records"] == len(TREE)
    for entry in manifest["shards"]:
        data = (tmp_path / "x" / entry["name"]).read_bytes()
        assert data == (tmp_path / "y" / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["num_bytes"] == len(data)


def test_a_wrong_source_or_output_is_refused(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in this folder"):
        plan_pack(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        plan_pack(tmp_path / "missing")
    with pytest.raises(UserError, match="not an empty folder"):
        pack(plan_pack(tree), tree, records_per_shard=5)

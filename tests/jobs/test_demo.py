"""`vsp demo`, whole, on the session's Ray."""

import cv2
import pyarrow.parquet as pq
import pytest


@pytest.mark.ray
def test_the_demo_leaves_shards_a_sidecar_and_a_picture(vsp, tmp_path, ray_started):
    out = tmp_path / "demo"
    code, told, err = vsp("demo", "--out", out)
    assert code == 0
    assert err.count("research") == 1  # the terms of the built-in weights
    rows = pq.read_table(out / "restored" / "000000.parquet").to_pylist()
    assert [row["key"] for row in rows] == [f"portrait-{n}" for n in range(4)]
    assert {row["status"] for row in rows} == {"restored"}
    picture = cv2.imread(str(out / "before-after.png"))
    assert picture.shape[0] > picture.shape[1] > 700
    assert all(str(out / name) in told for name in ("before-after.png", "restored", "shards"))


def test_a_folder_that_the_demo_did_not_make_is_left_alone(vsp, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    code, _, err = vsp("demo", "--out", tmp_path)
    assert code == 2
    assert "not made by the demo; choose another --out" in err
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_a_folder_of_faces_is_named_where_it_cannot_be_read(vsp, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").write_bytes(b"text")
    code, _, err = vsp("demo", "--faces", tmp_path / "faces", "--out", tmp_path / "demo")
    assert code == 2
    assert "a.jpg: no JPEG, PNG, WebP, TIFF or BMP" in err
    assert not (tmp_path / "demo").exists()

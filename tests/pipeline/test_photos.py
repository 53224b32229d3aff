import io
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from skimage import data

from pipeline import chunks, images
from pipeline.faces.align import crop_place
from pipeline.faces.detect import DetectConfig, FaceDetector
from pipeline.faces.paste import FEATHER, INSET
from pipeline.replica import Bundle
from pipeline.sidecar import read_rows
from pipeline.stage import Task
from pipeline.stages.photos import PhotosConfig, PhotosStage, num_pixels

SIZE = 144


class Invert:
    """A restorer whose work is easily seen; NaN where the key asks for it."""

    size = SIZE

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        restored = -lq
        for slot, key in enumerate(keys):
            if "nan" in key or key.endswith("half.png#1"):
                restored[slot, 0, 3, 3] = torch.nan
        return restored


def png(pixels):
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[-1] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode(".png", cv2.cvtColor(pixels, code))[1].tobytes()


def crowd():
    """Two faces of a size that the model takes, one too large, one too small."""
    portrait = data.astronaut()
    photo = np.full((900, 1300, 3), 128, np.uint8)
    for x, y, side in ((0, 0, 400), (410, 0, 850), (0, 450, 400), (1270, 10, 22)):
        photo[y : y + side, x : x + side] = cv2.resize(
            portrait[:, 20:532], (side, side), interpolation=cv2.INTER_AREA
        )
    return photo


@pytest.fixture(scope="module")
def portrait():
    return data.astronaut()


@pytest.fixture
def run(tmp_path):
    """Drive the stage by hand over files in `tmp_path/in`; returns rows and the output folder."""

    def run(files, **settings):
        source, out = tmp_path / "in", tmp_path / "out"
        for name, content in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_bytes(content)
        model = Bundle(path=Path("invert.safetensors"), sha256="0" * 64)
        config = PhotosConfig(model=model, batch_size=2, **settings)
        stage = PhotosStage(config, lambda _: Invert())
        task = Task("photos-000000", str(source), str(out), "plan", tuple(files))
        model = stage.setup()
        try:
            with stage.open(task) as output:
                for record in stage.read(task):
                    output.add(restore(stage, model, stage.prepare(record)))
                output.commit({})
        finally:
            stage.close()
        with (out / "_vsp/records/photos-000000.parquet").open("rb") as file:
            return read_rows(file), out

    return run


def restore(stage, replica, prepared):
    batch = replica.new_batch(max(1, len(prepared.faces)))
    for slot, face in enumerate(prepared.faces):
        images.to_model(face.lq, batch, slot)
    restored = replica.run(batch, [face.key for face in prepared.faces])
    pixels = images.to_uint8(torch.nan_to_num(restored))
    finite = restored.isfinite().flatten(1).all(1)
    return stage.finish(
        prepared, [pixels[n] if finite[n] else None for n in range(len(prepared.faces))]
    )


def decoded(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_face_is_restored_and_the_rest_kept(run, portrait):
    rows, out = run({"sub/a.png": png(portrait)})
    (row,) = rows
    (face,) = row.faces
    assert (row.status, row.reason, face.decision) == ("restored", "", "restored")
    assert (row.key, row.width_in, row.height_out) == ("sub/a.png", 512, 512)
    result = decoded(out / "sub/a.png")
    place = crop_place(face.points)
    y, x = np.indices((512, 512)) + 0.5
    crop = np.tensordot(place[:, :2], np.stack([x, y]), 1) + place[:, 2, None, None]
    inside = np.minimum(crop, 1 - crop).min(0)
    assert (result == portrait)[inside < INSET - 1e-4].all()
    middle = inside > INSET + FEATHER
    assert np.abs(255 - result[middle].astype(int) - portrait[middle]).mean() < 4


def test_every_face_of_a_photo_has_a_decision(run):
    rows, _ = run({"crowd.png": png(crowd())}, detect=DetectConfig(min_face_px=30, min_score=0.6))
    (row,) = rows
    assert row.status == "restored"
    decisions = [face.decision for face in row.faces]
    assert decisions[:2] == ["restored", "restored"]
    assert decisions[2].startswith("left: larger than the model (")
    assert set(decisions[3:]) <= {"left: below min size"}
    assert "1 face larger than the model's 144 px (--force restores)" in row.reason


def test_force_restores_large_faces(run):
    rows, out = run({"crowd.png": png(crowd())}, force=True)
    assert [face.decision for face in rows[0].faces[:3]] == ["restored"] * 3
    assert (decoded(out / "crowd.png") != crowd()).any(2)[100:300, 700:900].mean() > 0.5


def test_a_photo_without_a_restored_face_is_copied(run, portrait):
    large = png(cv2.resize(portrait, (1024, 1024)))
    files = {"empty.jpg": None, "large.png": large}
    plain = np.full((60, 80, 3), 90, np.uint8)
    files["empty.jpg"] = cv2.imencode(".jpg", plain)[1].tobytes()
    (empty, left), out = run(files)
    assert (empty.status, empty.reason, empty.faces) == ("copied", "no face found", ())
    assert left.status == "copied"
    assert left.reason == "1 face larger than the model's 144 px (--force restores)"
    for name, content in files.items():
        assert (out / name).read_bytes() == content
    assert empty.sha256_out == empty.sha256_in


def test_a_photo_that_is_none_has_a_row_and_no_file(run, portrait):
    files = {"text.jpg": b"hello", "cut.png": png(portrait)[:5000], "gone.png": None,
             "good.png": png(portrait)}  # fmt: skip
    rows, out = run(files, quarantine=True)
    assert [row.status for row in rows] == ["refused", "refused", "refused", "restored"]
    assert all(row.reason for row in rows[:3])
    assert "No such file" in rows[2].reason
    assert rows[2].sha256_in is None
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*g"))
    assert left == ["_vsp/quarantine/cut.png", "_vsp/quarantine/text.jpg", "good.png"]
    assert (out / "_vsp/quarantine/text.jpg").read_bytes() == b"hello"


def test_an_aligned_face_is_restored_as_a_whole(run, portrait):
    face = cv2.resize(portrait[40:240, 120:320], (150, 140), interpolation=cv2.INTER_AREA)
    files = {"a.png": png(face), "gray.png": png(np.full((64, 64, 3), 90, np.uint8)),
             "large.png": png(portrait)}  # fmt: skip
    rows, out = run(files, aligned=True)
    assert [row.status for row in rows] == ["restored", "restored", "copied"]
    assert [face.decision for row in rows[:2] for face in row.faces] == ["restored"] * 2
    result = decoded(out / "a.png")
    assert result.shape == (140, 150, 3)
    assert np.abs(255 - result.astype(int) - face).mean() < 4
    assert (decoded(out / "gray.png") == 165).all()
    assert rows[2].reason == "1 face larger than the model's 144 px (--force restores)"


def test_a_file_that_is_far_too_large_is_not_read(run, portrait, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_FILE_BYTES", 1000)
    (row,), _ = run({"a.png": png(portrait)})
    assert (row.status, row.reason) == ("refused", "a file of more than 1000 bytes")


def test_a_photo_over_the_budget_is_refused(run, portrait):
    (row,), out = run({"a.png": png(portrait)}, pixel_budget=1000)
    assert row.status == "refused"
    assert "512 x 512" in row.reason
    assert not (out / "a.png").exists()


def test_a_face_that_failed_is_told(run):
    two = np.concatenate([data.astronaut(), data.astronaut()], axis=1)
    (nan, half), out = run({"nan.png": png(two), "half.png": png(two)})
    assert (nan.status, half.status) == ("failed", "restored")
    assert not (out / "nan.png").exists()
    assert [face.decision for face in half.faces] == ["restored", "failed: NaN"]
    assert half.reason == "1 face failed, the model returned NaN or infinity"
    result = decoded(out / "half.png")
    assert (result[:, 512:] == two[:, 512:]).all()
    assert (result[:, :512] != two[:, :512]).any()


def test_a_turned_photo_is_seen_upright_and_kept_turned(run, portrait):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(portrait).copy()).save(file, "PNG", exif=exif)
    (row,), out = run({"turned.png": file.getvalue()})
    assert row.faces[0].points[0][1] < 150  # the eyes are up
    with Image.open(out / "turned.png") as result:
        assert result.getexif()[0x0112] == 6
        changed = (np.asarray(result) != np.rot90(portrait)).any(2)
    assert np.rot90(changed, -1)[60:180, 160:280].mean() > 0.5


def test_alpha_and_sixteen_bits_are_kept(run, portrait):
    alpha = np.indices((512, 512)).sum(0).astype(np.uint8)
    rgba = np.dstack([portrait, alpha])
    deep = portrait[:, :, ::-1].astype(np.uint16) * 257
    content = cv2.imencode(".png", deep)[1].tobytes()
    rows, out = run({"alpha.png": png(rgba), "deep.png": content})
    assert [row.status for row in rows] == ["restored", "restored"]
    assert (decoded(out / "alpha.png")[:, :, 3] == alpha).all()
    result = cv2.imread(str(out / "deep.png"), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16
    assert (result[300:] == deep[300:]).all()
    assert (result[110:140, 200:240] != deep[110:140, 200:240]).mean() > 0.9


def test_before_and_after_are_kept_if_asked_for(run, portrait):
    rows, out = run({"sub/a.png": png(portrait), "b.png": png(portrait[300:])}, compare=True)
    assert [row.status for row in rows] == ["restored", "copied"]
    assert decoded(out / "_vsp/compare/sub/a.png.jpg").shape == (512, 1024, 3)
    assert not (out / "_vsp/compare/b.png.jpg").exists()


def test_names_that_are_no_text_are_kept(run, portrait, tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0.png")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes only proper text as names")
    (row, other), out = run({name: png(portrait), "日本.png": png(portrait)})
    assert row.key == "caf\\udce9 \\udcf0.png"
    assert other.key == "日本.png"
    assert (out / name).exists()
    assert (out / "日本.png").exists()


def test_the_output_is_a_function_of_input_and_settings(run, portrait, tmp_path):
    files = {"a.png": png(portrait), "b.jpg": cv2.imencode(".jpg", portrait)[1].tobytes()}
    _, out = run(files)
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*g")}
    sidecar = (out / "_vsp/records/photos-000000.parquet").read_bytes()
    out.rename(tmp_path / "earlier")
    _, out = run(files)
    assert first == {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*g")}
    assert sidecar == (out / "_vsp/records/photos-000000.parquet").read_bytes()


def test_what_decides_the_bytes_is_in_the_config_and_the_rest_is_not(run, portrait):
    model = Bundle(path=Path("a.safetensors"), sha256="0" * 64)
    base = PhotosConfig(model=model)
    same = base.model_copy(update={"compare": True, "quarantine": True})
    assert same.provenance.config_hash == base.provenance.config_hash
    for changed in (
        {"blend": 0.5},
        {"force": True},
        {"detect": DetectConfig(min_score=0.8)},
        {"aligned": True},
        {"seed": 1},
    ):
        other = base.model_copy(update=changed).provenance
        assert other.config_hash != base.provenance.config_hash
    _, out = run({"a.png": png(portrait)})
    metadata = pq.read_schema(out / "_vsp/records/photos-000000.parquet").metadata
    assert b'"detect":{"detector":"yunet"' in metadata[b"vsp.config"]


def test_points_that_are_of_no_face_are_left(run, portrait, monkeypatch):
    """A crop that follows from them could be of any size, and so could its memory."""
    find = FaceDetector.find

    def wrong(self, photo):
        (face,) = find(self, photo)
        middle = face.points.mean(0)
        return [
            replace(face, points=middle + (face.points - middle) * factor) for factor in (0.01, 100)
        ]

    monkeypatch.setattr(FaceDetector, "find", wrong)
    (row,), _ = run({"a.png": png(portrait)}, force=True)
    assert row.status == "copied"
    assert row.reason == "2 faces with points not of a face"


def test_memory_is_known_before_anything_is_decoded(portrait):
    assert num_pixels(png(portrait)) == 512 * 512
    assert num_pixels(b"no image") == 80

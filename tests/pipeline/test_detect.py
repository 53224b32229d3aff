import hashlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from skimage import data

from pipeline.errors import UserError
from pipeline.faces.detect import (
    YUNET_PATH,
    YUNET_SHA256,
    DetectConfig,
    Detection,
    FaceDetector,
    choose,
)

EYES = [[203, 104], [243, 104]]  # of the portrait, by eye, to some pixels


@pytest.fixture(scope="module")
def detector():
    return FaceDetector(DetectConfig())


@pytest.fixture(scope="module")
def portrait():
    return data.astronaut()


def face_at(x, y, side_px, score=0.9):
    box = (x - side_px / 2, y - side_px / 2, x + side_px / 2, y + side_px / 2)
    return Detection(box, np.zeros((5, 2)), score)


def test_the_committed_weights_are_the_ones_that_are_named():
    assert hashlib.sha256(YUNET_PATH.read_bytes()).hexdigest() == YUNET_SHA256
    assert YUNET_SHA256 in YUNET_PATH.with_suffix(".LICENSE").read_text()


def test_the_face_of_a_portrait_is_found(detector, portrait):
    (face,) = detector.find(portrait)
    assert face.score > 0.9
    assert np.abs(face.points[:2] - EYES).max() < 8
    assert face.box[0] < face.points[:, 0].min()
    assert face.box[3] > face.points[:, 1].max()
    assert 80 < face.side_px < 140


def test_points_are_where_they_were_in_a_mirror(detector, portrait):
    """Places count from the corner of the photo: x becomes the width less x."""
    (face,), (mirrored,) = (detector.find(photo) for photo in (portrait, portrait[:, ::-1].copy()))
    back = mirrored.points[[1, 0, 2, 4, 3]]
    back[:, 0] = portrait.shape[1] - back[:, 0]
    assert np.abs(back - face.points).mean() < 1.5


@pytest.mark.parametrize("scale", [0.5, 4])
def test_a_photo_of_another_size_gives_the_same_places(detector, portrait, scale):
    photo = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    (face,), (other,) = detector.find(portrait), detector.find(photo)
    assert np.abs(other.points / scale - face.points).max() < 3


def test_a_face_that_fills_a_large_photo_is_one_face(detector, portrait):
    photo = cv2.resize(portrait[30:230, 120:320], (1400, 1400), interpolation=cv2.INTER_CUBIC)
    (face,) = detector.find(photo)
    assert face.side_px > 500


def test_faces_are_ordered_from_left_to_right(detector, portrait):
    half = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
    row = np.zeros((600, 1400, 3), np.uint8)
    for x, y in ((900, 20), (50, 300), (450, 120)):
        row[y : y + 256, x : x + 256] = half
    found = detector.find(row)
    assert [round(face.centre[0]) // 400 for face in found] == [0, 1, 2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (2000, 3), (40, 40)])
def test_a_photo_of_any_shape_may_hold_no_face(detector, shape):
    assert detector.find(np.full((*shape, 3), 90, np.uint8)) == []


def test_threads_share_a_detector(detector, portrait):
    photos = [portrait[:, n:].copy() for n in range(0, 64, 8)] * 2
    alone = [detector.find(photo)[0].points.tolist() for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = [faces[0].points.tolist() for faces in pool.map(detector.find, photos)]
    assert alone == together


def test_nothing_is_printed(portrait, capfd):
    FaceDetector(DetectConfig()).find(portrait)
    assert capfd.readouterr() == ("", "")


def test_a_crowd_is_found(detector, shared_dir):
    path = shared_dir / "data/realworld-lq/whole/UltraLight_27.jpg"
    found = detector.find(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))
    assert len(found) == 101
    assert [face.centre for face in found] == sorted(face.centre for face in found)


@pytest.mark.slow  # facexlib takes seconds to import
def test_retinaface_finds_the_same_points(detector, portrait, shared_dir):
    path = shared_dir / "weights/retinaface_mobile025.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    other = FaceDetector(DetectConfig(detector="retinaface", weights=path, sha256=digest))
    (face,), (same,) = detector.find(portrait), other.find(portrait)
    assert np.abs(face.points - same.points).max() < 6
    assert other.find(np.zeros((50, 60, 3), np.uint8)) == []


def test_weights_that_are_not_the_named_ones_are_refused(tmp_path):
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(YUNET_PATH.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"changed.onnx: sha256 .* expected 104ee26c"):
        FaceDetector(DetectConfig(weights=changed))
    with pytest.raises(UserError, match=r"absent.onnx: No such file"):
        FaceDetector(DetectConfig(weights=tmp_path / "absent.onnx"))


@pytest.mark.parametrize(
    ("detector", "name"), [("yunet", "a.onnx"), ("retinaface", "a.pth"),
                           ("retinaface", "a.safetensors")],
)  # fmt: skip
def test_weights_that_are_no_network_are_refused(tmp_path, detector, name):
    path = tmp_path / name
    path.write_bytes(b"not a network")
    digest = hashlib.sha256(b"not a network").hexdigest()
    with pytest.raises(UserError, match=name) as caught:
        FaceDetector(DetectConfig(detector=detector, weights=path, sha256=digest))
    assert "\n" not in str(caught.value)


def test_retinaface_needs_weights():
    with pytest.raises(ValidationError, match="retinaface needs"):
        DetectConfig(detector="retinaface")


def test_settings_name_the_weights_by_content():
    settings = DetectConfig(weights=YUNET_PATH).settings()
    assert settings == DetectConfig().settings()
    assert settings["sha256"] == YUNET_SHA256


@pytest.mark.parametrize(
    ("which", "max_faces", "chosen"),
    [
        ("all", None, [1, 2, 3]),
        ("all", 2, [1, 3]),
        ("largest", None, [3]),
        ("center", None, [2]),
        ((1, 0, 9), None, [1]),
        ((1, 2), 1, [1]),
    ],
)
def test_faces_are_chosen(which, max_faces, chosen):
    faces = [face_at(20, 20, 10), face_at(50, 20, 60), face_at(190, 110, 40), face_at(300, 50, 90)]
    config = DetectConfig(which=which, max_faces=max_faces, min_face_px=20)
    decisions = choose(faces, config, 400, 200)
    assert [n for n, decision in enumerate(decisions) if not decision] == chosen
    assert decisions[0] == "left: below min size"
    assert {decisions[n] for n in (1, 2, 3) if n not in chosen} <= {"left: not chosen"}

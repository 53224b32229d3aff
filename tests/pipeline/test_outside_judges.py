"""Judges on other people's networks: random weights of the published shape, the real way in."""

import pickle

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import UserError
from pipeline.metrics.degrees import ArcFace18, DegreesJudge, gray, gray_of_bgr
from pipeline.metrics.emotion import EmotionJudge, face_box
from pipeline.metrics.judge import Face
from pipeline.metrics.table import BY_NAME
from pipeline.metrics.wflw import WflwJudge, peaks
from vsp_model.files import sha256_of
from vsp_model.train.judges import FFHQ_TEMPLATE

S3FD_MEAN = (123, 117, 104)  # of red, green and blue: such a picture is zero to the detector
FFHQ_128 = np.array(FFHQ_TEMPLATE) / 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save tensors as a published file; removed at the end, for they are large."""
    folder, paths = tmp_path_factory.mktemp("published"), []

    def save(name, tensors):
        paths.append(folder / name)
        torch.save(tensors, paths[-1])
        return paths[-1]

    yield save
    for path in paths:
        path.unlink()


def textured(seed, size=128):
    return cv2.resize(
        np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8), (size, size),
        interpolation=cv2.INTER_CUBIC,
    )  # fmt: skip


def flat(colour, size=128):
    return np.full((size, size, 3), colour, np.uint8)


def remembering(method):
    """The same for an image that was seen before: these networks take a second."""
    seen = {}

    def once(image):
        key = image.tobytes()
        if key not in seen:
            seen[key] = method(image)
        return seen[key]

    return once


def tells_its_files(judge, *paths):
    return judge.files == {path.name: sha256_of(path) for path in paths}


# -------------------------------------------------------------------------------- FAN and WFLW


@pytest.fixture(scope="module")
def fan(saved):
    """FAN at random, and an S3FD that sees a face of 256 pixels wherever there is texture."""
    numba = pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)  # ten seconds to compile, for two faces
        pytest.importorskip("face_alignment")
        from face_alignment.detection.sfd.net_s3fd import s3fd
        from face_alignment.models import FAN
    torch.manual_seed(2)
    detector = s3fd()
    for name, parameter in detector.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
        if "mbox" in name:
            parameter.data.zero_()
        if name.endswith("mbox_conf.bias"):
            parameter.data[-1] = -20
    detector.conv6_2_mbox_conf.weight.data[1] = 1e6
    fan_path = saved("2DFAN4-11f355bf06.pth.tar", FAN(4).state_dict())
    return fan_path, saved("s3fd-619a316812.pth", detector.state_dict())


@pytest.mark.slow
def test_fan_scores_and_what_is_not_found(fan):
    from pipeline.metrics.fan import FanJudge

    judge = FanJudge(*fan)
    judge.find = remembering(judge.find)
    face, other, empty = textured(1, 256), textured(2, 256), flat(S3FD_MEAN, 256)
    assert tells_its_files(judge, *fan)
    assert set(judge.metrics) <= set(BY_NAME)
    found = judge.find(face)
    assert found.points.shape == (68, 2)
    assert np.abs(np.subtract(found.centre, 128)).max() <= 32  # the middle one of a grid of 64
    same, moved = (judge.score(Face("a", restored, face)) for restored in (face, other))
    assert [score.value for score in same.values()] == [100, 0, 0]
    distance = np.linalg.norm(judge.find(other).points - found.points, axis=1).mean()
    assert moved["nme-fan"].value == pytest.approx(100 * distance / 256)
    assert moved["nme-fan-all"] == moved["nme-fan"]
    missed = judge.score(Face("a", empty, face))
    assert [missed[name].value for name in ("dsr-fan", "nme-fan-all")] == [0, 100]
    assert missed["nme-fan"].status == "no_face"
    assert {score.status for score in judge.score(Face("a", face, empty)).values()} == {"no_face"}
    small = judge.score(Face("a", face[:20, :20], face[:20, :20]))
    assert {score.status for score in small.values()} == {"too_small"}


def test_of_several_faces_the_one_nearest_to_the_middle(fan):
    from pipeline.metrics.fan import _nearest

    image = flat(0, 100)
    boxes = np.array([
        [0, 0, 40, 40, 0.99], [35, 30, 75, 70, 0.6],
        [-500, -500, 600, 600, 0.9], [48, 48, 48.5, 60, 0.9], [90, 90, 120, 120, 0.9],
    ])  # fmt: skip
    assert _nearest(boxes, image).tolist() == boxes[1].tolist()
    assert _nearest(boxes[2:], image) is None
    assert _nearest(boxes[:0], image) is None


@pytest.mark.slow
def test_wflw_measures_pixels(saved, monkeypatch):
    from facexlib.alignment import awing_arch

    torch.manual_seed(3)
    net = awing_arch.FAN(num_modules=4, num_landmarks=98, device="cpu")
    path = saved("alignment_WFLW_4HG.pth", {"state_dict": net.state_dict(), "epoch": 3})
    judge = WflwJudge(path)
    judge.points = remembering(judge.points)
    face, other = textured(1, 256), textured(2, 256)
    assert judge.score(Face("a", face, face))["lmd"].value == 0
    points, larger = judge.points(face), judge.points(cv2.resize(face, (512, 512), interpolation=0))
    assert points.shape == (98, 2)
    # twice the picture: twice the pixels (where the smaller input ends in the same peak)
    assert np.median(np.abs(larger / points - 2)) < 0.1
    # facexlib's own way to the maps, which takes BGR; reading them is the next test's matter
    monkeypatch.setattr(awing_arch, "calculate_points", lambda maps: peaks(maps[0])[None])
    with torch.inference_mode():
        theirs = net.eval().get_landmarks(face[:, :, ::-1])
    assert points == pytest.approx(theirs)
    moved = judge.score(Face("a", other, face))["lmd"].value
    distance = np.linalg.norm(judge.points(other) - points, axis=1).mean()
    assert moved == pytest.approx(distance)
    assert tells_its_files(judge, path)


def test_peaks_are_those_of_facexlib(monkeypatch):
    from facexlib.alignment.awing_arch import calculate_points

    monkeypatch.setattr(np, "float", float, raising=False)  # the name that numpy took away
    maps = np.random.default_rng(0).random((98, 64, 64), np.float32)
    for each in maps:
        each[tuple(np.random.default_rng(each.size).integers(2, 62, 2))] = 2
    assert peaks(maps).tolist() == calculate_points(maps[None])[0].tolist()
    corner = np.zeros((1, 64, 64), np.float32)
    corner[0, 63, 0] = 1
    assert peaks(corner).tolist() == [[0.25, 63.75]]


# ------------------------------------------------------------------------------------- emotion


def emotion_model(path, side, num_outputs, num_inputs=1):
    """An ONNX model that gives red's mean, green's mean and blue's mean as its first emotions."""
    weight = np.zeros((3, num_outputs), np.float32)
    weight[[0, 1, 2], [0, 1, 2]] = 1
    weight[0, num_outputs - 1] = 1.5  # valence or arousal of the models of several tasks
    weight[0, 7:] *= num_outputs > 8
    inputs = [
        helper.make_tensor_value_info(f"input{n}", TensorProto.FLOAT, ["batch", 3, side, side])
        for n in range(num_inputs)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input0"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["output"]),
        ],
        "emotion",
        inputs,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", num_outputs])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("side", "num_outputs"), [(224, 8), (260, 7), (224, 10)])
def test_emotion_looks_at_the_face_alone_in_rgb(tmp_path, side, num_outputs):
    path = emotion_model(tmp_path / "enet.onnx", side, num_outputs)
    judge = EmotionJudge(path)
    assert judge.size == side
    assert tells_its_files(judge, path)
    red, green = flat((200, 0, 0)), flat((0, 200, 0))
    framed = green.copy()
    framed[30:110, 35:93] = (200, 0, 0)  # the face, not the hair
    logits = judge.logits(red, face_box(FFHQ_128, red))
    assert logits.shape == (min(num_outputs, 8),)
    expected = (np.array([200, 0, 0]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert logits[:3] == pytest.approx(expected, abs=1e-3)

    def agreement(restored, truth, points=FFHQ_128):
        return judge.score(Face("a", restored, truth, points))["emotion"]

    assert agreement(red, red).value == 1
    assert agreement(red, green).value == 0
    assert agreement(framed, red).value == 1
    assert agreement(red, red, None).status == "no_face"
    assert agreement(red, red, FFHQ_128 + 500).status == "no_face"
    assert agreement(red, red, FFHQ_128 * np.nan).status == "no_face"


def test_the_box_follows_the_points_and_ends_with_the_picture():
    image = flat(0, 512)
    x0, y0, x1, y1 = face_box(np.array(FFHQ_TEMPLATE), image)
    assert (x1 - x0, y1 - y0) == pytest.approx((271.9, 378.9))
    assert face_box(FFHQ_128, flat(0, 128)) == pytest.approx((x0 / 4, y0 / 4, x1 / 4, y1 / 4))
    assert face_box(np.array(FFHQ_TEMPLATE) - (200, 0), image) == pytest.approx(
        (0, y0, x1 - 200, y1)
    )


def test_a_file_that_is_no_such_model_is_refused(tmp_path):
    (tmp_path / "page.onnx").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"page.onnx: no HSEmotion model"):
        EmotionJudge(tmp_path / "page.onnx")
    with pytest.raises(UserError, match=r"gives 5 numbers"):
        EmotionJudge(emotion_model(tmp_path / "five.onnx", 224, 5))
    with pytest.raises(UserError, match=r"no HSEmotion model"):
        EmotionJudge(emotion_model(tmp_path / "two.onnx", 224, 8, num_inputs=2))


# ------------------------------------------------------------------------------------- degrees


@pytest.fixture(scope="module")
def arcface(saved):
    torch.manual_seed(4)
    net = ArcFace18()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    # As published: saved from a wrapper for several GPUs.
    tensors = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    return saved("resnet18_110.pth", tensors), net.eval()


def test_the_network_has_the_published_tensors():
    shapes = {name: tuple(tensor.shape) for name, tensor in ArcFace18().state_dict().items()}
    expected = {
        "conv1.weight": (64, 1, 3, 3), "prelu.weight": (1,), "layer1.0.bn0.weight": (64,),
        "layer1.1.prelu.weight": (1,), "layer2.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.conv2.weight": (128, 64, 3, 3), "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_var": (128,), "layer4.1.conv2.weight": (512, 512, 3, 3),
        "bn4.weight": (512,), "fc5.weight": (512, 512 * 8 * 8), "bn5.running_mean": (512,),
    }  # fmt: skip
    assert {name: shapes[name] for name in expected} == expected
    assert not any("layer1.0.downsample" in name for name in shapes)


def test_three_readings_of_one_network(arcface):
    path, net = arcface
    judge = DegreesJudge(path)
    face, other = textured(1, 256), textured(2, 256)
    same = judge.score(Face("a", face, face))
    assert same["deg-vqfr"].value == pytest.approx(0, abs=1e-3)
    assert same["ids-codeformer"].value == pytest.approx(1)
    scores = judge.score(Face("a", other, face))
    with torch.inference_mode():
        cosine = float(F.cosine_similarity(net(gray(other)), net(gray(face))))
        swapped = float(F.cosine_similarity(net(gray_of_bgr(other)), net(gray_of_bgr(face))))
    assert scores["ids-codeformer"].value == pytest.approx(cosine, abs=1e-5)
    assert scores["deg-vqfr"].value == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-2)
    assert scores["idd-rfpp"].value == pytest.approx(np.arccos(swapped), abs=1e-3)
    assert tells_its_files(judge, path)


def test_the_grays_of_the_scripts():
    red, blue = flat((255, 0, 0), 200), flat((0, 0, 255), 200)
    assert gray(red).shape == gray_of_bgr(red).shape == (1, 1, 128, 128)
    assert float(gray(red).mean()) == pytest.approx(76 / 127.5 - 1)
    assert float(gray(blue).mean()) == pytest.approx(29 / 127.5 - 1)
    assert float(gray_of_bgr(blue).mean()) == pytest.approx(0.2989)
    assert float(gray_of_bgr(red).mean()) == pytest.approx(0.1140)


# ------------------------------------------------------------------------------ what is refused


class Bomb:
    def __reduce__(self):
        import os

        return os.mkdir, ("exploded",)


def test_a_file_that_is_no_such_network_is_one_line(arcface, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, net = arcface
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "page.pth").write_bytes(b"<html>")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    part = dict(list(net.state_dict().items())[:5])
    torch.save(part, tmp_path / "part.pth")
    torch.save({"step": 3}, tmp_path / "counter.pth")
    torch.save({**net.state_dict(), "bn5.weight": torch.ones(3)}, tmp_path / "shape.pth")
    for name, told in [
        ("bomb.pth", "asks for .*mkdir"), ("page.pth", "expected ResNet18"),
        ("old.pth", "ResNet18"), ("part.pth", "is missing"),
        ("counter.pth", "no named tensors"), ("shape.pth", "bn5.weight"),
        ("none.pth", "No such file"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=told) as error:
            DegreesJudge(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no facexlib's AWing FAN"):
        WflwJudge(path)
    assert not (tmp_path / "exploded").exists()


def test_another_network_is_refused_by_fan(fan):
    from pipeline.metrics.fan import FanJudge

    fan_path, sfd_path = fan
    with pytest.raises(UserError, match="no face-alignment's S3FD"):
        FanJudge(fan_path, fan_path)
    with pytest.raises(UserError, match="no face-alignment's 2D FAN"):
        FanJudge(sfd_path, sfd_path)

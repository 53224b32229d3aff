"""The judges that are networks: known values, and what they must tell apart on real faces."""

import json

import numpy as np
import pytest
import torch

from pipeline import images
from pipeline.faces.detect import Detection
from pipeline.metrics import identity, landmarks
from pipeline.metrics.expression import ExpressionJudge
from pipeline.metrics.features import SqueezeExtractor
from pipeline.metrics.judge import Face
from pipeline.metrics.perceptual import PerceptualJudge
from pipeline.metrics.table import METRICS
from pipeline.shards import read_shard
from vsp_model.train.judges import ARCFACE_TEMPLATE, FFHQ_TEMPLATE, warp_faces

NUM_FACES = 12
SQUEEZENET = "squeezenet1_1_imagenet1k_fp16.safetensors"


@pytest.fixture(scope="module")
def weights(shared_dir):
    folder = shared_dir / "weights"
    if not (folder / "mobilefacenet_ms1m.safetensors").is_file():
        pytest.skip("needs the judges' weights beside the checkout")
    torch.set_num_threads(1)
    return folder


@pytest.fixture(scope="module")
def faces(shared_dir):
    """Clean faces of different people at 128 pixels, and their five points."""
    path = shared_dir / "data" / "faces-val" / "val-000000.tar"
    if not path.is_file():
        pytest.skip("needs the validation faces beside the checkout")
    found = []
    for number, record in enumerate(read_shard(str(path))):
        if number % 25 == 0 and len(found) < NUM_FACES:
            parts = {member.name.rpartition(".")[2]: member.data for member in record.members}
            truth = images.resize(images.decode(parts["jpg"])[1], 128)
            points = np.array(json.loads(parts["json"])["landmarks5"]) / 2
            found.append(Face(record.key, truth, truth, points))
    return found


def softer(faces):
    """Restored with half of the resolution."""
    return [
        Face(f.key, images.resize(images.resize(f.truth, 64), 128), f.truth, f.points)
        for f in faces
    ]


def others(faces):
    """Restored as somebody else."""
    return [
        Face(f.key, other.truth, f.truth, f.points)
        for f, other in zip(faces, faces[1:] + faces[:1], strict=True)
    ]


def mean(judge, faces, name):
    scores = [judge.score(face)[name] for face in faces]
    assert {score.status for score in scores} == {"ok"}
    return np.mean([score.value for score in scores])


def test_lpips_squeeze_gives_the_documented_values(weights):
    judge = PerceptualJudge(weights / SQUEEZENET, "squeeze")
    generator = torch.Generator().manual_seed(42)
    one, other = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    distances = [judge.distance(*pair) for pair in zip(one.split(1), other.split(1), strict=True)]
    assert distances == pytest.approx([0.1024, 0.0938], abs=1e-4)


def test_five_points_land_on_the_template():
    """A dot at each of a turned face's points comes out at ArcFace's places."""
    turn = np.deg2rad(20)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (np.array(FFHQ_TEMPLATE) / 4 - 64) @ turned.T + 64
    for number, (x, y) in enumerate(points):
        down, across = np.mgrid[:128, :128] + 0.5
        dot = np.exp(-((across - x) ** 2 + (down - y) ** 2) / 8)
        image = torch.from_numpy(dot)[None, None].float().expand(1, 3, -1, -1)
        crop = warp_faces(image, torch.from_numpy(points[None]).float(), 112)[0, 0].numpy()
        down, across = np.mgrid[:112, :112] + 0.5
        place = [(across * crop).sum() / crop.sum(), (down * crop).sum() / crop.sum()]
        assert place == pytest.approx(ARCFACE_TEMPLATE[number], abs=3)


def test_identity_tells_people_apart(weights, faces):
    judge = identity.IdentityJudge(weights / "mobilefacenet_ms1m.safetensors")
    assert mean(judge, faces, "identity") == pytest.approx(1, abs=1e-6)
    assert mean(judge, softer(faces), "identity") > 0.85
    assert abs(mean(judge, others(faces), "identity")) < 0.1
    assert mean(judge, others(faces), "identity-angle") == pytest.approx(90, abs=6)


def test_faces_are_found_again_among_all(weights, faces):
    extractor = identity.IdentityExtractor(weights / "mobilefacenet_ms1m.safetensors")
    soft = np.stack([extractor.feature(face, "restored") for face in softer(faces)])
    true = np.stack([extractor.feature(face, "gt") for face in softer(faces)])
    assert identity.found_again(soft, true).all()
    assert not identity.found_again(soft, np.roll(true, 1, axis=0)).any()


def test_lpips_and_features_grow_with_the_damage(weights, faces):
    lpips, features = (make(weights / SQUEEZENET) for make in (PerceptualJudge, SqueezeExtractor))
    assert mean(lpips, faces, "lpips-squeeze") == 0
    near, far = (mean(lpips, make(faces), "lpips-squeeze") for make in (softer, others))
    assert near < far / 2

    def step(pairs):
        both = [[features.feature(pair, role) for role in ("restored", "gt")] for pair in pairs]
        return np.mean([np.linalg.norm(one - other) for one, other in both])

    assert step(faces) == 0
    assert step(softer(faces)) < step(others(faces)) / 1.5


def test_expression_agrees_with_itself_more_than_with_strangers(weights, faces):
    judge = ExpressionJudge(weights / "mini_xception_fer2013.safetensors")
    assert mean(judge, faces, "expression") == 1
    assert mean(judge, faces, "expression-distance") == 0
    near, far = (mean(judge, make(faces), "expression-distance") for make in (softer, others))
    assert near < far / 2


@pytest.mark.parametrize("detector", ["yunet", "retinaface"])
def test_points_move_more_on_strangers(weights, faces, detector):
    path = weights / "retinaface_mobile025.safetensors" if detector == "retinaface" else None
    judge = landmarks.LandmarkJudge(detector, path)
    near, far = (mean(judge, make(faces), f"nme-{detector}") for make in (softer, others))
    assert near < far / 2
    assert mean(judge, softer(faces), f"dsr-{detector}") == 100


def detection(x: float) -> Detection:
    return Detection((0, 0, 50, 50), np.full((5, 2), x), 0.9)


def told(found, truth):
    scores = landmarks.landmark_scores("yunet", found, truth)
    assert tuple(scores) == landmarks.metrics_of("yunet")
    return [score.value if score.status == "ok" else score.status for score in scores.values()]


def test_nme_is_a_share_of_the_truths_box():
    error = 100 * np.hypot(3, 3) / 50
    assert told(detection(13), detection(10)) == pytest.approx([100, error, error])


def test_a_face_that_is_not_found_counts_where_the_truth_has_one():
    assert told(None, detection(10)) == [0, "no_face", landmarks.MISSED]
    assert told(detection(10), None) == ["no_face"] * 3
    assert told(None, None) == ["no_face"] * 3


def test_every_metric_has_one_protocol():
    assert len({metric.protocol for metric in METRICS}) == len(METRICS)

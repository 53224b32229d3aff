"""The judges that are networks: known values, and what they must tell apart on real faces."""

import json

import numpy as np
import pytest
import torch

from pipeline import images
from pipeline.errors import UserError
from pipeline.faces.detect import Detection
from pipeline.metrics import expression, identity, landmarks
from pipeline.metrics.features import SqueezeFeatures
from pipeline.metrics.panel import Panel
from pipeline.metrics.perceptual import Perceptual
from pipeline.metrics.table import BY_NAME, METRICS
from pipeline.shards import read_shard
from vsp_model.losses import LPIPS, LPIPSConfig
from vsp_model.train.judges import ARCFACE_TEMPLATE, FFHQ_TEMPLATE, warp_faces

NUM_FACES = 12


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
    found, points = [], []
    for number, record in enumerate(read_shard(str(path))):
        if number % 25 == 0 and len(found) < NUM_FACES:
            parts = {member.name.rpartition(".")[2]: member.data for member in record.members}
            found.append(images.resize(images.decode(parts["jpg"])[1], 128))
            points.append(np.array(json.loads(parts["json"])["landmarks5"]) / 2)
    return found, np.stack(points)


def softer(faces):
    return [images.resize(images.resize(face, 64), 128) for face in faces]


def others(faces):
    return faces[1:] + faces[:1]


def test_lpips_squeeze_gives_the_documented_values(weights):
    lpips = LPIPS(LPIPSConfig(net="squeeze"))
    lpips.load_path(weights / "squeezenet1_1_imagenet1k_fp16.safetensors")
    generator = torch.Generator().manual_seed(42)
    one, other = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    assert lpips(one, other).tolist() == pytest.approx([0.1024, 0.0938], abs=1e-4)


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
    pictures, points = faces
    judge = identity.Identity(weights / "mobilefacenet_ms1m.safetensors")
    true = judge.embed(pictures, points)
    soft = judge.embed(softer(pictures), points)
    assert identity.cosine(true, true) == pytest.approx(np.ones(NUM_FACES), abs=1e-6)
    assert identity.cosine(soft, true).mean() > 0.85
    assert abs(identity.cosine(np.roll(true, 1, axis=0), true).mean()) < 0.1
    assert identity.found_again(soft, true).all()
    assert identity.angle(np.array([1.0, 0.0])) == pytest.approx([0, 90])


def test_lpips_and_features_grow_with_the_damage(weights, faces):
    path = weights / "squeezenet1_1_imagenet1k_fp16.safetensors"
    pictures, _ = faces
    lpips, features = Perceptual(path), SqueezeFeatures(path)
    near, far = lpips(softer(pictures), pictures), lpips(others(pictures), pictures)
    assert lpips(pictures, pictures) == pytest.approx(np.zeros(NUM_FACES), abs=1e-6)
    assert near.mean() < far.mean() / 2
    assert features(pictures).shape == (NUM_FACES, 512)


def test_expression_agrees_with_itself_more_than_with_strangers(weights, faces):
    pictures, points = faces
    judge = expression.Expression(weights / "mini_xception_fer2013.safetensors")
    true = judge.probabilities(pictures, points)
    near = expression.distance(judge.probabilities(softer(pictures), points), true)
    far = expression.distance(np.roll(true, 1, axis=0), true)
    assert true.sum(axis=1) == pytest.approx(np.ones(NUM_FACES))
    assert near.mean() < far.mean() / 2
    assert expression.agreement(true, true).all()


def test_the_panel_scores_what_the_table_names(weights, faces):
    pictures, points = faces
    panel = Panel(weights)
    truth, soft, strangers = (
        panel.see(shown, points) for shown in (pictures, softer(pictures), others(pictures))
    )
    scores, far = panel.per_image(soft, truth), panel.per_image(strangers, truth)
    assert set(scores) <= set(BY_NAME)
    assert "nme-retinaface" in scores
    assert all(values.shape == (NUM_FACES,) for values in scores.values())
    for name in ("nme-yunet", "nme-retinaface"):
        assert np.nanmean(scores[name]) < np.nanmean(far[name]) / 2
    assert panel.per_image(truth, truth)["psnr"] == pytest.approx(np.full(NUM_FACES, 100))
    assert any(line.startswith("lpips-alex: needs") for line in panel.missing)


def test_a_folder_without_weights_leaves_out_what_needs_them(tmp_path):
    panel = Panel(tmp_path)
    face = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    seen = panel.see([face], np.full((1, 5, 2), np.nan))
    assert set(panel.per_image(seen, seen)) == {"psnr", "ssim", "detail", "finest", "nme-yunet"}
    with pytest.raises(UserError, match="all of one size"):
        panel.see([face, face[:32]], np.full((2, 5, 2), np.nan))


@pytest.mark.parametrize(
    "judge", [identity.Identity, expression.Expression, SqueezeFeatures, Perceptual]
)
def test_another_file_is_refused_in_one_line(tmp_path, judge):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"other\.safetensors") as caught:
        judge(path)
    assert "\n" not in str(caught.value)


def detection(x: float) -> Detection:
    return Detection((0, 0, 50, 50), np.full((5, 2), x), 0.9)


def test_nme_is_a_share_of_the_truths_box():
    errors = landmarks.nme([detection(13), None], [detection(10), detection(10)])
    assert errors[0] == pytest.approx(100 * np.hypot(3, 3) / 50)
    assert np.isnan(errors[1])
    assert landmarks.capped(errors, [detection(10)] * 2)[1] == landmarks.MISSED
    assert np.isnan(landmarks.nme([None], [None])[0])
    assert np.isnan(landmarks.capped(np.array([np.nan]), [None])[0])


def test_every_metric_has_one_protocol():
    assert len({metric.protocol for metric in METRICS}) == len(METRICS)

import math

import numpy as np
import pytest
import torch

from vsp_model.files import CheckpointError
from vsp_model.losses import LPIPS, LPIPSConfig
from vsp_model.mobilefacenet import EMBEDDING_DIM, MobileFaceNet
from vsp_model.quality import SIZES, Calibration, QualityConfig, QualityInfo, QualityNet
from vsp_model.train.judges import (
    ARCFACE_TEMPLATE,
    FFHQ_TEMPLATE,
    FaceEmbedder,
    Judges,
    JudgesConfig,
    QualityScorer,
    load_judges,
    similarity_to,
    warp_faces,
)

ARCFACE = torch.tensor(ARCFACE_TEMPLATE)


def moved(points, scale, angle, shift):
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * points @ turn.T + torch.tensor(shift)


@pytest.mark.parametrize(("scale", "angle", "shift"), [(1.0, 0, (0, 0)), (0.7, 0.4, (9, -3))])
def test_a_similarity_is_found_exactly(scale, angle, shift):
    points = moved(ARCFACE, scale, angle, shift)[None]
    matrix = similarity_to(points, ARCFACE)[0]
    again = ARCFACE @ matrix[:, :2].T + matrix[:, 2]
    torch.testing.assert_close(again, points[0], atol=1e-4, rtol=0)


def dots(points, size):
    """A picture with a soft bright spot at each point."""
    centres = np.arange(size) + 0.5
    x, y = np.meshgrid(centres, centres)
    spots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py in points.tolist()]
    return torch.from_numpy(np.sum(spots, axis=0)).float().expand(1, 3, size, size)


def test_the_warp_puts_the_points_on_the_template():
    points = moved(ARCFACE, 0.9, 0.3, (12.0, 4.0))
    crop = warp_faces(dots(points, 128), points[None], 112)[0, 0]
    for x, y in ARCFACE.tolist():
        window = crop[int(y) - 6 : int(y) + 8, int(x) - 6 : int(x) + 8]
        top, left = divmod(int(window.argmax()), window.shape[1])
        assert abs(int(y) - 6 + top + 0.5 - y) <= 1
        assert abs(int(x) - 6 + left + 0.5 - x) <= 1


def test_a_face_without_points_is_taken_to_lie_as_in_ffhq():
    image = torch.rand(2, 3, 64, 64)
    known = torch.tensor(FFHQ_TEMPLATE).expand(2, 5, 2) * (64 / 512)
    unknown = known.clone()
    unknown[1, 3, 0] = math.nan
    torch.testing.assert_close(warp_faces(image, unknown, 112), warp_faces(image, known, 112))


def test_gradients_reach_the_picture_and_no_judge():
    judges = Judges(LPIPS(LPIPSConfig(net="squeeze")), FaceEmbedder(MobileFaceNet()), 0.5)
    image = torch.rand(4, 3, 64, 64, requires_grad=True)
    reference, points = torch.rand(4, 3, 64, 64), torch.full((4, 5, 2), math.nan)
    identity = judges.identity(image, reference, points)
    identity.backward()
    assert image.grad[:2].abs().sum() > 0
    assert image.grad[2:].abs().sum() == 0  # half of the batch is looked at
    judges.perceptual(image, reference).backward()
    assert all(p.grad is None for p in judges.embedder.parameters())


def test_missing_judges_give_no_loss():
    image = torch.zeros(1, 3, 32, 32)
    assert Judges().perceptual(image, image) is None
    assert Judges().identity(image, image, torch.zeros(1, 5, 2)) is None
    assert load_judges(JudgesConfig()).lpips is None


def test_wrong_files_are_named_in_one_line(tmp_path):
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"judge\.safetensors: sha256 .* says 0000"):
        load_judges(JudgesConfig(lpips={"path": str(path), "sha256": "0000"}))
    with pytest.raises(CheckpointError, match=r"judge\.safetensors: .*header"):
        load_judges(JudgesConfig(lpips={"path": str(path)}))
    with pytest.raises(CheckpointError, match=r"judge\.safetensors: no MobileFaceNet"):
        load_judges(JudgesConfig(identity={"path": str(path), "net": "mobilefacenet"}))


def test_the_small_identity_net_knows_faces(shared_dir):
    """Real weights: embeddings of length 1; a mirrored face stays the person."""
    path = shared_dir / "weights" / "mobilefacenet_ms1m.safetensors"
    judges = load_judges(JudgesConfig(identity={"path": str(path), "net": "mobilefacenet"}))
    image = torch.rand(2, 3, 128, 128) * 2 - 1
    embedding = judges.embedder(image, torch.full((2, 5, 2), math.nan))
    assert embedding.shape == (2, EMBEDDING_DIM)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_the_quality_judge_is_the_calibrated_network():
    torch.manual_seed(0)
    knots = Calibration(knots=(0.0, 0.1, 0.3, 0.35, 1.0))
    info = QualityInfo(config=QualityConfig(), calibration=dict.fromkeys(SIZES, knots))
    scorer = QualityScorer(QualityNet(QualityConfig()), info)

    class Severities(torch.nn.Module):
        def forward(self, faces):
            return faces[:, 0, 0, 0]

    scorer.net = Severities()
    told = [-2.0, -0.1, 0.0, 0.05, 0.1, 0.2, 0.33, 0.999, 1.0, 1.2, 9.0]
    image = (
        torch.tensor(told)[:, None, None, None].expand(-1, 3, 32, 32).clone().requires_grad_(True)
    )
    scores = scorer(image)
    assert scores.tolist() == pytest.approx([knots.quality(s) for s in told], abs=1e-6)
    scores.sum().backward()
    slopes = image.grad[:, 0, 0, 0]
    assert torch.isfinite(slopes).all()
    assert (slopes <= 0).all()
    assert (slopes[1:-1] < 0).all()


def test_the_built_in_judge_is_opened_and_can_be_climbed():
    judges = load_judges(JudgesConfig(quality={"path": "built-in"}))
    image = (torch.rand(1, 3, 256, 256) * 2 - 1).requires_grad_(True)
    score = judges.quality(image)
    assert 0 <= score.item() <= 1
    score.sum().backward()
    assert torch.isfinite(image.grad).all()
    assert judges.monitor is None

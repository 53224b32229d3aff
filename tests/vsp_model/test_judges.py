import math

import numpy as np
import pytest
import torch

from vsp_model.files import CheckpointError
from vsp_model.losses import LPIPS, LPIPSConfig
from vsp_model.mobilefacenet import EMBEDDING_DIM, MobileFaceNet
from vsp_model.train.judges import (
    ARCFACE_TEMPLATE,
    FFHQ_TEMPLATE,
    FaceEmbedder,
    Judges,
    JudgesConfig,
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

"""Inception's features: random weights of the published layout, against other people's networks."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from pipeline import images
from pipeline.errors import UserError
from pipeline.metrics import inception
from pipeline.metrics.inception import InceptionExtractor, Pool3
from pipeline.metrics.judge import Face
from vsp_model.files import sha256_of


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def textured(seed, size=128):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def inception_path(tmp_path_factory):
    """Random tensors in the published layout; removed at the end, for they are large."""
    torch.manual_seed(1)
    tensors = Pool3().state_dict()
    tensors |= {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
    path = tmp_path_factory.mktemp("published") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(tensors, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def theirs(inception_path):
    """torch-fidelity's own network on the same file; it asks for every published name."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=inception_path
    )


def test_each_front_end_meets_torch_fidelitys_own_network(inception_path, theirs, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    face = Face("a", textured(1), truth=textured(2))
    batch = torch.from_numpy(face.restored.transpose(2, 0, 1)[None].copy())
    extractor = InceptionExtractor(inception_path, "tf1-bilinear")
    assert extractor.feature(face, "restored").tolist() == theirs(batch)[0][0].tolist()
    assert (extractor.id, extractor.dim) == ("inception2015-12-05/pool3/tf1-bilinear", 2048)
    assert extractor.files == {inception_path.name: sha256_of(inception_path)}
    for name, front_end in (
        ("bilinear", inception.bilinear),
        ("pil-bicubic", inception.pil_bicubic),
    ):
        resized = front_end(face.restored)
        assert resized.shape == (1, 3, 299, 299)
        levels = resized * 128 + 128  # what their front end turns into the same input
        monkeypatch.setattr(
            module,
            "interpolate_bilinear_2d_like_tensorflow1x",
            lambda *_, given=levels, **__: given,
        )
        ours = InceptionExtractor(inception_path, name).feature(face, "restored")
        assert ours == pytest.approx(theirs(batch)[0][0].numpy(), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_torchmetrics_network_gives_the_same_pool3(inception_path):
    from torchmetrics.image.fid import NoTrainInceptionV3

    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_path))
    image = textured(3, 299)  # a size that no resize changes
    found = net(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))
    for resize in ("tf1-bilinear", "pil-bicubic"):
        ours = InceptionExtractor(inception_path, resize).feature(Face("a", image), "restored")
        assert ours == pytest.approx(found[0].numpy(), rel=1e-4, abs=1e-6)
    # [-1, 1] instead of [-1, 1): another number, a little
    ours = InceptionExtractor(inception_path, "bilinear").feature(Face("a", image), "restored")
    assert 0 < np.abs(ours - found[0].numpy()).max() < 0.1 * np.abs(ours).max()


def test_the_three_ways_to_299_pixels():
    stripes = np.zeros((897, 897, 3), np.uint8)
    stripes[:, 1::3] = 255  # every third column: what antialiasing blurs, and picking does not
    assert inception.bilinear(stripes).unique().tolist() == [1.0]
    assert inception.tf1_bilinear(stripes).unique().tolist() == [-1.0]
    blurred = inception.pil_bicubic(stripes)[..., 5:-5]
    assert float(blurred.mean()) == pytest.approx(255 / 3 / 128 - 1, abs=0.01)
    assert float(blurred.std()) < 0.01
    # bilinear upwards: the value between two pixels, by the formula
    image = textured(5, 128)
    x = (100 + 0.5) * 128 / 299 - 0.5
    left, share = int(x), x - int(x)
    row = images.TO_MODEL[image[0, left : left + 2, 0]]
    assert float(inception.bilinear(image)[0, 0, 0, 100]) == pytest.approx(
        row[0] * (1 - share) + row[1] * share, abs=1e-5
    )


def test_threads_share_an_extractor(inception_path):
    extractor = InceptionExtractor(inception_path, "bilinear")
    faces = [Face(str(seed), textured(seed), textured(seed + 1)) for seed in range(3)]
    alone = [extractor.feature(face, "gt").tolist() for face in faces]
    with ThreadPoolExecutor(3) as pool:
        together = pool.map(lambda face: extractor.feature(face, "gt").tolist(), faces)
    assert list(together) == alone
    assert alone[0] == extractor.feature(Face("x", textured(1)), "restored").tolist()


def test_another_network_is_refused(inception_path, tmp_path):
    tensors = torch.load(inception_path, weights_only=True)
    del tensors["Mixed_7c.branch1x1.conv.weight"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"no Inception .*Mixed_7c.branch1x1.conv.weight is miss"):
        InceptionExtractor(tmp_path / "part.pth", "bilinear")
    (tmp_path / "part.pth").unlink()

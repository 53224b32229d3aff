"""What holds for every judge, with weights drawn at random: no file is needed."""

import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data

from pipeline.errors import UserError
from pipeline.metrics import natural
from pipeline.metrics.choose import BY_FAMILY
from pipeline.metrics.expression import ExpressionJudge, MiniXception
from pipeline.metrics.features import SqueezeExtractor
from pipeline.metrics.identity import IdentityExtractor, IdentityJudge
from pipeline.metrics.judge import Face
from pipeline.metrics.perceptual import MIN_SIDE_PX, PerceptualJudge
from vsp_model.losses import LPIPS, LPIPSConfig
from vsp_model.mobilefacenet import MobileFaceNet

# On scikit-image's astronaut: a crop about the face, and the face's points in it.
CROP = (slice(0, 256), slice(100, 356))
POINTS = np.array([[104.0, 105], [143, 105], [127, 128], [107, 148], [142, 148]])
JUDGES = (
    "pixels", "bands", "lpips-squeeze", "lpips-alex", "niqe", "niqe-small", "identity",
    "expression", "yunet", "quality", "quality-classic",
)  # fmt: skip
EXTRACTORS = ("squeeze", "identity-set")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Family -> where its file is."""
    from torchvision.models import squeezenet1_1

    folder = tmp_path_factory.mktemp("weights")
    found = {}

    def add(tensors, *families):
        path = folder / f"{families[0]}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        found.update(dict.fromkeys(families, path))

    torch.manual_seed(0)
    add(squeezenet1_1(weights=None).state_dict(), "lpips-squeeze", "squeeze")
    for net in ("alex", "vgg"):
        tensors = LPIPS(LPIPSConfig(net=net)).package.net.state_dict()
        add({f"net.{name}": tensor for name, tensor in tensors.items()}, f"lpips-{net}")
    add(MobileFaceNet().state_dict(), "identity", "identity-set")
    add(MiniXception().state_dict(), "expression")
    found["niqe"] = folder / "niqe.npz"
    natural.save_model(found["niqe"], natural.NaturalModel(np.ones(36), np.eye(36)))
    return found


@pytest.fixture(scope="module")
def build(paths):
    """Makes each judge or extractor once, as `vsp score` does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {}

    def build(family):
        if family not in made:
            definition = BY_FAMILY[family]
            roles = {need.role: need.bundled or paths[family] for need in definition.needs}
            made[family] = definition.build(roles)
        return made[family]

    yield build
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def truth():
    return np.ascontiguousarray(data.astronaut()[CROP])


def damaged(truth, seed=0):
    noise = np.random.default_rng(seed).normal(0, 20, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8)


def flat(side):
    return np.full((side, side, 3), 90, np.uint8)


def statuses(judge, face):
    return {name: score.status for name, score in judge.score(face).items()}


@pytest.mark.parametrize("family", JUDGES)
def test_a_judge_scores_what_its_family_says(build, truth, family):
    judge = build(family)
    assert judge.metrics == BY_FAMILY[family].metrics
    scores = judge.score(Face("a", damaged(truth), truth, POINTS))
    assert tuple(scores) == judge.metrics
    assert all(score.status == "ok" and math.isfinite(score.value) for score in scores.values())
    assert all(len(sha256) == 64 for sha256 in judge.files.values())
    assert judge.library.partition(" ")[0]


@pytest.mark.parametrize("family", EXTRACTORS)
def test_an_extractor_gives_features_of_its_length(build, truth, family):
    extractor = build(family)
    feature = extractor.feature(Face("a", damaged(truth), truth, POINTS), "gt")
    assert feature.dtype == np.float32
    assert feature.shape == (extractor.dim,)
    assert extractor.id.count("/") == 2


@pytest.mark.parametrize("family", [*JUDGES, *EXTRACTORS])
def test_threads_and_neighbours_change_no_bit(build, truth, family):
    """Four pictures, each scored by each of four threads, against each by itself."""
    judge = build(family)
    pictures = [damaged(truth, seed) for seed in range(4)]

    def look(picture):
        face = Face("a", picture, truth, POINTS)
        if family in EXTRACTORS:
            return judge.feature(face, "restored").tobytes()
        return [np.float64(score.value).tobytes() for score in judge.score(face).values()]

    alone = [look(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(look, pictures * 4))
    assert together == alone * 4
    assert len(set(map(str, alone))) > 1


def test_equal_pictures_are_infinitely_alike(build, truth):
    face = Face("a", truth, truth, POINTS)
    pixels = build("pixels").score(face)
    assert pixels["psnr"].value == math.inf
    assert pixels["psnr"].status == "ok"
    assert pixels["ssim"].value == pytest.approx(1, abs=1e-12)
    assert build("lpips-squeeze").score(face)["lpips-squeeze"].value == 0
    assert build("yunet").score(face)["nme-yunet"].value == 0
    assert [score.value for score in build("bands").score(face).values()] == [0, 0]


@pytest.mark.parametrize("name", ["quality", "quality-classic"])
def test_quality_falls_with_damage(build, truth, name):
    blurred = [cv2.GaussianBlur(truth, (0, 0), sigma) for sigma in (1.5, 3, 6)]
    values = [build(name).score(Face("a", x))[name].value for x in (truth, *blurred)]
    assert values == sorted(values, reverse=True)
    assert 0.7 < values[0] <= 1
    assert 0 <= values[-1] < 0.4


def test_a_flat_picture_has_no_niqe(build):
    face = Face("a", flat(256))
    assert statuses(build("niqe"), face) == {"niqe": "non_finite"}
    assert statuses(build("niqe-small"), face) == {"niqe-small": "non_finite"}


def test_a_small_picture_has_a_status_not_an_error(build):
    face = Face("a", flat(50), flat(50))
    assert statuses(build("niqe"), face) == {"niqe": "too_small"}
    assert statuses(build("niqe-small"), face) == {"niqe-small": "too_small"}
    assert statuses(build("pixels"), face) == {"psnr": "ok", "ssim": "ok"}
    tiny = Face("a", flat(7), flat(7))
    assert statuses(build("pixels"), tiny) == {"psnr": "ok", "ssim": "too_small"}
    assert set(statuses(build("bands"), tiny).values()) == {"too_small"}
    assert statuses(build("quality-classic"), tiny) == {"quality-classic": "too_small"}
    assert build("squeeze").feature(tiny, "gt").status == "too_small"


@pytest.mark.parametrize("net", ["squeeze", "alex", "vgg"])
def test_lpips_takes_what_its_trunk_can_pool(build, net):
    judge, least = build(f"lpips-{net}"), MIN_SIDE_PX[net]
    assert statuses(judge, Face("a", flat(least), flat(least))) == {f"lpips-{net}": "ok"}
    short = flat(64)[: least - 1]
    assert statuses(judge, Face("a", short, short)) == {f"lpips-{net}": "too_small"}


@pytest.mark.parametrize("net", ["squeeze", "alex", "vgg"])
def test_lpips_is_the_packages(build, paths, truth, net):
    package = LPIPS(LPIPSConfig(net=net)).load_path(paths[f"lpips-{net}"])
    pair = damaged(truth)[:90, :120], truth[:90, :120]
    one, other = (torch.from_numpy(x).permute(2, 0, 1)[None] / 127.5 - 1 for x in pair)
    found = build(f"lpips-{net}").score(Face("a", *pair))[f"lpips-{net}"].value
    assert found == pytest.approx(float(package(one, other)), abs=1e-6)


@pytest.mark.parametrize("points", [None, np.full((5, 2), np.nan)])
def test_a_face_that_nobody_found_has_no_identity(build, truth, points):
    face = Face("a", damaged(truth), truth, points)
    for family in ("identity", "expression"):
        assert set(statuses(build(family), face).values()) == {"no_face"}
    assert build("identity-set").feature(face, "restored").status == "no_face"


def test_identity_runs_its_network_once_a_picture(build, truth, monkeypatch):
    judge, extractor = build("identity"), build("identity-set")
    face = Face("a", damaged(truth), truth, POINTS)
    judge.score(face)
    monkeypatch.setattr(extractor._net, "_embed", lambda *_: pytest.fail("ran again"))
    one, other = (extractor.feature(face, role) for role in ("restored", "gt"))
    cosine = float(one @ other)
    assert judge.score(face)["identity"].value == pytest.approx(cosine, abs=1e-6)


def test_a_face_is_sought_on_the_truth_and_on_the_restored(build, truth):
    judge = build("yunet")
    found = judge.score(Face("a", damaged(truth), truth))
    assert found["dsr-yunet"].value == 100
    assert 0 < found["nme-yunet"].value == found["nme-yunet-all"].value < 20
    assert statuses(judge, Face("a", truth, flat(256))) == dict.fromkeys(judge.metrics, "no_face")
    missed = judge.score(Face("a", flat(256), truth))
    assert missed["dsr-yunet"].value == 0
    assert missed["nme-yunet"].status == "no_face"
    assert missed["nme-yunet-all"].value == 100


@pytest.mark.parametrize(
    "judge", [IdentityJudge, IdentityExtractor, ExpressionJudge, SqueezeExtractor, PerceptualJudge]
)
def test_another_file_is_refused_in_one_line(tmp_path, judge):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"other\.safetensors") as caught:
        judge(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        judge(tmp_path / "absent.safetensors")

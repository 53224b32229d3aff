import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import images
from pipeline.baselines import others
from pipeline.baselines.others import SpandrelRestorer, check_installed, load_baseline
from pipeline.baselines.own import FaceByFace, load_own_code, source_sha256
from pipeline.errors import UserError
from pipeline.replica import Baseline, OwnCode, ReplicaConfig
from vsp_model.runtime import RuntimeConfig

SIZE = 512


def spec(arch: str, path: Path = Path("net.pth"), w: float = 0.5) -> Baseline:
    return Baseline(path=path, weights_sha256="0" * 64, arch=arch, w=w)


class Net(nn.Module):
    """Darkens, gives a tuple as the real ones do, and notes how it was called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.calls: list[tuple[float, float, dict]] = []

    def forward(self, lq, **options):
        self.calls.append((lq.min().item(), lq.max().item(), options))
        return lq * self.scale, None


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("gfpgan", {"return_rgb": False, "randomize_noise": False}),
        ("restoreformer", {}),
        ("codeformer", {"weight": 0.7}),
    ],
)
def test_a_network_gets_and_gives_our_range_with_its_options(arch, options):
    net = Net().train()
    restorer = SpandrelRestorer(net, spec(arch, w=0.7), RuntimeConfig())
    lq = torch.linspace(-1, 1, SIZE).expand(2, 3, SIZE, SIZE).contiguous()
    restored = restorer.restore(lq, ["a", "b"], seed=5)
    assert net.calls == [(-1, 1, options)]
    assert torch.equal(restored, lq / 2)
    assert not net.training
    assert restorer.size == SIZE
    with pytest.raises(ValueError, match="256 x 256 pixels"):
        restorer.restore(lq[:, :, :256, :256], ["a", "b"])


def test_half_precision_is_refused():
    with pytest.raises(UserError, match="gfpgan: not made for fp16"):
        SpandrelRestorer(Net(), spec("gfpgan"), RuntimeConfig(precision="fp16"))


def test_weights_architecture_and_w_decide_the_bytes_and_the_path_does_not():
    def settings(model):
        return ReplicaConfig(model=model).settings()

    one = spec("codeformer")
    assert settings(one) == settings(spec("codeformer", Path("moved.pth")))
    assert settings(one) != settings(spec("codeformer", w=0.6))
    assert settings(one) != settings(spec("gfpgan"))
    assert (one.name, spec("gfpgan").name) == ("net.pth (w 0.5)", "net.pth")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(others, "find_spec", lambda name: None if "extra" in name else object())
    check_installed("gfpgan")
    with pytest.raises(UserError, match=r"spandrel_extra_arches: pip .*\[baselines-nc\].*S-Lab"):
        check_installed("codeformer")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("net.pth", lambda path: path.write_bytes(b"junk"), "no checkpoint"),
        ("net.pth", lambda path: path.write_bytes(pickle.dumps(Hostile())), "is forbidden"),
        ("net.pth", lambda path: torch.save({"x": Hostile()}, path), "is forbidden"),
        ("net.pth", lambda path: torch.save({"x": torch.zeros(1)}, path), "no network"),
        ("net.safetensors", lambda path: path.write_bytes(b"junk"), "cannot be loaded"),
        ("net.pt", lambda path: path.write_bytes(b"junk"), "expected .pth"),
    ],
)
def test_a_file_that_is_no_checkpoint_runs_nothing(tmp_path, monkeypatch, name, write, told):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=told):
        load_baseline(spec("restoreformer", path), RuntimeConfig())
    assert [each.name for each in tmp_path.iterdir()] == [name]


# ------------------------------------------------------------------------------------ own code


def batch(size: int = 8) -> torch.Tensor:
    faces = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    lq = images.new_batch(2, size)
    for slot, face in enumerate(faces):
        images.to_model(face, lq, slot)
    return lq


def test_a_function_sees_and_gives_faces_as_uint8():
    lq, seen = batch(), []

    def invert(face):
        seen.append((face.dtype, face.shape))
        return 255 - face

    restored = FaceByFace(invert, 8).restore(lq, ["a", "b"])
    assert seen == [(np.uint8, (8, 8, 3))] * 2
    assert np.array_equal(images.to_uint8(restored), 255 - images.to_uint8(lq))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda face: face[:4], r"uint8 \(4, 8, 3\); expected uint8 \(8, 8, 3\)"),
        (lambda face: face / 255, r"float64 \(8, 8, 3\)"),
        (lambda face: None, "NoneType"),
    ],
)
def test_what_is_no_face_is_refused(function, told):
    with pytest.raises(UserError, match=told):
        FaceByFace(function, 8).restore(batch(), ["a", "b"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a function, in a folder that is not on the path."""
    (tmp_path / "ownpkg").mkdir()
    (tmp_path / "ownpkg" / "__init__.py").write_text("")
    (tmp_path / "ownpkg" / "filters.py").write_text("def same(face):\n    return face\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("ownpkg", "ownpkg.filters"):
        sys.modules.pop(name, None)


def test_a_function_is_found_beside_the_yaml_and_known_by_its_source(package):
    digest = source_sha256("ownpkg.filters:same", package)
    assert digest == hashlib.sha256(b"def same(face):\n    return face\n").hexdigest()
    assert "ownpkg" not in sys.modules
    own = OwnCode(function="ownpkg.filters:same", folder=package, size=8, source_sha256=digest)
    assert torch.equal(load_own_code(own).restore(batch(), ["a", "b"]), batch())
    assert own.sha256 != own.model_copy(update={"source_sha256": "0" * 64}).sha256


def test_an_installed_function_is_found_too(tmp_path):
    assert (
        source_sha256("json.decoder:f", tmp_path)
        == hashlib.sha256(
            Path(sys.modules["json"].__path__[0], "decoder.py").read_bytes()
        ).hexdigest()
    )


def test_a_function_that_is_not_there_is_named(package):
    with pytest.raises(UserError, match="no module ownpkg"):
        source_sha256("ownpkg.nothing:f", package)
    with pytest.raises(UserError, match="no module absent"):
        source_sha256("absent.filters:f", package)
    own = OwnCode(function="ownpkg.filters:f", folder=package, size=8, source_sha256="")
    with pytest.raises(UserError, match="no function 'f' in ownpkg"):
        load_own_code(own)

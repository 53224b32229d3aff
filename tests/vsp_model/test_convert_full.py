"""The four published files at full size, both ways, in a process of their own: 2.4 GB on disk."""

import argparse
import importlib.util
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vsp_model import checkpoints
from vsp_model.convert import convert
from vsp_model.export import export
from vsp_model.published_files import SECTIONS
from vsp_model.vspbfr import VSPBFRConfig

pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "parity_data"
KEYS = DATA / "state_dict_keys.json"
FILES = ("style_encoder_decoder.pt", "code_diffuser.pt", "restoration_net.pt", "Arcface.pth")
MEMORY_LIMIT_GB = 6.0


def optimiser(tensors):
    """Adam's two moments of every tensor: as large as twice the network."""
    moments = {n: {"exp_avg": t, "exp_avg_sq": t} for n, t in enumerate(tensors.values())}
    return {"state": moments, "param_groups": [{"lr": 0.0016, "betas": (0.0, 0.99)}]}


def beside(file, held):
    """What the real files hold besides networks."""
    arguments = {"args": argparse.Namespace(size=512, lr=0.0016, ckpt=None), "iter": np.int64(500)}
    if file == "code_diffuser.pt":
        found = {"best_path": "best.pt", "best_fid": np.float64(9.5)}
        return arguments | found | {"mapper_optim": optimiser(held["att_mapper"])}
    if file == "restoration_net.pt":
        return arguments | {
            "g_optim": optimiser(held["g"]),
            "d_optim": optimiser(held["d"]),
            "ada_aug_p": 0.25,
        }
    return {}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of stand-ins, written one at a time."""
    spec = importlib.util.spec_from_file_location("parity_weights", DATA / "parity_weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    folder = tmp_path_factory.mktemp("published")
    for file in FILES:
        held = weights.official_checkpoint(str(KEYS), file, weights.PUBLIC_BASE_SEED)
        torch.save(held | beside(file, held), folder / file)
    return folder


@pytest.fixture(scope="module")
def bundle(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "vspbfr-512.safetensors"
    convert([published / file for file in FILES], path, training=True)
    return path


def section_tensors(file, held):
    """Every tensor of a file that a network is made of, in order, and the average code."""
    for container in dict.fromkeys(section.container for section in SECTIONS[file]):
        tensors = held if container is None else held[container]
        yield from ((container, name, tensor) for name, tensor in tensors.items())
    if "latent_avg" in held:
        yield None, "latent_avg", held["latent_avg"]


def test_both_ways_are_bit_equal(published, bundle, tmp_path):
    back = export(bundle, tmp_path / "back")
    assert sorted(path.name for path in back) == sorted(FILES)
    for path in back:
        theirs = torch.load(published / path.name, mmap=True, weights_only=False)
        ours = torch.load(path, mmap=True, weights_only=True)
        pairs = zip(
            section_tensors(path.name, ours), section_tensors(path.name, theirs), strict=True
        )
        for (container, name, tensor), (wanted_container, wanted_name, wanted) in pairs:
            assert (container, name) == (wanted_container, wanted_name)
            assert tensor.dtype == wanted.dtype
            assert torch.equal(tensor, wanted), f"{path.name}: {name}"
        assert ours.get("opts") == theirs.get("opts")
        assert ours.get("ada_aug_p") == theirs.get("ada_aug_p")


def test_the_default_bundle_opens_as_the_published_model(published, tmp_path):
    path = tmp_path / "vspbfr-512.safetensors"
    convert([published / file for file in FILES[:3]], path)
    model = checkpoints.load(path)
    assert model.config == VSPBFRConfig()
    assert sum(parameter.numel() for parameter in model.parameters()) == 420_567_873
    held = torch.load(published / FILES[2], mmap=True, weights_only=False)
    assert torch.equal(model.restoration.to_global.bias, held["g_ema"]["final_linear.0.bias"])


def test_memory_stayed_within_the_limit():
    """Peak of the whole process, the writing of the stand-ins included."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    assert peak_gb < MEMORY_LIMIT_GB

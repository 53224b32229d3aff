import json
from pathlib import Path

import pytest
import torch

from vsp_model.identity import IdentityConfig, IdentityNet

PARITY = Path(__file__).resolve().parents[1] / "parity_data"


@pytest.fixture(scope="module")
def net():
    """One bottleneck a stage: the layers of the real one, an eighth of its cost."""
    torch.manual_seed(1)
    return IdentityNet(IdentityConfig(blocks=(1, 1, 1, 1), embedding_dim=16))


def faces(side=112, count=2):
    return 2 * torch.rand(count, 3, side, side) - 1


def test_tensors_carry_the_published_names():
    keys = json.loads((PARITY / "state_dict_keys.json").read_text())
    (section,) = keys["checkpoints"]["Arcface.pth"]["sections"]
    with torch.device("meta"):
        state = IdentityNet(IdentityConfig()).state_dict()
    shapes = {name: [list(t.shape), str(t.dtype).split(".")[1]] for name, t in state.items()}
    assert list(shapes.items()) == list(section["tensors"].items())


def test_embeddings_have_length_one_at_any_size(net):
    for side in (64, 150):
        embedding = net(faces(side))
        assert embedding.shape == (2, 16)
        assert torch.allclose(embedding.norm(dim=1), torch.ones(2))


def test_the_whole_image_is_sampled_without_antialiasing(net):
    """From 448 to 112, bilinear reads the middle four pixels of every block of sixteen."""
    large = faces(448, 1)
    middle = large.reshape(1, 3, 112, 4, 112, 4)[:, :, :, 1:3, :, 1:3].mean(dim=(3, 5))
    assert torch.allclose(net(large), net(middle), atol=1e-5)
    assert not torch.allclose(net(large), net(large[:, :, 56:-56, 56:-56]), atol=1e-5)


def test_an_embedding_does_not_depend_on_the_neighbours(net):
    images = faces()
    net.train()  # a judge's batch norms stay as they are
    assert torch.allclose(net(images)[1:], net(images[1:]), atol=1e-6)


def test_the_net_is_frozen_but_lets_gradients_through(net):
    images = faces(64).requires_grad_()
    net(images)[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_identity_stays_in_float32_under_autocast(net):
    images = faces(64)
    plain = net(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(images), plain)

import math
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vsp_model.losses import (
    LPIPS,
    LPIPSConfig,
    code_l1,
    discriminator_loss,
    generator_loss,
    identity_loss,
    r1_penalty,
)

PARITY = Path(__file__).resolve().parents[1] / "parity_data"


def test_adversarial_losses_at_known_logits():
    zero = torch.zeros(3, 1)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    sure, fooled = torch.full((2, 1), 40.0), torch.full((2, 1), -40.0)
    assert discriminator_loss(sure, fooled).item() == pytest.approx(0, abs=1e-6)
    assert discriminator_loss(fooled, sure).item() == pytest.approx(80)


def test_the_generator_loss_does_not_saturate():
    logits = torch.full((1, 1), -40.0, requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad.item() == pytest.approx(-1)


def test_published_loss_values():
    with np.load(PARITY / "public/losses.npz") as stored:
        real, fake = torch.from_numpy(stored["real"]), torch.from_numpy(stored["fake"])
        expected = float(stored["d_logistic"][0]), float(stored["g_nonsaturating"][0])
    assert discriminator_loss(real, fake).item() == pytest.approx(expected[0], rel=1e-6)
    assert generator_loss(fake).item() == pytest.approx(expected[1], rel=1e-6)


def test_r1_is_the_batch_mean_of_squared_gradient_norms():
    weight = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = (weight * image.square()).sum(dim=(1, 2, 3))[:, None]
    penalty = r1_penalty(logits, image)
    by_hand = (2 * weight * image).square().sum() / 2
    assert penalty.item() == pytest.approx(by_hand.item(), rel=1e-12)
    (again,) = torch.autograd.grad(penalty, weight)
    assert torch.allclose(again, 4 * weight * image.square())


def test_code_l1_is_the_mean_over_everything():
    codes, target = torch.zeros(2, 4, 8), torch.zeros(2, 4, 8)
    target[0, 0] = 3.0
    assert code_l1(codes, target).item() == pytest.approx(3 / 8)


def test_identity_loss_is_one_minus_cosine_and_spares_the_target():
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 0.0]], requires_grad=True)
    loss = identity_loss(embedding, target)
    assert loss.item() == pytest.approx((0 + 2 + 0.4) / 3)
    loss.backward()
    assert embedding.grad.abs().sum() > 0
    assert target.grad is None


# ------------------------------------------------------------------------------------- LPIPS


@pytest.fixture(scope="module")
def squeeze():
    """A random trunk, small images: everything but the numbers is real."""
    torch.manual_seed(1)
    return LPIPS(LPIPSConfig(net="squeeze"))


def pictures(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(2, count, 3, 40, 36, generator=generator) - 1).unbind()


def torchvision_names(lpips):
    trunk = {n: t for n, t in lpips.package.state_dict().items() if n.startswith("net.")}
    return {f"features.{name.split('.', 2)[2]}": tensor.clone() for name, tensor in trunk.items()}


@pytest.mark.weights
def test_genuine_lpips_gives_its_known_values(shared_dir):
    lpips = LPIPS(LPIPSConfig(net="squeeze"))
    lpips.load_path(shared_dir / "weights/squeezenet1_1_imagenet1k_fp16.safetensors")
    generator = torch.Generator().manual_seed(42)
    first, second = (2 * torch.rand(2, 3, 100, 100, generator=generator) - 1 for _ in range(2))
    assert lpips(first, second).tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*_):
        raise AssertionError("LPIPS reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    LPIPS(LPIPSConfig(net="alex"))


def test_one_value_per_image_whatever_the_neighbours(squeeze):
    first, second = pictures()
    both = squeeze(first, second)
    assert both.shape == (2,)
    assert (both > 0).all()
    assert torch.allclose(both[1:], squeeze(first[1:], second[1:]), rtol=1e-5)
    assert squeeze(first, first).tolist() == [0, 0]


def test_layer_terms_sum_to_the_distance(squeeze):
    first, second = pictures()
    terms = squeeze.per_layer(first, second)
    assert terms.shape == (7, 2)
    assert torch.allclose(terms.sum(dim=0), squeeze(first, second))


def test_lpips_is_frozen_but_lets_gradients_through(squeeze):
    first, second = pictures()
    squeeze.train()
    assert not any(module.training for module in squeeze.modules())
    assert not any(parameter.requires_grad for parameter in squeeze.parameters())
    first.requires_grad_()
    squeeze(first, second).sum().backward()
    assert first.grad.abs().sum() > 0


def test_lpips_stays_in_float32_under_autocast(squeeze):
    first, second = pictures()
    plain = squeeze(first, second)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(squeeze(first, second), plain)


@pytest.mark.parametrize(("kind", "suffix"), [("torchvision", ".pth"), ("package", ".safetensors")])
def test_the_trunk_is_read_from_a_file(squeeze, tmp_path, kind, suffix):
    if kind == "torchvision":
        tensors = torchvision_names(squeeze) | {"classifier.1.bias": torch.zeros(1000)}
    else:
        state = squeeze.package.state_dict()
        tensors = {n: t.clone() for n, t in state.items() if n.startswith("net.")}
    path = tmp_path / f"trunk{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    other = LPIPS(LPIPSConfig(net="squeeze"))
    images = pictures()
    assert not torch.equal(other(*images), squeeze(*images))
    assert torch.equal(other.load_path(path)(*images), squeeze(*images))


def test_a_foreign_trunk_is_refused_by_name(squeeze):
    good = torchvision_names(squeeze)
    lacking = {n: t for n, t in good.items() if n != "features.0.weight"}
    with pytest.raises(ValueError, match=r"missing net\.slice1\.0\.weight$"):
        squeeze.load(lacking)
    with pytest.raises(ValueError, match=r"unknown features\.99\.weight$"):
        squeeze.load(good | {"features.99.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"misshapen net\.slice1\.0\.weight$"):
        squeeze.load(good | {"features.0.weight": torch.zeros(64, 3, 1, 1)})


def test_linear_layers_can_be_given_too(squeeze):
    state = squeeze.package.state_dict()
    linear = {n: 2 * t for n, t in state.items() if n.startswith("lin") and "lins" not in n}
    other = LPIPS(LPIPSConfig(net="squeeze")).load(torchvision_names(squeeze) | linear)
    images = pictures()
    assert torch.allclose(other(*images), 2 * squeeze(*images))

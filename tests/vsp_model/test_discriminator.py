import pytest
import torch

from vsp_model.discriminator import Discriminator, DiscriminatorConfig, minibatch_stddev
from vsp_model.losses import r1_penalty


@pytest.fixture
def tiny():
    torch.manual_seed(1)
    return Discriminator(DiscriminatorConfig(size=16, channels=(4, 4, 2)))


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_groups_are_strided(batch):
    """Of B / G groups, sample b is in group b mod B / G."""
    x = torch.randn(batch, 3, 2, 2, dtype=torch.float64)
    y = minibatch_stddev(x, group_size=4)
    assert y.shape == (batch, 4, 2, 2)
    assert torch.equal(y[:, :3], x)
    num_groups = max(1, batch // 4)
    for b in range(batch):
        members = x[b % num_groups :: num_groups]
        expected = (members.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(y[b, 3], expected)


@pytest.mark.parametrize("batch", [5, 6, 7, 9])
def test_a_batch_that_makes_no_groups_is_refused(tiny, batch):
    with pytest.raises(ValueError, match=f"batch of {batch}; expected at most 4 or a multiple"):
        tiny(torch.zeros(batch, 3, 16, 16))


def test_one_logit_per_face(tiny):
    assert tiny(torch.randn(8, 3, 16, 16)).shape == (8, 1)


def test_only_the_group_matters(tiny):
    """Samples 0, 2, 4, 6 of eight share a group; changing the others leaves their logits."""
    x = torch.randn(8, 3, 16, 16)
    changed = x.clone()
    changed[1::2] = 0.5
    before, after = tiny(x), tiny(changed)
    assert torch.allclose(before[::2], after[::2], atol=1e-5)
    assert not torch.allclose(before[1::2], after[1::2], atol=1e-3)


def test_widths_must_match_the_size():
    with pytest.raises(ValueError, match="channels: 2 values for size 16, expected 3"):
        DiscriminatorConfig(size=16, channels=(4, 4))


def test_the_r1_gradient_agrees_with_finite_differences(tiny):
    net = tiny.double()
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    parameters = list(net.parameters())
    penalty = r1_penalty(net(image), image)
    # The biases of the last layers shift the logits only: R1 does not see them.
    gradients = torch.autograd.grad(penalty, parameters, materialize_grads=True)
    assert penalty > 0
    step = 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            values.append(r1_penalty(net(image), image).item())
            with torch.no_grad():
                parameter -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-4, abs=1e-6)

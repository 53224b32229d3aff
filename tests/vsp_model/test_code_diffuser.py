"""The code diffuser against its definition: schedule, block, chain, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from tests.vsp_model.tiny import lively
from vsp_model.code_diffuser import CodeDiffuser, CodeDiffuserConfig, TACCBlock
from vsp_model.diffusion import q_sample, sqrt_linear_schedule

TABLE = {
    "betas": (0.1, 0.294285624200465, 0.590952290867131, 0.99),
    "alphas_cumprod": (0.9, 0.635142938219582, 0.259803763850639, 0.00259803763850639),
    "alphas_cumprod_prev": (1, 0.9, 0.635142938219582, 0.259803763850639),
    "sqrt_alphas_cumprod": (0.948683321, 0.796958566, 0.509709477, 0.0509709492),
    "sqrt_one_minus_alphas_cumprod": (0.316227764, 0.604034007, 0.860346556, 0.998700142),
    "posterior_mean_coef1": (1, 0.765186906, 0.636269748, 0.505926788),
    "posterior_mean_coef2": (0, 0.230245799, 0.315255642, 0.0742124319),
}


@pytest.fixture(scope="module")
def diffuser():
    torch.manual_seed(0)
    return lively(CodeDiffuser(CodeDiffuserConfig(num_tokens=6, style_dim=8))).requires_grad_(False)


def codes(count=2, dtype=torch.float32):
    return torch.randn(count, 6, 8, dtype=dtype)


@pytest.mark.parametrize("name", TABLE)
def test_the_published_schedule(name):
    schedule = sqrt_linear_schedule(4, 0.1, 0.99)
    expected = torch.tensor(TABLE[name], dtype=torch.float32)
    torch.testing.assert_close(getattr(schedule, name), expected, rtol=3e-7, atol=0)


def test_derived_quantities_of_the_schedule():
    s = sqrt_linear_schedule(4, 0.1, 0.99)
    bar = s.alphas_cumprod.double()
    torch.testing.assert_close(s.log_one_minus_alphas_cumprod, (1 - bar).log().float())
    torch.testing.assert_close(s.sqrt_recip_alphas_cumprod, bar.rsqrt().float())
    torch.testing.assert_close(s.sqrt_recipm1_alphas_cumprod, (1 / bar - 1).sqrt().float())
    variance = s.betas * (1 - s.alphas_cumprod_prev) / (1 - s.alphas_cumprod)
    torch.testing.assert_close(s.posterior_variance, variance)
    assert s.posterior_log_variance_clipped[0].item() == pytest.approx(math.log(1e-20))


def defined_block(block, x, e):
    """One TACC block of one image, x (T, D), e (T, D + 1), as the published code computes it."""
    tokens, width = x.shape
    x = x / x.square().mean(0, keepdim=True).add(1e-8).sqrt()  # over tokens
    a = block.tokens
    scores = (x @ a.key.weight.T) @ (e @ a.query.weight.T).T / tokens**0.5
    h1 = scores.softmax(1) @ (x @ a.value.weight.T)
    a = block.features
    scores = (e @ a.key.weight.T).T @ (x @ a.query.weight.T) / width**0.5
    h2 = F.layer_norm((x @ a.value.weight.T) @ scores.softmax(0), (width,))
    h = F.layer_norm(h1 + h2, (width,))

    def branch(mlp):
        first, norm, _, last, _ = mlp
        y = F.layer_norm(first(e), (width,), norm.weight, norm.bias)
        return last(2**0.5 * F.leaky_relu(y, 0.2))

    shift = 2**0.5 * F.leaky_relu(branch(block.shift), 0.2)
    return h * (1 + branch(block.gate).sigmoid()) + shift


def test_a_block_equals_its_definition():
    block = lively(TACCBlock(5, 4)).double()
    x, e = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    expected = [defined_block(block, *pair) for pair in zip(x, e, strict=True)]
    torch.testing.assert_close(block(x, e), torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2])
def test_a_block_can_be_differentiated_twice(count):
    block = lively(TACCBlock(3, 4)).double()
    x = torch.randn(count, 3, 4, dtype=torch.float64, requires_grad=True)
    e = torch.randn(count, 3, 5, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def run(x, e, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x, e))

    assert gradcheck(run, (x, e, *parameters))
    assert gradgradcheck(run, (x, e, *parameters), fast_mode=True)


def test_time_is_the_last_column_divided_by_the_number_of_steps(diffuser):
    seen = []
    hook = diffuser.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args))
    x, condition = codes(), codes()
    one = diffuser(x, condition, 3)
    each = diffuser(x, condition, torch.tensor([3, 3]))
    mixed = diffuser(x, condition, torch.tensor([3, 0]))
    hook.remove()
    assert torch.equal(seen[0][1], torch.cat([condition, torch.full((2, 6, 1), 0.75)], dim=2))
    assert torch.equal(one, each)
    torch.testing.assert_close(mixed[0], one[0])
    torch.testing.assert_close(mixed[1], diffuser(x, condition, 0)[1])
    assert not torch.allclose(mixed[1], one[1])


def test_the_chain_is_four_posterior_means_and_ends_in_the_estimate(diffuser):
    condition, x = codes(), codes()
    states = diffuser.chain(condition, x)
    assert len(states) == 4
    c1, c2 = TABLE["posterior_mean_coef1"], TABLE["posterior_mean_coef2"]
    for t, state in zip((3, 2, 1, 0), states, strict=True):
        estimate = diffuser(x, condition, t)
        x = c1[t] * estimate + c2[t] * x
        torch.testing.assert_close(state, x, rtol=1e-4, atol=1e-4)
        x = state
    assert torch.equal(states[3], estimate)
    ones = torch.ones(2, 6, 8)
    assert torch.equal(diffuser.sample(condition, ones), diffuser.chain(condition, ones)[-1])


def test_training_starts_from_the_degraded_codes_almost_gone(diffuser):
    condition, noise = codes(), codes()
    start = diffuser.training_start(condition, noise)
    torch.testing.assert_close(start, 0.0509709492 * condition + 0.998700142 * noise)
    schedule = diffuser.schedule
    torch.testing.assert_close(
        q_sample(schedule, condition, 0, noise), 0.948683321 * condition + 0.316227764 * noise
    )


def test_the_chain_stays_float32_under_autocast(diffuser):
    condition, start = codes(), codes()
    with torch.autocast("cpu", torch.bfloat16):
        reduced = diffuser.sample(condition, start)
    assert reduced.dtype == torch.float32
    assert torch.equal(reduced, diffuser.sample(condition, start))


def test_more_steps_are_a_setting():
    config = CodeDiffuserConfig(num_tokens=3, style_dim=4, num_blocks=1, num_steps=7)
    states = CodeDiffuser(config).chain(torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    assert len(states) == 7
    assert states[-1].isfinite().all()


def test_at_the_published_width_bits_do_not_depend_on_the_place_in_the_batch():
    diffuser = CodeDiffuser(CodeDiffuserConfig()).requires_grad_(False)
    condition, start = torch.randn(5, 18, 512), torch.randn(5, 18, 512)
    with torch.no_grad():
        for count in (2, 3, 5):
            first = diffuser.sample(condition[:count], start[:count])
            order = [*range(1, count), 0]
            rolled = diffuser.sample(condition[order], start[order])
            assert torch.equal(rolled, first[order])

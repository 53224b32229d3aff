"""The few-step diffusion of style codes as pure functions (DDPM, Ho et al.; VSPBFR, Sec. III-B).

The network predicts the clean code (x0), as the published code does; the paper's text speaks of the
added noise. Steps count t = 0 ... N-1, N - 1 is the noisiest. Buffers are float32 roundings of
float64 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Every quantity of the forward process, each (N,) float32."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor


def sqrt_linear_schedule(num_steps: int, beta_start: float, beta_end: float) -> Schedule:
    """Variances whose square roots are evenly spaced (the published "linear" schedule).

    Args:
        num_steps: N (4 as published); a single step has the last variance, the noisiest.
        beta_start: first variance (0.1 as published).
        beta_end: last variance (0.99 as published).
    """
    first = beta_end if num_steps == 1 else beta_start
    betas = torch.linspace(first**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)  # (Eq. 7, DDPM)
    mean_x0 = betas * alpha_bar_prev.sqrt() / (1 - alpha_bar)
    mean_xt = (1 - alpha_bar_prev) * (1 - betas).sqrt() / (1 - alpha_bar)
    return Schedule(
        *(
            value.float()
            for value in (
                betas,
                alpha_bar,
                alpha_bar_prev,
                alpha_bar.sqrt(),
                (1 - alpha_bar).sqrt(),
                (1 - alpha_bar).log(),
                (1 / alpha_bar).sqrt(),
                (1 / alpha_bar - 1).sqrt(),
                variance,
                variance.clamp_min(1e-20).log(),
                mean_x0,
                mean_xt,
            )
        )
    )


def q_sample(schedule: Schedule, x0: Tensor, t: int, noise: Tensor) -> Tensor:
    """Noise a clean code to step t (Eq. 4, DDPM). Shapes of ``x0`` and ``noise`` agree."""
    keep, add = schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
    return keep.to(x0.device) * x0 + add.to(x0.device) * noise


def posterior_mean(coefficients: Tensor, x0: Tensor, x_t: Tensor) -> Tensor:
    """One reverse step (Eq. 7, DDPM); the published chain adds no noise to it.

    Args:
        coefficients: (2,), the weights of x0 and of x_t at this step.
        x0: estimate of the clean code.
        x_t: the state before the step.
    """
    return coefficients[0] * x0 + coefficients[1] * x_t

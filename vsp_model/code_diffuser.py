"""The code diffuser: four TACC blocks that clean W+ codes in a few steps (VSPBFR, Sec. III-B).

Shapes: B batch, T tokens, D style width.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vsp_model.config import Config
from vsp_model.diffusion import Schedule, posterior_mean, q_sample, sqrt_linear_schedule
from vsp_model.layers import ItemLayerNorm, ItemLinear
from vsp_model.ops import GAIN, SLOPE, pixel_norm


class CodeDiffuserConfig(Config):
    """The defaults are published: 18 tokens of 512, four blocks, four steps."""

    num_tokens: int = 18
    style_dim: int = 512
    num_blocks: int = Field(4, ge=1, le=64)
    num_steps: int = Field(4, ge=1, le=1000)
    beta_start: float = 0.1
    beta_end: float = 0.99

    @model_validator(mode="after")
    def _valid_schedule(self) -> Self:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start {self.beta_start}, beta_end {self.beta_end}: "
                "expected 0 < beta_start <= beta_end < 1"
            )
        return self


class _ScaledLeakyReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, SLOPE) * GAIN


class TokenAttention(nn.Module):
    """Attention over tokens; rows are key tokens, columns query tokens, as published.

    The softmax runs over the query axis, so it is the transpose of the usual attention.
    """

    def __init__(self, num_tokens: int, style_dim: int) -> None:
        super().__init__()
        self.query = ItemLinear(style_dim + 1, style_dim, bias=False)
        self.key = ItemLinear(style_dim, style_dim, bias=False)
        self.value = ItemLinear(style_dim, style_dim, bias=False)
        self.scale = num_tokens**-0.5
        _init_attention(self, gain=0.5)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, D), condition (B, T, D + 1) -> (B, T, D)."""
        scores = self.key(x) @ self.query(condition).transpose(1, 2) * self.scale  # (B, T, T)
        return scores.softmax(dim=-1) @ self.value(x)


class FeatureAttention(nn.Module):
    """Attention over the D features, normalised over the key features, then layer norm."""

    def __init__(self, style_dim: int) -> None:
        super().__init__()
        self.query = ItemLinear(style_dim, style_dim, bias=False)
        self.key = ItemLinear(style_dim + 1, style_dim, bias=False)
        self.value = ItemLinear(style_dim, style_dim, bias=False)
        self.scale = style_dim**-0.5
        _init_attention(self, gain=2.0)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, D), condition (B, T, D + 1) -> (B, T, D)."""
        # Key features along the last axis, where a softmax row is one run of memory: along another
        # axis its bits would depend on how threads share the batch.
        scores = self.query(x).transpose(1, 2) @ self.key(condition) * self.scale  # (B, D, D)
        weights = scores.softmax(dim=-1).transpose(1, 2)  # each column sums to one
        return F.layer_norm(self.value(x) @ weights, x.shape[-1:])


def _init_attention(module: TokenAttention | FeatureAttention, gain: float) -> None:
    """Unit-variance values and keys and queries of the given gain.

    PyTorch's own start makes the feature softmax almost uniform; the values then average out and
    the layer norm behind it magnifies rounding errors to the size of the signal.
    """
    for layer, scale in ((module.query, gain), (module.key, gain), (module.value, 1.0)):
        nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)


def _condition_mlp(style_dim: int, *, gain: float, final: nn.Module) -> nn.Sequential:
    last = ItemLinear(style_dim, style_dim)
    nn.init.normal_(last.weight, std=gain * style_dim**-0.5)
    return nn.Sequential(
        ItemLinear(style_dim + 1, style_dim),
        ItemLayerNorm(style_dim),
        _ScaledLeakyReLU(),
        last,
        final,
    )


class TACCBlock(nn.Module):
    """Token and feature attention, then gate and shift from the condition."""

    def __init__(self, num_tokens: int, style_dim: int) -> None:
        super().__init__()
        self.tokens = TokenAttention(num_tokens, style_dim)
        self.features = FeatureAttention(style_dim)
        self.gate = _condition_mlp(style_dim, gain=1.0, final=nn.Sigmoid())
        self.shift = _condition_mlp(style_dim, gain=2.0, final=_ScaledLeakyReLU())

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, D), condition (B, T, D + 1) -> (B, T, D); no residual around the block."""
        x = pixel_norm(x)  # over tokens: each feature is divided by its RMS over the T tokens
        mixed = self.tokens(x, condition) + self.features(x, condition)
        h = F.layer_norm(mixed, x.shape[-1:])
        return h * (1 + self.gate(condition)) + self.shift(condition)


class CodeDiffuser(nn.Module):
    """Degraded codes -> clean codes, by a short deterministic reverse diffusion.

    All of it stays in float32 or wider under autocast: the chain amplifies rounding errors, and it
    is 0.3 % of the operations.
    """

    coefficients: Tensor

    def __init__(self, config: CodeDiffuserConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            TACCBlock(config.num_tokens, config.style_dim) for _ in range(config.num_blocks)
        )
        s = self.schedule
        coefficients = torch.stack([s.posterior_mean_coef1, s.posterior_mean_coef2])
        self.register_buffer("coefficients", coefficients, persistent=False)  # (2, N)

    @property
    def schedule(self) -> Schedule:
        """The forward process's quantities, on the CPU."""
        c = self.config
        return sqrt_linear_schedule(c.num_steps, c.beta_start, c.beta_end)

    def forward(
        self, x: Tensor, codes: Tensor, t: Tensor | int, time_shift: Tensor | None = None
    ) -> Tensor:
        """Estimate the clean codes from noisy ones.

        Args:
            x: noisy codes, (B, T, D).
            codes: codes of the degraded face, the condition, (B, T, D).
            t: step, one for all or (B,).
            time_shift: what a quality adds to the time, (B,); not published.
        """
        with torch.autocast(codes.device.type, enabled=False):
            b, tokens, _ = codes.shape
            time = torch.as_tensor(t, device=codes.device).to(codes.dtype) / self.config.num_steps
            if time_shift is not None:
                time = time + time_shift.to(codes.dtype)
            column = time.reshape(-1, 1, 1).expand(b, tokens, 1)
            condition = torch.cat([codes, column], dim=2)  # (B, T, D + 1), time last
            for block in self.blocks:
                x = block(x, condition)
            return x

    def sample(self, codes: Tensor, start: Tensor, time_shift: Tensor | None = None) -> Tensor:
        """Clean codes from the degraded face's codes and start noise, all (B, T, D)."""
        return self.chain(codes, start, time_shift)[-1]

    def chain(self, codes: Tensor, start: Tensor, time_shift: Tensor | None = None) -> list[Tensor]:
        """The state after each reverse step, noisiest first, each (B, T, D).

        Without gradients it runs in float64 where the device has it: a rounding error of the codes
        grows a thousandfold on the way, and would show between one batch size and another.
        """
        wide = not torch.is_grad_enabled() and codes.device.type != "mps"
        condition, x = (codes.double(), start.double()) if wide else (codes, start)
        states = []
        for t in reversed(range(self.config.num_steps)):
            x = posterior_mean(self.coefficients[:, t], self(x, condition, t, time_shift), x)
            states.append(x.to(codes.dtype))
        return states

    def training_start(self, codes: Tensor, noise: Tensor) -> Tensor:
        """Start of the training chain: the *degraded* face's codes, noised to the last step.

        So in the published code; the paper noises the clean codes. Inference starts from pure noise
        (they differ by 0.051 times the codes).
        """
        return q_sample(self.schedule, codes, self.config.num_steps - 1, noise)

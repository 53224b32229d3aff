"""Style encoder, code diffuser and prior, computed as published (see the package's docstring)."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    Apply,
    EqualLinear,
    Noise,
    StyledConv,
    ToRGB,
    channels_at,
    mapping_network,
    noise_maps,
    pixel_norm,
    scaled_leaky_relu,
    stored_noise,
)


class PublishedStyleGAN2(nn.Module):
    """The prior: a StyleGAN2 generator that also hands on one feature map per resolution."""

    def __init__(
        self,
        size: int = 1024,
        style_dim: int = 512,
        channel_multiplier: float = 2,
        max_channels: int = 512,
    ) -> None:
        """Set up a generator of images of `size` pixels, a power of two."""
        super().__init__()
        log_size = int(math.log2(size))
        width = [channels_at(2**i, channel_multiplier, max_channels) for i in range(log_size + 1)]
        self.num_styles = 2 * log_size - 2
        self.style = mapping_network(style_dim)
        self.input = nn.ParameterDict({"input": torch.randn(1, width[2], 4, 4)})
        self.conv1 = StyledConv(width[2], width[2], style_dim)
        self.to_rgb1 = ToRGB(width[2], style_dim, first=True)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(width[2:]):
            self.convs.append(StyledConv(before, after, style_dim, "up"))
            self.convs.append(StyledConv(after, after, style_dim))
            self.to_rgbs.append(ToRGB(after, style_dim))
        self.noises = stored_noise(log_size)

    def forward(self, w_plus: Tensor, noise: Noise = None) -> tuple[Tensor, list[Tensor]]:
        """Render codes (B, L, D) to the image (B, 3, size, size) and its maps from 4 to `size`."""
        maps = noise_maps(noise)
        x = self.input["input"].repeat(w_plus.shape[0], 1, 1, 1)
        x = self.conv1(x, w_plus[:, 0], next(maps))
        image, features = self.to_rgb1(x, w_plus[:, 1]), [x]
        for k, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * k](x, w_plus[:, 2 * k + 1], next(maps))
            features.append(x)
            x = self.convs[2 * k + 1](x, w_plus[:, 2 * k + 2], next(maps))
            image = to_rgb(x, w_plus[:, 2 * k + 3], image)
        return image, features


class SqueezeExcitation(nn.Module):
    """Channel gate of an IR-SE unit."""

    def __init__(self, channels: int) -> None:
        """Set up a gate that squeezes `channels` by 16."""
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate (B, C, H, W)."""
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class IRSEUnit(nn.Module):
    """Residual unit of the encoder's body."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        """Set up a unit from `n_in` to `n_out` channels."""
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(n_in),
            nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False),
            nn.PReLU(n_out),
            nn.Conv2d(n_out, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            SqueezeExcitation(n_out),
        )
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if n_in != n_out:
            conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(conv, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        return self.res_layer(x) + self.shortcut_layer(x)


class StyleBlock(nn.Module):
    """Stride-2 convolutions down to one pixel, then a linear layer."""

    def __init__(self, dim: int, num_convs: int) -> None:
        """Set up a block of `dim` channels throughout."""
        super().__init__()
        pairs = [(nn.Conv2d(dim, dim, 3, 2, 1), nn.LeakyReLU(0.01)) for _ in range(num_convs)]
        self.convs = nn.Sequential(*[layer for pair in pairs for layer in pair])
        self.linear = EqualLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, H), H = 2**num_convs, to a code (B, dim)."""
        return self.linear(self.convs(x).flatten(1))


class PublishedStyleEncoder(nn.Module):
    """The e4e style encoder: IR-SE-50 body, three-level pyramid, one style block per code."""

    def __init__(self, size: int = 256, style_dim: int = 512, num_styles: int = 18) -> None:
        """Set up an encoder of images of `size` pixels, a power of two from 32 up.

        All widths follow `style_dim`, a multiple of 128: the body ends in as many channels.
        """
        super().__init__()
        self.size = size
        w64, w128, w256 = style_dim // 8, style_dim // 4, style_dim // 2
        stem = nn.Conv2d(3, w64, 3, 1, 1, bias=False)
        self.input_layer = nn.Sequential(stem, nn.BatchNorm2d(w64), nn.PReLU(w64))
        widths = [w64] * 4 + [w128] * 4 + [w256] * 14 + [style_dim] * 3
        strides = [2 if i in (0, 3, 7, 21) else 1 for i in range(24)]
        pairs = zip(itertools.pairwise(widths), strides, strict=True)
        self.body = nn.ModuleList(IRSEUnit(*pair, stride) for pair, stride in pairs)
        self.latlayer1 = nn.Conv2d(w256, style_dim, 1)
        self.latlayer2 = nn.Conv2d(w128, style_dim, 1)
        coarse = int(math.log2(size // 16))  # convolutions from the coarsest map to one pixel
        depths = [coarse + (i >= 3) + (i >= 7) for i in range(num_styles)]
        self.styles = nn.ModuleList(StyleBlock(style_dim, depth) for depth in depths)

    def forward(self, image: Tensor) -> Tensor:
        """Encode (B, 3, size, size) in [-1, 1] as codes (B, L, D), the average not yet added."""
        x = self.input_layer(image)
        taps = {}
        for i, unit in enumerate(self.body):
            x = unit(x)
            if i in (6, 20):
                taps[i] = x
        middle = self._add_enlarged(self.latlayer1(taps[20]), x)
        fine = self._add_enlarged(self.latlayer2(taps[6]), middle)
        codes = self.styles[0](x)[:, None].repeat(1, len(self.styles), 1)
        for i, block in enumerate(self.styles[1:], 1):
            codes[:, i] += block(x if i < 3 else middle if i < 7 else fine)
        return codes

    @staticmethod
    def _add_enlarged(x: Tensor, coarse: Tensor) -> Tensor:
        return F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True) + x


def posterior_weights(num_steps: int) -> tuple[Tensor, Tensor]:
    """Weights (num_steps,) of the estimated clean codes and of the current state in a step."""
    beta = torch.linspace(0.1**0.5, 0.99**0.5, num_steps, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    clean = beta * before.sqrt() / (1 - alpha_bar)
    state = (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar)
    return clean.float(), state.float()


class FeatureAttention(nn.Module):
    """Attention between the features of a code."""

    def __init__(self, dim: int) -> None:
        """Set up an attention of codes of `dim` values."""
        super().__init__()
        self.q_matrix = nn.Linear(dim, dim, bias=False)
        self.k_matrix = nn.Linear(dim + 1, dim, bias=False)
        self.v_matrix = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, L, D) under a condition (B, L, D + 1) to (B, L, D)."""
        q, k, v = self.q_matrix(x), self.k_matrix(condition), self.v_matrix(x)
        scores = torch.softmax(k.transpose(1, 2) @ q / math.sqrt(q.shape[-1]), dim=1)  # (B, D, D)
        return F.layer_norm(v @ scores, v.shape[-1:])


class TACCBlock(nn.Module):
    """One block of the code diffuser: token and feature attention, gate and shift by the time."""

    def __init__(self, dim: int) -> None:
        """Set up a block of codes of `dim` values."""
        super().__init__()
        self.q_matrix = nn.Linear(dim + 1, dim, bias=False)
        self.k_matrix = nn.Linear(dim, dim, bias=False)
        self.v_matrix = nn.Linear(dim, dim, bias=False)
        self.gamma_ = self._head(dim)
        self.beta_ = self._head(dim)
        self.attention_layer = FeatureAttention(dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, L, D) under a condition (B, L, D + 1) to (B, L, D)."""
        x = pixel_norm(x)  # over the tokens
        q, k, v = self.q_matrix(condition), self.k_matrix(x), self.v_matrix(x)
        scores = torch.softmax(k @ q.transpose(1, 2) / math.sqrt(x.shape[1]), dim=-1)  # (B, L, L)
        hidden = scores @ v + self.attention_layer(x, condition)
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        gate = torch.sigmoid(self.gamma_(condition))
        return hidden * (1 + gate) + scaled_leaky_relu(self.beta_(condition))

    @staticmethod
    def _head(dim: int) -> nn.Sequential:
        activation = Apply(scaled_leaky_relu)
        return nn.Sequential(
            nn.Linear(dim + 1, dim), nn.LayerNorm(dim), activation, nn.Linear(dim, dim)
        )


class PublishedCodeDiffuser(nn.Module):
    """TACC blocks that estimate the clean codes, and the few-step chain around them."""

    clean_weight: Tensor
    state_weight: Tensor

    def __init__(self, style_dim: int = 512, num_steps: int = 4, num_blocks: int = 4) -> None:
        """Set up a diffuser of codes of `style_dim` values."""
        super().__init__()
        self.num_steps = num_steps
        self.att_mapper = nn.ModuleList(TACCBlock(style_dim) for _ in range(num_blocks))
        clean, state = posterior_weights(num_steps)
        self.register_buffer("clean_weight", clean, persistent=False)
        self.register_buffer("state_weight", state, persistent=False)

    def forward(self, x: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """Estimate the clean codes of x (B, L, D) at steps t (B,), under a condition (B, L, D)."""
        time = (t.to(x.dtype) / self.num_steps).view(-1, 1, 1).repeat(1, x.shape[1], 1)
        condition = torch.cat([condition, time], dim=-1)
        for block in self.att_mapper:
            x = block(x, condition)
        return x

    def step(self, x: Tensor, condition: Tensor, index: int) -> Tensor:
        """Take one reverse step from x (B, L, D); as published, draw a noise and drop it."""
        t = torch.full((x.shape[0],), index, device=x.device)
        clean = self(x, condition, t)
        torch.randn_like(x)
        clean_weight, state_weight = self.clean_weight[t], self.state_weight[t]
        return clean_weight.view(-1, 1, 1) * clean + state_weight.view(-1, 1, 1) * x

    def sample(self, condition: Tensor, start: Tensor | None = None) -> Tensor:
        """Run the chain from `start` (drawn if not given) under the condition (B, L, D)."""
        x = torch.randn_like(condition) if start is None else start
        for index in reversed(range(self.num_steps)):
            x = self.step(x, condition, index)
        return x

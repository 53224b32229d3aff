"""Restoration network and whole restorer, computed as published (see the package's docstring)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    AggregatedConv,
    EqualLinear,
    Noise,
    PublishedSMART,
    StyledConv,
    ToRGB,
    channels_at,
    mapping_network,
    noise_maps,
    stored_noise,
)
from .style import PublishedCodeDiffuser, PublishedStyleEncoder, PublishedStyleGAN2


class PublishedRestorer(nn.Module):
    """The restoration auto-encoder with its mapping network."""

    def __init__(
        self,
        size: int = 512,
        style_dim: int = 512,
        channel_multiplier: float = 2,
        max_channels: int = 512,
    ) -> None:
        """Set up a restorer of images of `size` pixels, a power of two."""
        super().__init__()
        log_size = int(math.log2(size))
        width = [channels_at(2**i, channel_multiplier, max_channels) for i in range(log_size + 1)]
        self.num_styles = 2 * log_size - 2
        self.style = mapping_network(style_dim)
        self.noises = stored_noise(log_size)
        self._set_up_encoder(width, 2 * style_dim)
        self._set_up_decoder(width, 4 * style_dim)

    def _set_up_encoder(self, width: list[int], style_dim: int) -> None:
        bottom = width[2]
        self.down_from_big = AggregatedConv(3, width[-1], 1)
        self.encoder_convs = nn.ModuleList()
        for before, after in itertools.pairwise(width[:1:-1]):
            self.encoder_convs.append(PublishedSMART(before, before, style_dim))
            self.encoder_convs.append(StyledConv(before, after, style_dim, "down"))
        self.final_layer = AggregatedConv(bottom, bottom, 3)
        code = EqualLinear(bottom * 16, style_dim, activate=True)
        self.final_linear = nn.Sequential(code, nn.Dropout(0.5))
        self.final_transfer = EqualLinear(style_dim, bottom * 16, activate=True)

    def _set_up_decoder(self, width: list[int], style_dim: int) -> None:
        self.conv1 = PublishedSMART(width[2], width[2], style_dim)
        self.to_rgb1 = ToRGB(width[2], style_dim, first=True)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(width[2:]):
            self.convs.append(StyledConv(before, after, style_dim, "up"))
            self.convs.append(PublishedSMART(after, after, style_dim))
            self.to_rgbs.append(ToRGB(after, style_dim))

    def forward(
        self,
        image: Tensor,
        w_plus: Tensor,
        features: Sequence[Tensor],
        z: Sequence[Tensor],
        inject_index: int = 0,
        noise: Noise = None,
    ) -> Tensor:
        """Restore images (B, 3, S, S).

        Args:
            image: degraded images in [-1, 1].
            w_plus: style prompt (B, L, D); codes past the last layer are not used.
            features: prior's maps from 4 pixels up to S at least; the first is not used.
            z: one or two random vectors (B, D); slots below `inject_index` take the first of two.
            inject_index: first slot of the second vector.
            noise: one map for each injection, encoder first; drawn when None.

        Returns:
            Restored images (B, 3, S, S), about [-1, 1], not clamped.
        """
        latent = torch.cat([w_plus[:, : self.num_styles], self._style_codes(z, inject_index)], -1)
        maps = noise_maps(noise)
        x = self.down_from_big(image)
        skips = []
        for j in range(len(self.encoder_convs) // 2):
            style = latent[:, self.num_styles - 1 - 2 * j]
            x = self.encoder_convs[2 * j](x, style, next(maps))
            skips.append(x)
            x = self.encoder_convs[2 * j + 1](x, style, next(maps))
        x = self.final_layer(x)
        code = self.final_linear(x.flatten(1))
        x = x + self.final_transfer(code).view_as(x)

        x = self.conv1(x, torch.cat([latent[:, 0], code], 1), next(maps))
        restored = self.to_rgb1(x, torch.cat([latent[:, 1], code], 1))
        for k, to_rgb in enumerate(self.to_rgbs, 1):
            x = self.convs[2 * k - 2](x, torch.cat([latent[:, 2 * k - 1], code], 1), next(maps))
            x = x + skips[-k] + features[k]
            x = self.convs[2 * k - 1](x, torch.cat([latent[:, 2 * k], code], 1), next(maps))
            restored = to_rgb(x, torch.cat([latent[:, 2 * k + 1], code], 1), restored)
        return restored

    def _style_codes(self, z: Sequence[Tensor], inject_index: int) -> Tensor:
        codes = [self.style(vector)[:, None] for vector in z]
        if len(codes) == 1:
            return codes[0].repeat(1, self.num_styles, 1)
        first = codes[0].repeat(1, inject_index, 1)
        return torch.cat([first, codes[1].repeat(1, self.num_styles - inject_index, 1)], 1)


class PublishedVSPBFR(nn.Module):
    """The whole restorer of one batch, in the order of the published inference script."""

    latent_avg: Tensor

    def __init__(
        self,
        encoder: PublishedStyleEncoder,
        decoder: PublishedStyleGAN2,
        diffuser: PublishedCodeDiffuser,
        restorer: PublishedRestorer,
        latent_avg: Tensor,
    ) -> None:
        """Assemble the four networks; `latent_avg` (L, D) is added to the encoder's codes."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.att_mapper = diffuser
        self.g_ema = restorer
        self.register_buffer("latent_avg", latent_avg)

    def encode(self, image: Tensor) -> Tensor:
        """Encode degraded images (B, 3, S, S) as codes (B, L, D)."""
        size = (self.encoder.size, self.encoder.size)
        small = F.interpolate(image, size, mode="bilinear", align_corners=False)
        return self.encoder(small) + self.latent_avg

    def render(self, w_plus: Tensor, size: int, noise: Noise = None) -> tuple[Tensor, list[Tensor]]:
        """Render codes (B, L, D): the image pooled to (B, 3, size, size), and the prior's maps."""
        image, features = self.decoder(w_plus, noise)
        return F.adaptive_avg_pool2d(image, size), features

    def forward(
        self,
        image: Tensor,
        start: Tensor | None = None,
        z: Tensor | None = None,
        generator_noise: Noise = None,
        restorer_noise: Noise = None,
    ) -> Tensor:
        """Restore degraded images (B, 3, S, S) in [-1, 1]; what is not given is drawn.

        Args:
            image: degraded images.
            start: start noise of the sampling chain (B, L, D).
            z: random vector (B, D); one, since style mixing costs next to nothing.
            generator_noise: the prior's noise maps, in order of use.
            restorer_noise: the restoration network's noise maps, in order of use.

        Returns:
            Restored images (B, 3, S, S), about [-1, 1], not clamped.
        """
        if z is None:
            z = image.new_empty(image.shape[0], self.latent_avg.shape[1]).normal_()
        w_plus = self.att_mapper.sample(self.encode(image), start)
        _, features = self.render(w_plus, image.shape[-1], generator_noise)
        return self.g_ema(image, w_plus, features, [z], noise=restorer_noise)

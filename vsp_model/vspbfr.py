"""VSPBFR assembled: degraded face -> style prompt -> facial feature bank -> restored face.

Shapes: B batch, S working size, T style tokens, D style width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from vsp_model.ask import Ask, dial_of, refuse_others
from vsp_model.code_diffuser import CodeDiffuser, CodeDiffuserConfig
from vsp_model.condition import Dial, guided
from vsp_model.config import MIN_SIZE, Config, num_levels
from vsp_model.faces import check_faces
from vsp_model.randomness import NoiseMode, RandomInputs, RandomShapes, draw, noise_maps
from vsp_model.restoration import RestorationConfig, RestorationNet
from vsp_model.smart import SmartLayer
from vsp_model.style_condition import Shifts, StyleCondition, StyleConditionConfig, conditioned
from vsp_model.style_encoder import StyleEncoder, StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2, StyleGAN2Config

# Faster on CPU and GPU, and the one format in which oneDNN's dilated convolutions give an item the
# same bits at every place in the batch.
FORMAT = torch.channels_last
_NOTHING = Ask()


class VSPBFRConfig(Config):
    """The whole chain; the defaults are the published 512 model."""

    kind: Literal["vspbfr"] = "vspbfr"
    encoder: StyleEncoderConfig = StyleEncoderConfig()
    diffuser: CodeDiffuserConfig | None = CodeDiffuserConfig()
    """Table IV (a): null leaves the code diffuser out; the encoder's codes are the prompt."""
    prior: StyleGAN2Config = StyleGAN2Config()
    restoration: RestorationConfig = RestorationConfig()
    condition: StyleConditionConfig | None = None
    """A quality as an input; not published."""

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.restoration.size

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        parts = {
            "prior": self.prior,
            "restoration": self.restoration,
            "diffuser": self.diffuser,
            "condition": self.condition,
        }
        for name, part in parts.items():
            if part is not None and part.style_dim != self.encoder.style_dim:
                raise ValueError(
                    f"{name}.style_dim {part.style_dim}: expected the encoder's, "
                    f"{self.encoder.style_dim}"
                )
        tokens = self.encoder.num_tokens
        for name, part in {"diffuser": self.diffuser, "condition": self.condition}.items():
            if part is not None and part.num_tokens != tokens:
                raise ValueError(
                    f"{name}.num_tokens {part.num_tokens}: expected the encoder's, {tokens}"
                )
        if self.condition and self.condition.global_dim != self.restoration.global_dim:
            raise ValueError(
                f"condition.global_dim {self.condition.global_dim}: "
                f"expected the restoration's, {self.restoration.global_dim}"
            )
        if tokens < self.restoration.num_slots:
            raise ValueError(
                f"encoder.num_tokens {tokens}: size {self.size} reads {self.restoration.num_slots}"
            )
        if self.encoder.input_size != min(256, self.size):
            raise ValueError(
                f"encoder.input_size {self.encoder.input_size}: "
                f"expected {min(256, self.size)} at size {self.size}"
            )
        shared = min(len(self.prior.channels), len(self.restoration.channels))
        if self.prior.channels[:shared] != self.restoration.channels[:shared]:
            raise ValueError(
                f"prior.channels {self.prior.channels[:shared]} and restoration.channels "
                f"{self.restoration.channels[:shared]} are summed and must agree"
            )
        return self


@dataclass(frozen=True)
class Inspection:
    """A restoration and everything it was made from."""

    restored: Tensor
    """(B, 3, S, S)."""
    codes: Tensor
    """The encoder's codes of the degraded face, (B, T, D)."""
    w_plus: Tensor
    """The style prompt after diffusion, (B, T, D)."""
    inverted: Tensor
    """The prior's image of the prompt, averaged down to S or the prior's size if smaller."""
    prior_features: list[Tensor]
    """Feature bank at 4, 8, ..., the smaller of S and the prior's size."""
    smart_branches: dict[str, Tensor]
    """Branch features of each SMART layer before fusion, by module name, (B, C, r, r)."""


class VSPBFR(nn.Module):
    """Blind face restoration with a visual style prompt."""

    def __init__(self, config: VSPBFRConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = StyleEncoder(config.encoder)
        self.diffuser = CodeDiffuser(config.diffuser) if config.diffuser else None
        self.prior = StyleGAN2(config.prior)
        self.restoration = RestorationNet(config.restoration)
        self.condition = StyleCondition(config.condition) if config.condition else None

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.config.size

    @property
    def prior_stop(self) -> int:
        """Resolution where the feature bank ends."""
        return min(self.size, self.config.prior.size)

    @property
    def image_stop(self) -> int:
        """Resolution of the inverted image: the prior's, or what the prompt's tokens reach."""
        return min(self.config.prior.size, MIN_SIZE << (self.config.encoder.num_tokens // 2 - 1))

    @property
    def random_shapes(self) -> RandomShapes:
        """What ``draw`` needs to know."""
        sides = self.prior.noise_sides(self.prior_stop, image=False)
        return RandomShapes(
            num_tokens=self.config.encoder.num_tokens,
            style_dim=self.config.encoder.style_dim,
            num_slots=self.config.restoration.num_slots,
            prior_sides=tuple(sides) if self.config.restoration.facial_priors else (),
            restoration_sides=tuple(self.restoration.noise_sides()),
        )

    def drawn(
        self,
        keys: Sequence[str],
        seed: int = 0,
        mode: NoiseMode = "seeded",
        *,
        mixing: bool = False,
    ) -> RandomInputs:
        """Every random quantity of a batch; see ``randomness.draw``."""
        return draw(self.random_shapes, keys, seed, mode, mixing=mixing)

    def settle(self, ask: Ask) -> Dial | None:
        """What is asked for as plain numbers; None for a model without the quality condition.

        Raises:
            ValueError: in one line, for what this model can't do.
        """
        refuse_others(ask, self.config.kind)
        scored = self.condition is None or self.condition.embedding.scored
        return dial_of(ask, self.config.condition, self.config.kind, scored=scored)

    def prompt(
        self, lq: Tensor, start: Tensor, shifts: Shifts | None = None
    ) -> tuple[Tensor, Tensor]:
        """The encoder's codes and the style prompt, both (B, T, D)."""
        codes = self.encoder(lq)
        return codes, self._cleaned(codes, start, shifts)

    def _cleaned(self, codes: Tensor, start: Tensor, shifts: Shifts | None) -> Tensor:
        wanted = conditioned(codes, shifts)
        if self.diffuser is None:
            return wanted
        return self.diffuser.sample(wanted, start, None if shifts is None else shifts.time)

    def forward(self, lq: Tensor, random: RandomInputs, settings: Dial | None = None) -> Tensor:
        """Degraded faces -> restored faces; computes only what restoration needs.

        Args:
            lq: (B, 3, S, S) in [-1, 1].
            random: of this batch, on the same device.
            settings: of ``settle``; None for the model's own.

        Returns:
            (B, 3, S, S), about [-1, 1], not clamped.
        """
        codes = self.encoder(lq)
        condition = self.condition
        dial = None if condition is None else settings or self.settle(_NOTHING)
        if condition is None or dial is None:
            return self._finish(lq, codes, random, None)
        return guided(lambda q: self._finish(lq, codes, random, condition(q)), dial, lq)

    def _finish(
        self, lq: Tensor, codes: Tensor, random: RandomInputs, shifts: Shifts | None
    ) -> Tensor:
        """What depends on the quality: all that comes after the encoder."""
        w_plus = self._cleaned(codes, random.start, shifts)
        features = None
        if self.config.restoration.facial_priors:
            features = self.prior(w_plus, random.prior_noise, stop=self.prior_stop).features
        noise = random.restoration_noise
        return self.restoration(lq, w_plus, random.z, features, noise, random.inject, shifts=shifts)

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        noise: NoiseMode = "seeded",
        mixing: bool = False,
        ask: Ask = _NOTHING,
    ) -> Tensor:
        """Check the batch, draw its random quantities from (seed, key) and restore it.

        Args:
            lq: (B, 3, S, S) float32 in [-1, 1], RGB.
            keys: one a face.
            seed: of the run.
            noise: see ``randomness.draw``.
            mixing: style mixing as published, off by default.
            ask: which quality; see ``settle``.

        Returns:
            (B, 3, S, S), about [-1, 1], not clamped.

        Raises:
            ValueError: in one line, what came, in which items, and what is expected.
        """
        check_faces(lq, self.size, keys)
        settings = self.settle(ask)
        random = self.drawn(keys, seed, noise, mixing=mixing)
        return self(lq.contiguous(memory_format=FORMAT), random.to(lq.device), settings)

    @torch.no_grad()
    def inspect(
        self,
        lq: Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        noise: NoiseMode = "seeded",
        ask: Ask = _NOTHING,
    ) -> Inspection:
        """Restore and keep the by-products. ``restored`` equals ``restore``'s result.

        The prior then runs to its full size for the inverted image, or as far as the prompt has
        tokens for. Under guidance the by-products are those of the quality that is asked for.
        """
        check_faces(lq, self.size, keys)
        settings = self.settle(ask)
        random = self.drawn(keys, seed, noise).to(lq.device)
        lq = lq.contiguous(memory_format=FORMAT)
        shifts = None
        if self.condition is not None and settings is not None:
            shifts = self.condition(settings.tensor(lq))
        codes, w_plus = self.prompt(lq, random.start, shifts)
        stop = self.image_stop
        sides = self.prior.noise_sides(stop)
        maps = None if noise == "mean" else noise_maps(sides, keys, seed, "prior")
        maps = None if maps is None else [m.to(lq.device) for m in maps]
        synthesis = self.prior(w_plus, maps, stop=stop, image=True)
        features = synthesis.features[: num_levels(self.prior_stop)]
        with _branch_features(self.restoration) as branches:
            restored = self.restoration(
                lq,
                w_plus,
                random.z,
                features,
                random.restoration_noise,
                random.inject,
                shifts=shifts,
            )
        if settings is not None and settings.guides:
            restored = self(lq, random, settings)
        inverted = F.adaptive_avg_pool2d(synthesis.image, self.prior_stop)
        return Inspection(restored, codes, w_plus, inverted, features, branches)


@contextmanager
def _branch_features(net: RestorationNet) -> Iterator[dict[str, Tensor]]:
    """Collect the input of every SMART layer's fusion while the block runs."""
    found: dict[str, Tensor] = {}
    handles = [
        layer.fusion.register_forward_pre_hook(
            lambda _, args, name=name: found.__setitem__(name, args[0])
        )
        for name, layer in net.named_modules()
        if isinstance(layer, SmartLayer)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

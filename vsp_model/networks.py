"""Every network that a checkpoint may hold: how to build it, its published layout, its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vsp_model import infer, published
from vsp_model.bundle import BundleInfo, Specs, compare, open_bundle, specs_of
from vsp_model.checkpoints import fill, hollow
from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.config import Config
from vsp_model.discriminator import Discriminator
from vsp_model.files import CheckpointError
from vsp_model.restoration import RestorationNet
from vsp_model.style_encoder import StyleEncoder
from vsp_model.stylegan2 import StyleGAN2


@lru_cache(maxsize=8)
def _hollow_state(build: Callable[[Any], nn.Module], config: Config) -> dict[str, Tensor]:
    return hollow(lambda: build(config)).state_dict()


@dataclass(frozen=True)
class Network:
    """A network's class and its published form. ``Any`` stands for its own configuration."""

    build: Callable[[Any], nn.Module]
    layout: Callable[[Any], published.Layout]
    infer: Callable[[Mapping[str, Tensor]], Config]

    def specs(self, config: Config) -> Specs:
        """Types and shapes of our tensors."""
        return specs_of(_hollow_state(self.build, config))

    def published_hollow(self, config: Config) -> dict[str, Tensor]:
        """The published tensors without data."""
        return published.store_published(self.layout(config), _hollow_state(self.build, config))

    def published_specs(self, config: Config) -> Specs:
        """Types and shapes of the published tensors."""
        return specs_of(self.published_hollow(config))


def _identity_net(config: Any) -> nn.Module:
    from vsp_model.identity import IdentityNet  # imports torchvision, slower than torch itself

    return IdentityNet(config)


def _identity_layout(config: Any) -> published.Layout:
    """Our names are torchvision's, as published."""
    return [published.Rule(name, (name,)) for name in _hollow_state(_identity_net, config)]


def identity_config(values: Mapping[str, Any]) -> Config:
    """The identity network's configuration from the values in a bundle."""
    from vsp_model.identity import IdentityConfig

    return IdentityConfig.model_validate(values)


def _infer_identity(tensors: Mapping[str, Tensor]) -> Config:
    return identity_config(infer.identity_values(tensors))


_RESTORATION = Network(RestorationNet, published.restoration_layout, infer.infer_restoration)
_PRIOR = Network(StyleGAN2, published.stylegan2_layout, infer.infer_stylegan2)
_IDENTITY = Network(_identity_net, _identity_layout, _infer_identity)

PARTS = {
    "encoder": Network(StyleEncoder, published.style_encoder_layout, infer.infer_style_encoder),
    "prior": _PRIOR,
    "diffuser": Network(CodeDiffuser, published.code_diffuser_layout, infer.infer_code_diffuser),
    "restoration": _RESTORATION,
    "identity": _IDENTITY,
    "training.prior": _PRIOR,
    "training.restoration": _RESTORATION,
    "training.discriminator": Network(
        Discriminator, published.discriminator_layout, infer.infer_discriminator
    ),
    "training.identity": _IDENTITY,
}
"""By the part's name in a bundle."""


def _iqp_encoder(config: Any) -> nn.Module:
    from vsp_model.iqp.backbone import Encoder  # each system's networks load when they are needed

    return Encoder(config)


def _iqp_dictionary(config: Any) -> nn.Module:
    from vsp_model.iqp.dictionary import Dictionary

    return Dictionary(config)


def _iqp_predictor(config: Any) -> nn.Module:
    from vsp_model.iqp.predictor import Predictor

    return Predictor(config)


def _iqp_embedding(config: Any) -> nn.Module:
    from vsp_model.iqp.embedding import CodeCondition

    return CodeCondition(config)


def _iqp_fusion(config: Any) -> nn.Module:
    from vsp_model.iqp.fusion import FidelityFusion

    return FidelityFusion(config)


def _idm_unet(config: Any) -> nn.Module:
    from vsp_model.idm.unet import UNet

    return UNet(config)


def _style_condition(config: Any) -> nn.Module:
    from vsp_model.style_condition import StyleCondition

    return StyleCondition(config)


OWN_PARTS: Mapping[str, Callable[[Any], nn.Module]] = {
    "condition": _style_condition,
    "hq_encoder": _iqp_encoder,
    "lq_encoder": _iqp_encoder,
    "dictionary": _iqp_dictionary,
    "predictor": _iqp_predictor,
    "embedding": _iqp_embedding,
    "fusion": _iqp_fusion,
    "unet": _idm_unet,
}
"""Networks without a published form, by the part's name in a bundle."""


def build_part(part: str, config: Config) -> nn.Module:
    """A network by its part's name, randomly initialised."""
    return OWN_PARTS[part](config) if part in OWN_PARTS else PARTS[part].build(config)


def part_config(info: BundleInfo, part: str) -> Config | None:
    """The configuration of one part; None if the bundle says nothing of it."""
    if part in ("training.discriminator", "training.identity"):
        value = getattr(info.training, part.removeprefix("training."), None)
    else:  # a copy in training has the configuration of its original
        value = getattr(info.config, part.removeprefix("training."), None)
    return identity_config(value) if isinstance(value, dict) else value


def load_part(path: Path | str, part: str, device: torch.device | str = "cpu") -> nn.Module:
    """Open one network of a bundle in evaluation mode, checked as ``checkpoints.load`` does.

    Args:
        path: of a bundle of any kind.
        part: a name of ``PARTS`` or ``OWN_PARTS``, such as "identity", "training.discriminator".
        device: to put it on.

    Raises:
        CheckpointError: in one line, also if the bundle has no such part.
        OSError: if the file can't be read.
    """
    with open_bundle(path) as bundle:
        config = part_config(bundle.info, part)
        names = bundle.names(f"{part}.")
        if config is None or not names:
            raise CheckpointError(f"{path}: a {bundle.info.config.kind} bundle without {part}")
        network = hollow(lambda: build_part(part, config))
        found = {name: bundle.specs[f"{part}.{name}"] for name in names}
        compare(specs_of(network.state_dict()), found, f"{path}: {part}")
        return fill(network, bundle.tensors(f"{part}.")).eval().to(device)

"""The losses of VSPBFR: adversarial with R1, codes, identity, and LPIPS around its own package.

Shapes: B batch, (H, W) pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vsp_model.config import Config


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator, softplus(-real) + softplus(fake), batch means."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator, the batch mean of softplus(-fake)."""
    return F.softplus(-fake_logits).mean()


def r1_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """Batch mean of the squared gradient norm at real images (StyleGAN2's R1, without its weight).

    Published use: 10 / 2 times this, times 16 because it runs in every 16th step.

    Args:
        logits: (B, 1), computed from ``image``.
        image: (B, 3, H, W), requiring gradients.

    Returns:
        A scalar that can be differentiated again.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def code_l1(codes: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of W+ codes, both (B, T, D)."""
    return F.l1_loss(codes, target)


def identity_loss(embedding: Tensor, target_embedding: Tensor) -> Tensor:
    """Batch mean of abs(1 - cosine); nothing flows into the target. Both (B, D)."""
    cosine = F.cosine_similarity(embedding, target_embedding.detach(), dim=1)
    return (1 - cosine).abs().mean()


class LPIPSConfig(Config):
    """Which trunk compares: vgg for the restorer and the diffuser, alex for the style encoder."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1, computed by the ``lpips`` package.

    Frozen and always in evaluation mode; gradients flow into the images. The linear layers come
    with the package. The trunk starts random and is never downloaded: ``load`` fills it.
    """

    def __init__(self, config: LPIPSConfig) -> None:
        super().__init__()
        import lpips  # pulls in plotting and image libraries, which only training needs

        self.config = config
        with warnings.catch_warnings():
            # The package still uses torchvision's old way of asking for random weights.
            warnings.simplefilter("ignore", UserWarning)
            self.package = lpips.LPIPS(net=config.net, pnet_rand=True, verbose=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        """Fill the trunk, and the linear layers if they are given.

        Args:
            tensors: torchvision's names (``features.0.weight``; a classifier is left aside) or
                the package's (``net.slice1.0.weight``, ``lin0.model.1.weight``). Any float type.

        Raises:
            ValueError: naming what is missing, extra or misshapen.
        """
        state = self.package.state_dict()
        trunk = {name for name in state if name.startswith("net.")}
        given = _package_names(tensors, trunk)
        _refuse("missing", sorted(trunk - set(given)))
        _refuse("unknown", sorted(set(given) - set(state)))
        _refuse("misshapen", sorted(n for n, t in given.items() if t.shape != state[n].shape))
        # Linear layers carry two names in the package; the tensors behind them are the same.
        self.package.load_state_dict(given, strict=False)
        return self

    def load_path(self, path: Path) -> Self:
        """``load`` from a .safetensors file, or from a pickled state dict (tensors only)."""
        if path.suffix == ".safetensors":
            return self.load(load_file(path))
        return self.load(torch.load(path, map_location="cpu", weights_only=True))

    def per_layer(self, image: Tensor, reference: Tensor) -> Tensor:
        """The terms whose sum is the distance, (layers, B); arguments as in ``forward``."""
        with torch.autocast(image.device.type, enabled=False):  # differences of close features
            _, terms = self.package(image.float(), reference.float(), retPerLayer=True)
        return torch.stack([term.reshape(-1) for term in terms])

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance per image, (B,), float32.

        Args:
            image: (B, 3, H, W) RGB in [-1, 1]; not resized here.
            reference: the same shape.
        """
        return self.per_layer(image, reference).sum(dim=0)


def _package_names(tensors: Mapping[str, Tensor], trunk: set[str]) -> dict[str, Tensor]:
    # torchvision's features.5.weight is the package's net.slice2.5.weight
    ours = {f"features.{name.split('.', 2)[2]}": name for name in trunk}
    used = {name: t for name, t in tensors.items() if not name.startswith("classifier.")}
    return {ours.get(name, name): tensor for name, tensor in used.items()}


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"LPIPS: {what} {', '.join(names[:3])}{more}")

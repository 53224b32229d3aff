"""Frozen networks that judge a picture during training: LPIPS, and identity on the warped face."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vsp_model.config import Config
from vsp_model.files import CheckpointError, sha256_of
from vsp_model.losses import LPIPS, LPIPSConfig, identity_loss
from vsp_model.mobilefacenet import SIZE as MOBILEFACENET_SIZE
from vsp_model.mobilefacenet import MobileFaceNet

# Eyes, nose and mouth corners in ArcFace's crop of 112 pixels (insightface), and in the aligned
# crop of 512 that restoration works on (FFHQ, as GFPGAN and facexlib use it).
ARCFACE_TEMPLATE = (
    (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
    (70.7299, 92.2041),
)  # fmt: skip
FFHQ_TEMPLATE = (
    (192.98138, 239.94708), (318.90277, 240.19360), (256.63416, 314.01935), (201.26117, 371.41043),
    (313.08905, 371.15118),
)  # fmt: skip
_FFHQ_SIZE = 512


class JudgeConfig(Config):
    """Where a judge's weights are, and whether the run may go on without them."""

    path: str = ""
    """A file, or a name among ``vsp weights`` or in the folder VSP_WEIGHTS; empty: no such term."""
    sha256: str = ""
    """Of the file; empty: not checked."""
    required: bool = False
    """Refuse to train without it; else the term is off and the log says so once."""


class LPIPSJudgeConfig(JudgeConfig):
    """LPIPS 0.1 on a trunk of ImageNet; published: vgg for diffuser and restorer."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"


class IdentityJudgeConfig(JudgeConfig):
    """An identity network."""

    net: Literal["arcface-resnet101", "mobilefacenet"] = "arcface-resnet101"
    """The published one looks at the whole picture; mobilefacenet at the warped face."""


class JudgesConfig(Config):
    """The frozen judges of a stage."""

    lpips: LPIPSJudgeConfig = LPIPSJudgeConfig()
    identity: IdentityJudgeConfig = IdentityJudgeConfig()
    identity_fraction: float = Field(1.0, gt=0, le=1)
    """Share of each part that the identity net looks at; it is the dearest loss on a CPU."""


class Embedder(Protocol):
    """Face and its five points -> identity embedding."""

    def __call__(self, image: Tensor, points: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] and (B, 5, 2) in its pixels -> (B, D) of length 1."""


def similarity_to(points: Tensor, template: Tensor) -> Tensor:
    """Least-squares similarity that takes template coordinates to ``points``.

    Args:
        points: (B, 5, 2).
        template: (5, 2).

    Returns:
        (B, 2, 3), float32: point = M[:, :2] @ place + M[:, 2].
    """
    centre, goal = template.mean(dim=0), points.mean(dim=1, keepdim=True)
    x, y = (template - centre).unbind(-1)  # (5,)
    u, v = (points - goal).unbind(-1)  # (B, 5)
    energy = (x.square() + y.square()).sum()
    a = (x * u + y * v).sum(dim=1) / energy
    b = (x * v - y * u).sum(dim=1) / energy
    turn = torch.stack([torch.stack([a, -b], dim=-1), torch.stack([b, a], dim=-1)], dim=-2)
    shift = goal[:, 0] - turn @ centre
    return torch.cat([turn, shift[:, :, None]], dim=2)


def warp_faces(image: Tensor, points: Tensor, size: int) -> Tensor:
    """Cut each face out by its five points, as ArcFace's crop; differentiable in the image.

    Args:
        image: (B, 3, H, W).
        points: (B, 5, 2) as (x, y) in pixels of the image, the first spanning 0 to 1; where one is
            NaN, the face is taken to lie as in FFHQ's crop.
        size: side of the crop, 112 for ArcFace's nets.

    Returns:
        (B, 3, size, size), bilinear, black outside the image.
    """
    _, _, h, w = image.shape
    scale = points.new_tensor([w, h]) / _FFHQ_SIZE
    usual = points.new_tensor(FFHQ_TEMPLATE) * scale
    known = torch.isfinite(points).all(dim=2, keepdim=True).all(dim=1, keepdim=True)
    points = torch.where(known, points, usual)
    template = points.new_tensor(ARCFACE_TEMPLATE) * (size / MOBILEFACENET_SIZE)
    place = similarity_to(points, template)  # crop pixels -> image pixels
    # affine_grid speaks of [-1, 1] on both sides.
    to_unit = points.new_tensor([2 / w, 2 / h])
    turn = place[:, :, :2] * (size / 2) * to_unit[:, None]
    shift = (place[:, :, :2].sum(dim=2) * (size / 2) + place[:, :, 2]) * to_unit - 1
    theta = torch.cat([turn, shift[:, :, None]], dim=2).to(image.dtype)
    grid = F.affine_grid(theta, [len(image), 3, size, size], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", align_corners=False)


class FaceEmbedder(nn.Module):
    """MobileFaceNet on the face warped to its own template."""

    def __init__(self, net: MobileFaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        """See ``Embedder``."""
        return self.net(warp_faces(image.float(), points, MOBILEFACENET_SIZE))


class PictureEmbedder(nn.Module):
    """The published ResNet-101 on the whole picture, as published."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        """See ``Embedder``; the points are not read."""
        return self.net(image)


@dataclass
class Judges:
    """The judges at hand; a missing one gives no loss."""

    lpips: LPIPS | None = None
    embedder: Embedder | None = None
    identity_fraction: float = 1.0

    def perceptual(self, image: Tensor, reference: Tensor) -> Tensor | None:
        """LPIPS, the mean over the batch."""
        return None if self.lpips is None else self.lpips(image, reference).mean()

    def identity(self, image: Tensor, reference: Tensor, points: Tensor) -> Tensor | None:
        """Mean of 1 - cosine over the first ``identity_fraction`` of the batch.

        The points are in pixels of ``reference``; a smaller image is looked at in its own pixels.
        """
        if self.embedder is None:
            return None
        count = max(1, round(len(image) * self.identity_fraction))
        image, reference, points = image[:count], reference[:count], points[:count]
        own_points = points * (image.shape[-1] / reference.shape[-1])
        with torch.no_grad():
            target = self.embedder(reference, points)
        return identity_loss(self.embedder(image, own_points), target)


def load_judges(config: JudgesConfig, device: str = "cpu") -> Judges:
    """Open the judges whose paths are given.

    Raises:
        CheckpointError: in one line: another sha256, or not such a network.
        OSError: if a file can't be read.
    """
    lpips = embedder = None
    if config.lpips.path:
        path = _checked(config.lpips)
        try:
            lpips = LPIPS(LPIPSConfig(net=config.lpips.net)).load_path(path)
        except (ValueError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(f"{path}: {str(error).splitlines()[0]}") from None
        lpips = lpips.to(torch.device(device)).to(memory_format=torch.channels_last)
    if config.identity.path:
        embedder = _embedder(config.identity, _checked(config.identity))
        embedder = embedder.to(torch.device(device)).to(memory_format=torch.channels_last)
    return Judges(lpips, embedder, config.identity_fraction)


def _checked(config: JudgeConfig) -> Path:
    path = Path(config.path)
    if config.sha256 and (digest := sha256_of(path)) != config.sha256:
        raise CheckpointError(
            f"{path}: sha256 {digest}, but the configuration says {config.sha256}"
        )
    return path


def _embedder(config: IdentityJudgeConfig, path: Path) -> FaceEmbedder | PictureEmbedder:
    if config.net == "mobilefacenet":
        net = MobileFaceNet()
        try:
            net.load_state_dict(load_file(path))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: no MobileFaceNet: {reason}") from None
        return FaceEmbedder(net)
    from vsp_model.networks import load_part  # reads published layouts, which only this needs

    return PictureEmbedder(load_part(path, "identity"))

"""Frozen networks that judge a picture during training: LPIPS, identity, and how good it looks."""

from __future__ import annotations

from collections.abc import Callable
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
from vsp_model.quality import BUILT_IN, SIZES, QualityInfo, QualityNet
from vsp_model.quality import load as load_quality

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


class QualityJudgeConfig(JudgeConfig):
    """A network of ``vsp weights fit-quality``; the path "built-in" is the one that comes along."""


class JudgesConfig(Config):
    """The frozen judges of a stage."""

    lpips: LPIPSJudgeConfig = LPIPSJudgeConfig()
    identity: IdentityJudgeConfig = IdentityJudgeConfig()
    quality: QualityJudgeConfig = QualityJudgeConfig()
    """Scores pictures where a stage trains for a score."""
    monitor: QualityJudgeConfig = QualityJudgeConfig()
    """Scores them beside, and is never trained for; see ``vsp_model.train.guard``."""
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


class QualityScorer(nn.Module):
    """Pictures -> quality in (0, 1), differentiable; the calibration of ``vsp_model.quality``."""

    severities: Tensor
    qualities: Tensor

    def __init__(self, net: QualityNet, info: QualityInfo) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("severities", torch.tensor([info.calibration[s].knots for s in SIZES]))
        shares = [[c.quality(k) for k in c.knots] for c in map(info.calibration.get, SIZES) if c]
        self.register_buffer("qualities", torch.tensor(shares))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B,); larger pictures are averaged down to 128 pixels."""
        side = max((s for s in SIZES if s <= image.shape[-1]), default=SIZES[0])
        if image.shape[-1] != side:
            image = F.interpolate(image, (side, side), mode="area")
        row = SIZES.index(side)
        return _calibrated(self.net(image.float()), self.severities[row], self.qualities[row])


def _calibrated(severity: Tensor, knots: Tensor, qualities: Tensor) -> Tensor:
    """``Calibration.quality`` on tensors: linear between knots, exponential beyond them."""
    steps = len(knots) - 1
    width = (knots[-1] - knots[0]) / steps
    above = torch.searchsorted(knots, severity.detach().contiguous(), right=True).clamp(1, steps)
    low, high = knots[above - 1], knots[above]
    between = qualities[above - 1].lerp(qualities[above], (severity - low) / (high - low))
    edge = qualities[-1]  # half a step, kept at either end
    better = 1 - edge * torch.exp((severity - knots[0]).clamp_max(0) / width)
    worse = edge * torch.exp((knots[-1] - severity).clamp_max(0) / width)
    inside = torch.where(severity > knots[-1], worse, between)
    return torch.where(severity < knots[0], better, inside)


@dataclass
class Judges:
    """The judges at hand; a missing one gives no loss.

    Attributes:
        lpips: Perceptual distance.
        embedder: Of identities.
        identity_fraction: See ``JudgesConfig``.
        quality: Pictures (B, 3, S, S) -> scores (B,) in [0, 1], differentiable.
        monitor: Alike, never trained for.
    """

    lpips: LPIPS | None = None
    embedder: Embedder | None = None
    identity_fraction: float = 1.0
    quality: Callable[[Tensor], Tensor] | None = None
    monitor: Callable[[Tensor], Tensor] | None = None

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
    scorers = (_scorer(judge, device) for judge in (config.quality, config.monitor))
    return Judges(lpips, embedder, config.identity_fraction, *scorers)


def _scorer(config: QualityJudgeConfig, device: str) -> QualityScorer | None:
    if not config.path:
        return None
    if config.path == "built-in":
        config = config.model_copy(update={"path": str(BUILT_IN)})
    return QualityScorer(*load_quality(_checked(config))).to(torch.device(device))


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

"""What the stages of IQP share: losses of a picture, qualities of a batch, what grids show."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsp_model.ask import Ask
from vsp_model.condition import ConditionConfig, QualityCondition
from vsp_model.iqp.model import IQP, Settings
from vsp_model.train.batch import Batch
from vsp_model.train.condition import told_qualities
from vsp_model.train.judges import Judges

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2, _RANGE = 0.01, 0.03, 2.0


def structure_loss(image: Tensor, reference: Tensor) -> Tensor:
    """1 - SSIM (Wang et al. 2004: Gaussian window of 11, sigma 1.5), the mean over the batch.

    Stands in where no LPIPS judge is at hand [I].

    Args:
        image: (B, 3, H, W) in [-1, 1], at least 11 pixels a side.
        reference: alike.
    """
    place = torch.arange(_WINDOW, device=image.device, dtype=image.dtype) - _WINDOW // 2
    taps = torch.exp(-place.square() / (2 * _SIGMA**2))
    taps = taps / taps.sum()

    def blurred(x: Tensor) -> Tensor:
        channels = x.shape[1]
        rows = F.conv2d(x, taps.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(rows, taps.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean, wanted = blurred(image), blurred(reference)
    variance = blurred(image.square()) - mean.square()
    wanted_variance = blurred(reference.square()) - wanted.square()
    shared = blurred(image * reference) - mean * wanted
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    light = (2 * mean * wanted + c1) / (mean.square() + wanted.square() + c1)
    detail = (2 * shared + c2) / (variance + wanted_variance + c2)
    return 1 - (light * detail).mean()


def compared(
    judges: Judges, image: Tensor, batch: Batch, *, identity: bool
) -> dict[str, Tensor | None]:
    """The losses of a picture: L1, LPIPS or what stands in for it, identity where it is wanted."""
    perceptual = judges.perceptual(image, batch.hq)
    return {
        "l1": (image - batch.hq).abs().mean(),
        "lpips": perceptual,
        "structure": structure_loss(image, batch.hq) if perceptual is None else None,
        "identity": judges.identity(image, batch.hq, batch.points) if identity else None,
    }


def widened(image: Tensor) -> Tensor:
    """A picture in float32 or wider, which is what losses look at."""
    return image.to(torch.promote_types(image.dtype, torch.float32))


def ruler(config: ConditionConfig | None) -> QualityCondition:
    """A condition of no use but to turn scores into percentiles, where a stage has none."""
    return QualityCondition(1, config or ConditionConfig())


def qualities(model: IQP, batch: Batch, withheld_by: int | None = None) -> Tensor:
    """Percentile of each true face, (B,); NaN where it is unknown or the model has no condition.

    Args:
        model: whose condition is told.
        batch: of faces.
        withheld_by: seed of the run where some are withheld to teach "unknown"; None: none is.
    """
    if model.embedding is None:
        return torch.full_like(batch.quality, torch.nan)
    condition = model.embedding.condition
    if withheld_by is None:
        return condition.percentile(batch.quality)
    return told_qualities(condition, batch, withheld_by)


def previews_of(model: IQP) -> dict[str, Settings]:
    """What a sample grid asks of a model, by title: ends of the quality, or what it does itself."""
    if model.embedding is None or not model.embedding.condition.scored:
        return {"restored": model.settle(Ask())}
    asks = {f"quality {q}": Ask(quality=q) for q in (0.1, 0.5, 0.9)}
    return {title: model.settle(ask) for title, ask in asks.items()}

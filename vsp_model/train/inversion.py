"""Codes -> picture, and how good the picture is: what the stages before the restorer share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vsp_model.config import MIN_SIZE
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train.batch import Batch
from vsp_model.train.judges import Judges
from vsp_model.train.stage import Terms, pooled

_AVERAGED = 4_096


def picture(
    prior: StyleGAN2, w_plus: Tensor, noise: list[Tensor] | None = None, size: int | None = None
) -> Tensor:
    """The prior's image of codes, up to ``size`` pixels or as far as there are tokens.

    The published trainers render all 1024 pixels and average them down; here synthesis stops at the
    size that the losses look at, and the RGB sum there is the image.
    """
    reach = MIN_SIZE << (w_plus.shape[1] // 2 - 1)
    stop = min(prior.config.size, reach, size or prior.config.size)
    image = prior(w_plus, noise, stop=stop, image=True).image
    assert image is not None
    return image


@torch.no_grad()
def average_code(prior: StyleGAN2, seed: int) -> Tensor:
    """Mean style of many drawn z's, (D,): the middle of W, where codes are taken from."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(_AVERAGED, prior.config.style_dim, generator=generator)
    return prior.mapping(z.to(prior.constant.device)).mean(dim=0)


def validated(judges: Judges, image: Tensor, batch: Batch) -> Terms:
    """Figures of a picture against the true face at the picture's size."""
    target = pooled(batch.hq, image.shape[-1])
    error = (image.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3))
    terms = {
        "l1": (image - target).abs().mean(),
        "psnr": (10 * torch.log10(4 / error)).mean(),
        "lpips": judges.perceptual(image, target),
        "identity": judges.identity(image, batch.hq, batch.points),
    }
    found = {name: term for name, term in terms.items() if term is not None}
    found["loss"] = found["l1"] + 0.5 * found.get("lpips", torch.zeros(()))
    return found


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode after."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)

"""A scorer that nothing is trained for: it watches while a network is trained for another one."""

import torch
from torch import Tensor

from pipeline.cleaning.quality.measures import classic_quality, measure
from pipeline.images import to_uint8


def classic_scores(pictures: Tensor) -> Tensor:
    """Quality by the classic measures.

    Args:
        pictures: (B, 3, S, S) in about [-1, 1].

    Returns:
        (B,) float32 on the pictures' device, 0 worst to 1 best; no gradient.
    """
    faces = to_uint8(pictures.detach().float().cpu())
    scores = [classic_quality(measure(face, b"", "png")) for face in faces]
    return torch.tensor(scores, dtype=torch.float32, device=pictures.device)

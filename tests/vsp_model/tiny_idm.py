"""A tiny IDM for its tests."""

import torch

from tests.vsp_model.tiny import some_faces, some_keys
from vsp_model import registry
from vsp_model.idm.config import IDMConfig

SIZE, MOST = 16, 4
UNET = {
    "size": SIZE,
    "unshuffle": 2,
    "channels": 16,
    "multipliers": [1, 2],
    "num_blocks": 1,
    "attention_sides": [4],
    "groups": 4,
    "dropout": 0.1,
    "tail_channels": 4,
}
NOISE = {"num_steps": 100, "beta_start": 1e-3, "beta_end": 0.1}


def config(*, unet=None, **settings):
    values = {"unet": UNET | (unet or {}), "noise": NOISE, "steps": 4, "param": "residual_x0"}
    return IDMConfig.model_validate(values | settings)


def lively(model, scale=0.3):
    """Move everything, so that each part shows in the output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator) / 4)
    return model


def model_of(**settings):
    return registry.untrained(config(**settings))


def restore(model, items, **options):
    faces = some_faces(2 * MOST, SIZE)
    return model.restore(faces[list(items)], [some_keys(2 * MOST)[i] for i in items], **options)

"""Every model by its configuration: one explicit union, one protocol, one ``build``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vsp_model.randomness import NoiseMode
from vsp_model.vspbfr import VSPBFR, VSPBFRConfig

ModelConfig = VSPBFRConfig


class Restorer(Protocol):
    """What the data plane knows of a model."""

    @property
    def size(self) -> int:
        """Working size S in pixels."""

    def restore(
        self, lq: Tensor, keys: Sequence[str], *, seed: int = 0, noise: NoiseMode = "seeded"
    ) -> Tensor:
        """(B, 3, S, S) float32 in [-1, 1] -> (B, 3, S, S), a function of (seed, key) per face."""


def build(config: ModelConfig) -> VSPBFR:
    """The model of a configuration, randomly initialised, in training mode."""
    return VSPBFR(config)


def untrained(config: ModelConfig, seed: int = 0) -> VSPBFR:
    """A seeded, untrained model in evaluation mode; the global random state is left alone.

    Its average codes are styles of its own prior, so that the chain works on codes of natural size.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build(config).eval()
        average = model.encoder.latent_avg
        average.copy_(model.prior.mapping(torch.randn(average.shape)))
        return model

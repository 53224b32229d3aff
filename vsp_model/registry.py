"""Every model by its configuration: one explicit union, one protocol, one ``build``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import torch
from pydantic import Discriminator, Tag
from torch import Tensor, nn

from vsp_model.ask import Ask
from vsp_model.idm.config import IDMConfig
from vsp_model.iqp.config import IQPConfig
from vsp_model.randomness import NoiseMode
from vsp_model.vspbfr import VSPBFR, VSPBFRConfig

DEFAULT_KIND = "vspbfr"


def _kind(value: Any) -> str:
    """What a file says its model is; one that does not say is as old as the first of them."""
    if isinstance(value, dict):
        return str(value.get("kind", DEFAULT_KIND))
    return str(getattr(value, "kind", DEFAULT_KIND))


AnyConfig = VSPBFRConfig | IQPConfig | IDMConfig
ModelConfig = Annotated[
    Annotated[VSPBFRConfig, Tag("vspbfr")]
    | Annotated[IQPConfig, Tag("iqp")]
    | Annotated[IDMConfig, Tag("idm")],
    Discriminator(_kind),
]


class Restorer(Protocol):
    """What the data plane knows of a model."""

    @property
    def size(self) -> int:
        """Working size S in pixels."""

    def restore(
        self, lq: Tensor, keys: Sequence[str], *, seed: int = 0, noise: NoiseMode = "seeded"
    ) -> Tensor:
        """(B, 3, S, S) float32 in [-1, 1] -> (B, 3, S, S), a function of (seed, key) per face."""


class Model(Protocol):
    """What every model of the union is, beside an ``nn.Module``."""

    config: Any

    @property
    def size(self) -> int:
        """Working size S in pixels."""

    def drawn(self, keys: Sequence[str], seed: int = 0, mode: NoiseMode = "seeded") -> Any:
        """All that is random, from (seed, key) alone; has ``to(device)``."""

    def settle(self, ask: Ask) -> Any:
        """What the model makes of a user's wishes, as plain numbers.

        Raises:
            ValueError: in one line, for what it can't do.
        """

    def __call__(self, lq: Tensor, drawn: Any, settings: Any = None) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, 3, S, S), about [-1, 1], not clamped."""


def build(config: AnyConfig) -> nn.Module:
    """The model of a configuration, randomly initialised, in training mode."""
    if config.kind == "iqp":  # who restores with one kind does not import the others
        from vsp_model.iqp.model import IQP

        return IQP(config)
    if config.kind == "idm":
        from vsp_model.idm.model import IDM

        return IDM(config)
    return VSPBFR(config)


def untrained(config: AnyConfig, seed: int = 0) -> nn.Module:
    """A seeded, untrained model in evaluation mode; the global random state is left alone.

    VSPBFR's average codes are styles of its own prior, so that the chain works on codes of natural
    size.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build(config).eval()
        if isinstance(model, VSPBFR):
            average = model.encoder.latent_avg
            average.copy_(model.prior.mapping(torch.randn(average.shape)))
        return model

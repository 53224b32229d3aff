"""One player of a stage: networks that move together, their optimiser, schedule and guards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vsp_model.train.config import AdamConfig


class Player:
    """Networks and the Adam that moves them."""

    def __init__(self, nets: Mapping[str, nn.Module], config: AdamConfig) -> None:
        self.nets = dict(nets)
        self.config = config
        self.parameters = [
            p for net in self.nets.values() for p in net.parameters() if p.requires_grad
        ]
        self.adam = torch.optim.Adam(self.parameters, lr=config.lr, betas=config.betas, fused=True)

    def zero_grad(self) -> None:
        """Forget the last step's gradients."""
        self.adam.zero_grad(set_to_none=True)

    def has_gradients(self) -> bool:
        """Whether any loss of this step reached it; a player that waits for its turn has none."""
        return any(parameter.grad is not None for parameter in self.parameters)

    def gradients(self) -> list[Tensor]:
        """Of every parameter; one that had no part in the step counts as zero."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.parameters if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, a scalar."""
        return torch.nn.utils.get_total_norm(self.gradients())

    def update(self, norm: Tensor, images_seen: int, num_images: int) -> float:
        """Clip by ``norm`` and step.

        Returns:
            The learning rate that was used.
        """
        if self.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        rate = learning_rate(self.config, images_seen, num_images)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        return rate

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the optimiser."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``.

        Files hold tensors in plain order. The fused Adam walks through memory and does not look at
        strides: a moment must lie as its parameter does, or it would move other weights.
        """
        self.adam.load_state_dict(state)
        for parameter, moments in self.adam.state.items():
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def learning_rate(config: AdamConfig, images_seen: int, num_images: int) -> float:
    """The schedule: linear warm-up, then constant, or a cosine that ends at ``num_images``."""
    rate = config.lr
    if config.warmup_images:
        rate *= min(1.0, (images_seen + 1) / config.warmup_images)
    if config.decay == "cosine":
        floor = config.final_lr or 0.0
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, images_seen / num_images)))
        rate = floor + (rate - floor) * share
    return rate

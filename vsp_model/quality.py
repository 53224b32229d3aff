"""How damaged a face looks: a small convolutional network, and its calibration to a quality.

The network gives a severity, 0 for a clean face; the calibration turns it into the share of a
documented reference population that looks as bad or worse. Both lie in one safetensors file, whose
metadata hold configuration, calibration and where it comes from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from vsp_model.config import Config
from vsp_model.files import CheckpointError, record_checksum, whole_or_absent

BUILT_IN = Path(__file__).parent / "weights" / "quality-128.safetensors"
SIZES = (32, 64, 128)
"""Sides at which a face is looked at."""
_ENTRY = "vsp"
_SLOPE = 0.2
_DETAIL_GAIN = 20.0
_MIN_KNOTS = 3


class QualityConfig(Config):
    """The network.

    Attributes:
        kind: What it is.
        channels: At 1/2, 1/4, 1/8 and 1/16 of the face's side.
        hidden: Width of the last layer but one.
    """

    kind: Literal["quality"] = "quality"
    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    hidden: int = Field(64, ge=1)


class _Residual(nn.Module):
    """x + conv(act(conv(act(x)))); begins as x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.leaky_relu(x, _SLOPE))
        return x + self.second(F.leaky_relu(y, _SLOPE))


class QualityNet(nn.Module):
    """Faces -> severity of damage, about 0 clean to 1.5.

    No normalisation inside: the strength of noise is what is asked for.
    """

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.stem = nn.Conv2d(6 * 4, widths[0], 3, padding=1)
        stages: list[nn.Module] = [_Residual(widths[0])]
        for before, after in pairwise(widths):
            down = nn.Conv2d(before, after, 3, stride=2, padding=1)
            stages.append(nn.Sequential(down, _Residual(after)))
        self.stages = nn.ModuleList(stages)
        self.attention = nn.Conv2d(widths[-1], 1, 1)
        self.hidden = nn.Linear(2 * widths[-1] + 1, config.hidden)
        self.out = nn.Linear(config.hidden, 1)

    def forward(self, faces: Tensor) -> Tensor:
        """Args: faces (B, 3, S, S) in [-1, 1], S one of `SIZES`. Returns: severity (B,)."""
        side = faces.shape[-1]
        # What is finer than three pixels, small values stretched: noise and JPEG lie there.
        soft = F.avg_pool2d(faces, 3, stride=1, padding=1, count_include_pad=False)
        detail = torch.asinh(_DETAIL_GAIN * (faces - soft))
        x = self.stem(F.pixel_unshuffle(torch.cat([faces, detail], dim=1), 2))  # (B, C, S/2, S/2)
        for stage in self.stages:
            x = stage(x)
        x = F.leaky_relu(x, _SLOPE)
        weights = self.attention(x).flatten(2).softmax(dim=2)  # (B, 1, places)
        places = x.flatten(2)  # (B, C, places)
        scale = x.new_full((len(x), 1), math.log2(side / SIZES[-1]))
        pooled = torch.cat([places.mean(dim=2), (places * weights).sum(dim=2), scale], dim=1)
        return self.out(F.leaky_relu(self.hidden(pooled), _SLOPE)).squeeze(1)


class Calibration(Config):
    """From severity to quality, for faces looked at at one side.

    Attributes:
        knots: Severities of the reference population at even shares of it, ascending: the first is
            its least, the last its largest.
    """

    knots: tuple[float, ...]

    @field_validator("knots")
    @classmethod
    def _ascending(cls, knots: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in pairwise(knots))
        if len(knots) < _MIN_KNOTS or not rising:
            raise ValueError("expected at least 3 ascending severities")
        return knots

    def quality(self, severity: float) -> float:
        """The share of the reference that looks as bad or worse, 0 to 1; falls strictly.

        Half a step is kept at either end for what the reference has not: there it nears 1 and 0
        without reaching them.
        """
        knots, steps = self.knots, len(self.knots) - 1
        edge, width = 0.5 / steps, (self.knots[-1] - self.knots[0]) / steps
        if severity <= knots[0]:
            return 1 - edge * math.exp(-(knots[0] - severity) / width)
        if severity >= knots[-1]:
            return edge * math.exp(-(severity - knots[-1]) / width)
        above = next(n for n, knot in enumerate(knots) if knot > severity)
        below, top = knots[above - 1], knots[above]
        place = above - 1 + (severity - below) / (top - below)
        return 1 - edge - place / steps * (1 - 2 * edge)


class QualityInfo(Config):
    """What stands in the file beside the weights.

    Attributes:
        config: Of the network.
        calibration: By the side at which faces are looked at.
        facts: Where weights and calibration come from, for a reader.
    """

    config: QualityConfig
    calibration: dict[int, Calibration]
    facts: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("calibration")
    @classmethod
    def _every_side(cls, calibration: dict[int, Calibration]) -> dict[int, Calibration]:
        if tuple(sorted(calibration)) != SIZES:
            raise ValueError(f"calibration for {sorted(calibration)}, expected {list(SIZES)}")
        return calibration


def save(net: QualityNet, info: QualityInfo, path: Path) -> str:
    """Write weights as float32 with all that is known of them, and the checksum beside; sha256."""
    tensors = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    data = to_bytes(tensors, {_ENTRY: info.model_dump_json()})
    with whole_or_absent(path) as file:
        file.write(data)
    return record_checksum(path)


def load(path: Path = BUILT_IN) -> tuple[QualityNet, QualityInfo]:
    """Read the network, in evaluation mode, and what is known of it.

    Raises:
        CheckpointError: In one line, if the file is no such network.
        OSError: If it can't be read.
    """
    info, tensors = _read(path)
    net = QualityNet(info.config)
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))[0]
        raise CheckpointError(f"{path}: {odd}: shape {found.get(odd)}, expected {wanted.get(odd)}")
    net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False), info


def _read(path: Path) -> tuple[QualityInfo, Mapping[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            info = QualityInfo.model_validate_json(metadata.get(_ENTRY, "null"))
            return info, {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: no safetensors file ({error})") from None
    except ValidationError as error:
        reason = json.loads(error.json())[0]["msg"]
        raise CheckpointError(
            f"{path}: no network of `vsp weights fit-quality` ({reason})"
        ) from None

"""The configuration of a network, read off the shapes of its published tensors.

Where several tensors show the same number, the most frequent one counts: a single misshapen tensor
then differs from its configuration and is the one that gets named. What no shape shows (learning
rate multipliers, dropout, dilation rates, the diffusion schedule) keeps its published default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count, groupby
from statistics import mode
from typing import TypeVar

from pydantic import ValidationError
from torch import Tensor

from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.config import MIN_SIZE, Config
from vsp_model.discriminator import DiscriminatorConfig
from vsp_model.restoration import RestorationConfig
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config

Tensors = Mapping[str, Tensor]
C = TypeVar("C", bound=Config)

_MAX_SIZE = 8192  # pixels; what claims more is a damaged file


def infer_stylegan2(tensors: Tensors) -> StyleGAN2Config:
    """From the names of ``published.stylegan2_layout``.

    Raises:
        ValueError: in one line, if what shows a number is missing.
    """
    levels = 1 + _count(tensors, "to_rgbs.{}.")
    rgbs = ["to_rgb1", *(f"to_rgbs.{k}" for k in range(levels - 1))]
    convs = ["conv1", *(f"convs.{2 * k + 1}" for k in range(levels - 1))]
    channels = [
        _agreed(tensors, rf"({rgb}|{conv})\.conv\.modulation\.(weight|bias)|{conv}\.activate\.bias")
        for rgb, conv in zip(rgbs, convs, strict=True)
    ]
    return _valid(
        StyleGAN2Config,
        size=_size(levels),
        style_dim=_agreed(tensors, r".*\.modulation\.weight", axis=1),
        channels=tuple(channels),
        mapping_layers=_count(tensors, "style.{}.", first=1),
    )


def infer_style_encoder(tensors: Tensors) -> StyleEncoderConfig:
    """From the names of ``published.style_encoder_layout``.

    The input size follows from the number of convolutions that bring the coarse map to one pixel.

    Raises:
        ValueError: in one line, if what shows a number is missing, or if neighbouring stages are
            equally wide: then no shape shows where one ends.
    """
    units = range(_count(tensors, "body.{}."))
    outputs = r"(1\.weight|2\.weight|3\.weight|4\.(weight|bias|running_mean|running_var))"
    widths = [_agreed(tensors, rf"body\.{i}\.res_layer\.{outputs}") for i in units]
    stages = [(width, len(list(group))) for width, group in groupby(widths)]
    if len(stages) != 4:
        raise ValueError(
            f"body: units of {len(stages)} different widths; expected 4 stages that differ in width"
        )
    squeezed = (_agreed(tensors, rf"body\.{i}\.res_layer\.5\.fc1\.weight") for i in units)
    ratios = [width // max(1, inner) for width, inner in zip(widths, squeezed, strict=True)]
    return _valid(
        StyleEncoderConfig,
        input_size=16 << _count(tensors, "styles.0.convs.{}.", step=2),
        num_tokens=_count(tensors, "styles.{}."),
        style_dim=_agreed(tensors, r"styles\.\d+\.linear\.(weight|bias)"),
        pyramid_channels=_agreed(tensors, r"styles\.\d+\.convs\.\d+\.(weight|bias)"),
        stem_channels=_agreed(tensors, r"input_layer\.\d\.(weight|bias)"),
        stage_channels=tuple(width for width, _ in stages),
        stage_units=tuple(num_units for _, num_units in stages),
        reduction=mode(ratios),
    )


def infer_code_diffuser(tensors: Tensors, num_tokens: int = 18) -> CodeDiffuserConfig:
    """From the names of ``published.code_diffuser_layout``.

    Args:
        tensors: by published name.
        num_tokens: of the style encoder; no tensor of the diffuser shows it.

    Raises:
        ValueError: in one line, if what shows a number is missing.
    """
    return _valid(
        CodeDiffuserConfig,
        num_tokens=num_tokens,
        style_dim=_agreed(tensors, r"att_mapper\.\d+\.(.*_matrix\.weight|(gamma|beta)_\..*)"),
        num_blocks=_count(tensors, "att_mapper.{}."),
    )


def infer_restoration(tensors: Tensors) -> RestorationConfig:
    """From the names of ``published.restoration_layout``.

    With n dilation rates these are 1, 2, 4, ..., as published.

    Raises:
        ValueError: in one line, if what shows a number is missing.
    """
    levels = 1 + _count(tensors, "to_rgbs.{}.")
    rgbs = ["to_rgb1", *(f"to_rgbs.{k}" for k in range(levels - 1))]
    smarts = ["conv1", *(f"convs.{2 * k + 1}" for k in range(levels - 1))]
    channels = [
        _agreed(
            tensors,
            rf"{rgb}\.conv\.modulation\.(weight|bias)"
            rf"|{smart}\.(modulation\.(weight|bias)|activate\.bias)",
        )
        for rgb, smart in zip(rgbs, smarts, strict=True)
    ]
    rates = _count(tensors, "conv1.ModulatedConv2ds.{}.")
    return _valid(
        RestorationConfig,
        size=_size(levels),
        style_dim=_agreed(tensors, r"encoder_convs\..*modulation\.weight", axis=1) // 2,
        channels=tuple(channels),
        global_dim=_agreed(tensors, r"final_linear\.0\.(weight|bias)"),
        mapping_layers=_count(tensors, "style.{}.", first=1),
        dilations=tuple(1 << i for i in range(rates)),
    )


def infer_discriminator(tensors: Tensors) -> DiscriminatorConfig:
    """From the names of ``published.discriminator_layout``.

    Raises:
        ValueError: in one line, if what shows a number is missing.
    """
    blocks = _count(tensors, "encoder_convs.{}.")
    top = _agreed(tensors, r"encoder_input_convs\.\d\.(weight|bias)")
    lower = [
        _agreed(tensors, rf"encoder_convs\.{i}\.(conv2\.1\.weight|conv2\.2\.bias|skip\.1\.weight)")
        for i in range(blocks)
    ]
    return _valid(DiscriminatorConfig, size=_size(1 + blocks), channels=(*lower[::-1], top))


def identity_values(tensors: Tensors) -> dict[str, object]:
    """Values of an ``identity.IdentityConfig`` from the names of torchvision's ResNet.

    Raises:
        ValueError: in one line, if what shows a number is missing.
    """
    blocks = [_count(tensors, f"layer{stage}.{{}}.") for stage in (1, 2, 3, 4)]
    return {"blocks": blocks, "embedding_dim": _agreed(tensors, r"fc\.(weight|bias)")}


def explain(error: ValidationError) -> str:
    """The first problem of a configuration in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _valid(config_type: type[C], **values: object) -> C:
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def _agreed(tensors: Tensors, pattern: str, axis: int = 0) -> int:
    """The most frequent side along ``axis`` of the tensors whose whole name matches."""
    matches = re.compile(pattern).fullmatch
    shapes = (tuple(tensor.shape) for name, tensor in tensors.items() if matches(name))
    sides = [shape[axis] for shape in shapes if len(shape) > axis]
    if not sides:
        raise ValueError(f"missing tensors: nothing is named {pattern.replace(chr(92), '')}")
    return mode(sides)


def _count(tensors: Iterable[str], prefix: str, *, first: int = 0, step: int = 1) -> int:
    """How many of ``prefix`` with first, first + step, ... begin some name, without a gap."""
    names = list(tensors)
    for found, index in enumerate(count(first, step)):
        if not any(name.startswith(prefix.format(index)) for name in names):
            return found
    raise AssertionError("count() does not end")


def _size(levels: int) -> int:
    size = MIN_SIZE << (levels - 1)
    if not 2 * MIN_SIZE <= size <= _MAX_SIZE:
        raise ValueError(
            f"{levels} resolutions found; expected the tensors of a network of "
            f"{2 * MIN_SIZE} to {_MAX_SIZE} pixels"
        )
    return size

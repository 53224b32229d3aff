"""Where each tensor of the published checkpoints lives in our modules, and back.

A layout is a list of rules. Each rule ties one of our tensors to one or several published ones, so
a conversion can show that every tensor was used exactly once. FIR kernels are stored in the
published files and constants here: a rule without our name checks the value and rebuilds it.

Names on the left of a pair are ours, on the right the published ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.discriminator import DiscriminatorConfig
from vsp_model.ops import Resample, fir_kernel
from vsp_model.restoration import RestorationConfig
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config

Layout = list["Rule | ConstantRule"]


@dataclass(frozen=True)
class Rule:
    """One of our tensors and the published ones that make it.

    Several published tensors are stacked along axis 0. ``lead`` published axes of size 1 stand
    before ours, ``trail`` after them.
    """

    ours: str
    published: tuple[str, ...]
    lead: int = 0
    trail: int = 0

    def load(self, tensors: list[Tensor]) -> Tensor:
        """Published -> ours."""
        parts = []
        for tensor in tensors:
            end = tensor.ndim - self.trail
            parts.append(tensor.reshape(tensor.shape[self.lead : end]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def store(self, tensor: Tensor) -> list[Tensor]:
        """Ours -> published."""
        parts = tensor.chunk(len(self.published)) if len(self.published) > 1 else [tensor]
        lead, trail = (1,) * self.lead, (1,) * self.trail
        return [p.reshape((*lead, *p.shape, *trail)).clone() for p in parts]


@dataclass(frozen=True)
class ConstantRule:
    """A published tensor that is a constant here: the FIR kernel with its gain."""

    published: tuple[str]
    gain: float

    def check(self, tensor: Tensor) -> None:
        """Refuse a filter that our layers don't compute."""
        if not torch.equal(tensor.float(), fir_kernel(self.gain)):
            raise ValueError(
                f"{self.published[0]}: not the 1-3-3-1 FIR kernel with gain {self.gain:g}; "
                "other resampling filters are not supported"
            )


def load_published(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors -> our state dict; every tensor is used exactly once.

    Raises:
        ValueError: naming the tensors that are missing, or extra, or a foreign FIR kernel.
    """
    wanted = [name for rule in layout for name in rule.published]
    _refuse("missing", [name for name in wanted if name not in tensors])
    _refuse("unknown", sorted(set(tensors) - set(wanted)))
    state = {}
    for rule in layout:
        if isinstance(rule, ConstantRule):
            rule.check(tensors[rule.published[0]])
        else:
            state[rule.ours] = rule.load([tensors[name] for name in rule.published])
    return state


def store_published(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> published tensors, in the layout's order."""
    tensors: dict[str, Tensor] = {}
    for rule in layout:
        if isinstance(rule, ConstantRule):
            tensors[rule.published[0]] = fir_kernel(rule.gain)
        else:
            tensors.update(zip(rule.published, rule.store(state[rule.ours]), strict=True))
    return tensors


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{what} tensor{'s' * (len(names) > 1)}: {', '.join(names[:3])}{more}")


# ------------------------------------------------------------------------------------- layers


def _same(pairs: Iterable[tuple[str, str]]) -> Layout:
    return [Rule(ours, (published,)) for ours, published in pairs]


def _affine(ours: str, published: str) -> Layout:
    return _same((f"{ours}.{kind}", f"{published}.{kind}") for kind in ("weight", "bias"))


def _batch_norm(ours: str, published: str) -> Layout:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return _same((f"{ours}.{kind}", f"{published}.{kind}") for kind in kinds)


def mapping_layout(ours: str, published: str, num_layers: int) -> Layout:
    """Index 0 of the published sequence is the pixel norm, which has no tensors."""
    layers = range(num_layers)
    return [r for i in layers for r in _affine(f"{ours}.layers.{i}", f"{published}.{i + 1}")]


def styled_conv_layout(ours: str, published: str, resample: Resample = "same") -> Layout:
    """Modulated convolution, noise strength and activation bias."""
    o, p = _dot(ours), _dot(published)
    layout: Layout = [Rule(f"{o}weight", (f"{p}conv.weight",), lead=1)]
    if resample != "same":
        layout.append(ConstantRule((f"{p}conv.blur.kernel",), 4.0 if resample == "up" else 1.0))
    layout += _affine(f"{o}modulation", f"{p}conv.modulation")
    pairs = [(f"{o}noise.strength", f"{p}noise.weight"), (f"{o}bias", f"{p}activate.bias")]
    return layout + _same(pairs)


def to_rgb_layout(ours: str, published: str, *, upsample: bool) -> Layout:
    """1x1 modulated convolution; the first one enlarges nothing and has no kernel."""
    o, p = _dot(ours), _dot(published)
    layout: Layout = [Rule(f"{o}bias", (f"{p}bias",), lead=1, trail=2)]
    if upsample:
        layout.append(ConstantRule((f"{p}upsample.kernel",), 4.0))
    layout.append(Rule(f"{o}weight", (f"{p}conv.weight",), lead=1))
    return layout + _affine(f"{o}modulation", f"{p}conv.modulation")


def smart_layout(ours: str, published: str, num_rates: int) -> Layout:
    """Branch weights are stacked along the output axis."""
    o, p = _dot(ours), _dot(published)
    branches = tuple(f"{p}ModulatedConv2ds.{i}.weight" for i in range(num_rates))
    pairs = [
        (f"{o}fusion.weight", f"{p}fusion.0.weight"),
        (f"{o}fusion.bias", f"{p}fusion.1.bias"),
        (f"{o}noise.strength", f"{p}noise.weight"),
        (f"{o}bias", f"{p}activate.bias"),
    ]
    modulation = _affine(f"{o}modulation", f"{p}modulation")
    return [Rule(f"{o}weight", branches, lead=1), *modulation, *_same(pairs)]


def aggregated_conv_layout(ours: str, published: str, num_rates: int) -> Layout:
    """Plain branches, stacked alike."""
    o, p = _dot(ours), _dot(published)
    branches = tuple(f"{p}dilated_convs.{i}.weight" for i in range(num_rates))
    pairs = [
        (f"{o}fusion.weight", f"{p}fusion.0.weight"),
        (f"{o}fusion.bias", f"{p}fusion.1.bias"),
        (f"{o}bias", f"{p}activate.bias"),
    ]
    return [Rule(f"{o}weight", branches), *_same(pairs)]


def conv_layer_layout(
    ours: str, published: str, *, reduce: bool = False, activate: bool = True
) -> Layout:
    """FIR (when reducing), convolution and activation are numbered children."""
    o, p = _dot(ours), _dot(published)
    conv = 1 if reduce else 0
    layout: Layout = [ConstantRule((f"{p}0.kernel",), 1.0)] if reduce else []
    layout += _same([(f"{o}weight", f"{p}{conv}.weight")])
    return layout + (_same([(f"{o}bias", f"{p}{conv + 1}.bias")]) if activate else [])


def res_block_layout(ours: str, published: str) -> Layout:
    """Residual block of the discriminator."""
    o, p = _dot(ours), _dot(published)
    return [
        *conv_layer_layout(f"{o}conv1", f"{p}conv1"),
        *conv_layer_layout(f"{o}conv2", f"{p}conv2", reduce=True),
        *conv_layer_layout(f"{o}skip", f"{p}skip", reduce=True, activate=False),
    ]


def _dot(prefix: str) -> str:
    return f"{prefix}." if prefix else ""


# ----------------------------------------------------------------------------------- networks


def _noise_layout(count: int) -> Layout:
    return _same((f"noise_{i}", f"noises.noise_{i}") for i in range(count))


def stylegan2_layout(config: StyleGAN2Config) -> Layout:
    """``decoder.*`` of the style encoder's file; rosinality's generator layout."""
    blocks = range(len(config.channels) - 1)
    layout = mapping_layout("mapping", "style", config.mapping_layers)
    layout += _same([("constant", "input.input")])
    layout += styled_conv_layout("conv", "conv1")
    layout += to_rgb_layout("to_rgb", "to_rgb1", upsample=False)
    for k in blocks:
        layout += styled_conv_layout(f"blocks.{k}.up", f"convs.{2 * k}", "up")
        layout += styled_conv_layout(f"blocks.{k}.conv", f"convs.{2 * k + 1}")
    for k in blocks:
        layout += to_rgb_layout(f"blocks.{k}.to_rgb", f"to_rgbs.{k}", upsample=True)
    return layout + _noise_layout(2 * len(config.channels) - 1)


def style_encoder_layout(config: StyleEncoderConfig) -> Layout:
    """``encoder.*``; the average code is a separate entry of the file."""
    layout = _same([("body.stem.0.weight", "input_layer.0.weight")])
    layout += _batch_norm("body.stem.1", "input_layer.1")
    layout += _same([("body.stem.2.weight", "input_layer.2.weight")])
    unit, width = 0, config.stem_channels
    for stage, (channels, units) in enumerate(
        zip(config.stage_channels, config.stage_units, strict=True)
    ):
        for i in range(units):
            name = f"body.stages.{stage}.{i}"
            layout += _irse_unit_layout(name, f"body.{unit}", shortcut=width != channels)
            unit, width = unit + 1, channels
    for token, convs in enumerate(_style_block_convs(config)):
        for i in range(convs):
            layout += _affine(f"styles.{token}.convs.{i}", f"styles.{token}.convs.{2 * i}")
        layout += _affine(f"styles.{token}.linear", f"styles.{token}.linear")
    layout += _affine("lateral_middle", "latlayer1")
    return layout + _affine("lateral_fine", "latlayer2")


def _style_block_convs(config: StyleEncoderConfig) -> list[int]:
    return [side.bit_length() - 1 for side in config.token_sides]


def _irse_unit_layout(ours: str, published: str, *, shortcut: bool) -> Layout:
    layout: Layout = []
    if shortcut:
        layout += _same([(f"{ours}.shortcut.0.weight", f"{published}.shortcut_layer.0.weight")])
        layout += _batch_norm(f"{ours}.shortcut.1", f"{published}.shortcut_layer.1")
    o, p = f"{ours}.residual", f"{published}.res_layer"
    layout += _batch_norm(f"{o}.0", f"{p}.0")
    layout += _same((f"{o}.{i}.weight", f"{p}.{i}.weight") for i in (1, 2, 3))
    layout += _batch_norm(f"{o}.4", f"{p}.4")
    return layout + _same((f"{o}.5.{fc}.weight", f"{p}.5.{fc}.weight") for fc in ("fc1", "fc2"))


def code_diffuser_layout(config: CodeDiffuserConfig) -> Layout:
    """``att_mapper.*``."""
    layout: Layout = []
    for i in range(config.num_blocks):
        o, p = f"blocks.{i}", f"att_mapper.{i}"
        names = (("query", "q_matrix"), ("key", "k_matrix"), ("value", "v_matrix"))
        layout += _same((f"{o}.tokens.{a}.weight", f"{p}.{b}.weight") for a, b in names)
        for a, b in (("gate", "gamma_"), ("shift", "beta_")):
            layout += [r for n in (0, 1, 3) for r in _affine(f"{o}.{a}.{n}", f"{p}.{b}.{n}")]
        attention = f"{p}.attention_layer"
        layout += _same((f"{o}.features.{a}.weight", f"{attention}.{b}.weight") for a, b in names)
    return layout


def restoration_layout(config: RestorationConfig) -> Layout:
    """``g_ema`` and ``g`` of the restoration file.

    Raises:
        ValueError: with an ablation on; the published layout has no place for it.
    """
    if not (config.smart and config.style_prompt):
        raise ValueError("restoration: an ablated network has no published layout")
    rates, levels = len(config.dilations), len(config.channels)
    layout = smart_layout("smart", "conv1", rates)
    layout += to_rgb_layout("to_rgb", "to_rgb1", upsample=False)
    for k in range(levels - 1):
        layout += styled_conv_layout(f"decoder.{k}.up", f"convs.{2 * k}", "up")
        layout += smart_layout(f"decoder.{k}.smart", f"convs.{2 * k + 1}", rates)
    for k in range(levels - 1):
        layout += to_rgb_layout(f"decoder.{k}.to_rgb", f"to_rgbs.{k}", upsample=True)
    layout += _noise_layout(2 * levels - 1)
    layout += mapping_layout("mapping", "style", config.mapping_layers)
    layout += aggregated_conv_layout("stem", "down_from_big", rates)
    for j in range(levels - 1):
        layout += smart_layout(f"encoder.{j}.smart", f"encoder_convs.{2 * j}", rates)
        layout += styled_conv_layout(f"encoder.{j}.down", f"encoder_convs.{2 * j + 1}", "down")
    layout += aggregated_conv_layout("bottleneck", "final_layer", rates)
    layout += _affine("to_global", "final_linear.0")
    return layout + _affine("from_global", "final_transfer")


def discriminator_layout(config: DiscriminatorConfig) -> Layout:
    """``d`` of the restoration file."""
    layout = conv_layer_layout("stem", "encoder_input_convs")
    for i in range(len(config.channels) - 1):
        layout += res_block_layout(f"blocks.{i}", f"encoder_convs.{i}")
    layout += conv_layer_layout("final_conv", "final_conv")
    return layout + _affine("hidden", "final_linear.0") + _affine("logit", "final_linear.1")

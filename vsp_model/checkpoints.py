"""Save and load models as bundles (``vsp_model.bundle``), checked before memory is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vsp_model.bundle import (
    RESTORERS,
    BundleConfig,
    BundleInfo,
    CodebooksConfig,
    InversionConfig,
    PriorConfig,
    PromptConfig,
    compare,
    open_bundle,
    specs_of,
    writing,
)
from vsp_model.files import (
    CheckpointError,
    checksum_path,
    record_checksum,
    sha256_of,
    verify,
)
from vsp_model.registry import AnyConfig, ModelConfig, build

__all__ = ["CheckpointError", "load", "save", "save_parts", "sha256_of", "verify"]

M = TypeVar("M", bound=nn.Module)

# Weights are made by these and come from the file; constants, such as FIR kernels, are not in it
# and are computed from lists and ranges.
_FILLED = frozenset({torch.empty, torch.full, torch.ones, torch.randn, torch.zeros})
# Without data these change nothing, but PyTorch would import its compiler for them: 12 s.
_SCALED = frozenset(
    {
        torch.Tensor.div,
        torch.Tensor.__truediv__,
        nn.init.normal_,
        nn.init.kaiming_normal_,
        nn.init.zeros_,
    }
)


class _WithoutData(TorchFunctionMode):
    """Weights made inside have a shape and no memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _SCALED:
            tensor = args[0] if args else options["tensor"]
            if tensor.is_meta:
                return tensor
        if func in _FILLED:
            options["device"] = "meta"
        return (torch.empty if func is torch.randn else func)(*args, **options)


def hollow(build: Callable[[], M]) -> M:
    """What ``build`` makes, with weights that take no memory and constants that are real."""
    with _WithoutData():
        return build()


def fill(model: M, tensors: Mapping[str, Tensor]) -> M:
    """Give a hollow model its weights, without a copy."""
    model.load_state_dict(tensors, assign=True)
    named = chain(model.named_parameters(), model.named_buffers())
    empty = [name for name, tensor in named if tensor.is_meta]
    assert not empty, f"{empty[0]}: a constant that is made like a weight"
    return model


def save(
    model: Any,
    path: Path | str,
    *,
    options: Mapping[str, JsonValue] | None = None,
    sources: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Write a model as a bundle, whole or not at all, and its checksum beside it.

    Args:
        model: of the registry, on any device, its weights in float32.
        path: of the bundle; an older file there is replaced.
        options: ``opts`` for the published style encoder file.
        sources: name and sha256 of what it was made from.
        notes: for a reader.

    Returns:
        The sha256 of the file.

    Raises:
        CheckpointError: if a weight has another type or shape than ``load`` will expect.
    """
    path, state = Path(path), model.state_dict()
    info = BundleInfo(
        config=model.config,
        options=dict(options or {}),
        sources=dict(sources or {}),
        notes=tuple(notes),
    )
    expected = specs_of(hollow(lambda: build(model.config)).state_dict())
    compare(expected, specs_of(state), str(path))
    checksum_path(path).unlink(missing_ok=True)  # better none than one of another file
    with writing(path, expected, info) as writer:
        writer.write("", state)
    return record_checksum(path)


def save_parts(
    parts: Mapping[str, nn.Module],
    config: ModelConfig,
    path: Path | str,
    *,
    half: bool = False,
    sources: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    notice: str = "",
) -> str:
    """Write the parts that there are as the bundle that holds them, whole or not at all.

    Args:
        parts: the model's children by name, or the first few of them to be trained; weights in
            float32.
        config: of the whole model.
        path: of the bundle; an older file there is replaced.
        half: store float16; reading gives float32 back, rounded.
        sources: name and sha256 of what it was made from.
        notes: for a reader.
        notice: terms of the weights, one line.

    Returns:
        The sha256 of the file.
    """
    path = Path(path)
    state = {f"{p}.{n}": t for p, net in sorted(parts.items()) for n, t in net.state_dict().items()}
    if half:
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    info = BundleInfo(
        config=_kind_of(parts, config),
        sources=dict(sources or {}),
        notes=tuple(notes),
        notice=notice,
    )
    specs = specs_of(state)
    checksum_path(path).unlink(missing_ok=True)
    with writing(path, specs, info) as writer:
        writer.write("", state)
    return record_checksum(path)


def _kind_of(parts: Mapping[str, nn.Module], config: ModelConfig) -> BundleConfig:
    if config.kind == "iqp" and "predictor" not in parts:
        return CodebooksConfig(encoder=config.encoder, books=config.books)
    if config.kind != "vspbfr" or "restoration" in parts:
        return config
    if "diffuser" in parts and config.diffuser is not None:
        return PromptConfig(encoder=config.encoder, diffuser=config.diffuser, prior=config.prior)
    if "encoder" in parts:
        return InversionConfig(encoder=config.encoder, prior=config.prior)
    return PriorConfig(prior=config.prior)


def load(path: Path | str, device: torch.device | str = "cpu") -> Any:
    """Open a bundle as a model in evaluation mode.

    Names, shapes and types are compared with the configuration before memory is taken; on the CPU
    the weights stay memory-mapped, so memory is used once and only for what is touched.

    Raises:
        CheckpointError: in one line: not a whole bundle, another kind, an unknown key of the
            configuration, a tensor that is missing, extra or misshapen.
        OSError: if the file can't be read.
    """
    with open_bundle(path) as bundle:
        config = bundle.info.config
        if not isinstance(config, AnyConfig):
            known = ", ".join(map(repr, RESTORERS))
            raise CheckpointError(f"{path}: a bundle of kind {config.kind!r}, expected {known}")
        model = hollow(lambda: build(config))
        compare(specs_of(model.state_dict()), bundle.main_specs(), str(path))
        return fill(model, bundle.main_tensors()).eval().to(device)

"""Our networks filled from tensors under published names, and published stage names in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any, TypeVar

import torch
from parity_vectors.vectors import DIGEST, Spec, Vectors
from torch import Tensor, nn

from vsp_model import infer, published
from vsp_model.checkpoints import hollow
from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.config import Config
from vsp_model.discriminator import Discriminator
from vsp_model.networks import PARTS
from vsp_model.restoration import RestorationNet
from vsp_model.style_encoder import StyleEncoder

M = TypeVar("M", bound=nn.Module)


def filled(module: M, layout: published.Layout, tensors: dict[str, Tensor]) -> M:
    """Load published tensors; every parameter and stored buffer must come from one of them."""
    module.load_state_dict(published.load_published(layout, tensors), assign=True)
    return module.eval()


def network(vectors: Vectors, part: str, namespace: str, spec: Spec | None = None) -> Any:
    """A network of any size and width, which the shapes tell, by the way that files are converted.

    Args:
        vectors: the part that is run.
        part: name of the network in a bundle.
        namespace: of its random source.
        spec: see ``Vectors.weights``.
    """
    tensors = vectors.weights(namespace, spec)
    return _built(vectors, part, namespace, PARTS[part].infer(tensors), tensors)


def code_diffuser(vectors: Vectors, namespace: str, num_tokens: int) -> CodeDiffuser:
    """No tensor shows the number of tokens."""
    tensors = vectors.weights(namespace)
    config = infer.infer_code_diffuser(tensors, num_tokens)
    return _built(vectors, "diffuser", namespace, config, tensors)


def _built(
    vectors: Vectors, part: str, namespace: str, config: Config, tensors: dict[str, Tensor]
) -> Any:
    form = PARTS[part]
    module, layout = hollow(lambda: form.build(config)), form.layout(config)
    if isinstance(module, StyleEncoder):  # the average code is an entry of the file on its own
        shape = list(module.latent_avg.shape)
        tensors |= vectors.weights(namespace, {"latent_avg": [shape, "float32"]})
        layout = [*layout, published.Rule("latent_avg", ("latent_avg",))]
    return filled(module, layout, tensors)


def round_less(encoder: StyleEncoder) -> StyleEncoder:
    """Let the encoder's convolutions sum in blocks, through PyTorch's own matmul.

    oneDNN's AVX2 kernels add up to 4,608 products in one chain. That trebles the rounding error of
    the codes, which the sampling chain magnifies twentyfold, and the vectors were recorded on a
    machine with other kernels. Half of a tolerance would be spent on the choice of kernel.
    """
    encoder.to(memory_format=torch.channels_last)
    for method in ("forward", "encode", "pyramid"):
        setattr(encoder, method, _without_onednn(getattr(encoder, method)))
    return encoder


def _without_onednn(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any) -> Any:
        backend = torch.backends.mkldnn
        before, backend.enabled = backend.enabled, False
        try:
            return function(*args)
        finally:
            backend.enabled = before

    return wrapped


# --------------------------------------------------------------------------------- stage names


def restoration_stages(model: RestorationNet) -> dict[str, str]:
    """Published stage name -> our module's path."""
    stages = {
        "down_from_big": "stem",
        "final_layer": "bottleneck",
        "final_linear": "to_global",
        "final_transfer": "from_global",
        "conv1": "smart",
        "to_rgb1": "to_rgb",
    }
    for j in range(len(model.encoder)):
        stages[f"encoder_convs.{2 * j}"] = f"encoder.{j}.smart"
        stages[f"encoder_convs.{2 * j + 1}"] = f"encoder.{j}.down"
    for k in range(len(model.decoder)):
        stages[f"convs.{2 * k}"] = f"decoder.{k}.up"
        stages[f"convs.{2 * k + 1}"] = f"decoder.{k}.smart"
        stages[f"to_rgbs.{k}"] = f"decoder.{k}.to_rgb"
    return stages


def style_encoder_stages(model: StyleEncoder) -> dict[str, str]:
    """Units are numbered through in the published files and grouped in stages here."""
    stages = {
        "input_layer": "body.stem",
        "latlayer1": "lateral_middle",
        "latlayer2": "lateral_fine",
    }
    units = model.config.stage_units
    for stage, (count, end) in enumerate(zip(units, accumulate(units), strict=True)):
        for i in range(count):
            stages[f"body.{end - count + i}"] = f"body.stages.{stage}.{i}"
    return stages | {f"styles.{i}": f"styles.{i}" for i in range(model.config.num_tokens)}


def discriminator_stages(model: Discriminator) -> dict[str, str]:
    """Residual blocks keep their order."""
    blocks = {f"encoder_convs.{i}": f"blocks.{i}" for i in range(len(model.blocks))}
    return {"encoder_input_convs": "stem", "final_conv": "final_conv"} | blocks


@contextmanager
def checked_stages(vectors: Vectors, model: nn.Module, stages: dict[str, str]) -> Iterator[None]:
    """While the block runs, compare the output (``X``) or input (``in:X``) of the recorded stages.

    Each is compared as it appears, so that no activation is kept.
    """
    handles = []
    for entry in sorted(vectors.pending):
        name = entry.removeprefix(DIGEST)
        stage = re.sub(r"^in:", "", name)
        if stage not in stages:
            continue
        module = model.get_submodule(stages[stage])
        if stage == name:
            hook = module.register_forward_hook(
                lambda _module, _args, output, name=name: vectors.check(name, output)
            )
        else:
            hook = module.register_forward_pre_hook(
                lambda _module, args, name=name: vectors.check(name, args[0])
            )
        handles.append(hook)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

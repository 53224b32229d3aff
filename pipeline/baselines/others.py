"""GFPGAN, RestoreFormer and CodeFormer: spandrel builds and loads them, the rest is ours.

Spandrel's own call feeds GFPGAN and CodeFormer [0, 1], where they were trained on [-1, 1], and
fixes CodeFormer's w at 0.5: it gives plausible pictures that are not the method's. So its call is
not used: the network gets [-1, 1], as the three teams' own inference code does.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.replica import Baseline
from vsp_model.faces import check_faces
from vsp_model.randomness import NoiseMode
from vsp_model.runtime import RuntimeConfig, resolve_device

if TYPE_CHECKING:
    from spandrel import ModelDescriptor

SIZE = 512
SUFFIXES = (".pth", ".ckpt", ".safetensors")  # of a .pt, spandrel would run the TorchScript in it
_TENCENT = (
    "code Apache-2.0, listing parts of StyleGAN2 (NVIDIA, non-commercial) and DFDNet "
    "(CC BY-NC-SA 4.0)"
)

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a baseline.

    Attributes:
        id: As spandrel calls it.
        packages: Importable names that load it.
        extra: Our optional dependency that brings them.
        terms: Its licence in a few words; the files of the weights may have terms of their own.
        forward: (network, w, (B, 3, S, S) in [-1, 1]) -> the same, restored.
    """

    id: str
    packages: tuple[str, ...]
    extra: str
    terms: str
    forward: Callable[[nn.Module, float, Tensor], Tensor]


def _gfpgan(network: nn.Module, w: float, lq: Tensor) -> Tensor:
    # The published inference draws noise anew in every run; the stored noise repeats.
    restored: Tensor = network(lq, return_rgb=False, randomize_noise=False)[0]
    return restored


def _restoreformer(network: nn.Module, w: float, lq: Tensor) -> Tensor:
    restored: Tensor = network(lq)[0]
    return restored


def _codeformer(network: nn.Module, w: float, lq: Tensor) -> Tensor:
    restored: Tensor = network(lq, weight=w)[0]  # adain is on, as published
    return restored


ARCHITECTURES: Mapping[str, Architecture] = {
    "gfpgan": Architecture("GFPGAN", ("spandrel",), "baselines", f"GFPGAN: {_TENCENT}", _gfpgan),
    "restoreformer": Architecture(
        "RestoreFormer", ("spandrel",), "baselines", f"RestoreFormer: {_TENCENT}", _restoreformer
    ),
    "codeformer": Architecture(
        "CodeFormer",
        ("spandrel", "spandrel_extra_arches"),
        "baselines-nc",
        "CodeFormer: S-Lab License 1.0, non-commercial use only",
        _codeformer,
    ),
}


def check_installed(arch: str) -> None:
    """Refuse a baseline whose packages are not installed.

    Raises:
        UserError: In one line, with the extra to install.
    """
    known = ARCHITECTURES[arch]
    absent = [name for name in known.packages if find_spec(name) is None]
    if absent:
        raise UserError(
            f"{arch} needs {', '.join(absent)}: pip install 'vsp-restore[{known.extra}]' "
            f"({known.terms})"
        )


class SpandrelRestorer:
    """A baseline as a `registry.Restorer`: a function of the face alone, without noise."""

    def __init__(self, network: nn.Module, spec: Baseline, runtime: RuntimeConfig) -> None:
        """Take the network over: it is moved to the device and put in evaluation mode."""
        if runtime.precision == "fp16":
            raise UserError(f"{spec.arch}: not made for fp16; use fp32 or bf16")
        self._device = resolve_device(runtime.device)
        self._autocast = runtime.precision == "bf16"
        self._spec = spec
        self.network = network.eval().requires_grad_(False).to(self._device)

    @property
    def size(self) -> int:
        """Working size S in pixels; the networks allow no other."""
        return SIZE

    def forward(self, lq: Tensor) -> Tensor:
        """The network alone: (B, 3, S, S) in [-1, 1] -> the same."""
        return ARCHITECTURES[self._spec.arch].forward(self.network, self._spec.w, lq)

    @torch.inference_mode()
    def restore(
        self, lq: Tensor, keys: Sequence[str], *, seed: int = 0, noise: NoiseMode = "seeded"
    ) -> Tensor:
        """See `registry.Restorer`; seed and noise change nothing."""
        check_faces(lq, self.size, keys)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return self.forward(lq.to(self._device)).float()


def load_baseline(spec: Baseline, runtime: RuntimeConfig) -> SpandrelRestorer:
    """Open a checkpoint and make it ready to restore; no code in the file is run.

    Raises:
        UserError: If a package is missing, or the file does not hold what it should.
    """
    check_installed(spec.arch)
    descriptor = _descriptor(spec)
    wanted, found = ARCHITECTURES[spec.arch].id, descriptor.architecture.id
    if found != wanted:
        raise UserError(f"{spec.path}: holds {found}, not {wanted}; correct `arch`")
    return SpandrelRestorer(descriptor.model, spec, runtime)


def _descriptor(spec: Baseline) -> "ModelDescriptor[Any]":
    """Let spandrel read the file: tensors alone, by its restricted unpickler or safetensors."""
    import spandrel

    if spec.path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{spec.path}: expected {', '.join(SUFFIXES)}")
    registry = spandrel.MAIN_REGISTRY.copy()
    if "spandrel_extra_arches" in ARCHITECTURES[spec.arch].packages:
        import spandrel_extra_arches

        registry.add(*spandrel_extra_arches.EXTRA_REGISTRY)
    loader = spandrel.ModelLoader("cpu", registry)
    try:
        return loader.load_from_file(spec.path)
    except spandrel.UnsupportedModelError:
        wanted = ARCHITECTURES[spec.arch].id
        raise UserError(f"{spec.path}: no network that spandrel knows; expected {wanted}") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{spec.path}: no checkpoint, or one that would run code: {error}"
        ) from None
    except Exception as error:  # whatever a damaged file makes of the readers
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{spec.path}: cannot be loaded ({reason})") from None

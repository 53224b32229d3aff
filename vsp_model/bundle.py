"""The bundle: one safetensors file that holds a model's tensors and its configuration.

The header's metadata has one entry, ``vsp``: a ``BundleInfo`` as JSON (one, because safetensors
writes several in random order, and equal models should give equal files). Tensors are named
``<part>.<our name>``, such as ``encoder.body.stem.0.weight``. What restoring does not need stands
under ``training.`` (the restorer's copy that is not averaged, the discriminator ...) and ``kept.``
(what only the way back to the published files needs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.config import Config
from vsp_model.discriminator import DiscriminatorConfig
from vsp_model.files import CheckpointError, whole_or_absent
from vsp_model.idm.config import IDMConfig
from vsp_model.infer import explain
from vsp_model.iqp.config import BackboneConfig, BooksConfig, DictionaryConfig, IQPConfig
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config
from vsp_model.vspbfr import VSPBFRConfig

_ENTRY = "vsp"
_ALIGNMENT = 64  # bytes; torch's own
_BESIDE = ("training.", "kept.")
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class InversionConfig(Config):
    """Style encoder and generator without a restorer: an imported e4e checkpoint."""

    kind: Literal["e4e"] = "e4e"
    encoder: StyleEncoderConfig
    prior: StyleGAN2Config


class PromptConfig(Config):
    """Everything but a restorer: what training has made before its last stage."""

    kind: Literal["prompt"] = "prompt"
    encoder: StyleEncoderConfig
    diffuser: CodeDiffuserConfig
    prior: StyleGAN2Config


class PriorConfig(Config):
    """The generator alone: an imported StyleGAN2 checkpoint."""

    kind: Literal["stylegan2"] = "stylegan2"
    prior: StyleGAN2Config


class IdentityOnlyConfig(Config):
    """The identity network alone.

    Its configuration is checked where the network is built: to import it takes torchvision, which
    loads slower than torch and which restoring does not need.
    """

    kind: Literal["identity"] = "identity"
    identity: dict[str, JsonValue]


class CodebooksConfig(Config):
    """IQP after its first stage: encoder of clean pictures, codebooks, decoder."""

    kind: Literal["iqp-books"] = "iqp-books"
    encoder: BackboneConfig
    books: BooksConfig

    @property
    def hq_encoder(self) -> BackboneConfig:
        """The part of that name."""
        return self.encoder

    @property
    def dictionary(self) -> DictionaryConfig:
        """The part of that name."""
        return DictionaryConfig(backbone=self.encoder, books=self.books)


RESTORERS = ("vspbfr", "iqp", "idm")
"""Kinds that hold a whole restorer."""
BundleConfig = (
    VSPBFRConfig
    | IQPConfig
    | IDMConfig
    | CodebooksConfig
    | InversionConfig
    | PromptConfig
    | PriorConfig
    | IdentityOnlyConfig
)


class TrainingInfo(Config):
    """What is known of the tensors under ``training.``."""

    discriminator: DiscriminatorConfig | None = None
    identity: dict[str, JsonValue] | None = None
    ada_aug_p: float | None = None
    """Probability of the adaptive augmentation when training stopped."""


class BundleInfo(Config):
    """All that a bundle says of its tensors."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # an option may be infinite
    version: Literal[1] = 1
    config: Annotated[BundleConfig, Field(discriminator="kind")]
    training: TrainingInfo | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """``opts`` of the published style encoder."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Name and sha256 of each file that the bundle was made from."""
    notes: tuple[str, ...] = ()
    notice: str = ""
    """Terms of the weights that whoever runs them must see, one line; shown once a run."""


class Spec(NamedTuple):
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        """As in ``float32 (3, 512)``."""
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


Specs = dict[str, Spec]


def specs_of(tensors: Mapping[str, Tensor]) -> Specs:
    """Types and shapes, by name."""
    return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def compare(expected: Mapping[str, Spec], found: Mapping[str, Spec], where: str) -> None:
    """Refuse tensors that are missing, extra or misshapen.

    Raises:
        CheckpointError: in one line, naming the first ones.
    """
    _refuse(f"{where}: missing", [name for name in expected if name not in found])
    _refuse(f"{where}: unknown", [name for name in found if name not in expected])
    for name, spec in expected.items():
        if found[name] != spec:
            raise CheckpointError(f"{where}: tensor {name} is {found[name]}, expected {spec}")


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{what} tensor{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}")


class Bundle:
    """An open bundle; its tensors are memory-mapped, so what is not used is not read.

    float16 is a way to store: such a tensor counts as float32, which it becomes when it is read.
    """

    def __init__(self, path: Path, file: safe_open) -> None:
        self.path = path
        self._file = file
        self.info = _info(path, file.metadata() or {})
        self.specs: Specs = {}
        for name in file.keys():  # noqa: SIM118 - a handle, not a dict
            view = file.get_slice(name)
            code = view.get_dtype()
            if code not in _DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name} has the type {code}, which is unknown"
                )
            dtype = torch.float32 if code == "F16" else _DTYPES[code]
            self.specs[name] = Spec(dtype, tuple(view.get_shape()))

    def names(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``, without it."""
        return [n.removeprefix(prefix) for n in self.specs if n.startswith(prefix)]

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, by the rest of the name."""
        return {name: self._aligned(prefix + name) for name in self.names(prefix)}

    def tensor(self, name: str) -> Tensor | None:
        """One tensor by its whole name, if it is there."""
        return self._aligned(name) if name in self.specs else None

    def main_specs(self) -> Specs:
        """Types and shapes of what the model itself needs."""
        return {n: s for n, s in self.specs.items() if not n.startswith(_BESIDE)}

    def main_tensors(self) -> dict[str, Tensor]:
        """The tensors that the model itself needs."""
        return {name: self._aligned(name) for name in self.main_specs()}

    def _aligned(self, name: str) -> Tensor:
        """A tensor whose memory begins like that of any other tensor.

        Vectorised loops take other steps, and round otherwise, where memory begins between.
        """
        tensor: Tensor = self._file.get_tensor(name)
        if tensor.dtype == torch.float16:
            return tensor.float()
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


@contextmanager
def open_bundle(path: Path | str) -> Iterator[Bundle]:
    """Open a bundle and check its header.

    Raises:
        CheckpointError: if the file is cut short, no safetensors file or no bundle.
        OSError: if it can't be read.
    """
    path = Path(path)
    path.open("rb").close()  # safetensors' own errors leave out the reason or the name
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); copy or convert it again"
        ) from None
    with file:
        yield Bundle(path, file)


def _info(path: Path, metadata: Mapping[str, str]) -> BundleInfo:
    if _ENTRY not in metadata:
        raise CheckpointError(
            f"{path}: no bundle: the metadata has no entry {_ENTRY!r}; make one with `vsp convert`"
        )
    try:
        return BundleInfo.model_validate_json(metadata[_ENTRY])
    except ValidationError as error:
        raise CheckpointError(f"{path}: metadata: {explain(error)}") from None


def _order(spec: Spec) -> tuple[bool, int]:
    """Of the data in the file, which has no gaps: nearly every tensor is then aligned."""
    return spec.num_bytes % _ALIGNMENT != 0, -spec.dtype.itemsize


class BundleWriter:
    """Writes one tensor after the other, so that a bundle need not fit into memory."""

    def __init__(self, file: BinaryIO, specs: Specs, info: BundleInfo) -> None:
        self._file = file
        self._specs = specs
        self._left = set(specs)
        metadata = {_ENTRY: info.model_dump_json()}
        header: dict[str, object] = {"__metadata__": metadata}
        self._begin: dict[str, int] = {}
        end = 0
        for name, spec in sorted(specs.items(), key=lambda item: _order(item[1])):
            begin, end = end, end + spec.num_bytes
            self._begin[name] = begin
            header[name] = {
                "dtype": _CODES[spec.dtype],
                "shape": spec.shape,
                "data_offsets": (begin, end),
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        file.write(len(text).to_bytes(8, "little") + text)
        self._data = 8 + len(text)

    def write(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors, each once.

        Raises:
            ValueError: naming a tensor that the header has not, has otherwise, or that was written.
        """
        for name, tensor in tensors.items():
            name = prefix + name
            spec = Spec(tensor.dtype, tuple(tensor.shape))
            if name not in self._left or self._specs[name] != spec:
                raise ValueError(f"{name}, {spec}: expected {self._specs.get(name)}, once")
            self._left.remove(name)
            self._file.seek(self._data + self._begin[name])
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._file.write(data.numpy().data)

    def finish(self) -> None:
        """Make sure that nothing was left out."""
        if self._left:
            raise ValueError(f"{min(self._left)}: not written")


@contextmanager
def writing(path: Path, specs: Specs, info: BundleInfo) -> Iterator[BundleWriter]:
    """Write a bundle, whole or not at all."""
    with whole_or_absent(path) as file:
        writer = BundleWriter(file, specs, info)
        yield writer
        writer.finish()

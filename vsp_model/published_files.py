"""The published files: what sections each one has, and how to open one without running its code.

They are pickles. ``weights_only`` unpickling builds tensors and plain values and calls nothing that
is not on a list; to PyTorch's own list comes what real files hold besides: the command line's
arguments and numpy scalars.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor
from torch.serialization import safe_globals

from vsp_model.files import CheckpointError

ENCODER_FILE = "style_encoder_decoder.pt"
DIFFUSER_FILE = "code_diffuser.pt"
RESTORATION_FILE = "restoration_net.pt"
STYLEGAN2_FILE = "stylegan2.pt"
IDENTITY_FILE = "Arcface.pth"

ENCODER_TYPE = "Encoder4Editing"
LATENT_DISCRIMINATOR = "training.latent_discriminator"
"""Part that keeps the style encoder's own discriminator, under its published names."""


@dataclass(frozen=True)
class Section:
    """Where a network lies in a file, and which part of a bundle it is."""

    container: str | None
    """Entry of the file that holds the tensors; None for the file itself."""
    prefix: str
    """Of every name."""
    part: str

    @property
    def optional(self) -> bool:
        """True for what only training needs."""
        return self.part.startswith("training.")

    def __str__(self) -> str:
        """As in ``state_dict: encoder.*``."""
        return f"{self.container}: {self.prefix}*" if self.container else f"{self.prefix}*"


SECTIONS = {
    ENCODER_FILE: (
        Section("state_dict", "encoder.", "encoder"),
        Section("state_dict", "decoder.", "prior"),
    ),
    DIFFUSER_FILE: (Section("att_mapper", "", "diffuser"),),
    RESTORATION_FILE: (
        Section("g_ema", "", "restoration"),
        Section("g", "", "training.restoration"),
        Section("d", "", "training.discriminator"),
    ),
    STYLEGAN2_FILE: (
        Section("g_ema", "", "prior"),
        Section("g", "", "training.prior"),
        Section("d", "", "training.discriminator"),
    ),
    IDENTITY_FILE: (Section(None, "", "identity"),),
}
"""Of each kind of file; a file is known by its contents, its name is free."""

_DROPPED = {
    "mapper_optim": "optimiser state",
    "g_optim": "optimiser state",
    "d_optim": "optimiser state",
    "optimizer": "optimiser state",
    "discriminator_optimizer_state_dict": "optimiser state",
    "args": "arguments",
    "iter": "counter",
    "global_step": "counter",
    "step": "counter",
    "best_path": "record of the best run",
    "best_fid": "record of the best run",
    "best_val_loss": "record of the best run",
}
_LATENT_DISCRIMINATOR_ENTRIES = ("discriminator_state_dict", "discriminator")


@dataclass
class Contents:
    """One published file, sorted."""

    path: Path
    kind: str
    sections: dict[str, dict[str, Tensor]]
    """Published tensors by part, names without the section's prefix."""
    latent_avg: Tensor | None = None
    latent_discriminator: dict[str, Tensor] = field(default_factory=dict)
    ada_aug_p: float | None = None
    options: dict[str, JsonValue] | None = None
    dropped: list[str] = field(default_factory=list)
    """One line for each entry that no bundle holds."""


def read(path: Path) -> Contents:
    """Open a published file and sort its entries.

    Raises:
        CheckpointError: in one line: no checkpoint, a pickle that asks for more than the list
            allows (nothing of it is run), an unknown kind of file or section, a stray entry.
        OSError: if the file can't be read.
    """
    if path.suffix == ".safetensors":  # torch.load reads these too
        raise CheckpointError(
            f"{path}: a bundle, expected a published file; --to-published goes back"
        )
    entries = _unpickle(path)
    kind = _kind_of(path, entries)
    entries, sections = _split(path, kind, entries)
    contents = Contents(path, kind, sections)
    for name, value in entries.items():
        _sort(contents, name, value)
    return contents


# ---------------------------------------------------------------------------------- unpickling


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """A number from its bytes; numpy's own function also makes objects and records."""
    if dtype.kind not in "biuf" or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError(f"a numpy scalar of type {dtype}")
    return np.frombuffer(data, dtype)[0]


_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in ("?", "i4", "i8", "f4", "f8")),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # until numpy 1.26
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


def _unpickle(path: Path) -> dict[str, Any]:
    path.open("rb").close()  # torch's own error would not be an OSError
    try:
        with safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            value = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_explain(error)}") from None
    except (RuntimeError, OSError, EOFError, LookupError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint ({reason})") from None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected named entries")
    return value


def _explain(error: pickle.UnpicklingError) -> str:
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"([\w.]+) which is not", text)
    if asked:
        return (
            f"refused: the pickle asks for {asked[1]}, which is not on the list of what a "
            "checkpoint may hold; nothing of it was run"
        )
    first = text.split("WeightsUnpickler error: ")[-1].strip().splitlines()[0]
    return f"not a PyTorch checkpoint ({first}); is the download complete?"


# ------------------------------------------------------------------------------------- sorting


def _kind_of(path: Path, entries: Mapping[str, Any]) -> str:
    if "att_mapper" in entries:
        return DIFFUSER_FILE
    if "state_dict" in entries or any(name.startswith("encoder.") for name in entries):
        return ENCODER_FILE
    if "g_ema" in entries and isinstance(entries["g_ema"], Mapping):
        is_restorer = any(name.startswith("down_from_big.") for name in entries["g_ema"])
        return RESTORATION_FILE if is_restorer else STYLEGAN2_FILE
    if any(name.startswith("layer1.0.") for name in entries):
        return IDENTITY_FILE
    some = ", ".join(list(entries)[:4]) or "nothing"
    raise CheckpointError(
        f"{path}: none of the known files: it holds {some}; expected the sections of "
        + ", ".join(SECTIONS)
    )


def _split(
    path: Path, kind: str, entries: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Take the known sections out; returns the other entries and the sections by part."""
    sections, taken = {}, set()
    flat = kind == ENCODER_FILE and "state_dict" not in entries
    by_container: dict[str | None, list[Section]] = {}
    for section in SECTIONS[kind]:
        by_container.setdefault(None if flat else section.container, []).append(section)
    for container, members in by_container.items():
        if container is not None and container not in entries:
            continue  # whether it is needed is for the caller to say
        held = entries if container is None else entries[container]
        if not isinstance(held, Mapping):
            raise CheckpointError(f"{path}: {container}: a {type(held).__name__}, expected tensors")
        for section in members:
            names = [n for n in held if n.startswith(section.prefix)]
            sections[section.part] = {
                our_spelling(kind, section, n): _tensor(path, n, held[n]) for n in names
            }
            taken |= {(container, n) for n in names}
        if container is not None:
            stray = [n for n in held if (container, n) not in taken]
            if stray:
                raise CheckpointError(f"{path}: {container}: unknown tensor {stray[0]}")
            taken.add((None, container))
    return {n: v for n, v in entries.items() if (None, n) not in taken}, sections


def our_spelling(kind: str, section: Section, name: str) -> str:
    """A tensor's name as the layouts of ``published`` know it.

    The stem of StyleGAN2's discriminator is its convolution 0.
    """
    name = name.removeprefix(section.prefix)
    if kind == STYLEGAN2_FILE and section.container == "d" and name.startswith("convs."):
        _, index, rest = name.split(".", 2)
        stem = "encoder_input_convs" if index == "0" else f"encoder_convs.{int(index) - 1}"
        return f"{stem}.{rest}"
    return name


def their_spelling(kind: str, section: Section, name: str) -> str:
    """The inverse of ``our_spelling``."""
    if kind == STYLEGAN2_FILE and section.container == "d":
        name = name.replace("encoder_input_convs.", "convs.0.")
        if name.startswith("encoder_convs."):
            _, index, rest = name.split(".", 2)
            name = f"convs.{int(index) + 1}.{rest}"
    return section.prefix + name


def _tensor(path: Path, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {name}: a {type(value).__name__}, expected a tensor")
    return value.detach()


def _sort(contents: Contents, name: str, value: Any) -> None:
    """Put one entry that is no section into its place, or refuse it."""
    path, kind = contents.path, contents.kind
    if name in _DROPPED:
        contents.dropped.append(f"{name} ({_DROPPED[name]})")
    elif name == "opts" and kind == ENCODER_FILE:
        contents.options = {str(k): _plain(v) for k, v in _mapping(path, name, value).items()}
    elif name == "latent_avg" and kind in (ENCODER_FILE, STYLEGAN2_FILE):
        contents.latent_avg = _tensor(path, name, value)
    elif name in _LATENT_DISCRIMINATOR_ENTRIES and kind == ENCODER_FILE:
        held = _mapping(path, name, value)
        contents.latent_discriminator = {n: _tensor(path, n, v) for n, v in held.items()}
    elif name == "ada_aug_p" and kind in (RESTORATION_FILE, STYLEGAN2_FILE):
        contents.ada_aug_p = float(value)
    else:
        raise CheckpointError(
            f"{path}: unknown section {name!r}: nothing but optimiser state, arguments and "
            "counters may be left behind"
        )


def _mapping(path: Path, name: str, value: object) -> Mapping[str, Any]:
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path}: {name}: a {type(value).__name__}, expected named values")
    return value


def _plain(value: object) -> JsonValue:
    """An option as JSON can tell it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

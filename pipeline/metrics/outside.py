"""Networks of other people, by path: their tensors read without running code, and who computes."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

# Older files were saved before batch norms counted; evaluation does not read the counters.
_COUNTERS = "num_batches_tracked"


def library(package: str) -> str:
    """Package and version, as "lpips 0.1.4"."""
    return f"{package} {version(package)}"


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a published PyTorch file, by name; nothing in it is run.

    Args:
        path: The file: tensors, or an entry `state_dict` of them.
        what: The network, for messages.

    Returns:
        On the CPU, names without the "module." of a wrapper for several GPUs.

    Raises:
        UserError: If the file is no such thing, or its pickle asks for more than tensors.
    """
    try:
        path.open("rb").close()  # torch's own error would not be an OSError
        held = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected {what}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, {_asked(error)}; expected {what}") from None
    except Exception as error:  # torch fails over damaged bytes in many ways
        raise UserError(f"{path}: no {what} ({_first_line(error)})") from None
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not _are_tensors(held):
        raise UserError(f"{path}: no {what} (holds no named tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in held.items()}


def _are_tensors(held: Any) -> bool:
    return (
        isinstance(held, Mapping)
        and bool(held)
        and all(isinstance(value, Tensor) for value in held.values())
    )


def _asked(error: pickle.UnpicklingError) -> str:
    """What a pickle asked for that tensors do not need, in a few words."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"([\w.]+) which is", str(error))
    return f"its pickle asks for {asked[1]}" if asked else "it is no file of tensors"


def load_into(net: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Give a network its tensors, every one of them, and freeze it in evaluation mode.

    Raises:
        UserError: If one is missing, unknown or of another shape.
    """
    try:
        found = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # shapes
        raise UserError(f"{path}: no {what} ({_shape_fault(error)})") from None
    wrong = [name for name in found.missing_keys if not name.endswith(_COUNTERS)]
    wrong += found.unexpected_keys
    if wrong:
        raise UserError(f"{path}: no {what} ({wrong[0]} is missing or unknown)")
    net.requires_grad_(False).eval()


def _shape_fault(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""What judges that are networks share: faces as tensors, and weights from a file by path."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.judge import Face
from pipeline.metrics.outside import load_into, read_tensors


def to_tensor(picture: Pixels) -> Tensor:
    """(H, W, 3) uint8 RGB as float32 (1, 3, H, W) in [-1, 1], channels_last."""
    height, width = picture.shape[:2]
    batch = torch.empty(1, 3, height, width, memory_format=torch.channels_last)
    images.to_model(picture, batch, 0)
    return batch


def places_of(face: Face) -> Tensor | None:
    """The truth's five points as float32 (1, 5, 2); None where nobody knows them.

    A face whose points are unknown has no identity: where they usually are is no substitute.
    """
    if face.points is None:
        return None
    places = torch.from_numpy(face.points)[None].float()
    return places if bool(torch.isfinite(places).all()) else None


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or a PyTorch file.

    Args:
        path: The file.
        what: The network, for messages.

    Raises:
        UserError: If it is no such file.
    """
    if path.suffix != ".safetensors":
        return read_tensors(path, what)
    try:
        return load_file(path)
    except Exception as error:  # safetensors fails in ways of its own
        raise UserError(f"{path}: no {what} ({str(error).splitlines()[0]})") from None


def fill(net: nn.Module, path: Path, what: str) -> None:
    """Give a network the weights of a file, all of them, and freeze it in evaluation mode.

    Raises:
        UserError: If the file holds no such network.
    """
    load_into(net, read_weights(path, what), path, what)

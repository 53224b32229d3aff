"""Features of the Inception network of 2015-12-05, on which FID, KID and U-IDS are defined.

The network is torch-fidelity's; pytorch-fid publishes the same tensors under the same names. What
differs between published FIDs is how an image comes to 299 pixels, so it is part of the id.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from pipeline import images
from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Feature, Role, Score
from pipeline.metrics.outside import library, load_into, read_tensors
from vsp_model.files import sha256_of

Resize = Literal["bilinear", "tf1-bilinear", "pil-bicubic"]
SIZE = 299
DIM = 2048
_WHAT = "Inception 2015-12-05 (of torch-fidelity or pytorch-fid)"


class Pool3(nn.Sequential):
    """The network up to its last pooling, of torch-fidelity's blocks under the published names."""

    def __init__(self) -> None:
        super().__init__()
        conv = blocks.BasicConv2d
        parts = {
            "Conv2d_1a_3x3": conv(3, 32, kernel_size=3, stride=2),
            "Conv2d_2a_3x3": conv(32, 32, kernel_size=3),
            "Conv2d_2b_3x3": conv(32, 64, kernel_size=3, padding=1),
            "MaxPool_1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": conv(64, 80, kernel_size=1),
            "Conv2d_4a_3x3": conv(80, 192, kernel_size=3),
            "MaxPool_2": nn.MaxPool2d(3, 2),
            "Mixed_5b": blocks.InceptionA(192, pool_features=32),
            "Mixed_5c": blocks.InceptionA(256, pool_features=64),
            "Mixed_5d": blocks.InceptionA(288, pool_features=64),
            "Mixed_6a": blocks.InceptionB(288),
            "Mixed_6b": blocks.InceptionC(768, channels_7x7=128),
            "Mixed_6c": blocks.InceptionC(768, channels_7x7=160),
            "Mixed_6d": blocks.InceptionC(768, channels_7x7=160),
            "Mixed_6e": blocks.InceptionC(768, channels_7x7=192),
            "Mixed_7a": blocks.InceptionD(768),
            "Mixed_7b": blocks.InceptionE_1(1280),
            "Mixed_7c": blocks.InceptionE_2(2048),
            "AvgPool": nn.AdaptiveAvgPool2d(1),
        }
        for name, part in parts.items():
            self.add_module(name, part)


def bilinear(image: Pixels) -> Tensor:
    """[-1, 1], bilinear in float without antialiasing: BasicSR and pytorch-fid.

    Args:
        image: uint8 (H, W, 3) RGB.

    Returns:
        (1, 3, 299, 299).
    """
    unit = images.TO_MODEL[image].transpose(2, 0, 1)[None]
    return F.interpolate(
        torch.from_numpy(unit), (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=False
    )


def tf1_bilinear(image: Pixels) -> Tensor:
    """TensorFlow 1's bilinear, whose samples sit on pixels' corners: torch-fidelity.

    Arguments and result as `bilinear`; in [-1, 1).
    """
    values = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(
        values, size=(SIZE, SIZE), align_corners=False
    )
    return (resized - 128) / 128


def pil_bicubic(image: Pixels) -> Tensor:
    """Pillow's antialiased bicubic, each channel in float and not cut to 0-255: clean-fid.

    Arguments and result as `bilinear`; about [-1, 1).
    """
    channels = image.transpose(2, 0, 1).astype(np.float32)
    resized = np.stack([_pil_resized(channel) for channel in channels])
    return (torch.from_numpy(resized)[None] - 128) / 128


def _pil_resized(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


_FRONT_ENDS: dict[Resize, Callable[[Pixels], Tensor]] = {
    "bilinear": bilinear,
    "tf1-bilinear": tf1_bilinear,
    "pil-bicubic": pil_bicubic,
}


class InceptionExtractor:
    """2048 features of one image at a time: a batch's size would change their last digits.

    See `judge.Extractor`. Threads may share it.
    """

    dim = DIM

    def __init__(self, path: Path, resize: Resize) -> None:
        """Read the published weights, in torch-fidelity's file or pytorch-fid's.

        Raises:
            UserError: If the file holds no such network.
        """
        tensors = read_tensors(path, _WHAT)
        self._net = Pool3()
        # The classifier above the pooling is not computed.
        pooled = {name: t for name, t in tensors.items() if not name.startswith("fc.")}
        load_into(self._net, pooled, path, _WHAT)
        self._front_end = _FRONT_ENDS[resize]
        self.id = f"inception2015-12-05/pool3/{resize}"
        self.files = {path.name: sha256_of(path)}
        self.library = library("torch-fidelity")

    @torch.inference_mode()
    def feature(self, face: Face, role: Role) -> Feature | Score:
        """See `judge.Extractor`."""
        pooled = self._net(self._front_end(face.image(role))).flatten().numpy()
        return pooled if np.isfinite(pooled).all() else Score.no("non_finite")

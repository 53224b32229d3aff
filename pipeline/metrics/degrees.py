"""Identity as other papers report it: ResNet18-ArcFace on the gray face at 128 pixels.

VQFR's `Deg.`, RestoreFormer++'s `IDD` and CodeFormer's `IDS` are three readings of one network
(github.com/ronghuaiyang/arcface-pytorch, `resnet_face18` without squeeze and excitation), written
here from its description. No face is detected or aligned: the crop is the whole picture.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.outside import load_into, read_tensors
from pipeline.metrics.pixels import OWN_LIBRARY
from vsp_model.files import sha256_of

SIZE = 128
DIM = 512
_WIDTHS = (64, 128, 256, 512)
# Of red, green and blue, as GFPGAN's identity loss has them. RestoreFormer++'s script reads files
# with OpenCV, whose order is blue, green, red, and applies them in this order.
_GRAY = (0.2989, 0.5870, 0.1140)
_WHAT = "ResNet18-ArcFace for gray faces of 128 pixels"


class _Block(nn.Module):
    """The improved residual block of ArcFace; one PReLU serves both places."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        y = self.bn2(self.conv2(y)) + self.downsample(x)
        out: Tensor = self.prelu(y)
        return out


class ArcFace18(nn.Module):
    """Gray face -> identity embedding; tensors carry the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        in_channels = 64
        for number, width in enumerate(_WIDTHS, start=1):
            stride = 1 if number == 1 else 2
            stage = nn.Sequential(_Block(in_channels, width, stride), _Block(width, width, 1))
            self.add_module(f"layer{number}", stage)
            in_channels = width
        self.bn4 = nn.BatchNorm2d(in_channels)
        self.fc5 = nn.Linear(in_channels * (SIZE // 16) ** 2, DIM)
        self.bn5 = nn.BatchNorm1d(DIM)

    def forward(self, face: Tensor) -> Tensor:
        """(B, 1, 128, 128) -> (B, 512)."""
        x = F.max_pool2d(self.prelu(self.bn1(self.conv1(face))), 2)
        for number in range(1, len(_WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        y: Tensor = self.bn5(self.fc5(self.bn4(x).flatten(1)))
        return y


class DegreesJudge:
    """The angle to the truth, three ways; see `judge.Judge`. Threads may share it."""

    metrics = ("deg-vqfr", "idd-rfpp", "ids-codeformer")
    library = OWN_LIBRARY

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no such network.
        """
        self._net = ArcFace18()
        load_into(self._net, read_tensors(path, _WHAT), path, _WHAT)
        self.files = {path.name: sha256_of(path)}

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`; pairs under a degree count here, the mean leaves them out."""
        assert face.truth is not None, "no truth"
        plain = self._cosine(gray(face.restored), gray(face.truth))
        swapped = self._cosine(gray_of_bgr(face.restored), gray_of_bgr(face.truth))
        return {
            "deg-vqfr": Score.of(np.degrees(np.arccos(plain))),
            "idd-rfpp": Score.of(np.arccos(swapped)),
            "ids-codeformer": Score.of(plain),
        }

    @torch.inference_mode()
    def _cosine(self, restored: Tensor, truth: Tensor) -> float:
        """Of the two embeddings, computed one by one so that neither hangs on the other."""
        one, other = (self._net(image)[0].double().numpy() for image in (restored, truth))
        cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
        return float(np.clip(cosine, -1, 1))  # keeps NaN


def gray(image: Pixels) -> Tensor:
    """OpenCV's gray in 8 bits, bilinear to 128, [-1, 1]: VQFR's script.

    Args:
        image: uint8 (H, W, 3) RGB.

    Returns:
        (1, 1, 128, 128).
    """
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(luma, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy((small.astype(np.float32) - 127.5) / 127.5)[None, None]


def gray_of_bgr(image: Pixels) -> Tensor:
    """Gray with red's and blue's weights swapped, [0, 1], bilinear: RestoreFormer++'s script.

    Arguments and result as `gray`.
    """
    blue_first = torch.from_numpy(image[:, :, ::-1].astype(np.float32) / 255)
    luma = (blue_first * torch.tensor(_GRAY)).sum(dim=2)[None, None]
    return F.interpolate(luma, (SIZE, SIZE), mode="bilinear", align_corners=False)

"""Whether the face keeps its expression: seven emotions by mini-XCEPTION, against the truth's.

O. Arriaga et al.: "Real-time Convolutional Neural Networks for Emotion and Gender Classification"
(2017), trained on FER2013. A weak classifier (half of labelled faces right), used for agreement.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.perceptual import BATCH, to_batch
from pipeline.metrics.pixels import Values
from vsp_model.train.judges import warp_faces

SIZE = 64
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
_EPS = 1e-3
_WIDTHS = (8, 16, 32, 64, 128)
_GRAY = (0.299, 0.587, 0.114)


class _Separable(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(in_channels, in_channels, 3, 1, 1, groups=in_channels, bias=False)
        self.pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.pw(self.dw(x)))
        return y


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.res = nn.Conv2d(in_channels, out_channels, 1, 2, bias=False)
        self.rbn = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.a = _Separable(in_channels, out_channels)
        self.b = _Separable(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.rbn(self.res(x))
        y = self.b(F.relu(self.a(x)))
        odd = y.shape[-1] % 2  # TensorFlow's "same": what is missing goes right and below first
        padded = F.pad(y, (odd, 1, odd, 1), value=-torch.inf)
        return shortcut + F.max_pool2d(padded, 3, 2)


class MiniXception(nn.Module):
    """Gray face -> logits of `EMOTIONS`; in evaluation mode from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, bias=False)
        self.b1 = nn.BatchNorm2d(8, eps=_EPS)
        self.c2 = nn.Conv2d(8, 8, 3, bias=False)
        self.b2 = nn.BatchNorm2d(8, eps=_EPS)
        self.m = nn.ModuleList(_Block(*pair) for pair in pairwise(_WIDTHS))
        self.out = nn.Conv2d(_WIDTHS[-1], len(EMOTIONS), 3, padding=1)
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> Tensor:
        """(B, 1, 64, 64) in [-1, 1] -> (B, 7)."""
        x = F.relu(self.b1(self.c1(face)))
        x = F.relu(self.b2(self.c2(x)))
        for block in self.m:
            x = block(x)
        y: Tensor = self.out(x)
        return y.mean(dim=(2, 3))


class Expression:
    """The classifier on faces cut out by the truth's five points."""

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no mini-XCEPTION.
        """
        self._net = MiniXception()
        try:
            missing = self._net.load_state_dict(load_file(path), strict=False)
        except Exception as error:  # safetensors and torch fail in ways of their own
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: no mini-XCEPTION ({reason})") from None
        # The file leaves the batch norms' counters out, which evaluation does not read.
        absent = [name for name in missing.missing_keys if "num_batches" not in name]
        if absent or missing.unexpected_keys:
            raise UserError(f"{path}: no mini-XCEPTION ({[*absent, *missing.unexpected_keys][0]})")

    @torch.inference_mode()
    def probabilities(self, faces: Sequence[Pixels], points: Values) -> Values:
        """Of the seven emotions, (N, 7); arguments as in `identity.Identity.embed`."""
        found = []
        weights = torch.tensor(_GRAY)[:, None, None]
        for start in range(0, len(faces), BATCH):
            chosen = slice(start, start + BATCH)
            places = torch.from_numpy(points[chosen].astype(np.float32))
            cut = warp_faces(to_batch(faces[chosen]), places, SIZE)
            logits = self._net((cut * weights).sum(dim=1, keepdim=True))
            found.append(logits.softmax(dim=1).double().numpy())
        return np.concatenate(found)


def agreement(probabilities: Values, true_probabilities: Values) -> Values:
    """1 where both have the same likeliest emotion, else 0, (N,)."""
    same = probabilities.argmax(axis=1) == true_probabilities.argmax(axis=1)
    return np.asarray(same, np.float64)


def distance(probabilities: Values, true_probabilities: Values) -> Values:
    """Total variation of the two distributions, 0 to 1, (N,)."""
    return np.asarray(np.abs(probabilities - true_probabilities).sum(axis=1) / 2, np.float64)

"""Whether the face keeps its expression: seven emotions by mini-XCEPTION, against the truth's.

O. Arriaga et al.: "Real-time Convolutional Neural Networks for Emotion and Gender Classification"
(2017), trained on FER2013. A weak classifier (half of labelled faces right), used for agreement.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.networks import fill, places_of, to_tensor
from pipeline.metrics.pixels import OWN_LIBRARY, Values
from vsp_model.files import sha256_of
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


class ExpressionJudge:
    """The classifier on faces cut out by the truth's five points; see `judge.Judge`."""

    metrics = ("expression", "expression-distance")
    library = OWN_LIBRARY

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no mini-XCEPTION.
        """
        self._net = MiniXception()
        fill(self._net, path, "mini-XCEPTION")
        self.files = {path.name: sha256_of(path)}

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        places = places_of(face)
        if places is None:
            return dict.fromkeys(self.metrics, Score.no("no_face"))
        found, true = (self._probabilities(face.image(role), places) for role in ("restored", "gt"))
        scores = float(found.argmax() == true.argmax()), distance(found, true)
        return {name: Score.of(value) for name, value in zip(self.metrics, scores, strict=True)}

    @torch.inference_mode()
    def _probabilities(self, picture: Pixels, places: Tensor) -> Values:
        """Of the seven emotions, (7,)."""
        cut = warp_faces(to_tensor(picture), places, SIZE)
        gray = (cut * torch.tensor(_GRAY)[:, None, None]).sum(dim=1, keepdim=True)
        return np.asarray(self._net(gray).softmax(dim=1)[0].double())


def distance(probabilities: Values, true_probabilities: Values) -> float:
    """Total variation of two distributions, 0 to 1."""
    return float(np.abs(probabilities - true_probabilities).sum() / 2)

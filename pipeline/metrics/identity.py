"""Whether it is the same person: angle between identity embeddings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.perceptual import BATCH, to_batch
from pipeline.metrics.pixels import Values
from vsp_model.mobilefacenet import MobileFaceNet
from vsp_model.train.judges import FaceEmbedder

Embeddings = NDArray[np.float64]


class Identity:
    """MobileFaceNet on the face warped to ArcFace's crop of 112.

    Both faces of a pair are warped by the points of the truth: a restorer that moves the eyes is
    not helped by points that follow them.
    """

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no MobileFaceNet.
        """
        net = MobileFaceNet()
        try:
            net.load_state_dict(load_file(path))
        except Exception as error:  # safetensors and torch fail in ways of their own
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: no MobileFaceNet ({reason})") from None
        self._embedder = FaceEmbedder(net).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def embed(self, faces: Sequence[Pixels], points: Values) -> Embeddings:
        """Embeddings of length 1, (N, 128).

        Args:
            faces: uint8 (S, S, 3) RGB, all of one size.
            points: (N, 5, 2), the truth's five points as (x, y) in pixels of the faces, the first
                pixel spanning 0 to 1; NaN for a face that lies as in FFHQ's crop.
        """
        found = []
        for start in range(0, len(faces), BATCH):
            chosen = slice(start, start + BATCH)
            places = torch.from_numpy(points[chosen].astype(np.float32))
            found.append(self._embedder(to_batch(faces[chosen]), places).double().numpy())
        return np.concatenate(found)


def cosine(embeddings: Embeddings, true_embeddings: Embeddings) -> Values:
    """Cosine of each pair, (N,): 1 the same picture, about 0 another person."""
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(true_embeddings, axis=1)
    return np.asarray((embeddings * true_embeddings).sum(axis=1) / lengths, np.float64)


def angle(cosines: Values) -> Values:
    """The same in degrees; no pair is left out of a mean for being equal (VQFR's script does)."""
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def found_again(embeddings: Embeddings, true_embeddings: Embeddings) -> Values:
    """1 where the nearest of all truths is the face's own, else 0, (N,)."""
    nearest = (embeddings @ true_embeddings.T).argmax(axis=1)
    return np.asarray(nearest == np.arange(len(embeddings)), np.float64)

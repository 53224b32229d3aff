"""Whether it is the same person: angle between identity embeddings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.metrics.judge import Face, Feature, Role, Score
from pipeline.metrics.networks import fill, places_of, to_tensor
from pipeline.metrics.pixels import OWN_LIBRARY, Values
from vsp_model.files import sha256_of
from vsp_model.mobilefacenet import EMBEDDING_DIM, MobileFaceNet
from vsp_model.train.judges import FaceEmbedder

_BLOCK = 1024
Embeddings = NDArray[np.float64]


class FaceNet:
    """MobileFaceNet on the face warped to ArcFace's crop of 112.

    Both faces of a pair are warped by the points of the truth: a restorer that moves the eyes is
    not helped by points that follow them.

    Attributes:
        files: The weight file and its sha256.
    """

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no MobileFaceNet.
        """
        net = MobileFaceNet()
        fill(net, path, "MobileFaceNet")
        self._embedder = FaceEmbedder(net).to(memory_format=torch.channels_last)
        self._sha256 = sha256_of(path)
        self.files = {path.name: self._sha256}

    def embedding(self, face: Face, role: Role) -> Feature | None:
        """(128,) of length 1, made once for whoever asks; None if the points are unknown."""
        place = f"mobilefacenet/{self._sha256}/{role}"
        if place not in face.shared:
            face.shared[place] = self._embed(face, role)
        found: Feature | None = face.shared[place]
        return found

    @torch.inference_mode()
    def _embed(self, face: Face, role: Role) -> Feature | None:
        places = places_of(face)
        if places is None:
            return None
        found: Feature = self._embedder(to_tensor(face.image(role)), places)[0].numpy()
        return found


class IdentityJudge:
    """Likeness of a face with its truth; see `judge.Judge`."""

    metrics = ("identity", "identity-angle")
    library = OWN_LIBRARY

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no MobileFaceNet.
        """
        self._net = FaceNet(path)
        self.files = self._net.files

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        found, true = (self._net.embedding(face, role) for role in ("restored", "gt"))
        if found is None or true is None:
            return dict.fromkeys(self.metrics, Score.no("no_face"))
        likeness = cosine(found.astype(np.float64), true.astype(np.float64))
        scores = float(likeness), float(angle(likeness))
        return {name: Score.of(value) for name, value in zip(self.metrics, scores, strict=True)}


class IdentityExtractor:
    """Embeddings, to compare sets of people; see `judge.Extractor`."""

    id = "mobilefacenet-ms1m/embedding/truth-points112"
    dim = EMBEDDING_DIM
    library = OWN_LIBRARY

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            UserError: If the file holds no MobileFaceNet.
        """
        self._net = FaceNet(path)
        self.files = self._net.files

    def feature(self, face: Face, role: Role) -> Feature | Score:
        """See `judge.Extractor`."""
        found = self._net.embedding(face, role)
        return Score.no("no_face") if found is None else found


def cosine(embeddings: Embeddings, true_embeddings: Embeddings) -> Values:
    """Cosine of each pair, (..., D) -> (...): 1 the same picture, about 0 another person."""
    lengths = np.linalg.norm(embeddings, axis=-1) * np.linalg.norm(true_embeddings, axis=-1)
    return np.asarray((embeddings * true_embeddings).sum(axis=-1) / lengths, np.float64)


def angle(cosines: Values) -> Values:
    """The same in degrees; no pair is left out of a mean for being equal (VQFR's script does)."""
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def found_again(embeddings: Embeddings, true_embeddings: Embeddings) -> Values:
    """1 where the nearest of all truths is the face's own, else 0, (N, D) -> (N,)."""
    starts = range(0, len(embeddings), _BLOCK)  # all against all would be gigabytes
    blocks = (embeddings[start : start + _BLOCK] @ true_embeddings.T for start in starts)
    nearest = np.concatenate([block.argmax(axis=1) for block in blocks])
    return np.asarray(nearest == np.arange(len(embeddings)), np.float64)

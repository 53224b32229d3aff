"""What a whole set of faces looks like: its features, its people, and how natural some faces are.

For the tables of the loop. Moments are kept, no feature and no embedding of a single face.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import ImageFault, Pixels
from pipeline.metrics.frechet import Gaussian, frechet
from pipeline.metrics.judge import Extractor, Face, Feature, Role, Score
from pipeline.metrics.moments import BLOCK, Features, Moments, merge_all
from pipeline.metrics.natural import SMALL_MODEL_PATH, NaturalModel, fit, load_model, niqe
from pipeline.metrics.pixels import NO_FILES, OWN_LIBRARY
from pipeline.plan import shard_name
from pipeline.training.cache import local_copy
from pipeline.training.index import Index, Record, index_shard, list_shards
from pipeline.weights import find
from vsp_model.train.judges import FFHQ_TEMPLATE

TRUNK = "squeezenet1_1_imagenet1k_fp16.safetensors"
FACE_NET = "mobilefacenet_ms1m.safetensors"
Name = tuple[str, str]
"""Shard and key of a face."""
_TEMPLATE = np.asarray(FFHQ_TEMPLATE) / 512
_THUMB, _BANDS, _CELLS = 8, 3, 4


class PlainExtractor:
    """Features that need no weights: a thumbnail, and how much detail lies where, by frequency.

    See `judge.Extractor`. A distance of such features sees blur, noise and colour, and nothing of
    what a face is.
    """

    id = "thumbnail8+laplacian3x4"
    dim = 3 * _THUMB**2 + _BANDS * _CELLS**2
    files = NO_FILES
    library = OWN_LIBRARY

    def feature(self, face: Face, role: Role) -> Feature | Score:
        """See `judge.Extractor`."""
        picture = face.image(role)
        thumb = images.resize(picture, _THUMB).astype(np.float32).ravel() / 255
        level = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)
        found = [thumb]
        for _ in range(_BANDS):
            low = np.asarray(cv2.GaussianBlur(level, (0, 0), 1.0), np.float32)
            energy = cv2.resize(np.abs(level - low), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
            found.append(np.log1p(energy).ravel())
            half = (low.shape[1] // 2, low.shape[0] // 2)
            level = np.asarray(cv2.resize(low, half, interpolation=cv2.INTER_AREA), np.float32)
        return np.concatenate(found).astype(np.float32)


@dataclass(frozen=True)
class Ruler:
    """What sets are measured with, all at one side.

    Attributes:
        size: Side in pixels to which every face is brought.
        extractor: Of features.
        identities: Of identity embeddings, None without the net's file.
        natural: What natural faces look like, None where they are too small for it.
        scorer: What the score by `natural` is called.
    """

    size: int
    extractor: Extractor
    identities: Extractor | None = None
    natural: NaturalModel | None = None
    scorer: str = ""

    @property
    def feature(self) -> str:
        """What the distances are between."""
        return f"Frechet distance of {self.extractor.id} at {self.size} px"


@dataclass
class Seen:
    """A set as it was measured.

    Attributes:
        features: Their moments.
        identities: Moments of the identity embeddings, of length 1; None without a net.
        scores: Distance from natural faces, smaller is better, of those that were asked for.
        embeddings: Of the same faces.
    """

    features: Moments
    identities: Moments | None = None
    scores: dict[Name, float] = field(default_factory=dict)
    embeddings: dict[Name, Feature] = field(default_factory=dict)

    @property
    def spread(self) -> float:
        """Mean squared distance of two faces' features."""
        return _spread(self.features)

    @property
    def identity_spread(self) -> float | None:
        """Mean cosine distance of two faces' embeddings: half of the squared distance."""
        return None if self.identities is None else _spread(self.identities) / 2


def _spread(moments: Moments) -> float:
    """E|x - y|^2 of two different members: twice the trace of the covariance."""
    return 2 * float(np.trace(moments.covariance)) if moments.count > 1 else 0.0


def make_ruler(size: int, held_out: tuple[str, ...] = ()) -> Ruler:
    """What is at hand to measure sets with.

    Args:
        size: Side of the faces in pixels.
        held_out: Shards of faces of top quality; what is natural is learnt from them.
    """
    extractor: Extractor = PlainExtractor()
    if path := _at_hand(TRUNK):
        from pipeline.metrics.features import SqueezeExtractor

        extractor = SqueezeExtractor(path)
    identities: Extractor | None = None
    if path := _at_hand(FACE_NET):
        from pipeline.metrics.identity import IdentityExtractor

        identities = IdentityExtractor(path)
    natural, scorer = _natural(size, held_out)
    return Ruler(size, extractor, identities, natural, scorer)


def _at_hand(name: str) -> Path | None:
    try:
        return find(name)
    except UserError:
        return None


def _natural(size: int, held_out: tuple[str, ...]) -> tuple[NaturalModel | None, str]:
    shipped = load_model(SMALL_MODEL_PATH)
    if size < shipped.min_side_px:
        return None, ""
    if held_out:
        try:
            faces = (images.resize(pixels, size) for _, _, pixels in _faces(held_out))
            return fit(faces, shipped.block_px), "NIQE in blocks of 32 px, fitted to held-out faces"
        except UserError:  # too few faces for a covariance
            pass
    return shipped, "niqe-small"


def measure(shards: tuple[str, ...], ruler: Ruler, scored: Set[Name] = frozenset()) -> Seen:
    """Look at every face of a set; pictures that cannot be read are left out.

    Args:
        shards: As `list_shards` takes them.
        ruler: What to measure with.
        scored: Faces whose own score and embedding are wanted.

    Raises:
        UserError: If there is no face.
    """
    seen = Seen(Moments.of(np.empty((0, ruler.extractor.dim), np.float32)))
    features = _Blocks()
    people = _Blocks()
    for shard, record, pixels in _faces(shards):
        name = (shard, record.key)
        face = _face(record, pixels, ruler.size)
        features.add(ruler.extractor.feature(face, "restored"))
        person = _embedding(face, ruler)
        people.add(person)
        if name in scored:
            if ruler.natural is not None:
                seen.scores[name] = niqe(face.restored, ruler.natural)
            if person is not None:
                seen.embeddings[name] = person
    seen.features = features.moments()
    seen.identities = people.moments() if ruler.identities is not None else None
    return seen


def features_of(pictures: Iterator[Pixels], ruler: Ruler) -> Features:
    """Features of pictures, (N, D), brought to the ruler's side."""
    found = []
    for pixels in pictures:
        face = Face("", images.resize(pixels, ruler.size))
        feature = ruler.extractor.feature(face, "restored")
        assert not isinstance(feature, Score), "no picture here is too small"
        found.append(feature)
    return np.stack(found)


def distance(ours: Moments, theirs: Moments) -> float:
    """Frechet's distance of two sets."""
    return frechet(Gaussian.of(theirs), Gaussian.of(ours)).value


class _Blocks:
    """Features, summed up in blocks so that a large set is never in memory."""

    def __init__(self) -> None:
        self._waiting: list[Feature] = []
        self._parts: list[Moments] = []

    def add(self, feature: Feature | Score | None) -> None:
        if feature is None or isinstance(feature, Score):
            return
        self._waiting.append(feature)
        if len(self._waiting) == BLOCK:
            self._close()

    def _close(self) -> None:
        self._parts.append(Moments.of(np.stack(self._waiting)))
        self._waiting = []

    def moments(self) -> Moments:
        if self._waiting:
            self._close()
        if not self._parts:
            raise UserError("no face in the set can be measured")
        return merge_all(self._parts)


def _faces(shards: tuple[str, ...]) -> Iterator[tuple[str, Record, Pixels]]:
    """Every readable face: its shard's name, its record, its pixels."""
    for shard in list_shards(shards):
        path = local_copy(shard, cache="")
        index = Index([path], [index_shard(path)[0]], ())
        for number in range(len(index)):
            record = index.read(number)
            try:
                yield shard_name(shard), record, images.decode(record.image)[1]
            except ImageFault:
                continue


def _face(record: Record, pixels: Pixels, size: int) -> Face:
    """At the ruler's side; where no points are known the face lies as in FFHQ's crop."""
    points: NDArray[np.float64] = record.points.astype(np.float64) * (size / len(pixels))
    if not np.isfinite(points).all():
        points = _TEMPLATE * size
    return Face(record.key, images.resize(pixels, size), points=points)


def _embedding(face: Face, ruler: Ruler) -> Feature | None:
    if ruler.identities is None:
        return None
    found = ruler.identities.feature(face, "restored")
    return None if isinstance(found, Score) else found

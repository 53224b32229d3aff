"""All judges that are at hand, each looking once at a set of faces; then faces against truths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.faces.detect import YUNET_PATH, DetectConfig, Detection, FaceDetector
from pipeline.images import Pixels
from pipeline.metrics import bands, expression, frechet, identity, intervals, landmarks, natural
from pipeline.metrics import pixels as pixel_metrics
from pipeline.metrics.features import SqueezeFeatures
from pipeline.metrics.perceptual import Net, Perceptual
from pipeline.metrics.pixels import Values
from vsp_model.files import sha256_of

PSNR_CAP_DB = 100.0  # equal pictures have no finite value
MIN_SCORE = 0.3  # of a detector: in an aligned crop there is a face, the question is where
SQUEEZENET = ("squeezenet1_1_imagenet1k_fp16.safetensors", "squeezenet1_1-b8a52dc0.pth")
_TRUNKS: dict[Net, tuple[str, ...]] = {
    "squeeze": SQUEEZENET,
    "alex": ("alexnet-owt-7be5be79.pth",),
    "vgg": ("vgg16-397923af.pth",),
}
_MOBILEFACENET = ("mobilefacenet_ms1m.safetensors",)
_RETINAFACE = ("retinaface_mobile025.safetensors", "detection_mobilenet0.25_Final.pth")
_MINI_XCEPTION = ("mini_xception_fer2013.safetensors",)


@dataclass(slots=True, eq=False)
class Seen:
    """What the judges saw in N faces.

    Attributes:
        faces: uint8 (S, S, 3) RGB, all of one size.
        points: (N, 5, 2), the truths' five points in pixels of the faces.
        embeddings: (N, 128) of the identity net.
        probabilities: (N, 7) of the emotions.
        features: (N, 512) for distances between sets.
        found: The face that each detector found, by the metric's name.
    """

    faces: Sequence[Pixels]
    points: Values
    embeddings: Values | None = None
    probabilities: Values | None = None
    features: Values | None = None
    found: dict[str, list[Detection | None]] = field(default_factory=dict)


class Panel:
    """The judges whose files are in a folder; YuNet comes with the program.

    Attributes:
        files: Name -> sha256 of the weight files in use.
        missing: What is not computed for want of a file, a line each.
    """

    def __init__(self, folder: Path, small: natural.NaturalModel | None = None) -> None:
        """Read the weights.

        Args:
            folder: Where the weight files are.
            small: A model that `natural.fit` made for small faces; without it there is no
                `niqe-small`.

        Raises:
            UserError: If a file is not what its name says.
        """
        self._folder, self._small = folder, small
        self.files: dict[str, str] = {YUNET_PATH.name: sha256_of(YUNET_PATH)}
        self.missing: list[str] = []
        self.perceptual: dict[str, Perceptual] = {}
        for net, names in _TRUNKS.items():
            if path := self._file(f"lpips-{net}", names):
                self.perceptual[f"lpips-{net}"] = Perceptual(path, net)
        path = self._file("identity", _MOBILEFACENET)
        self.identity = identity.Identity(path) if path else None
        path = self._file("expression", _MINI_XCEPTION)
        self._expression = expression.Expression(path) if path else None
        path = self._file("squeeze-fd", SQUEEZENET)
        self._features = SqueezeFeatures(path) if path else None
        self._detectors = {"nme-yunet": FaceDetector(DetectConfig(min_score=MIN_SCORE))}
        if path := self._file("nme-retinaface", _RETINAFACE):
            config = DetectConfig(
                detector="retinaface", weights=path, sha256=self.files[path.name],
                min_score=MIN_SCORE,
            )  # fmt: skip
            self._detectors["nme-retinaface"] = FaceDetector(config)

    def _file(self, metric: str, names: Sequence[str]) -> Path | None:
        for name in names:
            if (path := self._folder / name).is_file():
                self.files.setdefault(name, sha256_of(path))
                return path
        self.missing.append(f"{metric}: needs {' or '.join(names)} in {self._folder}")
        return None

    def see(self, faces: Sequence[Pixels], points: Values) -> Seen:
        """Let each judge look at each face once.

        Args:
            faces: uint8 (S, S, 3) RGB, all of one size.
            points: (N, 5, 2), the truths' five points in pixels of the faces.

        Raises:
            UserError: If there is no face, or the sizes differ.
        """
        if not faces or len({face.shape for face in faces}) != 1:
            raise UserError(f"{len(faces)} faces to be judged; give some, all of one size")
        seen = Seen(faces, points)
        if self.identity:
            seen.embeddings = self.identity.embed(faces, points)
        if self._expression:
            seen.probabilities = self._expression.probabilities(faces, points)
        if self._features:
            seen.features = self._features(faces)
        for name, detector in self._detectors.items():
            seen.found[name] = landmarks.find(detector, faces)
        return seen

    def per_image(self, seen: Seen, truth: Seen) -> dict[str, Values]:
        """Each metric of `table.METRICS` that is at hand -> one value a face, (N,); NaN for none.

        Args:
            seen: The restored faces.
            truth: Their truths, in the same order.
        """
        pairs = list(zip(seen.faces, truth.faces, strict=True))
        psnrs = np.array([pixel_metrics.psnr(*pair) for pair in pairs])
        scores: dict[str, Values] = {
            "psnr": np.minimum(psnrs, PSNR_CAP_DB),
            "ssim": np.array([pixel_metrics.ssim(*pair) for pair in pairs]),
            "detail": np.array([bands.band_db(*pair, bands.DETAIL) for pair in pairs]),
            "finest": np.array([bands.band_db(*pair, bands.FINEST) for pair in pairs]),
        }
        for name, perceptual in self.perceptual.items():
            scores[name] = perceptual(seen.faces, truth.faces)
        if seen.embeddings is not None and truth.embeddings is not None:
            cosines = identity.cosine(seen.embeddings, truth.embeddings)
            again = identity.found_again(seen.embeddings, truth.embeddings)
            scores |= {"identity": cosines, "identity-angle": identity.angle(cosines)}
            scores["found-again"] = again
        if seen.probabilities is not None and truth.probabilities is not None:
            both = seen.probabilities, truth.probabilities
            scores["expression"] = expression.agreement(*both)
            scores["expression-distance"] = expression.distance(*both)
        for name, found in seen.found.items():
            scores[name] = landmarks.nme(found, truth.found[name])
        if self._small:
            small = self._small
            scores["niqe-small"] = np.array([natural.niqe(face, small) for face in seen.faces])
        return scores

    def per_set(self, seen: Seen, truth: Seen, *, seed: int) -> dict[str, tuple[float, float]]:
        """Each set metric that is at hand -> its value and standard error."""
        found = {}
        if seen.features is not None and truth.features is not None:
            both = seen.features, truth.features
            found["squeeze-fd"] = _with_error(frechet.frechet_of, *both, seed)
            found["squeeze-kd"] = _with_error(frechet.kernel_distance, *both, seed)
        if seen.embeddings is not None and truth.embeddings is not None:
            both = seen.embeddings, truth.embeddings
            found["identity-fd"] = _with_error(frechet.frechet_of, *both, seed)
        return found


def _with_error(
    distance: frechet.Distance, features: Values, truths: Values, seed: int
) -> tuple[float, float]:
    error = intervals.spread(
        lambda places: distance(features[places], truths[places]), len(features), seed=seed
    )
    return distance(features, truths), error

"""What a weight file must give once it is there: known values on pictures that everybody has.

A checksum says that a file is the one that was meant; this says that it still computes what it did
when it was looked at, with the libraries of today.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UserError, one_line
from pipeline.weights import Entry, default_folder, entries, find
from vsp_model.files import sha256_of

if TYPE_CHECKING:
    from pipeline.metrics.judge import Face

Verdict = Literal["ok", "FAILED", "none"]
# Five points of scikit-image's astronaut, as YuNet finds them: judges look at the face there.
_EYES_TO_MOUTH = (
    (203.4, 103.6), (247.5, 104.5), (224.1, 127.7), (204.0, 143.1), (242.9, 143.7),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Golden:
    """Known values of a file.

    Attributes:
        what: They are.
        expected: Measured on the file whose full checksum is in `known_weights`, or published.
        tolerance: How far each may be off, for other builds of the libraries.
        compute: The same from the file at a path.
    """

    what: str
    expected: tuple[float, ...]
    tolerance: float
    compute: Callable[[Path], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Tested:
    """What became of one file's self-test.

    Attributes:
        name: Of the file.
        verdict: "none" where nobody knows a value.
        line: It in words.
    """

    name: str
    verdict: Verdict
    line: str


def self_test(name: str = "", folder: Path | None = None) -> list[Tested]:
    """Compute the known values of every file that is there, or of one.

    Raises:
        UserError: If the named file is not there.
    """
    folder = folder or default_folder()
    if name:
        return [_test(name, find(name, folder))]
    there = [(entry.name, entry.path) for entry in entries(folder) if _is_weights(entry)]
    return [_test(each, path) for each, path in there if path is not None]


def _is_weights(entry: Entry) -> bool:
    return entry.path is not None and (entry.known is not None or entry.name in GOLDEN)


def _test(name: str, path: Path) -> Tested:
    golden = GOLDEN.get(name)
    if golden is None:
        return Tested(name, "none", "no golden value known")
    try:
        found = tuple(float(value) for value in golden.compute(path))
    except UserError as error:
        return Tested(name, "FAILED", str(error))
    except Exception as error:  # a file that is no such thing fails in ways of its own
        return Tested(name, "FAILED", one_line(error))
    expected = golden.expected
    close = len(found) == len(expected) and all(
        abs(one - other) <= golden.tolerance for one, other in zip(found, expected, strict=True)
    )
    if close:
        return Tested(name, "ok", f"{golden.what}: {_numbers(found)}")
    return Tested(
        name, "FAILED", f"{golden.what}: expected {_numbers(expected)}, got {_numbers(found)}"
    )


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values) or "nothing"


# -------------------------------------------------------------------------------------- values


def _astronaut() -> "Face":
    """The astronaut, and its negative as a truth that differs."""
    import numpy as np
    from skimage.data import astronaut

    from pipeline.metrics.judge import Face

    photo = astronaut()
    return Face("astronaut", photo, 255 - photo, np.array(_EYES_TO_MOUTH))


def _lpips_draws(path: Path) -> list[float]:
    """Two draws of one generator against each other, as torchmetrics documents them."""
    import torch

    from pipeline.metrics.perceptual import PerceptualJudge

    generator = torch.Generator().manual_seed(42)
    one, other = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    judge = PerceptualJudge(path, "squeeze")
    return [judge.distance(one[n : n + 1], other[n : n + 1]) for n in range(2)]


def _niqe(path: Path) -> list[float]:
    from pipeline.metrics.natural import NiqeJudge

    return [NiqeJudge(path).score(_astronaut())["niqe"].value]


def _identity(path: Path) -> list[float]:
    from pipeline.metrics.identity import IdentityJudge

    return [IdentityJudge(path).score(_astronaut())["identity"].value]


def _expression(path: Path) -> list[float]:
    from pipeline.metrics.expression import ExpressionJudge

    return [ExpressionJudge(path).score(_astronaut())["expression-distance"].value]


def _yunet(path: Path) -> list[float]:
    return _points("yunet", path)


def _retinaface(path: Path) -> list[float]:
    return _points("retinaface", path)


def _points(detector: Literal["yunet", "retinaface"], path: Path) -> list[float]:
    """x and y of the five points of each face that is found."""
    from pipeline.faces.detect import DetectConfig, FaceDetector

    config = DetectConfig(detector=detector, weights=path, sha256=sha256_of(path))
    found = FaceDetector(config).find(_astronaut().restored)
    return [float(value) for face in found for value in face.points.ravel()]


# LPIPS and NIQE are published values; the others were measured on the files at hand.
_DRAWS = Golden("LPIPS of two seeded draws", (0.1024, 0.0938), 1e-4, _lpips_draws)
GOLDEN = {
    "squeezenet1_1_imagenet1k_fp16.safetensors": _DRAWS,
    "squeezenet1_1-b8a52dc0.pth": _DRAWS,
    # Published code gives 3.07 to 3.10, by the order of its sums.
    "niqe_pris_params.npz": Golden("NIQE of the astronaut", (3.08,), 0.03, _niqe),
    "mobilefacenet_ms1m.safetensors": Golden(
        "likeness of the astronaut and its negative", (0.0078,), 0.002, _identity
    ),
    "mini_xception_fer2013.safetensors": Golden(
        "expression of the astronaut against its negative's", (0.8886,), 0.005, _expression
    ),
    "yunet_n_dynamic.onnx": Golden(
        "points of the astronaut",
        (203.35, 103.62, 247.52, 104.45, 224.1, 127.69, 203.96, 143.14, 242.91, 143.67),
        0.5, _yunet,
    ),
    "retinaface_mobile025.safetensors": Golden(
        "points of the astronaut",
        (202.55, 102.07, 248.28, 104.03, 224.42, 128.76, 201.69, 140.4, 244.48, 142.07),
        0.5, _retinaface,
    ),
}  # fmt: skip

"""Which judge computes which metrics, and what it needs: files, packages.

An explicit list: a new metric is a row in `table.py`, a judge in a file of its own, a family here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.faces.detect import YUNET_PATH
from pipeline.metrics.judge import Extractor, Judge
from pipeline.metrics.natural import SMALL_MODEL_PATH
from vsp_model.quality import BUILT_IN

Paths = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Need:
    """A file that a judge cannot do without.

    Attributes:
        role: What the judge calls it.
        names: Those it may have in the folder of weights.
        bundled: Where it lies if it comes with the program.
    """

    role: str
    names: tuple[str, ...]
    bundled: Path | None = None


Built = TypeVar("Built", Judge, Extractor)


@dataclass(frozen=True, slots=True)
class Family(Generic[Built]):
    """Metrics that are computed together: by a judge, or of sets from an extractor's features.

    Attributes:
        name: Of the family.
        metrics: Names in `table.BY_NAME`.
        build: Makes the judge or extractor, from the path of each needed file.
        needs: Files it cannot do without.
        packages: Importable names it cannot do without.
        extra: The optional dependency that brings them.
        by_default: Whether `--metrics default` takes it where it is at hand.
        uses_points: Whether it looks at `Face.points`.
        dtype: Of what its values are computed in.
    """

    name: str
    metrics: tuple[str, ...]
    build: Callable[[Paths], Built]
    needs: tuple[Need, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str = ""
    by_default: bool = True
    uses_points: bool = False
    dtype: str = "float32"

    @property
    def absent_packages(self) -> tuple[str, ...]:
        """Packages that are not installed."""
        return tuple(name for name in self.packages if find_spec(name) is None)


SQUEEZENET = Need(
    "trunk", ("squeezenet1_1_imagenet1k_fp16.safetensors", "squeezenet1_1-b8a52dc0.pth")
)
ALEXNET = Need("trunk", ("alexnet-owt-7be5be79.pth",))
VGG = Need("trunk", ("vgg16-397923af.pth",))
MOBILEFACENET = Need("network", ("mobilefacenet_ms1m.safetensors",))
RETINAFACE = Need(
    "detector", ("retinaface_mobile025.safetensors", "detection_mobilenet0.25_Final.pth")
)
MINI_XCEPTION = Need("network", ("mini_xception_fer2013.safetensors",))
NIQE = Need("model", ("niqe_pris_params.npz", "niqe_modelparameters.mat"))
NIQE_SMALL = Need("model", (), SMALL_MODEL_PATH)
YUNET = Need("detector", (), YUNET_PATH)
QUALITY = Need("network", (), BUILT_IN)
INCEPTION = Need(
    "network",
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
)
FAN = Need("network", ("2DFAN4-11f355bf06.pth.tar",))
SFD = Need("detector", ("s3fd-619a316812.pth",))
WFLW = Need("network", ("alignment_WFLW_4HG.pth",))
HSEMOTION = Need(
    "network",
    (
        "enet_b0_8_best_afew.onnx", "enet_b0_8_best_vgaf.onnx", "enet_b2_8.onnx", "enet_b2_7.onnx",
    ),
)  # fmt: skip
IQA_PYTHON = Need("python", ())
"""Python of the environment that holds pyiqa: named by the user, found in no folder."""
ARCFACE18 = Need("network", ("resnet18_110.pth", "arcface_resnet18.pth"))


def _pixels(paths: Paths) -> Judge:
    from pipeline.metrics.pixels import PixelJudge

    return PixelJudge()


def _bands(paths: Paths) -> Judge:
    from pipeline.metrics.bands import BandJudge

    return BandJudge()


def _squeeze(paths: Paths) -> Judge:
    from pipeline.metrics.perceptual import PerceptualJudge

    return PerceptualJudge(paths["trunk"], "squeeze")


def _alex(paths: Paths) -> Judge:
    from pipeline.metrics.perceptual import PerceptualJudge

    return PerceptualJudge(paths["trunk"], "alex")


def _vgg(paths: Paths) -> Judge:
    from pipeline.metrics.perceptual import PerceptualJudge

    return PerceptualJudge(paths["trunk"], "vgg")


def _niqe(paths: Paths) -> Judge:
    from pipeline.metrics.natural import NiqeJudge

    return NiqeJudge(paths["model"])


def _niqe_small(paths: Paths) -> Judge:
    from pipeline.metrics.natural import SmallNiqeJudge

    return SmallNiqeJudge(paths["model"])


def _quality(paths: Paths) -> Judge:
    from pipeline.metrics.quality import QualityJudge

    return QualityJudge(paths["network"])


def _quality_classic(paths: Paths) -> Judge:
    from pipeline.metrics.quality import ClassicJudge

    return ClassicJudge()


def _identity(paths: Paths) -> Judge:
    from pipeline.metrics.identity import IdentityJudge

    return IdentityJudge(paths["network"])


def _expression(paths: Paths) -> Judge:
    from pipeline.metrics.expression import ExpressionJudge

    return ExpressionJudge(paths["network"])


def _yunet(paths: Paths) -> Judge:
    from pipeline.metrics.landmarks import LandmarkJudge

    return LandmarkJudge("yunet", paths["detector"])


def _retinaface(paths: Paths) -> Judge:
    from pipeline.metrics.landmarks import LandmarkJudge

    return LandmarkJudge("retinaface", paths["detector"])


def _fan(paths: Paths) -> Judge:
    from pipeline.metrics.fan import FanJudge

    return FanJudge(paths["network"], paths["detector"])


def _wflw(paths: Paths) -> Judge:
    from pipeline.metrics.wflw import WflwJudge

    return WflwJudge(paths["network"])


def _emotion(paths: Paths) -> Judge:
    from pipeline.metrics.emotion import EmotionJudge

    return EmotionJudge(paths["network"])


def _degrees(paths: Paths) -> Judge:
    from pipeline.metrics.degrees import DegreesJudge

    return DegreesJudge(paths["network"])


def _inception(paths: Paths) -> Extractor:
    from pipeline.metrics.inception import InceptionExtractor

    return InceptionExtractor(paths["network"], "bilinear")


def _inception_tf(paths: Paths) -> Extractor:
    from pipeline.metrics.inception import InceptionExtractor

    return InceptionExtractor(paths["network"], "tf1-bilinear")


def _inception_clean(paths: Paths) -> Extractor:
    from pipeline.metrics.inception import InceptionExtractor

    return InceptionExtractor(paths["network"], "pil-bicubic")


def _squeeze_features(paths: Paths) -> Extractor:
    from pipeline.metrics.features import SqueezeExtractor

    return SqueezeExtractor(paths["trunk"])


def _identity_features(paths: Paths) -> Extractor:
    from pipeline.metrics.identity import IdentityExtractor

    return IdentityExtractor(paths["network"])


def _musiq(paths: Paths) -> Judge:
    from pipeline.metrics.nr_iqa import IqaJudge

    return IqaJudge(paths["python"], "musiq")


def _maniqa(paths: Paths) -> Judge:
    from pipeline.metrics.nr_iqa import IqaJudge

    return IqaJudge(paths["python"], "maniqa")


def _clipiqa(paths: Paths) -> Judge:
    from pipeline.metrics.nr_iqa import IqaJudge

    return IqaJudge(paths["python"], "clipiqa")


def _topiq(paths: Paths) -> Judge:
    from pipeline.metrics.nr_iqa import IqaJudge

    return IqaJudge(paths["python"], "topiq")


def _topiq_face(paths: Paths) -> Judge:
    from pipeline.metrics.nr_iqa import IqaJudge

    return IqaJudge(paths["python"], "topiq-face")


def _landmark_metrics(detector: str) -> tuple[str, ...]:
    return f"dsr-{detector}", f"nme-{detector}", f"nme-{detector}-all"


FAMILIES: tuple[Family[Judge], ...] = (
    Family("pixels", ("psnr", "ssim"), _pixels, dtype="float64"),
    Family("bands", ("detail", "finest"), _bands, dtype="float64"),
    Family("lpips-squeeze", ("lpips-squeeze",), _squeeze, (SQUEEZENET,)),
    Family("lpips-alex", ("lpips-alex",), _alex, (ALEXNET,)),
    Family("lpips-vgg", ("lpips-vgg",), _vgg, (VGG,)),
    Family("niqe", ("niqe",), _niqe, (NIQE,), dtype="float64"),
    Family(
        "niqe-small", ("niqe-small",), _niqe_small, (NIQE_SMALL,), dtype="float64",
    ),
    # Not by default: aligned faces alone are scored, and networks of ours are trained on the one.
    Family("quality", ("quality",), _quality, (QUALITY,), by_default=False),
    Family(
        "quality-classic", ("quality-classic",), _quality_classic, dtype="float64",
        by_default=False,
    ),
    Family(
        "identity", ("identity", "identity-angle"), _identity, (MOBILEFACENET,),
        uses_points=True,
    ),
    Family(
        "expression", ("expression", "expression-distance"), _expression, (MINI_XCEPTION,),
        uses_points=True,
    ),
    Family("yunet", _landmark_metrics("yunet"), _yunet, (YUNET,)),
    Family("retinaface", _landmark_metrics("retinaface"), _retinaface, (RETINAFACE,)),
    Family("fan", _landmark_metrics("fan"), _fan, (FAN, SFD), ("face_alignment",), "eval"),
    Family("wflw", ("lmd",), _wflw, (WFLW,)),
    Family(
        "emotion", ("emotion",), _emotion, (HSEMOTION,), ("onnxruntime",), "eval",
        uses_points=True,
    ),
    Family(
        "degrees", ("deg-vqfr", "idd-rfpp", "ids-codeformer"), _degrees, (ARCFACE18,),
        by_default=False,
    ),
)  # fmt: skip
IQA_FAMILIES: tuple[Family[Judge], ...] = (
    Family("musiq", ("musiq",), _musiq, (IQA_PYTHON,)),
    Family("maniqa", ("maniqa",), _maniqa, (IQA_PYTHON,)),
    Family("clipiqa", ("clipiqa",), _clipiqa, (IQA_PYTHON,)),
    Family("topiq", ("topiq",), _topiq, (IQA_PYTHON,)),
    Family("topiq-face", ("topiq-face",), _topiq_face, (IQA_PYTHON,), by_default=False),
)
SET_FAMILIES: tuple[Family[Extractor], ...] = (
    Family(
        "inception", ("fid", "fid-paired", "kid-paired", "uids", "pids", "uids-cv", "pids-cv"),
        _inception, (INCEPTION,), ("torch_fidelity",), "eval",
    ),
    Family(
        "inception-tf", ("fid-tf", "fid-tf-paired"), _inception_tf, (INCEPTION,),
        ("torch_fidelity",), "eval", by_default=False,
    ),
    Family(
        "inception-clean", ("fid-clean", "fid-clean-paired"), _inception_clean, (INCEPTION,),
        ("torch_fidelity",), "eval", by_default=False,
    ),
    Family("squeeze", ("squeeze-fd", "squeeze-kd"), _squeeze_features, (SQUEEZENET,)),
    Family(
        "identity-set", ("identity-fd", "found-again"), _identity_features, (MOBILEFACENET,),
        uses_points=True,
    ),
)  # fmt: skip

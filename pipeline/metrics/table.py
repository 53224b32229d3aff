"""Every metric: what exactly it computes, in which unit, which way is better, after whom."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "zero"]
Kind = Literal["reference", "alone", "set"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a table.

    Attributes:
        name: Short, as columns are called.
        protocol: What tells it from others of the same name; numbers of another protocol must not
            stand beside these.
        better: Which way; "zero" for a value whose truth is 0.
        unit: "" for a bare number.
        kind: "reference" compares an image with its truth, "alone" looks at the image only, "set"
            compares the restored set with the set of truths.
        source: Who defined it.
        is_loss: Whether networks of this project are trained on it, so that it may be gamed.
    """

    name: str
    protocol: str
    better: Better
    unit: str
    kind: Kind
    source: str
    is_loss: bool = False


_LPIPS = "Zhang et al. 2018, version 0.1"
_FRECHET = "Heusel et al. 2017; not comparable with published FID, which needs Inception"
_KERNEL = "Binkowski et al. 2018; not comparable with published KID, which needs Inception"
METRICS = (
    Metric("psnr", "psnr:rgb8:cap100", "higher", "dB", "reference", "BasicSR's convention", True),
    Metric(
        "ssim", "ssim:rgb8:gauss11:valid", "higher", "", "reference",
        "Wang et al. 2004, BasicSR's convention",
    ),
    Metric("lpips-squeeze", "lpips:0.1:squeeze", "lower", "", "reference", _LPIPS, True),
    Metric("lpips-alex", "lpips:0.1:alex", "lower", "", "reference", _LPIPS, True),
    Metric("lpips-vgg", "lpips:0.1:vgg", "lower", "", "reference", _LPIPS, True),
    Metric(
        "identity", "cosine:mobilefacenet:truth-points:112", "higher", "", "reference",
        "Deng et al. 2019 (crop), Chen et al. 2018 (network)", True,
    ),
    Metric(
        "identity-angle", "angle:mobilefacenet:truth-points:112", "lower", "deg", "reference",
        "as `Deg.` of VQFR, with another network", True,
    ),
    Metric(
        "nme-yunet", "nme:yunet5:sqrt-box", "lower", "%", "reference",
        "Bulat & Tzimiropoulos 2017; five points of YuNet, the truth's box",
    ),
    Metric(
        "nme-retinaface", "nme:retinaface5:sqrt-box", "lower", "%", "reference",
        "as nme-yunet; five points of RetinaFace",
    ),
    Metric(
        "found-again", "rank-1:mobilefacenet:truths", "higher", "", "reference",
        "the nearest of all truths is the own one; hangs on how many there are", True,
    ),
    Metric(
        "expression", "agreement:mini-xception-fer2013", "higher", "", "reference",
        "Arriaga et al. 2017; same class as the truth",
    ),
    Metric(
        "expression-distance", "total-variation:mini-xception-fer2013", "lower", "", "reference",
        "Arriaga et al. 2017; of the seven probabilities",
    ),
    Metric(
        "detail", "power:luma:hann:0.20-0.30", "zero", "dB", "reference",
        "power about a quarter of the sampling rate, against the truth's",
    ),
    Metric(
        "finest", "power:luma:hann:0.35-0.50", "zero", "dB", "reference",
        "power at the highest frequencies, against the truth's",
    ),
    Metric("niqe", "niqe:y:96:pristine-by-path", "lower", "", "alone", "Mittal et al. 2013"),
    Metric(
        "niqe-small", "niqe-like:y:32:fitted", "lower", "", "alone",
        "Mittal et al. 2013 with blocks of 32 and a model fitted on clean faces",
    ),
    Metric("squeeze-fd", "frechet:squeezenet1.1:pooled:paired", "lower", "", "set", _FRECHET),
    Metric("squeeze-kd", "mmd-cubic:squeezenet1.1:pooled:paired", "lower", "", "set", _KERNEL),
    Metric("identity-fd", "frechet:mobilefacenet:paired", "lower", "", "set", _FRECHET),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}

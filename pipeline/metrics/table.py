"""Every metric: what exactly it computes, in which unit, which way is better, after whom."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "zero"]
Kind = Literal["reference", "alone", "set"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a table.

    Attributes:
        name: Short, as columns are called and users name it.
        protocol: What tells it from others of the same name; numbers of another protocol must not
            stand beside these.
        better: Which way; "zero" for a value whose truth is 0.
        unit: "" for a bare number.
        kind: "reference" compares an image with its truth, "alone" looks at the image only, "set"
            compares the restored set with another.
        source: Who defined it.
        is_loss: Whether networks of this project are trained on it, so that it may be gamed.
        cap: What counts for a larger or infinite value in a mean, or None.
        drop_below: Values below it are left out of a mean, as the source does, or None.
    """

    name: str
    protocol: str
    better: Better
    unit: str
    kind: Kind
    source: str
    is_loss: bool = False
    cap: float | None = None
    drop_below: float | None = None


_LPIPS = "Zhang et al. 2018, version 0.1"
_FID = "Heusel et al. 2017; BasicSR's preprocessing"
_IDS = "Zhao et al. 2021 (CoModGAN); 0.5 is indistinguishable"
_OWN_FRECHET = "Heusel et al. 2017; not comparable with published FID, which needs Inception"
_OWN_KERNEL = "Binkowski et al. 2018; not comparable with published KID, which needs Inception"
_NME = "Bulat & Tzimiropoulos 2017"
_PYIQA = "by pyiqa, whose licence is non-commercial"
_INCEPTION = "inception2015-12-05:pool3"

_PER_IMAGE = (
    Metric(
        "psnr", "psnr:rgb8:cap100", "higher", "dB", "reference", "BasicSR's convention", True,
        cap=100.0,
    ),
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
    *(
        metric
        for detector, points in (("yunet", "5"), ("retinaface", "5"), ("fan", "68"))
        for metric in (
            Metric(
                f"dsr-{detector}", f"found:{detector}{points}", "higher", "%", "reference",
                "VSPBFR, Table V; of the faces found on the truth",
            ),
            Metric(
                f"nme-{detector}", f"nme:{detector}{points}:sqrt-box", "lower", "%", "reference",
                f"{_NME}; {points} points, the truth's box; faces found on both",
            ),
            Metric(
                f"nme-{detector}-all", f"nme:{detector}{points}:sqrt-box:missed100", "lower", "%",
                "reference", f"as nme-{detector}; a face found on the truth alone counts 100 %",
            ),
        )
    ),
    Metric(
        "lmd", "l2:awing-wflw98", "lower", "px", "reference",
        "VQFR; 98 points of facexlib's AWing FAN, mean distance",
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
        "emotion", "agreement:hsemotion-onnx", "higher", "", "reference",
        "Savchenko 2022 (HSEmotion); same class as the truth (VSPBFR, Table V)",
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
    Metric(
        "quality", "quality:net:area128:calibrated", "higher", "", "alone",
        "our own (docs/quality.md); a share of a reference population", True,
    ),
    Metric(
        "quality-classic", "quality:classic:exp-faults", "higher", "", "alone",
        "our own (docs/quality.md); sharpness, noise, blocks, resolution, light",
    ),
    Metric("musiq", "pyiqa:musiq", "higher", "", "alone", f"Ke et al. 2021, {_PYIQA}"),
    Metric("maniqa", "pyiqa:maniqa", "higher", "", "alone", f"Yang et al. 2022, {_PYIQA}"),
    Metric("clipiqa", "pyiqa:clipiqa", "higher", "", "alone", f"Wang et al. 2023, {_PYIQA}"),
    Metric("topiq", "pyiqa:topiq_nr", "higher", "", "alone", f"Chen et al. 2023, {_PYIQA}"),
    Metric(
        "topiq-face", "pyiqa:topiq_nr-face", "higher", "", "alone",
        f"Chen et al. 2023, trained on aligned faces, {_PYIQA}",
    ),
    Metric(
        "deg-vqfr", "angle:arcface-resnet18-gray128:drop-below-1", "lower", "deg", "reference",
        "VQFR's script (`Deg.`; DifFace's `IDS`): pairs under 1 degree are left out",
        drop_below=1.0,
    ),
    Metric(
        "idd-rfpp", "angle-rad:arcface-resnet18-gray128-bgr", "lower", "rad", "reference",
        "RestoreFormer++'s script (`IDD`): RGB weights of gray on BGR",
    ),
    Metric(
        "ids-codeformer", "cosine:arcface-resnet18-gray128", "higher", "", "reference",
        "CodeFormer's `IDS`, a cosine",
    ),
)  # fmt: skip

_OF_SETS = (
    Metric("fid", f"fid:{_INCEPTION}:bilinear:reference", "lower", "", "set", _FID),
    Metric("fid-paired", f"fid:{_INCEPTION}:bilinear:truths", "lower", "", "set", _FID),
    Metric(
        "kid-paired", f"kid:{_INCEPTION}:bilinear:truths:cubic:whole-set", "lower", "", "set",
        "Binkowski et al. 2018",
    ),
    Metric("uids", f"uids:{_INCEPTION}:svc-c1:resubstitution", "higher", "", "set", _IDS),
    Metric("pids", f"pids:{_INCEPTION}:svc-c1:resubstitution", "higher", "", "set", _IDS),
    Metric(
        "uids-cv", f"uids:{_INCEPTION}:svc-c0.01:5-fold-by-pair", "higher", "", "set",
        f"{_IDS}, on held-out pairs",
    ),
    Metric(
        "pids-cv", f"pids:{_INCEPTION}:svc-c0.01:5-fold-by-pair", "higher", "", "set",
        f"{_IDS}, on held-out pairs",
    ),
    Metric(
        "fid-tf", f"fid:{_INCEPTION}:tf1-bilinear:reference", "lower", "", "set",
        "Heusel et al. 2017; torch-fidelity's preprocessing",
    ),
    Metric(
        "fid-tf-paired", f"fid:{_INCEPTION}:tf1-bilinear:truths", "lower", "", "set",
        "Heusel et al. 2017; torch-fidelity's preprocessing",
    ),
    Metric(
        "fid-clean", f"fid:{_INCEPTION}:pil-bicubic:reference", "lower", "", "set",
        "Parmar et al. 2022 (clean-fid)",
    ),
    Metric(
        "fid-clean-paired", f"fid:{_INCEPTION}:pil-bicubic:truths", "lower", "", "set",
        "Parmar et al. 2022 (clean-fid)",
    ),
    Metric("squeeze-fd", "frechet:squeezenet1.1:pooled:paired", "lower", "", "set", _OWN_FRECHET),
    Metric("squeeze-kd", "mmd-cubic:squeezenet1.1:pooled:paired", "lower", "", "set", _OWN_KERNEL),
    Metric("identity-fd", "frechet:mobilefacenet:paired", "lower", "", "set", _OWN_FRECHET),
    Metric(
        "found-again", "rank-1:mobilefacenet:truths", "higher", "", "set",
        "the nearest of all truths is the own one; hangs on how many there are", True,
    ),
)  # fmt: skip
METRICS = _PER_IMAGE + _OF_SETS
BY_NAME = {metric.name: metric for metric in METRICS}
BY_PROTOCOL = {metric.protocol: metric for metric in METRICS}

"""Every weight file that some command can use: what it is, under which terms, where to get it.

A checksum stands here in full only where the file was at hand. Else it is the part that its authors
put into its name, or nothing; the whole is pinned when a user adds the file (`pipeline.weights`).
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that some command can use.

    Attributes:
        name: Its name in the folder.
        what: What is in it.
        used_by: What it is needed for.
        code_licence: Of the code that its authors publish with it.
        weight_licence: Of the file itself, as its authors give it.
        training_data: What it was trained on, whose terms may bind the file's users.
        source: Where the user gets it.
        sha256: What its checksum is, or begins with; "" where nobody has told.
        size_bytes: Its size, where known.
        bundled: Where it lies if it comes with this program.
    """

    name: str
    what: str
    used_by: str
    code_licence: str
    weight_licence: str
    training_data: str
    source: str
    sha256: str = ""
    size_bytes: int | None = None
    bundled: Path | None = None


_UNSTATED = "not stated"
_FFHQ = "FFHQ (CC BY-NC-SA 4.0)"
_WIDER = "WIDER FACE"
_IMAGENET = "ImageNet (non-commercial research)"
_MS1M = "MS-Celeb-1M (withdrawn)"
_FACEXLIB = "github.com/xinntao/facexlib/releases, v0.1.0"
_TORCHVISION = "download.pytorch.org/models"
_RETINAFACE = "vsp restore (photos, RetinaFace)"
_RETINAFACE_SCORES = "vsp restore (photos, RetinaFace), vsp score (retinaface)"
_LPIPS = "training, vsp score"


def _vspbfr(
    name: str, what: str, used_by: str = "vsp convert", training_data: str = _FFHQ
) -> KnownFile:
    return KnownFile(
        name, f"VSPBFR: {what}", used_by, "MIT", "MIT, as the release they come with",
        training_data,
        "huggingface.co/Wanglong2/VSPBFR (project page: github.com/LonglongaaaGo/VSPBFR)",
    )  # fmt: skip


def _trunk(name: str, network: str, sha256: str, used_by: str) -> KnownFile:
    return KnownFile(
        name, f"{network}: trunk of LPIPS", used_by, "BSD-3-Clause (torchvision)", _UNSTATED,
        _IMAGENET, f"{_TORCHVISION}/{name}", sha256,
    )  # fmt: skip


def _hsemotion(name: str, what: str) -> KnownFile:
    return KnownFile(
        name, f"HSEmotion, {what}", "vsp score (emotion)", "Apache-2.0",
        "Apache-2.0, as the repository", "VGGFace2, AffectNet (non-commercial research)",
        "github.com/sb-ai-lab/EmotiEffLib, the ONNX models",
    )  # fmt: skip


def _inception(name: str, source: str) -> KnownFile:
    return KnownFile(
        name, "Inception of 2015-12-05: features of FID, KID, U-IDS", "vsp score (inception)",
        "Apache-2.0", "Apache-2.0 (TensorFlow models)", _IMAGENET, source, "6726825d",
    )  # fmt: skip


_VSPBFR_FILES = (
    _vspbfr("style_encoder_decoder.pt", "style encoder and StyleGAN2 prior"),
    _vspbfr("code_diffuser.pt", "code diffuser"),
    _vspbfr("restoration_net.pt", "restoration network"),
    _vspbfr(
        "Arcface.pth", "identity network of its loss (ResNet-101)", "vsp convert, training",
        _UNSTATED,
    ),
    KnownFile(
        "e4e_ffhq_encode.pt", "e4e: style encoder and StyleGAN2 prior for FFHQ", "vsp convert",
        "MIT", _UNSTATED, _FFHQ, "github.com/omertov/encoder4editing, section Pretrained Models",
    ),
    KnownFile(
        "model_ir_se50.pth", "ArcFace IR-SE50: start of e4e's training, identity loss", "training",
        "MIT", _UNSTATED, _MS1M,
        "github.com/TreB1eN/InsightFace_Pytorch, linked from github.com/omertov/encoder4editing",
    ),
)  # fmt: skip

_DETECTORS = (
    KnownFile(
        "yunet_n_dynamic.onnx", "YuNet: finds faces and five points",
        "vsp restore (photos), vsp score (yunet and the faces' points)",
        "Apache-2.0 / BSD, see NOTICE", "Apache-2.0 / BSD, see NOTICE", _WIDER,
        "github.com/ShiqiYu/libfacedetection.train, onnx/; it comes with this program",
        "104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12", 322906,
        Path(__file__).parent / "faces" / "yunet_n_dynamic.onnx",
    ),
    KnownFile(
        "detection_Resnet50_Final.pth", "RetinaFace, ResNet-50: finds faces and five points",
        _RETINAFACE, "MIT", _UNSTATED, _WIDER, _FACEXLIB,
    ),
    KnownFile(
        "detection_mobilenet0.25_Final.pth", "RetinaFace, MobileNet 0.25", _RETINAFACE_SCORES,
        "MIT", _UNSTATED, _WIDER, _FACEXLIB,
    ),
    KnownFile(
        "retinaface_mobile025.safetensors", "RetinaFace, MobileNet 0.25, as safetensors",
        _RETINAFACE_SCORES, "MIT", _UNSTATED, _WIDER,
        "github.com/cunjian/pytorch_face_landmark, the tensors of mobilenet0.25_Final.pth",
        "301155bb1b805e798d50897b2035cf5fbc56d476eff4010c258a08694b7397bd", 1760376,
    ),
)  # fmt: skip

_LIKENESS = (
    _trunk("vgg16-397923af.pth", "VGG-16", "397923af", f"{_LPIPS} (lpips-vgg)"),
    _trunk("alexnet-owt-7be5be79.pth", "AlexNet", "7be5be79", f"{_LPIPS} (lpips-alex)"),
    _trunk(
        "squeezenet1_1-b8a52dc0.pth", "SqueezeNet 1.1", "b8a52dc0",
        f"{_LPIPS} (lpips-squeeze, squeeze)",
    ),
    KnownFile(
        "squeezenet1_1_imagenet1k_fp16.safetensors", "SqueezeNet 1.1 in half precision: as above",
        f"{_LPIPS} (lpips-squeeze, squeeze)", "BSD-3-Clause (torchvision)", _UNSTATED, _IMAGENET,
        "torchvision's tensors out of github.com/zchrissirhcz/squeezenet-ncnn-pnnx-opencv-cpp",
        "e4184cf600e7fbd012c12d98d709de39a98f27093448f5af821708b5f465acf6", 2483848,
    ),
    KnownFile(
        "mobilefacenet_ms1m.safetensors", "MobileFaceNet: identity",
        "training, vsp score (identity)", "Apache-2.0", "Apache-2.0, as the repository", _MS1M,
        "github.com/foamliu/MobileFaceNet, the tensors of weights/mobilefacenet.pt",
        "84e4a6a69d9b79b482a77004f0843fd8fdb0cd672b6bcd5cbcb95d890c27ed64", 4107544,
    ),
    KnownFile(
        "resnet18_110.pth", "ResNet18-ArcFace on gray faces of 128 pixels: `Deg.` of VQFR",
        "vsp score (degrees)", _UNSTATED, _UNSTATED, "CASIA-WebFace",
        "github.com/ronghuaiyang/arcface-pytorch; VQFR's metric_paper asks for it",
    ),
    KnownFile(
        "arcface_resnet18.pth", "ResNet18-ArcFace on gray faces: `IDD` of RestoreFormer++",
        "vsp score (degrees)", "Apache-2.0 (GFPGAN)", _UNSTATED, _UNSTATED,
        "github.com/TencentARC/GFPGAN/releases, v0.1.0",
    ),
    KnownFile(
        "mini_xception_fer2013.safetensors", "mini-XCEPTION: seven expressions",
        "vsp score (expression)", "MIT", "MIT, as the repository", "FER2013",
        "github.com/oarriaga/face_classification, the tensors of "
        "fer2013_mini_XCEPTION.102-0.66.hdf5",
        "2b180e6f7e8e90c6c7713b1f019acf8f88d5fead78bea88fa8abc8600ae49d50", 240028,
    ),
    _hsemotion("enet_b0_8_best_afew.onnx", "EfficientNet-B0, 8 emotions"),
    _hsemotion("enet_b0_8_best_vgaf.onnx", "EfficientNet-B0, 8 emotions"),
    _hsemotion("enet_b2_8.onnx", "EfficientNet-B2, 8 emotions"),
    _hsemotion("enet_b2_7.onnx", "EfficientNet-B2, 7 emotions"),
)  # fmt: skip

_LANDMARKS = (
    KnownFile(
        "2DFAN4-11f355bf06.pth.tar", "FAN: 68 points", "vsp score (fan)", "BSD-3-Clause",
        _UNSTATED, "300W-LP", "www.adrianbulat.com/downloads/python-fan", "11f355bf06",
    ),
    KnownFile(
        "s3fd-619a316812.pth", "S3FD: finds the faces for FAN", "vsp score (fan)", "BSD-3-Clause",
        _UNSTATED, _WIDER, "www.adrianbulat.com/downloads/python-fan", "619a316812",
    ),
    KnownFile(
        "alignment_WFLW_4HG.pth", "AWing FAN: 98 points", "vsp score (wflw)", "MIT", _UNSTATED,
        "WFLW", _FACEXLIB,
    ),
)  # fmt: skip

_OF_SETS_AND_ALONE = (
    _inception(
        "weights-inception-2015-12-05-6726825d.pth",
        "github.com/toshas/torch-fidelity/releases, v0.2.0",
    ),
    _inception(
        "pt_inception-2015-12-05-6726825d.pth",
        "github.com/mseitzer/pytorch-fid/releases, fid_weights",
    ),
    KnownFile(
        "niqe_pris_params.npz", "NIQE: what natural images look like", "vsp score (niqe)",
        "Apache-2.0", "Apache-2.0, as the repository", "photos chosen by Mittal et al.",
        "github.com/XPixelGroup/BasicSR, basicsr/metrics",
        "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296", 11850,
    ),
    KnownFile(
        "niqe_modelparameters.mat", "NIQE: the same in pyiqa's format", "vsp score (niqe)",
        "PolyForm Noncommercial 1.0.0 (pyiqa)", _UNSTATED, "photos chosen by Mittal et al.",
        "huggingface.co/chaofengc/IQA-PyTorch-Weights",
    ),
)  # fmt: skip

_BASELINES = (
    KnownFile(
        "GFPGANv1.4.pth", "GFPGAN 1.4", "vsp evaluate (baselines)",
        "Apache-2.0, with parts of StyleGAN2 (NVIDIA, non-commercial) and DFDNet (CC BY-NC-SA)",
        _UNSTATED, _FFHQ, "github.com/TencentARC/GFPGAN/releases",
    ),
    KnownFile(
        "RestoreFormer.pth", "RestoreFormer, as GFPGAN publishes it", "vsp evaluate (baselines)",
        "Apache-2.0", _UNSTATED, _FFHQ, "github.com/TencentARC/GFPGAN/releases, v1.3.4",
    ),
    KnownFile(
        "RestoreFormer.ckpt", "RestoreFormer, its authors' checkpoint", "vsp evaluate (baselines)",
        "Apache-2.0", _UNSTATED, _FFHQ, "github.com/wzhouxiff/RestoreFormer, section models",
    ),
    KnownFile(
        "codeformer.pth", "CodeFormer", "vsp evaluate (baselines-nc)",
        "S-Lab License 1.0 (non-commercial)", "S-Lab License 1.0 (non-commercial)", _FFHQ,
        "github.com/sczhou/CodeFormer/releases, v0.1.0",
    ),
)  # fmt: skip

KNOWN = (
    *_VSPBFR_FILES, *_DETECTORS, *_LIKENESS, *_LANDMARKS, *_OF_SETS_AND_ALONE, *_BASELINES
)  # fmt: skip


def known_file(name: str) -> KnownFile | None:
    """What is known of a name."""
    return next((known for known in KNOWN if known.name == name), None)


def known_content(sha256: str, name: str) -> KnownFile | None:
    """The known file with a checksum.

    Two projects publish one file under their own names: `name`, if it is one of them, else the
    first.
    """
    fitting = [known for known in KNOWN if known.sha256 and sha256.startswith(known.sha256)]
    return next((known for known in fitting if known.name == name), next(iter(fitting), None))

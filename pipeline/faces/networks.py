"""The networks that detect faces: an image in, rows of numbers out. Threads may share them."""

import copy
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.errors import UserError
from pipeline.images import Pixels

MAX_OVERLAP = 0.3  # of two boxes, intersection over union; above it they are one face
MAX_CANDIDATES = 5000  # OpenCV's default: boxes that are compared with each other

Rows = NDArray[np.float64]


class Network(Protocol):
    """A detector."""

    def __call__(self, image: Pixels) -> Rows:
        """Detect in (H, W, 3) uint8 BGR.

        Returns:
            (N, 15), best first: x0, y0, x1, y1, five points as x and y, score; in pixels of the
            image, whose first spans 0 to 1.
        """


class YuNet:
    """W. Wu, H. Peng, S. Yu: "YuNet: A Tiny Millisecond-level Face Detector", run by OpenCV."""

    def __init__(self, weights: bytes, path: Path, min_score: float) -> None:
        """Take an ONNX file's content; `path` is for messages."""
        self._weights = np.frombuffer(weights, np.uint8)
        self._path, self._min_score = path, min_score
        self._local = threading.local()
        self._making = threading.Lock()
        self._detector()

    def __call__(self, image: Pixels) -> Rows:
        """See `Network`."""
        height, width = image.shape[:2]
        detector = self._detector()
        detector.setInputSize((width, height))
        _, found = detector.detect(image)
        if found is None:
            return np.empty((0, 15))
        rows = found.astype(np.float64)
        rows[:, 2:4] += rows[:, :2]  # from width and height to the far corner
        return cast(Rows, rows)

    def _detector(self) -> cv2.FaceDetectorYN:
        """OpenCV's object keeps the image's size and buffers: each thread needs its own."""
        detector: cv2.FaceDetectorYN | None = getattr(self._local, "detector", None)
        if detector is None:
            with self._making, _quiet_opencv():
                detector = self._local.detector = self._make()
        return detector

    def _make(self) -> cv2.FaceDetectorYN:
        no_config, size = np.empty(0, np.uint8), (320, 320)
        try:
            return cv2.FaceDetectorYN.create(
                "onnx", self._weights, no_config, size, self._min_score, MAX_OVERLAP, MAX_CANDIDATES
            )
        except cv2.error as error:
            raise UserError(f"{self._path}: not a YuNet for OpenCV ({error.err})") from None


class RetinaFace:
    """J. Deng et al.: "RetinaFace" (CVPR 2020), as facexlib builds it, on the CPU."""

    def __init__(self, weights: bytes, path: Path, min_score: float) -> None:
        """Build from the content of a .safetensors or .pth file, whose `path` is for messages."""
        tensors = _load_tensors(weights, path)
        from facexlib.detection.retinaface import RetinaFace as FacexlibRetinaFace  # takes seconds

        name = "resnet50" if "body.conv1.weight" in tensors else "mobile0.25"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # facexlib asks torchvision in a deprecated way
            self._model = FacexlibRetinaFace(network_name=name, device="cpu")
        try:
            self._model.load_state_dict(tensors, strict=True)
        except RuntimeError:
            raise UserError(f"{path}: not facexlib's RetinaFace (mobile0.25, resnet50)") from None
        self._min_score = min_score

    def __call__(self, image: Pixels) -> Rows:
        """See `Network`."""
        model = copy.copy(self._model)  # facexlib notes the image's size in it; tensors are shared
        with torch.inference_mode():
            found = model.detect_faces(image, self._min_score, MAX_OVERLAP)
        rows = np.asarray(found, np.float64).reshape(-1, 15)
        return rows[:, [0, 1, 2, 3, *range(5, 15), 4]]


def _load_tensors(weights: bytes, path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors = load_safetensors(weights)
        else:
            tensors = torch.load(BytesIO(weights), map_location="cpu", weights_only=True)
    except Exception as error:  # each format fails in ways of its own
        raise UserError(f"{path}: no tensors to be read ({type(error).__name__})") from None
    # The published file was saved from a wrapper for several GPUs.
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from warning that its new engine has no choice of device."""
    log = cv2.utils.logging
    before = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        log.setLogLevel(before)

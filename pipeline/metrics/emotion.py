"""Whether the face keeps its emotion: HSEmotion's label of the restored face against the truth's.

A. V. Savchenko: "Facial expression and attributes recognition based on multi-task learning of
lightweight neural networks" (2021), the ONNX exports of github.com/sb-ai-lab/EmotiEffLib. The
truth's label stands for the true one (VSPBFR, Table V): this is agreement, not accuracy.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError
from pipeline.faces.align import TEMPLATE, similarity
from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Points, Score
from pipeline.metrics.outside import library
from vsp_model.files import sha256_of

# Anger, (contempt,) disgust, fear, happiness, neutral, sadness, surprise; models of several tasks
# give valence and arousal behind them, which are no classes.
_NUM_CLASSES = {7: 7, 8: 8, 9: 7, 10: 8}
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)
# A detector's box about a face whose five points lie on the template of 512: the median of
# RetinaFace's over 200 faces of the validation set; YuNet's is within two pixels of it.
_BOX_MIDDLE, _BOX_SIZE = np.array((256.3, 278.4)), np.array((271.9, 378.9))
_MIN_PX = 8.0
_WHAT = "HSEmotion model (ONNX, one RGB picture in, 7 or 8 emotions out)"

Box = tuple[float, float, float, float]


class EmotionJudge:
    """1 where the likeliest emotion is the truth's, else 0; see `judge.Judge`.

    Both faces are cut out by the truth's five points, so that the crop cannot favour either.
    Threads may share it.
    """

    metrics = ("emotion",)

    def __init__(self, path: Path) -> None:
        """Read the model; its side in pixels is read off it (224 of B0, 260 of B2).

        Raises:
            UserError: If the file holds no such model.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class for every way to fail
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: no {_WHAT} ({reason})") from None
        self._input, self.size = _checked_input(self._session, path)
        self.files = {path.name: sha256_of(path)}
        self.library = library("onnxruntime")

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`; "no_face" where none was found on the truth."""
        assert face.truth is not None, "no truth"
        box = None if face.points is None else face_box(face.points, face.truth)
        if box is None:
            return {"emotion": Score.no("no_face")}
        seen, true = (self.logits(image, box) for image in (face.restored, face.truth))
        if not (np.isfinite(seen).all() and np.isfinite(true).all()):
            return {"emotion": Score.no("non_finite")}
        return {"emotion": Score.of(float(seen.argmax() == true.argmax()))}

    def logits(self, image: Pixels, box: Box) -> NDArray[np.float32]:
        """(7,) or (8,) of the face in a box of uint8 (H, W, 3) RGB."""
        cut = Image.fromarray(image).resize(
            (self.size, self.size), Image.Resampling.BILINEAR, box=box
        )
        unit = (np.asarray(cut, np.float32) / 255 - _MEAN) / _STD
        (found,) = self._session.run(None, {self._input: unit.transpose(2, 0, 1)[None]})
        return np.asarray(found[0, : _NUM_CLASSES[found.shape[1]]], np.float32)


def _checked_input(session: onnxruntime.InferenceSession, path: Path) -> tuple[str, int]:
    """Name and side of the picture that a model takes."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    classes = outputs[0].shape[-1] if len(outputs) == 1 and outputs[0].shape else None
    square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]
    if not (square and isinstance(shape[2], int) and classes in _NUM_CLASSES):
        raise UserError(f"{path}: no {_WHAT} (it takes {shape} and gives {classes} numbers)")
    return inputs[0].name, shape[2]


def face_box(points: Points, image: Pixels) -> Box | None:
    """The upright box that a detector would put about a face, cut to the picture.

    HSEmotion was trained on such boxes; like there it is not turned with the face, and its sides
    are brought to one length by the resize.

    Args:
        points: (5, 2) in pixels of the image, the first pixel spanning 0 to 1.
        image: (H, W, 3).

    Returns:
        x0, y0, x1, y1; None where the points give no face in the picture.
    """
    if not np.isfinite(points).all():
        return None
    place = similarity(TEMPLATE, points)
    middle = place[:, :2] @ _BOX_MIDDLE + place[:, 2]
    half = _BOX_SIZE / 2 * np.hypot(place[0, 0], place[1, 0])
    height, width = image.shape[:2]
    x0, y0 = np.maximum(middle - half, 0).tolist()
    x1, y1 = np.minimum(middle + half, (width, height)).tolist()
    return (x0, y0, x1, y1) if min(x1 - x0, y1 - y0) >= _MIN_PX else None

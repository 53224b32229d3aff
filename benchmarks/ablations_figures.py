"""What benchmarks/ablations.py measures: restored faces and pictures of codes, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from card_judges import features_of, scores_of
from numpy.typing import NDArray

from pipeline import images
from pipeline.degradation import STAGE_2, degrade_pair
from pipeline.metrics import intervals
from pipeline.metrics.frechet import frechet_of
from pipeline.metrics.identity import IdentityJudge
from pipeline.metrics.judge import Face
from pipeline.metrics.perceptual import PerceptualJudge
from pipeline.metrics.pixels import PixelJudge
from pipeline.training.index import build_index
from pipeline.weights import find
from vsp_model.checkpoints import load
from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.networks import load_part
from vsp_model.style_encoder import StyleEncoder
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train.inversion import picture
from vsp_model.train.stage import normal

SIZE, SEED, BATCH = 64, 0, 16
METRICS = ("lpips", "identity", "psnr", "ssim")
TRUNK = "squeezenet1_1_imagenet1k_fp16.safetensors"
FACE_NET = "mobilefacenet_ms1m.safetensors"

Values = NDArray[np.float64]


class Faces(NamedTuple):
    """The validation set: N faces."""

    keys: list[str]
    degraded: list[images.Pixels]
    truths: list[images.Pixels]
    points: Values
    """(N, 5, 2) in pixels of the faces, NaN if unknown."""


def read_faces(patterns: Sequence[str], limit: int | None = None) -> Faces:
    """Area-average every face to ``SIZE`` and degrade it by the paper's model, seed ``SEED``."""
    index = build_index(patterns)
    faces = Faces([], [], [], np.empty((0, 5, 2)))
    points = []
    for number in range(min(len(index), limit or len(index))):
        record = index.read(number)
        _, pixels = images.decode(record.image)
        pair = degrade_pair(images.resize(pixels, SIZE), record.key, SEED, SIZE, STAGE_2)
        faces.keys.append(record.key)
        faces.degraded.append(pair.lq)
        faces.truths.append(pair.truth)
        points.append(record.points * (SIZE / pixels.shape[0]))
    return faces._replace(points=np.stack(points).astype(np.float64))


class Measured(NamedTuple):
    """What the metrics say of one picture of every face."""

    values: dict[str, Values]
    """(N,) by metric."""
    features: Values
    """(N, 512) of SqueezeNet, for the distance of the whole set: no published FID."""


class Judge:
    """Metrics of uint8 pictures against the truths, with intervals by bootstrap over images."""

    def __init__(self, faces: Faces) -> None:
        from pipeline.metrics.features import SqueezeExtractor  # its torchvision takes seconds

        self.faces = faces
        self._judges = (PixelJudge(), PerceptualJudge(find(TRUNK)), IdentityJudge(find(FACE_NET)))
        self._extractor = SqueezeExtractor(find(TRUNK))
        self.true_features = features_of(self._extractor, self._pairs(faces.truths))
        self._drawn = intervals.draws(len(faces.keys), seed=SEED)

    def __call__(self, pictures: Sequence[images.Pixels], **more: Values) -> Measured:
        """Each metric's values, and the features of the whole set; ``more`` joins the values."""
        pairs = self._pairs(pictures)
        scores = scores_of(self._judges, pairs)
        values = {name: scores[f"{name}-squeeze" if name == "lpips" else name] for name in METRICS}
        return Measured(values | more, features_of(self._extractor, pairs))

    def _pairs(self, pictures: Sequence[images.Pixels]) -> list[Face]:
        rows = zip(self.faces.keys, pictures, self.faces.truths, self.faces.points, strict=True)
        return [Face(*row) for row in rows]

    def compare(self, measured: Mapping[str, Measured], base: str) -> dict[str, Any]:
        """Means with intervals; of all but ``base`` also the differences to it."""
        reference = measured.get(base)
        return {
            name: self._summary(each, None if name == base else reference)
            for name, each in measured.items()
        }

    def _summary(self, measured: Measured, reference: Measured | None) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: asdict(intervals.mean_interval(column, self._drawn))
            for name, column in measured.values.items()
        }
        found["squeeze-fd"] = frechet_of(measured.features, self.true_features)
        if reference is not None:
            found["difference"] = self._difference(measured, reference)
        return found

    def _difference(self, measured: Measured, reference: Measured) -> dict[str, Any]:
        def distance(places: NDArray[np.intp]) -> float:
            truths = self.true_features[places]
            ours, theirs = measured.features[places], reference.features[places]
            return frechet_of(ours, truths) - frechet_of(theirs, truths)

        found: dict[str, Any] = {
            name: asdict(intervals.difference_interval(column, reference.values[name], self._drawn))
            for name, column in measured.values.items()
        }
        count = len(self.true_features)
        error = intervals.spread(distance, count, seed=SEED)
        found["squeeze-fd"] = {"mean": distance(np.arange(count)), "standard_error": error}
        return found


def batches(
    faces: Faces, pictures: Sequence[images.Pixels]
) -> list[tuple[list[str], torch.Tensor]]:
    """Keys and (B, 3, S, S) in [-1, 1]."""
    found = []
    for start in range(0, len(pictures), BATCH):
        chosen = pictures[start : start + BATCH]
        batch = images.new_batch(len(chosen), SIZE)
        for slot, face in enumerate(chosen):
            images.to_model(face, batch, slot)
        found.append((faces.keys[start : start + BATCH], batch))
    return found


def restored(path: Path, faces: Faces) -> list[images.Pixels]:
    """What a restorer makes of the degraded faces."""
    model = load(path).eval()
    return [
        face
        for keys, lq in batches(faces, faces.degraded)
        for face in images.to_uint8(model.restore(lq, keys, seed=SEED))
    ]


@torch.no_grad()
def prompts(path: Path, faces: Faces, kind: str) -> tuple[list[images.Pixels], Values]:
    """The prior's pictures of the codes, and each face's mean |code - the true face's code|, (N,).

    Args:
        path: Of a bundle of encoder and prior, or of those and a diffuser.
        faces: Of which.
        kind: "degraded" codes as the encoder reads them, "diffused" ones, or the "true" face's.
    """
    encoder = cast(StyleEncoder, load_part(path, "encoder"))
    prior = cast(StyleGAN2, load_part(path, "prior"))
    diffuser = cast(CodeDiffuser, load_part(path, "diffuser")) if kind == "diffused" else None
    pictures: list[images.Pixels] = []
    errors = []
    both = zip(batches(faces, faces.degraded), batches(faces, faces.truths), strict=True)
    for (keys, lq), (_, hq) in both:
        target = encoder(hq)
        codes = target if kind == "true" else encoder(lq)
        if diffuser is not None:
            shape = tuple(codes.shape[1:])
            codes = diffuser.sample(codes, normal(tuple(keys), shape, SEED, "diffuser"))
        pictures.extend(images.to_uint8(picture(prior, codes, size=SIZE)))
        errors.append((codes - target).abs().mean(dim=(1, 2)).double().numpy())
    return pictures, np.concatenate(errors)

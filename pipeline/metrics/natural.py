"""NIQE: how far an image's statistics lie from those of natural images, without a truth.

Mittal, Soundararajan, Bovik: "Making a Completely Blind Image Quality Analyzer" (2013). What is
natural is a model in a file: the published one for blocks of 96 pixels, or one that `fit` made of
clean faces.
"""

import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError, one_line
from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.natural_features import NUM_FEATURES, LumaRange, features_of, luma_of
from pipeline.metrics.pixels import OWN_LIBRARY, Values
from vsp_model.files import sha256_of, whole_or_absent

BLOCK_PX, SMALL_BLOCK_PX = 96, 32
SMALL_MODEL_PATH = Path(__file__).with_name("niqe_small_faces.npz")
"""Fitted on 5,903 clean faces of 128 px; research and non-commercial use only. The file of the same
name that ends in .LICENSE says on which, and how."""
_SHARP = 0.75  # blocks below this part of the sharpest are left out of a fit
# Mean, covariance: as BasicSR names them (and `save_model`), as pyiqa does.
_NPZ_NAMES, _MAT_NAMES = ("mu_pris_param", "cov_pris_param"), ("mu_prisparam", "cov_prisparam")


@dataclass(frozen=True, slots=True, eq=False)
class NaturalModel:
    """What natural images look like in blocks of one side.

    Attributes:
        mean: (36,).
        covariance: (36, 36).
        block_px: Side of the blocks at full scale, even.
        luma: Its range.
    """

    mean: Values
    covariance: Values
    block_px: int = BLOCK_PX
    luma: LumaRange = "studio"

    @property
    def min_side_px(self) -> int:
        """Smaller images are refused.

        One or two blocks would carry the value, and it says nothing: of a photo at 128 and 191
        pixels it is twice that at 192.
        """
        return 2 * self.block_px


class NiqeJudge:
    """NIQE; see `judge.Judge`."""

    metrics = ("niqe",)
    library = OWN_LIBRARY
    block_px = BLOCK_PX

    def __init__(self, path: Path) -> None:
        """Read the model: BasicSR's .npz, pyiqa's .mat, or one of `save_model`.

        Raises:
            UserError: If it is no such file, or of blocks of another size.
        """
        self._model = load_model(path)
        if self._model.block_px != self.block_px:
            found, wanted = self._model.block_px, f"{self.metrics[0]} has {self.block_px}"
            raise UserError(f"{path}: a model of blocks of {found} px; {wanted}")
        self.files = {path.name: sha256_of(path)}

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        too_small = min(face.restored.shape[:2]) < self._model.min_side_px
        score = Score.no("too_small") if too_small else Score.of(niqe(face.restored, self._model))
        return dict.fromkeys(self.metrics, score)


class SmallNiqeJudge(NiqeJudge):
    """The same in blocks of 32 pixels, with a model of clean faces; its values are no NIQE's."""

    metrics = ("niqe-small",)
    block_px = SMALL_BLOCK_PX

    def __init__(self, path: Path = SMALL_MODEL_PATH) -> None:
        """Read the model that comes with the program, or one of `save_model`.

        Raises:
            UserError: As `NiqeJudge`.
        """
        super().__init__(path)


def load_model(path: Path) -> NaturalModel:
    """Read a model: BasicSR's .npz, pyiqa's .mat, or what `save_model` wrote.

    Raises:
        UserError: If it is no such file.
    """
    is_mat = path.suffix == ".mat"
    names = _MAT_NAMES if is_mat else _NPZ_NAMES
    try:
        held = _read_mat(path) if is_mat else _read_npz(path)
        mean, covariance = (np.asarray(held[name], np.float64) for name in names)
    except Exception as error:  # numpy and scipy fail over damaged bytes in many ways
        raise UserError(f"{path}: no NIQE model as .npz or .mat ({one_line(error)})") from None
    if mean.size != NUM_FEATURES or covariance.shape != (NUM_FEATURES, NUM_FEATURES):
        raise UserError(f"{path}: shapes {mean.shape}, {covariance.shape} are no NIQE model's")
    luma: LumaRange = "full" if held.get("luma") == "full" else "studio"
    return NaturalModel(mean.ravel(), covariance, int(held.get("block_px", BLOCK_PX)), luma)


def _read_npz(path: Path) -> Mapping[str, Any]:
    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and advise to trust it
        raise ValueError("no .npz inside" if path.is_file() else "no such file")
    # Opened here: numpy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        return dict(held)


def _read_mat(path: Path) -> Mapping[str, Any]:
    from scipy.io import loadmat  # slow to import, and seldom needed

    held: Mapping[str, Any] = loadmat(path)
    return held


def save_model(path: Path, model: NaturalModel) -> None:
    """Write a model as .npz; a crash leaves the old file or the new one."""
    mean_name, covariance_name = _NPZ_NAMES
    held: dict[str, Any] = {mean_name: model.mean, covariance_name: model.covariance}
    with whole_or_absent(path) as file:
        np.savez(file, **held, block_px=model.block_px, luma=model.luma)


def fit(images: Iterable[Pixels], block_px: int = SMALL_BLOCK_PX) -> NaturalModel:
    """Learn what clean images look like, from the sharper blocks of each, as published.

    Args:
        images: uint8 (H, W, 3) RGB, at least a block and in all several hundred blocks.
        block_px: Side of a block, even. Below 96 the value is not NIQE: give it another name.

    Raises:
        UserError: If there are too few blocks to estimate a covariance.
    """
    found = []
    for image in images:
        features, sharpness = features_of(luma_of(image, block_px), block_px)
        kept = sharpness > _SHARP * sharpness.max(initial=0)
        found.append(features[kept & np.isfinite(features).all(axis=1)])
    rows = np.concatenate(found) if found else np.empty((0, NUM_FEATURES))
    if len(rows) <= 2 * NUM_FEATURES:
        raise UserError(f"{len(rows)} usable blocks of {block_px} px; give more clean images")
    return NaturalModel(rows.mean(axis=0), np.cov(rows, rowvar=False), block_px)


def niqe(image: Pixels, model: NaturalModel) -> float:
    """Distance of one image from natural ones; lower is more natural.

    Args:
        image: uint8 (H, W, 3) RGB.
        model: Of `load_model`, or of `fit` for small images.

    Returns:
        NaN where the image has no block with any structure.

    Raises:
        ValueError: If the image is smaller than the model allows.
    """
    if min(image.shape[:2]) < model.min_side_px:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ValueError(f"{size}: NIQE of this model needs {model.min_side_px} pixels")
    features, _ = features_of(luma_of(image, model.block_px, model.luma), model.block_px)
    whole = features[np.isfinite(features).all(axis=1)]
    if len(whole) < 2:
        return math.nan
    # As published: the mean skips single missing features, the covariance whole rows.
    difference = model.mean - np.nanmean(features, axis=0)
    pooled = (model.covariance + np.cov(whole, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))

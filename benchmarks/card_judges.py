"""Faces through the judges of `vsp score`, one by one: scores, and features of the whole set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import card_faces
import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.metrics.choose import DEFAULT, choose
from pipeline.metrics.frechet import frechet_error, frechet_of
from pipeline.metrics.identity import found_again
from pipeline.metrics.judge import Extractor, Face, Judge, Score
from pipeline.metrics.kernel import paired_kernel_distance
from pipeline.metrics.natural import SmallNiqeJudge
from pipeline.metrics.pixels import Values
from pipeline.metrics.table import BY_NAME

SQUEEZE, IDENTITY = "squeeze", "identity-set"  # families of features


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What the judges say of N pictures.

    Attributes:
        scores: Metric -> (N,), NaN where there is none.
        features: Family -> (N, D), rows of NaN likewise.
    """

    scores: dict[str, Values]
    features: dict[str, Values]


class Jury:
    """The judges at hand that are asked for, and the truths that they compare with.

    Attributes:
        files: Name -> sha256 of the weight files in use.
        missing: What is not computed for want of a file, a line each.
        truth: What they say of the truths themselves.
    """

    def __init__(
        self, folder: Path, truths: Sequence[card_faces.Face], columns: Collection[str],
        small: Path | None = None,
    ) -> None:  # fmt: skip
        """Read the weights.

        Args:
            folder: Where the weight files are.
            truths: The true faces, all of one size.
            columns: The metrics that are asked for.
            small: A model of small faces in the place of the one that comes with the program.
        """
        choice = choose([DEFAULT], folder, has_truth=True, has_reference=False)
        self.missing = [line for line in choice.missing if _names(line) & set(columns)]
        self._truths, self._judges, self._extractors = truths, [], {}
        self.files: dict[str, str] = {}
        for chosen in choice.chosen:
            if not set(chosen.metrics) & set(columns):
                continue
            built: Any = chosen.definition.build(chosen.paths)
            if small and isinstance(built, SmallNiqeJudge):
                built = SmallNiqeJudge(small)
            if chosen.is_of_sets:
                self._extractors[chosen.family] = built
            else:
                self._judges.append(built)
            self.files |= built.files
        pictures = [face.pixels for face in truths]
        self._true_features = self._features(self._pairs(pictures))
        self.truth = self.see(pictures, columns)

    def see(self, pictures: Sequence[Pixels], columns: Collection[str]) -> Judged:
        """Let every judge of these metrics look at restored faces, in the order of the truths."""
        faces = self._pairs(pictures)
        judges = [judge for judge in self._judges if set(judge.metrics) & set(columns)]
        scores = scores_of(judges, faces)
        features = self._features(faces)
        if IDENTITY in features:
            own, true = features[IDENTITY], self._true_features[IDENTITY]
            known = _are_known(own, true)
            scores["found-again"] = np.full(len(faces), np.nan)
            scores["found-again"][known] = found_again(own[known], true[known])
        return Judged(scores, features)

    def _pairs(self, pictures: Sequence[Pixels]) -> list[Face]:
        return [
            Face(truth.key, picture, truth.pixels, truth.points)
            for picture, truth in zip(pictures, self._truths, strict=True)
        ]

    def _features(self, faces: Sequence[Face]) -> dict[str, Values]:
        return {name: features_of(each, faces) for name, each in self._extractors.items()}

    def distances(self, seen: Judged, seed: int) -> dict[str, tuple[float, float]]:
        """Metrics of the set -> value and standard error."""
        found = {}
        for family, prefix in ((SQUEEZE, "squeeze"), (IDENTITY, "identity")):
            if family in seen.features:
                features, truths = seen.features[family], self._true_features[family]
                known = _are_known(features, truths)
                both = features[known], truths[known]
                error = frechet_error(*both, seed=seed)
                found[f"{prefix}-fd"] = frechet_of(*both), np.nan if error is None else error
                if family == SQUEEZE:
                    found["squeeze-kd"] = paired_kernel_distance(*both)
        return found


def scores_of(judges: Iterable[Judge], faces: Sequence[Face]) -> dict[str, Values]:
    """Each metric of each face, (N,): capped as in a mean, NaN for none."""
    found: dict[str, list[float]] = {}
    for face in faces:
        for judge in judges:
            for name, score in judge.score(face).items():
                cap = BY_NAME[name].cap
                value = score.value if cap is None else min(score.value, cap)
                found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def features_of(extractor: Extractor, faces: Sequence[Face]) -> Values:
    """Features of the restored faces, (N, D), a row of NaN for none."""
    found = [extractor.feature(face, "restored") for face in faces]
    nothing = np.full(extractor.dim, np.nan)
    return np.stack([nothing if isinstance(each, Score) else each for each in found]).astype(float)


def _names(line: str) -> set[str]:
    """The metrics that a line about missing ones speaks of."""
    return set(line.partition(":")[0].split(", "))


def _are_known(features: Values, truths: Values) -> NDArray[np.bool_]:
    """Which rows neither lacks, (N,)."""
    return np.asarray(np.isfinite(features).all(axis=1) & np.isfinite(truths).all(axis=1))

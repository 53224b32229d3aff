"""The project's own no-reference quality, of `vsp clean`: the small network, the classic measures.

docs/quality.md says what either sees and how well it ranks known damage; nothing is downloaded for
them. Of a training set they make the table of scores that `data.scores` reads.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.cleaning.quality.measures import classic_quality, measure
from pipeline.cleaning.quality.scorer import QualityScorer
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.pixels import NO_FILES, OWN_LIBRARY

MIN_SIDE_PX = 16
"""What the classic measures need of a picture."""


class QualityJudge:
    """Quality by the network, calibrated, 0 worst to 1 best; see `judge.Judge`."""

    metrics = ("quality",)
    library = OWN_LIBRARY

    def __init__(self, path: Path) -> None:
        """Read the network.

        Raises:
            UserError: If it is no file of `vsp weights fit-quality`.
        """
        self._scorer = QualityScorer(path)
        self.files = {path.name: self._scorer.sha256}

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        return {"quality": Score.of(self._scorer.score(face.restored))}


class ClassicJudge:
    """Quality by the classic measures, of the pixels alone; see `judge.Judge`."""

    metrics = ("quality-classic",)
    files = NO_FILES
    library = OWN_LIBRARY

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        if min(face.restored.shape[:2]) < MIN_SIDE_PX:
            return {"quality-classic": Score.no("too_small")}
        # As PNG: of a JPEG the table would tell more, of a picture in memory it is not known.
        measures = measure(face.restored, b"", "png")
        return {"quality-classic": Score.of(classic_quality(measures))}

"""Everything that a cleaning run decides by, as one tree of settings."""

from typing import Literal

from pydantic import Field

from pipeline.cleaning.calibration.sample import SampleConfig
from pipeline.cleaning.calibration.thresholds import CalibrateConfig
from pipeline.cleaning.decide import DecideConfig
from pipeline.cleaning.metadata import FieldMap
from pipeline.replica import Frozen


class AlignConfig(Frozen):
    """How faces are cut out of photos.

    Attributes:
        size_px: Side of the crops.
        min_score: Least confidence of the detector, 0 to 1.
        min_face_px: Least longer side of a face's box.
        which: Which faces of a photo.
    """

    size_px: int = Field(512, ge=32)
    min_score: float = Field(0.7, ge=0, le=1)
    min_face_px: float = Field(20, ge=0)
    which: Literal["all", "largest"] = "all"


class CleanSettings(DecideConfig):
    """What is measured, tried and decided by; see the parts.

    Attributes:
        names: Where metadata are looked for.
        sample: Which faces the calibration takes.
        calibrate: How thresholds are derived from its trials.
        align: How faces are cut out, if that is asked for.
    """

    names: FieldMap = FieldMap()
    sample: SampleConfig = SampleConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    align: AlignConfig = AlignConfig()

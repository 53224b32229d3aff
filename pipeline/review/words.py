"""A row in words: what was decided and why, and every measured value with what it means."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OUTCOMES = {
    "kept": "kept as it is",
    "restored": "restored",
    "fallback": "restored, not accepted",
    "rejected": "left out",
    "failed": "failed",
    "forgotten": "removed on request",
}
REASONS = {
    "good": "nothing is wrong with it",
    "not_worst": "not among the worst of this set, or above the calibrated score",
    "no_profit": "at its level of damage the calibration found no gain",
    "identity_unmeasurable": "at its level of damage the identity net cannot tell people apart",
    "no_identity_net": "nothing is restored without an identity net",
    "model_too_small": "it carries more detail than the model gives back",
    "uncalibrated": "nothing is restored without a calibration",
    "worst": "among the worst of this set, and restoring is known to help",
    "overruled": "a person decided so",
    "no_face": "no face was found",
    "several_faces": "several faces were found",
    "too_small": "too few pixels",
    "unusable": "the picture cannot be decoded",
    "duplicate_exact": "the same bytes as a picture that stays",
    "duplicate_near": "nearly the same as a better picture that stays",
    "duplicate_flip": "the mirror image of a better picture that stays",
    "identity_outlier": "not the person that its field names",
    "no_image": "a record without an image",
    "forgotten": "removed on request",
}
FALLBACKS = {
    "identity": "not the same person, or not surely",
    "identity_unmeasurable": "the identity could not be measured",
    "not_damaged": "the classic measures saw no damage in the original",
    "quality_not_better": "its quality did not rise",
    "face_lost": "no face was found on the restored picture",
    "face_gained": "further faces appeared",
    "content_changed": "more changed than a face's quality",
    "not_finite": "the model gave no numbers",
    "not_decodable": "the original could not be decoded again",
}

Line = dict[str, str]
Value = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Measure:
    """How a value is told.

    Attributes:
        label: What it is.
        before: Column of the input's value.
        after: Column of the restored face's value; "" where only the input has one.
        show: The value as text.
        hint: What it means, and which way is good.
    """

    label: str
    before: str
    after: str = ""
    show: Value = str
    hint: str = ""


def _decimals(digits: int) -> Value:
    return lambda value: f"{value:.{digits}f}".replace("-", "\u2212")


def _share(value: float) -> str:
    return f"{value:.1%}"


def _degrees(positive: str, negative: str) -> Value:
    """An angle with the word for its side."""

    def told(value: float) -> str:
        rounded = round(abs(value))
        return f"{rounded}° {positive if value > 0 else negative}" if rounded else "0°"

    return told


def _size_bytes(value: int) -> str:
    return f"{value / 1000:,.1f} kB"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


_QUALITY = (
    Measure("quality, net", "quality", "quality_after", _decimals(3),
            "0 worst, 1 best; it decides what may be restored, never what is accepted"),
    Measure("quality, measures", "classic", "classic_after", _decimals(3),
            "0 worst, 1 best; it must rise for a restored face to be accepted"),
    Measure("faces", "num_faces", "num_faces_after", str, "one is wanted"),
)  # fmt: skip
_CHANGE = (
    Measure("same person", "identity", "", _decimals(3),
            "cosine of the restored face with the original, 1 the same"),
    Measure("at least needed", "identity_threshold", "", _decimals(3),
            "from the calibration at this level of damage"),
    Measure("content change", "content_change", "", _decimals(3),
            "0 unchanged; background, colours and place of the head"),
    Measure("level of damage", "level", "", str, "what its quality stands for, 1 mild, 5 severe"),
    Measure("doubt", "doubt", "", _decimals(2), "0 clear, 1 look first"),
)  # fmt: skip
_LOOK = (
    Measure("resolution carried", "native_side_px", "", lambda v: f"{v:.0f} px",
            "the side at which all its detail would fit"),
    Measure("sharpness", "sharpness", "", _decimals(3), "higher is sharper"),
    Measure("noise", "noise_sigma", "", _decimals(2), "standard deviation in grey levels"),
    Measure("JPEG quality", "jpeg_quality", "", str, "of the file, 100 best"),
    Measure("blockiness", "blockiness", "", _decimals(3), "0 no blocks of JPEG to be seen"),
    Measure("brightness", "exposure", "", _decimals(2), "0 black, 1 white"),
    Measure("clipped", "clipped_share", "", _share, "pixels at black or white"),
    Measure("contrast", "contrast", "", _decimals(2), "higher is more"),
    Measure("grey", "is_gray", "", _yes),
)  # fmt: skip
_FACE = (
    Measure("detector's score", "face_score", "", _decimals(2), "0 unsure, 1 sure it is a face"),
    Measure("turn", "yaw_deg", "", _degrees("to the right", "to the left"), "coarse"),
    Measure("nod", "pitch_deg", "", _degrees("up", "down"), "coarse"),
    Measure("tilt", "roll_deg", "", _degrees("clockwise", "anticlockwise"), ""),
    Measure("like its person", "identity_likeness", "", _decimals(3),
            "cosine with the centre of the images under this name"),
)  # fmt: skip
_COPY = (
    Measure("copy of", "copy_of"),
    Measure("likeness", "copy_likeness", "", _decimals(3), "1 the same"),
)
_ORIGIN = (
    Measure("person", "person"), Measure("source", "source"), Measure("licence", "licence"),
    Measure("author", "author"),
)  # fmt: skip
_FILE = (
    Measure("shard", "shard"), Measure("place in the shard", "index"), Measure("member", "member"),
    Measure("format", "format"), Measure("size", "size_bytes", "", _size_bytes),
    Measure("sha256", "sha256", "sha256_out"),
)  # fmt: skip
_SECTIONS = (
    ("Quality", _QUALITY), ("Change", _CHANGE), ("Copy", _COPY), ("Picture", _LOOK),
    ("Face", _FACE), ("Origin", _ORIGIN), ("File", _FILE),
)  # fmt: skip


def sentence(values: Mapping[str, Any]) -> str:
    """What became of a row and why, in one line."""
    outcome = OUTCOMES[values["outcome"]]
    if values["outcome"] == "fallback":
        why = FALLBACKS.get(values["fallback"], "")
        return f"{outcome}: {why}; the original stays"
    why = REASONS[values["decision_reason"]]
    more = values["decision_detail"] or values["note"]
    return f"{outcome}: {why}{f' ({more})' if more else ''}"


def brief(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reviewer weighs first, as name and value."""
    found = [(measure.label, _line(values, measure)) for measure in _CHANGE]
    return [(label, line["before"]) for label, line in found if line]


def sections(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every value that a row has, in sections: `title` and `lines`.

    A line has `label`, `before`, `after` ("" for none) and `hint`.
    """
    found = []
    for title, measures in _SECTIONS:
        lines = [line for measure in measures if (line := _line(values, measure))]
        if title == "File":
            lines[3:3] = _side(values)
        if lines:
            found.append({"title": title, "lines": lines})
    if fields := _fields(values["fields"]):
        found.append({"title": "Fields of the set", "lines": fields})
    return found


def _line(values: Mapping[str, Any], measure: Measure) -> Line | None:
    before = values[measure.before]
    after = values[measure.after] if measure.after else None
    if before is None and after is None:
        return None
    shown = ["" if value is None else measure.show(value) for value in (before, after)]
    return {"label": measure.label, "before": shown[0], "after": shown[1], "hint": measure.hint}


def _side(values: Mapping[str, Any]) -> list[Line]:
    """Width and height, before and after."""
    if values["width_px"] is None:
        return []
    before = f"{values['width_px']} x {values['height_px']} px"
    after = ""
    if values["width_out_px"] is not None:
        after = f"{values['width_out_px']} x {values['height_out_px']} px"
    return [{"label": "pixels", "before": before, "after": after, "hint": ""}]


def _fields(text: str | None) -> list[Line]:
    """The record's own metadata."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    if not isinstance(found, dict):
        return []
    return [
        {"label": str(name), "before": _plain(value), "after": "", "hint": ""}
        for name, value in found.items()
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""The tables of a model card: what was measured, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.metrics.intervals import Interval, difference_interval, mean_interval
from pipeline.metrics.pixels import Values
from pipeline.metrics.table import BY_NAME

MAIN = ("psnr", "ssim", "lpips-squeeze", "lpips-alex", "lpips-vgg", "identity", "found-again")
UNSEEN = ("nme-yunet", "nme-retinaface", "expression", "expression-distance", "detail", "finest",
          "niqe-small")  # fmt: skip
SETS = ("squeeze-fd", "squeeze-kd", "identity-fd")
COLUMNS = (*MAIN, *UNSEEN, *SETS)
COMPARED = ("psnr", "ssim", "lpips-squeeze", "identity", "nme-yunet", "nme-retinaface",
            "expression-distance")  # fmt: skip
STRESS = ("psnr", "ssim", "lpips-squeeze", "identity", "found-again")
# Measured elsewhere on the same 311 faces with other draws of the degradation: a restorer of 5.0 M
# parameters without style prompt and prior, minutes of training on two cores.
PUBLISHED = (
    ("plain restorer, 5 min", 25.54, 0.759, 0.108, 0.589),
    ("plain restorer, 15 min", 26.04, 0.780, 0.091, 0.623),
    ("plain restorer, 35 min", 26.20, 0.783, 0.082, 0.640),
)
DIGITS = {"psnr": 2, "nme-yunet": 2, "nme-retinaface": 2, "detail": 1, "finest": 1,
          "niqe-small": 2, "squeeze-fd": 0, "squeeze-kd": 0}  # fmt: skip


@dataclass(slots=True, eq=False)
class Card:
    """Everything that was measured.

    Attributes:
        rows: Method -> metric -> one value a face.
        sets: Method -> metric -> value and standard error.
        stress: Input -> metric -> one value a face.
    """

    rows: dict[str, dict[str, Values]]
    sets: dict[str, dict[str, tuple[float, float]]]
    stress: dict[str, dict[str, Values]]
    drawn: Values
    model: str
    facts: dict[str, Any]


def shown(interval: Interval, digits: int) -> str:
    """`0.351 (0.340 to 0.362)`."""
    if not interval.count:
        return "-"
    spots = [f"{value:.{digits}f}" for value in (interval.mean, interval.low, interval.high)]
    return f"{spots[0]} ({spots[1]} to {spots[2]})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def score_table(rows: dict[str, dict[str, Values]], wanted: Sequence[str], drawn: Values) -> str:
    """Means with intervals; columns that nobody has are left out."""
    names = [name for name in wanted if any(name in scores for scores in rows.values())]
    body = []
    for row, scores in rows.items():
        cells = [
            shown(mean_interval(scores[name], drawn), DIGITS.get(name, 3))
            if name in scores else "-"
            for name in names
        ]  # fmt: skip
        body.append([row, *cells])
    return table(["", *(heading(name) for name in names)], body)


def heading(name: str) -> str:
    """A metric's name, unit and better way; a star where networks are trained on it."""
    metric = BY_NAME[name]
    way = {"higher": "up", "lower": "down", "zero": "to 0"}[metric.better]
    return f"{name}{'*' * metric.is_loss}{f' [{metric.unit}]' * bool(metric.unit)} ({way})"


def found_table(rows: dict[str, dict[str, Values]]) -> str:
    """How many faces each detector found; their errors are over these only."""
    names = [name for name in UNSEEN if name.startswith("nme") and name in rows["degraded"]]
    counts = [[row, *(str(np.isfinite(scores[name]).sum()) for name in names)]
              for row, scores in rows.items()]  # fmt: skip
    return table(["faces found", *names], counts)


def markdown(card: Card) -> str:
    """The card's tables."""
    names = [name for name in COMPARED if name in card.rows["degraded"]]
    model = card.rows["model"]
    differences = [
        [f"model - {row}", *(
            shown(difference_interval(model[name], scores[name], card.drawn), DIGITS.get(name, 3))
            for name in names
        )]
        for row, scores in card.rows.items() if row not in ("model", "truth")
    ]  # fmt: skip
    sets = [
        [row, *(f"{values[name][0]:.{DIGITS.get(name, 3)}f} (error {values[name][1]:.2g})"
                for name in SETS if name in values)]
        for row, values in card.sets.items()
    ]  # fmt: skip
    published = [[f"{row} (elsewhere)", *map(str, values)] for row, *values in PUBLISHED]
    people = f"{card.facts['faces']} faces of {card.facts['people']} people"
    return "\n".join([
        f"# {Path(card.model).name}: quality on {people}", "",
        "Mean (95 % interval, bootstrap over people). A star: networks are trained on it.", "",
        score_table(card.rows, MAIN, card.drawn), "Judges that no loss has seen:", "",
        score_table(card.rows, UNSEEN, card.drawn), found_table(card.rows),
        "The same faces, image by image:", "",
        table(["", *(heading(name) for name in names)], differences),
        "Sets, restored against their own truths (not comparable with published FID):", "",
        table(["", *(heading(name) for name in SETS)], sets),
        "Not measured here; the same faces, other draws of the degradation:", "",
        table(["", "psnr", "ssim", "lpips-squeeze", "identity"], published),
        "Inputs that training hardly showed:", "",
        score_table(card.stress, STRESS, card.drawn),
        "```json", json.dumps(card.facts, indent=1, default=str), "```", "",
    ])  # fmt: skip


def as_json(card: Card, keys: Sequence[str]) -> dict[str, Any]:
    """Every value of every face, and what they hang on."""

    def plain(rows: dict[str, dict[str, Values]]) -> dict[str, Any]:
        return {
            row: {name: [round(float(v), 5) if np.isfinite(v) else None for v in values]
                  for name, values in scores.items()}
            for row, scores in rows.items()
        }  # fmt: skip

    protocols = {name: BY_NAME[name].protocol for name in card.rows["model"]}
    return {"facts": json.loads(json.dumps(card.facts, default=str)), "protocols": protocols,
            "keys": list(keys), "rows": plain(card.rows), "sets": card.sets,
            "stress": plain(card.stress)}  # fmt: skip

"""Does the quality dial turn? Each system at several qualities: sharpness, scores, identity.

    OMP_NUM_THREADS=1 python benchmarks/dial.py vspbfr iqp idm --truth faces-val/ \
        --weights weights/ --out dial/ --limit 128
    python benchmarks/dial.py runs/idm/model.safetensors --truth faces-val/ --guidance 2
    python benchmarks/dial.py idm --estimate vspbfr --t0 0.2 --truth faces-val/

Faces are degraded as for `benchmarks/model_card.py`. Columns: RMS of the Laplacian of luma
(sharpness, levels of 255), the spectrum's detail against the truth, two scores that made the table
of training scores (quality, quality-classic), one that nobody trained on (niqe-small, lower is
better), identity, LPIPS. Every step of the dial is compared face by face with the one before:
bootstrap interval of the mean difference over people.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from card_faces import at_size, degraded, read_faces
from card_judges import Jury, scores_of
from card_tables import shown
from model_card import restore

from jobs.models import asked_model, wishes
from pipeline.images import Pixels
from pipeline.metrics.choose import Choice, choose
from pipeline.metrics.intervals import difference_interval, draws, mean_interval
from pipeline.metrics.judge import Face
from pipeline.metrics.pixels import Values
from pipeline.metrics.table import BY_NAME
from pipeline.replica import Replica, ReplicaConfig
from vsp_model.ask import Ask

SETTINGS = ("unknown", "0.1", "0.5", "0.9")
JUDGED = ("detail", "niqe-small", "identity", "lpips-squeeze")
TAUGHT = ("quality", "quality-classic")  # the training scores are made of these
SHARPNESS = "sharpness"
DIGITS = {SHARPNESS: 2, "detail": 2, "niqe-small": 2, "psnr": 2}


def asked(quality: str, options: argparse.Namespace) -> Ask:
    """What a model is asked for at one setting of the dial."""
    guidance = 1.0 if quality == "unknown" else options.guidance
    ask = wishes(quality, guidance, options.fidelity, options.steps)
    return Ask.model_validate(ask.model_dump() | {"t0": options.t0, "eta": options.eta})


def open_model(
    name: str, ask: Ask, options: argparse.Namespace, estimate: str | None = None
) -> Replica:
    """A model that is asked for something, perhaps from what another one made."""
    values = {"model": asked_model(name, ask, estimate), "seed": options.seed,
              "batch_size": options.batch, "threads": options.threads}  # fmt: skip
    return Replica(ReplicaConfig.model_validate(values))


def sharpness(picture: Pixels) -> float:
    """RMS of the Laplacian of luma, in levels of 255."""
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.sqrt(np.square(cv2.Laplacian(luma, cv2.CV_32F)).mean()))


def table(
    name: str,
    found: dict[str, dict[str, Values]],
    drawn: Values,
    steps: Iterable[tuple[str, str]] = tuple(pairwise(SETTINGS[1:])),
) -> list[str]:
    """Rows of figures, and how each step from one row to another changes each figure."""
    columns = list(next(iter(found.values())))
    heads = [f"{c} ({'up' if _is_up(c) else 'down'})" for c in columns]
    lines = [f"| {name} | " + " | ".join(heads) + " |", "| --- " * (len(columns) + 1) + "|"]
    for setting, scores in found.items():
        cells = [shown(mean_interval(scores[c], drawn), DIGITS.get(c, 3)) for c in columns]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    for before, after in steps:
        cells = [
            shown(difference_interval(found[after][c], found[before][c], drawn), DIGITS.get(c, 3))
            for c in columns
        ]
        lines.append(f"| {before} to {after} | " + " | ".join(cells) + " |")
    return lines


def _is_up(column: str) -> bool:
    return column == SHARPNESS or BY_NAME[column].better != "lower"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every system at every setting; writes as it goes."""
    size = open_model(options.models[0], Ask(), options).size
    faces = [at_size(face, size) for face in read_faces(options.truth, options.limit)]
    lqs, keys = [degraded(face, size, options.seed) for face in faces], [f.key for f in faces]
    jury = Jury(options.weights, faces, JUDGED)
    drawn = draws(len(faces), seed=options.seed, groups=[face.person for face in faces])
    facts: dict[str, Any] = {"faces": len(faces), "guidance": options.guidance, "lines": {}}
    for name in options.models:
        found = {}
        for quality in SETTINGS:
            replica = open_model(name, asked(quality, options), options, options.estimate)
            found[quality] = scores(jury, restore(replica, lqs, keys), keys)
        facts["lines"][name] = table(name, found, drawn)
        facts[name] = {q: {c: float(np.nanmean(v)) for c, v in s.items()} for q, s in found.items()}
        print("\n".join(facts["lines"][name]), flush=True)
    return facts


def scores(
    jury: Jury, pictures: Sequence[Pixels], keys: Sequence[str], judged: Sequence[str] = JUDGED
) -> dict[str, Values]:
    """Each figure of each face, (N,)."""
    seen = jury.see(pictures, judged).scores
    sharp = np.array([sharpness(picture) for picture in pictures])
    alone = [Face(key, picture) for key, picture in zip(keys, pictures, strict=True)]
    taught = scores_of([c.definition.build(c.paths) for c in scorers().chosen], alone)
    return {SHARPNESS: sharp} | taught | {c: seen[c] for c in judged if c in seen}


def scorers() -> Choice:
    """Who made the table of training scores."""
    return choose(TAUGHT, Path(), has_truth=False, has_reference=False)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="vspbfr, iqp, idm or bundles, of one size")
    parser.add_argument("--truth", required=True, help="shards of clean faces, never trained on")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="judges' files")
    parser.add_argument("--out", type=Path, default=Path("dial"))
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--fidelity", type=float, default=None, help="of IQP")
    parser.add_argument("--steps", type=int, default=None, help="of IDM")
    parser.add_argument("--estimate", default=None, help="IDM starts from what this model made,")
    parser.add_argument("--t0", type=float, default=None, help="noised to this share")
    parser.add_argument("--eta", type=float, default=None, help="of IDM: noise of its steps")
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = measure(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "dial.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The papers' claims of IQP and IDM at 64 pixels: three seeds of every arm, face by face.

    VSP_WEIGHTS=WEIGHTS OMP_NUM_THREADS=1 python benchmarks/claims.py --faces FACES \
        --scores SCORES --held-out OTHER_FACES --validation faces-val/ --out runs/claims

FACES are shards of clean aligned faces with `landmarks5`, SCORES is a folder of `vsp score FACES
SCORES --metrics quality,quality-classic`. OTHER_FACES only draw the curves of the logs; nothing is
chosen by them. The tables are measured on the faces of --validation, degraded as for a model card.

1. IQP (arXiv 2503.09294): two codebooks against one of as many codes.
2. IQP: a quality that is asked for against none, for IQP and IDM. A scorer that made no score table
   (niqe-small) is the judge, identity must not fall.
3. IDM (arXiv 2307.08996): a restorer that is trained on what another one has cleaned. Two in three
   of the training faces carry known damage; `vsp iterate` cleans them through its gate. Beside it
   stand the best that a gate could do (all damage beyond 0.6 is restored, and nothing else), and
   training on the truth. And what restoring what was restored before does.

Every training is a run folder, which goes on where it was stopped; what is done is not done again.
Names of arms behind the options restrict what is trained; tables show what is there. About two
hours on one core of an AMD EPYC: 30 trainings of 2,400 to 3,200 images, then the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
from claims_damage import Bucket, clean_all, prepare, who_profits
from claims_figures import BOOKS as DECODED
from claims_figures import ROWS, Bench, Scores, opened
from claims_tables import (
    BOOKS,
    QUALITY,
    ROUNDS,
    RULE,
    Contrast,
    contrast_table,
    profit_table,
    repeated_table,
)
from claims_train import ARMS, ROUND_0, SEEDS, Given, iterate, train

from pipeline.errors import UserError
from pipeline.weights import find
from vsp_model.ask import Ask

TRUNK, GATE = "squeezenet1_1_imagenet1k_fp16.safetensors", "gate.json"
REPEATED = (("idm-untold", 1), ("idm-untold", 5))
"""Arm and steps of the sampler."""
ORDER = (
    "idm-told", "idm-untold", ROUND_0, "idm-round-1-upper", "idm-round-1-pristine",
    "books-dual", "books-single", "iqp-dual", "iqp-single", "iqp-single-untold",
)  # fmt: skip


def train_all(given: Given, names: set[str]) -> None:
    """Everything that is asked for and not there yet, seed after seed."""
    prepare(given.faces, given.out / "sets")
    for arm in ORDER:
        for seed in SEEDS:
            if arm not in names:
                continue
            if arm == ROUND_0:
                tell_gate(seed, given)
                continue
            if arm == "idm-round-1-upper":
                round_0 = opened(given.result(ROUND_0, seed), Ask())
                clean_all(round_0, given.out / "sets", seed)
            train(arm, seed, given)


def tell_gate(seed: int, given: Given) -> None:
    """Run a seed's loop to its end, unless that was done before; note what its gate took."""
    path = given.loop(seed) / GATE
    if not path.exists():
        told = iterate(seed, given)
        path.write_text(json.dumps(told, indent=1))


def measure_all(bench: Bench, given: Given) -> dict[str, dict[int, Scores]]:
    """Every row that was trained, by seed."""
    found: dict[str, dict[int, Scores]] = {}
    for seed in SEEDS:
        for name in ROWS:
            if (scores := bench.restored(name, seed, given)) is not None:
                found.setdefault(name, {})[seed] = scores
        for name in DECODED:
            if (scores := bench.reconstructed(name, seed, given)) is not None:
                found.setdefault(name, {})[seed] = scores
    return found


def profits(steps: int, given: Given) -> list[list[Bucket]]:
    """Who profits from each seed's round 0."""
    found = []
    for seed in SEEDS:
        model, path = given.result(ROUND_0, seed), _profit_path(steps, seed, given)
        if not path.exists() and model.exists():
            buckets = who_profits(opened(model, Ask(steps=steps)), given.out / "sets", find(TRUNK))
            path.write_text(json.dumps([bucket._asdict() for bucket in buckets]))
        if path.exists():
            found.append([Bucket(**each) for each in json.loads(path.read_text())])
    return found


def _profit_path(steps: int, seed: int, given: Given) -> Path:
    return given.out / "values" / f"profits-{steps}-steps-seed-{seed}.json"


def gate_lines(given: Given) -> list[str]:
    """What the real gate took, seed by seed."""
    lines = []
    for seed in SEEDS:
        path = given.loop(seed) / GATE
        if path.exists():
            told: Mapping[str, Any] = json.loads(path.read_text())
            lines.append(
                f"seed {seed}: {told['accepted']} of {told['images']} faces accepted, "
                f"{told['tried']} tried"
            )
            lines += ["", "```", *told["calibration"], "```", ""]
    return lines


def tables(bench: Bench, given: Given) -> list[str]:
    """All of them, as Markdown."""
    found = measure_all(bench, given)
    degraded = bench.kept("degraded", lambda: bench.see(bench.lqs))
    means = ", ".join(f"{name} {values.mean():.3f}" for name, values in degraded.items())

    def chapter(title: str, contrasts: tuple[Contrast, ...]) -> list[str]:
        told = [contrast_table(contrast, found, bench.drawn) for contrast in contrasts]
        return [f"## {title}", "", *told]

    people = len({face.person for face in bench.truths})
    lines = [f"{len(bench.truths)} faces of {people} people; degraded: {means}.", "", RULE, ""]
    lines += chapter("1. Two codebooks or one", BOOKS)
    lines += chapter("2. A quality that is asked for", QUALITY)
    lines += chapter("3. Trained on what was cleaned", ROUNDS)
    lines += ["### What the gate took", "", *gate_lines(given)]
    for steps in (1, 5):
        if buckets := profits(steps, given):
            lines += [f"### Round 0 on its training faces, {steps} steps", ""]
            lines += [profit_table(buckets)]
    for arm, steps in REPEATED:
        again = {seed: bench.repeated(arm, steps, seed, given) for seed in SEEDS}
        there = {seed: scores for seed, scores in again.items() if scores is not None}
        if there:
            lines += [f"### Repeated, {arm}, {steps} steps", "", repeated_table(there)]
    return lines


def main() -> None:
    """Train what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", required=True, help="shards to train on")
    parser.add_argument("--scores", required=True, help="their table, a folder of vsp score")
    parser.add_argument("--held-out", required=True, help="other shards, for the logs")
    parser.add_argument("--validation", required=True, help="faces of the tables")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--images", type=int, default=0, help="of every training; 0: as configured")
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces of the tables")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    parser.add_argument("names", nargs="*", help="arms to train; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    given = Given(options.faces, options.scores, options.held_out, options.out, options.images)
    unknown = set(options.names) - {*ARMS, ROUND_0}
    if unknown:
        raise UserError(f"{min(unknown)}: no such arm; known: {', '.join(ORDER)}")
    if not options.measure_only:
        train_all(given, set(options.names or ORDER))
    bench = Bench(options.validation, find(TRUNK).parent, given, options.limit)
    text = "\n".join(tables(bench, given))
    (options.out / "claims.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

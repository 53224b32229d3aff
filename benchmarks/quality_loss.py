"""Training for a score, stage II of IQP at 128 pixels: does it work, and does the guard see harm?

    VSP_WEIGHTS=WEIGHTS OMP_NUM_THREADS=1 python benchmarks/quality_loss.py --faces FACES \
        --scores SCORES --held-out OTHER_FACES --validation faces-val/ --books runs/iqp-books \
        --codes runs/iqp-codes --limit 160 --out runs/quality-loss

FACES, SCORES, OTHER_FACES and the faces of --validation are those of benchmarks/claims.py. --books
and --codes are the results of stages I and II (configs/train/small). Every arm goes on with stage
II from there over the same faces; arms differ in `quality_mode`, the weight and the guard alone.

The judge that is trained on is the built-in quality network; the monitor is the classic measures.
Tables: contrasts of arms as in benchmarks/claims.py, restored by the codes alone, and what the
guard saw, look by look of the logs. `niqe-small` is trained for by nobody and watches nothing.

A training is a run folder, which goes on where it was stopped; what is done is not done again.
Names of arms behind the options restrict what is trained; tables show what is there. 17 trainings
of 1,000 images, 100 to 310 s each on one core of a busy AMD EPYC.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from card_faces import at_size, degraded, read_faces
from card_judges import Jury
from card_tables import table
from claims_figures import COLUMNS, SEED, Bench, Scores, opened
from claims_tables import RULE, Contrast, contrast_table
from claims_train import CONFIGS, ENDED, RESULT, SEEDS, Given
from dial import scorers
from model_card import restore

from jobs.training import TrainingJob, find_judges, read_settings
from jobs.training_run import locked, work
from pipeline.errors import UserError
from pipeline.metrics.intervals import draws
from pipeline.metrics.judge import Judge
from pipeline.training.log import LOG
from pipeline.weights import find
from vsp_model.ask import Ask
from vsp_model.train.distributed import Alone
from vsp_model.train.guard import FEW, FIGURES, Evaluation, GuardConfig, QualityGuard
from vsp_model.train.loop import Watcher

STAGE, FILE, SIZE = "iqp-codes", CONFIGS / "claims" / "iqp-quality.yaml", 128
TRUNK = "squeezenet1_1_imagenet1k_fp16.safetensors"
STRONG = ("quality_mode=st_logits", "weights.quality=10")
UNGUARDED = ("guard.patience=1000000", "guard.gap=1000", "guard.fall=null")
ARMS: Mapping[str, tuple[str, ...]] = {
    "off": ("quality_mode=off",),
    "st_encoder": ("quality_mode=st_encoder",),
    "st_logits": ("quality_mode=st_logits",),
    "st_encoder-w1": ("quality_mode=st_encoder", "weights.quality=1"),
    "st_logits-w1": ("quality_mode=st_logits", "weights.quality=1"),
    "strong": STRONG,
    "strong-unguarded": (*STRONG, *UNGUARDED),
}
ONCE = ("strong", "strong-unguarded")
"""Arms of one seed."""
START = "start"
"""Stage II as it was, before any arm."""
CONTRASTS = (
    Contrast("st_encoder", "off"),
    Contrast("st_logits", "off"),
    Contrast("st_logits", "st_encoder"),
    Contrast("st_encoder-w1", "off"),
    Contrast("st_logits-w1", "off"),
    Contrast("st_logits-w1", "st_encoder-w1"),
    Contrast("off", START),
    Contrast("strong", "off"),
    Contrast("strong-unguarded", "off"),
    Contrast("strong-unguarded", "strong"),
)


# ------------------------------------------------------------------------------------- training


def runs() -> list[tuple[str, int]]:
    """Arm and seed of every training, seed after seed, then what needs one seed."""
    main = [(arm, seed) for seed in SEEDS for arm in ARMS if arm not in ONCE]
    return [*main, *((arm, SEEDS[0]) for arm in ONCE)]


def job_of(arm: str, seed: int, given: Given, sources: tuple[Path, ...]) -> TrainingJob:
    """What a run is made of.

    Raises:
        UserError: If its settings or its judges are not there.
    """
    data: dict[str, Any] = {"train": [given.faces], "validation": [given.held_out]}
    data["scores"] = given.scores
    sets = [*ARMS[arm], f"run.seed={seed}"]
    sets += [f"run.num_images={given.images}"] if given.images else []
    kind, config, faces = read_settings(STAGE, FILE, data, sets)
    judges, _ = find_judges(config)
    config = config.model_copy(update={"judges": judges})
    return TrainingJob(STAGE, kind, config, faces, sources, str(given.folder(arm, seed)), "cpu")


def train(arm: str, seed: int, given: Given, sources: tuple[Path, ...]) -> None:
    """Train one run to its end, unless that was done before."""
    ended = given.folder(arm, seed) / ENDED
    if ended.exists():
        return
    job, began_s, name = job_of(arm, seed, given, sources), time.monotonic(), f"{arm}, seed {seed}"
    with locked(job, restart=False):
        outcome = work(job, Alone(), Watcher(), lambda line: print(f"{name}: {line}", flush=True))
    if outcome.finished:
        ended.write_text(f"{time.monotonic() - began_s:.0f} s\n")
        print(f"{name}: {ended.read_text().strip()}, {outcome.figures}", flush=True)


# -------------------------------------------------------------------------------------- figures


class Faces(Bench):
    """The bench of the claims at the size of the built-in models."""

    def __init__(self, validation: str, weights: Path, out: Path, limit: int) -> None:
        """Read the faces; the small NIQE is the one that comes with the program."""
        self.truths = [at_size(face, SIZE) for face in read_faces(validation, limit)]
        self.lqs = [degraded(face, SIZE, SEED) for face in self.truths]
        self.keys = [face.key for face in self.truths]
        self.drawn = draws(len(self.keys), seed=SEED, groups=[f.person for f in self.truths])
        self.values = out / "values"
        self.values.mkdir(parents=True, exist_ok=True)
        self.jury = Jury(weights, self.truths, COLUMNS)
        self._taught = [cast(Judge, c.definition.build(c.paths)) for c in scorers().chosen]

    def judged(self, name: str, path: Path) -> Scores:
        """Every column of what a model makes of every face."""
        return self.kept(name, lambda: self.see(restore(opened(path, Ask()), self.lqs, self.keys)))


def measure(faces: Faces, given: Given, codes: Path) -> dict[str, dict[int, Scores]]:
    """Every arm that was trained, by seed."""
    found: dict[str, dict[int, Scores]] = {START: dict.fromkeys(SEEDS, faces.judged(START, codes))}
    for arm, seed in runs():
        if (path := given.result(arm, seed)).exists():
            found.setdefault(arm, {})[seed] = faces.judged(f"{arm}, seed {seed}", path)
    return found


def looks_of(run: Path) -> list[Evaluation]:
    """What a run's guard looked at: lines of the log are its looks, as FILE says."""
    lines = map(json.loads, (run / LOG).read_text().splitlines())
    told = (line for line in lines if "score" in line)
    return [Evaluation(*(line.get(name) for name in FIGURES)) for line in told]


def stop_of(looks: Sequence[Evaluation]) -> str:
    """Which of the looks ends it, by a guard as configured for the guarded arms."""
    guard = QualityGuard(GuardConfig())
    for number, look in enumerate(looks, 1):
        if not guard.observe(look):
            return f"look {number}: {guard.stopped}"
    return "never"


# --------------------------------------------------------------------------------------- tables


def guard_table(given: Given) -> str:
    """What each guard saw: means of the first and the last looks that it took."""
    rows = []
    for arm, seed in runs():
        run = given.folder(arm, seed)
        if arm == "off" or not (run / ENDED).exists():
            continue
        looks = looks_of(run)
        cells = [f"{_mean(looks[:FEW], name)} to {_mean(looks[-FEW:], name)}" for name in FIGURES]
        rows.append([f"{arm}, seed {seed}", str(len(looks)), stop_of(looks), *cells])
    return table(["", "looks taken", "the guard stops at", *FIGURES], rows)


def _mean(looks: Sequence[Evaluation], name: str) -> str:
    place = FIGURES.index(name)
    known = [look[place] for look in looks if look[place] is not None]
    return f"{np.mean(cast(list[float], known)):.4f}" if known else "-"


def tables(faces: Faces, given: Given, codes: Path) -> list[str]:
    """All of them, as Markdown."""
    found = measure(faces, given, codes)
    people = len({face.person for face in faces.truths})
    lines = [f"{len(faces.truths)} faces of {people} people.", "", RULE, ""]
    lines += [contrast_table(contrast, found, faces.drawn) for contrast in CONTRASTS]
    head = f"The guard, training faces, first to last {FEW} looks; unguarded: where it would stop."
    return [*lines, head, "", guard_table(given)]


class Options(NamedTuple):
    """Of the command line, beside what is `Given`."""

    validation: str
    books: Path
    codes: Path
    limit: int
    names: set[str]


def parsed() -> tuple[Given, Options]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", required=True, help="shards to train on")
    parser.add_argument("--scores", required=True, help="their table, a folder of vsp score")
    parser.add_argument("--held-out", required=True, help="other shards, for the logs")
    parser.add_argument("--validation", required=True, help="faces of the tables")
    parser.add_argument("--books", type=Path, required=True, help="a run of stage I")
    parser.add_argument("--codes", type=Path, required=True, help="a run of stage II upon it")
    parser.add_argument("--out", type=Path, default=Path("runs/quality-loss"))
    parser.add_argument("--images", type=int, default=0, help="of every training; 0: as configured")
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces of the tables")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    parser.add_argument("names", nargs="*", help="arms to train; default: all")
    told = parser.parse_args()
    if unknown := set(told.names) - set(ARMS):
        raise UserError(f"{min(unknown)}: no such arm; known: {', '.join(ARMS)}")
    names = set() if told.measure_only else set(told.names or ARMS)
    given = Given(told.faces, told.scores, told.held_out, told.out, told.images)
    books, codes = told.books / RESULT, told.codes / RESULT
    return given, Options(told.validation, books, codes, told.limit, names)


def main() -> None:
    """Train what is missing, then measure."""
    given, options = parsed()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for arm, seed in runs():
        if arm in options.names:
            train(arm, seed, given, (options.books, options.codes))
    faces = Faces(options.validation, find(TRUNK).parent, given.out, options.limit)
    text = "\n".join(tables(faces, given, options.codes))
    (given.out / "quality-loss.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

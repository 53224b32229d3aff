"""What benchmarks/claims.py trains: every arm of every claim, with each seed, in a run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from claims_damage import DAMAGED, PRISTINE, UPPER

from jobs.iteration import Iteration, load_loop
from jobs.iteration_run import go_on
from jobs.iteration_steps import figures_there, measuring
from jobs.training import TrainingJob, find_judges, read_settings
from jobs.training_run import locked, work
from vsp_model.train.distributed import Alone
from vsp_model.train.loop import Watcher

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LOOP, LOOP_STAGE = CONFIGS / "iterate" / "idm.yaml", CONFIGS / "iterate" / "idm-64.yaml"
RESULT, ENDED = "model.safetensors", "ended"
SCORED = "faces"
"""The set with a table of scores."""
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """One training, but for its seed."""

    stage: str
    file: Path
    faces: str = SCORED
    source: str = ""
    """The arm whose result it begins with."""
    overrides: tuple[str, ...] = ()


_BOOKS, _CODES = (CONFIGS / "claims" / f"{stage}.yaml" for stage in ("iqp-books", "iqp-codes"))
_IDM = CONFIGS / "claims" / "idm.yaml"
_SINGLE = ("model.books.num_codes=512", "model.books.num_codes_hq=0")
_UNTOLD = ("model.condition=null",)
ROUND_0, ROUND_1 = "idm-round-0", "idm-round-1-gate"
"""Trained by the loop, the second only where its gate let something through."""
ARMS: Mapping[str, Run] = {
    "idm-told": Run("idm", _IDM),
    "idm-untold": Run("idm", _IDM, overrides=("model.unet.condition=null",)),
    "idm-round-1-upper": Run("idm", LOOP_STAGE, UPPER),
    "idm-round-1-pristine": Run("idm", LOOP_STAGE, PRISTINE),
    "books-dual": Run("iqp-books", _BOOKS),
    "books-single": Run("iqp-books", _BOOKS, overrides=_SINGLE),
    "iqp-dual": Run("iqp-codes", _CODES, source="books-dual"),
    "iqp-single": Run("iqp-codes", _CODES, source="books-single", overrides=_SINGLE),
    "iqp-single-untold": Run(
        "iqp-codes", _CODES, source="books-single", overrides=(*_SINGLE, *_UNTOLD)
    ),
}


class Given(NamedTuple):
    """What the user gave.

    Attributes:
        faces: Shards to train on.
        scores: Their table of scores.
        held_out: Shards for the logs; nothing is chosen by them.
        out: Folder of everything.
        images: Of every training; 0: as its file says.
    """

    faces: str
    scores: str
    held_out: str
    out: Path
    images: int = 0

    def folder(self, arm: str, seed: int) -> Path:
        """Where a run lies."""
        return self.out / arm / f"seed-{seed}"

    def result(self, arm: str, seed: int) -> Path:
        """What it made."""
        if arm in (ROUND_0, ROUND_1):
            number = (ROUND_0, ROUND_1).index(arm)
            return self.loop(seed) / f"round-{number}" / "train" / "idm" / RESULT
        return self.folder(arm, seed) / RESULT

    def loop(self, seed: int) -> Path:
        """Folder of a loop."""
        return self.out / "loop" / f"seed-{seed}"

    def shards(self, faces: str, seed: int) -> str:
        """Where a set of faces lies."""
        if faces == SCORED:
            return self.faces
        return str(self.out / "sets" / (f"{faces}-{seed}" if faces == UPPER else faces))


def job_of(arm: str, seed: int, given: Given) -> TrainingJob:
    """What a run is made of.

    Raises:
        UserError: If its settings or its judges are not there.
    """
    run = ARMS[arm]
    data: dict[str, Any] = {"train": [given.shards(run.faces, seed)]}
    data["validation"] = [given.held_out]
    data["scores"] = given.scores if run.faces == SCORED else ""
    sets = [*run.overrides, f"run.seed={seed}"]
    sets += [f"run.num_images={given.images}"] if given.images else []
    kind, config, faces = read_settings(run.stage, run.file, data, sets)
    judges, _ = find_judges(config)
    config = config.model_copy(update={"judges": judges})
    sources = (given.result(run.source, seed),) if run.source else ()
    return TrainingJob(run.stage, kind, config, faces, sources, str(given.folder(arm, seed)), "cpu")


def train(arm: str, seed: int, given: Given) -> None:
    """Train one run to its end, unless that was done before."""
    ended = given.folder(arm, seed) / ENDED
    if ended.exists():
        return
    job, began_s = job_of(arm, seed, given), time.monotonic()
    say = f"{arm}, seed {seed}"
    with locked(job, restart=False):
        outcome = work(job, Alone(), Watcher(), lambda line: print(f"{say}: {line}", flush=True))
    if outcome.finished:
        ended.write_text(f"{time.monotonic() - began_s:.0f} s\n")
        print(f"{say}: {ended.read_text().strip()}, {outcome.figures}", flush=True)


def loop_of(seed: int, given: Given) -> Iteration:
    """The loop of `vsp iterate` with this seed: its files are those of configs/iterate."""
    folder = given.out / "configs" / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    stage = yaml.safe_load(LOOP_STAGE.read_text())
    stage["run"] |= {"seed": seed} | ({"num_images": given.images} if given.images else {})
    (folder / LOOP_STAGE.name).write_text(yaml.safe_dump(stage))
    (folder / LOOP.name).write_text(LOOP.read_text())
    return Iteration(
        load_loop(folder / LOOP.name, (f"clean.seed={seed}",)),
        given.shards(DAMAGED, seed),
        given.held_out,
        given.loop(seed),
        "cpu",
    )


def iterate(seed: int, given: Given) -> Mapping[str, Any]:
    """Train round 0 and clean with it, as `vsp iterate`; what the gate took, as JSON."""
    run = loop_of(seed, given)
    go_on(run)
    figures = figures_there(run, measuring(run, 0).name)
    assert figures is not None
    calibration = run.record("round-0/clean")["facts"]["calibration"]
    return {"accepted": figures.num_accepted, "tried": figures.num_tried,
            "images": figures.num_images, "calibration": calibration}  # fmt: skip

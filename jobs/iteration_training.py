"""A training run as a step of the loop: what `vsp train` does, with a limit on its minutes."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from jobs.iteration import FaceSet, Iteration, StageFile, Step, digest_of
from jobs.steps import Stopped
from jobs.training import TrainingJob, find_judges, read_settings
from jobs.training_display import Attendant, Display, heeding_signals
from jobs.training_run import locked, work
from pipeline.errors import RunError
from pipeline.training.data import DataConfig
from vsp_model.train.distributed import Alone
from vsp_model.train.sameness import settings_of
from vsp_model.train.stage import StageConfig

RESULT = "model.safetensors"


@dataclass(frozen=True)
class Training:
    """One run of `vsp train`.

    Attributes:
        name: Of the step.
        stage: What is trained.
        faces: On what.
        after: The step that it takes its parts from, None for the first.
        seed: In the place of the YAML's.
    """

    name: str
    stage: StageFile
    faces: FaceSet
    after: Step | None = None
    seed: int | None = None

    def sources(self, run: Iteration) -> tuple[Path, ...]:
        """Bundles with the parts that were trained before."""
        return (run.folder(self.after.name) / RESULT,) if self.after else ()


class Capped(Attendant):
    """Shows a run, and ends it when a signal came or its time is over."""

    def __init__(self, display: Display, left_s: float) -> None:
        """Give it so many seconds."""
        super().__init__(display)
        self._end_s = time.monotonic() + left_s

    def should_stop(self) -> bool:
        """See `Watcher`."""
        return super().should_stop() or time.monotonic() > self._end_s


def training(run: Iteration, what: Training) -> Step:
    """A training run as a step.

    Raises:
        UserError: If its settings or judges are not there.
    """
    job = job_of(run, what)
    settings = {k: v for k, v in settings_of(job.config).items() if k != "judges"}
    data = job.data.model_dump(mode="json", include={"degradation", "clean_fraction", "size"})
    made_of = {"settings": digest_of([job.kind, settings, data]), "faces": what.faces.digest}
    if what.after:
        made_of["parts"] = what.after.digest
    before = (what.after.name if what.after else "", what.faces.needs)
    return Step(
        name=what.name,
        made_of=made_of,
        outputs=(run.folder(what.name) / RESULT,),
        work=partial(train, run, what),
        needs=tuple(filter(None, before)),
        num_images=job.config.run.num_images,
        images_per_s=what.stage.images_per_s,
    )


def job_of(run: Iteration, what: Training) -> TrainingJob:
    """The training run as `vsp train` would begin it.

    Raises:
        UserError: If its settings or judges are not there.
    """
    config, faces, kind = _settings(run, what.stage)
    if what.seed is not None:
        steps = config.run.model_copy(update={"seed": what.seed})
        config = config.model_copy(update={"run": steps})
    return TrainingJob(
        stage=what.stage.stage,
        kind=kind,
        config=config,
        data=faces.model_copy(update={"train": (what.faces.shards,)}),
        sources=what.sources(run),
        out=str(run.folder(what.name)),
        device=run.device,
        command=_by_hand(run, what),
    )


def _settings(run: Iteration, stage: StageFile) -> tuple[StageConfig, DataConfig, str]:
    """A stage's settings with its judges, its faces but for what it trains on, its kind."""
    key = str(stage.file)
    if key not in run.read:
        given = {"validation": [run.held_out]} if run.held_out else {}
        kind, config, faces = read_settings(stage.stage, stage.file, given, ())
        judges, lines = find_judges(config)
        for line in dict.fromkeys(lines) if kind != "gan" else ():  # a GAN has none
            typer.echo(f"vsp: {stage.stage}: {line}", err=True)
        run.read[key] = (config.model_copy(update={"judges": judges}), faces, kind)
    found: tuple[StageConfig, DataConfig, str] = run.read[key]
    return found


def _by_hand(run: Iteration, what: Training) -> str:
    """The command that does the same, for the run's report."""
    words = ["vsp", "train", what.stage.stage, str(what.stage.file), "--data", what.faces.shards]
    words += ["--out", str(run.folder(what.name))]
    words += [word for path in what.sources(run) for word in ("--from", str(path))]
    words += [] if what.seed is None else ["--set", f"run.seed={what.seed}"]
    return shlex.join(words)


def train(run: Iteration, what: Training) -> Mapping[str, Any]:
    """Train to the end, from where an earlier sitting stopped.

    Returns:
        Images seen, and the held-out figures at the end.

    Raises:
        RunError: If it can't go on, or took too long.
        Stopped: By a signal.
    """
    job = job_of(run, what)
    left_s = 60 * run.config.max_minutes - float(run.record(what.name).get("seconds", 0.0))
    with Display() as display, locked(job, restart=False):
        attendant = Capped(display, left_s)
        with heeding_signals(attendant):
            outcome = work(job, Alone(), attendant, display.say)
    if attendant.is_stopping:
        run.stop.set()
    if outcome.finished:
        return {"images": outcome.images_seen, "figures": outcome.figures}
    if attendant.is_stopping:
        raise Stopped
    raise RunError(
        f"{what.name}: {outcome.images_seen:,} of {job.config.run.num_images:,} images in "
        f"{run.config.max_minutes:g} minutes; raise max_minutes, and it goes on from there"
    )

"""The loop in its folder: train a restorer, clean the training set with it, train again, prove it.

OUT/round-K/train/<stage>     runs of `vsp train`; K = 0 on the raw set
OUT/round-K/clean             a run of `vsp clean`: the set of the next round
OUT/round-K/figures.json      what that came to
OUT/proof/<arm>/seed-N        generators, trained on raw and on cleaned faces
OUT/proof/figures.json        their distances
OUT/rounds.md                 all tables
OUT/_steps/<step>.json        that a step is finished, and what it was made of
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, Self

import typer
from pydantic import Field, model_validator

from jobs.steps import Stopped
from pipeline.cleaning.loop.rounds import MAX_ROUNDS, StopConfig
from pipeline.errors import UserError
from pipeline.replica import Frozen
from vsp_model.ask import Ask

STEPS = "_steps"
ROUNDS, PROOF, FIGURES = "round-{}", "proof", "figures.json"
TRAINED, BUILT_IN = "trained", "default"
WHOLE = ("restorer", "iqp-codes", "iqp-fidelity", "idm")
"""Stages whose result restores."""


class StageFile(Frozen):
    """One stage of a training.

    Attributes:
        stage: As `vsp train` names it.
        file: Its YAML, seen from the loop's.
        images_per_s: For the estimate, until a run has told better; 0: unknown.
    """

    stage: Literal[
        "prior", "encoder", "diffuser", "restorer", "iqp-books", "iqp-codes", "iqp-fidelity", "idm"
    ]
    file: Path
    images_per_s: float = Field(0.0, ge=0)


class CleanConfig(Frozen):
    """How a round cleans.

    Attributes:
        model: "trained" for the round's own, "default" for the built-in one, or another.
        ask: What is wanted of it beside the face: quality, fidelity, steps ...
        seed: Fixes everything random.
        set: Other settings of `vsp clean`, as its `--set`.
    """

    model: str = TRAINED
    ask: Ask = Ask()
    seed: int = Field(0, ge=0)
    set: tuple[str, ...] = ()


class ProofConfig(Frozen):
    """The generators that are compared.

    Attributes:
        file: Their YAML, `kind: gan`, seen from the loop's.
        images_per_s: As `StageFile`.
        seeds: One pair of trainings each.
        size: Side in pixels at which they are measured, the generator's own.
        num_faces: Drawn from each generator to measure it.
        cleaner: Model that cleans for the proof where the loop's own changed nothing; "" for none.
    """

    file: Path
    images_per_s: float = Field(0.0, ge=0)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    size: int = Field(ge=8)
    num_faces: int = Field(2000, ge=2)
    cleaner: str = ""


class LoopConfig(Frozen):
    """What a loop's YAML holds.

    Attributes:
        size: Side in pixels at which sets are measured before and after a cleaning.
        stages: Of the restorer, in order; none: nothing is trained but the proof's generators.
        rounds: Rounds of cleaning; the paper's number is unknown, one is what it speaks of.
        cumulative: Clean what the last round gave instead of the originals. Errors add up.
        max_minutes: No training may take longer; one that does ends the loop.
        clean: How a round cleans.
        stop: When the loop ends before.
        proof: The generators; null for no proof.
    """

    size: int = Field(ge=8)
    stages: tuple[StageFile, ...] = ()
    rounds: int = Field(1, ge=1, le=MAX_ROUNDS)
    cumulative: bool = False
    max_minutes: float = Field(25.0, gt=0)
    clean: CleanConfig = CleanConfig()
    stop: StopConfig = StopConfig()
    proof: ProofConfig | None = None

    @model_validator(mode="after")
    def _has_a_cleaner(self) -> Self:
        ends = self.stages[-1].stage if self.stages else ""
        if self.clean.model == TRAINED and ends not in WHOLE:
            raise ValueError(
                f"clean.model: trained needs stages that end with one of {', '.join(WHOLE)}"
            )
        if len({stage.stage for stage in self.stages}) < len(self.stages):
            raise ValueError("stages: each once")
        return self


def load_loop(path: Path, overrides: tuple[str, ...] = ()) -> LoopConfig:
    """Read a loop's YAML; files that it names become absolute.

    Raises:
        UserError: In one line; also for what a cleaning would refuse after hours of training.
    """
    from jobs import config as configs
    from jobs.iteration_check import check_cleaning

    values, places = configs.read_values(path)
    loop = configs.resolve(values, LoopConfig, overrides, places, str(path))
    folder = path.resolve().parent
    stages = tuple(s.model_copy(update={"file": folder / s.file}) for s in loop.stages)
    proof = loop.proof and loop.proof.model_copy(update={"file": folder / loop.proof.file})
    for file in (*(s.file for s in stages), *([proof.file] if proof else [])):
        if not file.is_file():
            raise UserError(f"{path}: {file}: no such file")
    loop = loop.model_copy(update={"stages": stages, "proof": proof})
    check_cleaning(loop, partial(_place_of, path, places, overrides))
    return loop


def _place_of(
    path: Path, places: Mapping[tuple[str, ...], str], overrides: tuple[str, ...], key: str
) -> str:
    """Where a setting was given, for messages: on the command line, or in which line."""
    given = [f"--set {each}" for each in overrides if each.startswith(key)]
    keys = tuple(key.split("."))
    return given[-1] if given else places.get(keys, str(path))


@dataclass(frozen=True)
class FaceSet:
    """Shards that something is made of.

    Attributes:
        shards: As `find_shards` takes them.
        digest: Of what is in them.
        needs: The step that makes them, "" for the user's own.
    """

    shards: str
    digest: str
    needs: str = ""


@dataclass(frozen=True)
class Step:
    """One thing that is done once.

    Attributes:
        name: Its place below OUT.
        made_of: What decides its result: word -> digest.
        outputs: Files without which it is not done, whatever its record says.
        work: Does it, and returns what it came to, as JSON.
        needs: Steps that come before.
        num_images: That are trained on; 0 where it is no training.
        images_per_s: For the estimate; 0: unknown.
        is_derived: Figures: taken anew where what they are of has changed, which else is refused.
    """

    name: str
    made_of: Mapping[str, str]
    outputs: tuple[Path, ...]
    work: Callable[[], Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    num_images: int = 0
    images_per_s: float = 0.0
    is_derived: bool = False

    @property
    def digest(self) -> str:
        """Of all that it is made of: known before it is done."""
        return digest_of({"step": self.name, **self.made_of})


@dataclass(frozen=True)
class Iteration:
    """A loop in its output folder.

    Attributes:
        config: With absolute paths.
        data: The raw set.
        held_out: Faces of top quality that nothing is trained on; "" for none.
        out: The output folder.
        device: Where networks run.
        read: What YAMLs say, each read once.
        stop: Set by a signal that came too late for the step at work, which ends the loop after it.
    """

    config: LoopConfig
    data: str
    held_out: str
    out: Path
    device: str
    read: dict[str, Any] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)

    @cached_property
    def raw(self) -> FaceSet:
        """The user's set."""
        return FaceSet(self.data, shards_digest(self.data))

    def folder(self, step: str) -> Path:
        """Where a step writes."""
        return self.out / step

    # ------------------------------------------------------------------------- records of steps

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a step; {} of one that was never begun."""
        path = self._record_path(name)
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise UserError(
                f"{path}: damaged; remove it, and the step is looked at again"
            ) from None
        return found

    def _record_path(self, name: str) -> Path:
        return self.out / STEPS / f"{name.replace('/', '.')}.json"

    def is_done(self, step: Step) -> bool:
        """Whether it is finished, of the same things, and its files are there.

        Raises:
            UserError: If it was begun with other things.
        """
        there = self.record(step.name)
        if not there:
            return False
        changed = [word for word, digest in step.made_of.items()
                   if there["made_of"].get(word) != digest]  # fmt: skip
        if changed and not step.is_derived:
            raise UserError(
                f"{self.folder(step.name)}: made with other {changed[0]}; "
                "use what it was made with, or another OUT"
            )
        return bool(there["finished"] and not changed) and all(p.exists() for p in step.outputs)

    def take(self, step: Step) -> Mapping[str, Any]:
        """Do a step unless that was done before; returns what it came to.

        Raises:
            UserError: If it was begun with other things, or does not fit.
            RunError: If it failed.
            Stopped: By a signal.
        """
        if not self.is_done(step):
            typer.echo(f"vsp: {step.name}", err=True)
            with self.timed(step):
                facts = step.work()
            self._write(step, finished=True, seconds=self.seconds(step), facts=facts)
            if self.stop.is_set():
                raise Stopped
        found: Mapping[str, Any] = self.record(step.name)["facts"]
        return found

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Add this sitting to a step's time, whatever becomes of it."""
        before, began_s = self.seconds(step), time.monotonic()
        self._write(step, finished=False, seconds=before, facts={})
        try:
            yield
        finally:
            seconds = before + time.monotonic() - began_s
            self._write(step, finished=False, seconds=seconds, facts={})

    def seconds(self, step: Step) -> float:
        """How long a step has taken so far, over all sittings that were not killed."""
        return float(self.record(step.name).get("seconds", 0.0))

    def _write(
        self, step: Step, *, finished: bool, seconds: float, facts: Mapping[str, Any]
    ) -> None:
        values = {"made_of": dict(step.made_of), "finished": finished, "seconds": seconds,
                  "facts": dict(facts)}  # fmt: skip
        write_json(self._record_path(step.name), values)


def digest_of(value: object) -> str:
    """Sixteen hexadecimal digits of a JSON value's content."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shards_digest(shards: str) -> str:
    """Of names and sizes of shards, as a training run knows them.

    Raises:
        UserError: If there is none.
    """
    from pipeline.plan import find_shards
    from pipeline.storage import stat_input

    sizes = ((Path(path).name, stat_input(path)) for path in find_shards(shards))
    return digest_of([(name, size.size_bytes if size else 0) for name, size in sizes])


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all."""
    from vsp_model.files import whole_or_absent

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode())

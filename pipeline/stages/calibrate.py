"""Damage good faces by known amounts, restore them, and note what that brought."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from pydantic import Field

from pipeline import images
from pipeline.cleaning.accept import content_change
from pipeline.cleaning.calibration.closeness import Closeness
from pipeline.cleaning.calibration.levels import LEVELS, damage
from pipeline.cleaning.calibration.sample import Batch
from pipeline.cleaning.calibration.thresholds import Trial
from pipeline.cleaning.look import Look, LookConfig, points_of
from pipeline.cleaning.metadata import FieldMap, metadata_of
from pipeline.cleaning.output import TrialOutput, TrialResult
from pipeline.images import ImageFault, Pixels
from pipeline.replica import LoadModel, Replica, ReplicaConfig, canonical, load_model
from pipeline.sample import Placed
from pipeline.shards import read_shard
from pipeline.sidecar import Provenance, Row, sha256
from pipeline.stage import Face, Prepared, Task
from pipeline.storage import open_store


class TrialsConfig(ReplicaConfig):
    """Everything that decides what the trials say.

    Attributes:
        look: The networks that look.
        lpips: Weights of LPIPS; None for a distance without weights.
        closeness_sha256: What identifies the distance.
        faces: How many were asked for; how many there are follows from the set.
        names: Where metadata are looked for: photos of one person are no strangers.
    """

    look: LookConfig = LookConfig()
    lpips: Path | None = None
    closeness_sha256: str = ""
    faces: int = Field(128, ge=1)
    names: FieldMap = FieldMap()

    @property
    def provenance(self) -> Provenance:
        """What the plan is known by."""
        settings = self.settings() | {"look": self.look.settings()}
        del settings["lpips"]
        return Provenance(self.seed, self.model.name, self.model.sha256, canonical(settings))


@dataclass(frozen=True, slots=True)
class _Truth:
    """A good face at the model's size."""

    truth: Pixels
    digest: str
    person: str | None


class CalibrateStage:
    """Try the restorer on faces whose truth is known."""

    def __init__(self, config: TrialsConfig, load: LoadModel = load_model) -> None:
        """Plan the stage; `load` makes the model when the worker sets the stage up."""
        self._config = config
        self._load = load

    def setup(self) -> Replica:
        """Load the model and the networks that look."""
        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._replica = Replica(self._config, self._load)
        self._look = Look(self._config.look)
        self._closeness = Closeness(self._config.lpips)
        return self._replica

    def close(self) -> None:
        """Free the model and give the process its threads back."""
        self._replica.close()
        cv2.setNumThreads(self._threads_before)
        del self._replica, self._look

    def read(self, task: Task) -> Iterator[Placed]:
        """Read the chosen records of a shard."""
        batch = Batch.load(open_store(task.out), task.shard)
        wanted, last = set(batch.indices), max(batch.indices)
        for sample in read_shard(batch.source):
            if sample.index in wanted:
                yield Placed(sample, batch.shard)
            if sample.index >= last:
                return

    def carried(self, task: Task) -> Iterator[TrialResult]:
        """Nothing: a unit is tried as a whole."""
        return iter(())

    def open(self, task: Task) -> TrialOutput:
        """Write the trials of a unit."""
        return TrialOutput(task, self._config.provenance)

    def prepare(self, record: Placed) -> Prepared:
        """Decode a face and damage it at every level."""
        sample = record.sample
        assert sample.image, "only faces are chosen"
        try:
            pixels = images.decode(sample.image.data)[1]
        except ImageFault as fault:
            return Prepared(record, state=str(fault))
        truth = images.resize(pixels, self._replica.size)
        seed, digest = self._config.seed, sha256(sample.image.data)
        faces = [
            Face(f"{digest}@{level}", damage(truth, level, seed=seed, key=sample.key))
            for level in range(1, len(LEVELS) + 1)
        ]
        person = metadata_of(sample, self._config.names).person
        return Prepared(record, faces, _Truth(truth, digest, person))

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> TrialResult:
        """Compare every restored face with the truth and with what it was made of."""
        record: Placed = prepared.record
        if not restored:
            return self.reject(record, str(prepared.state))
        state: _Truth = prepared.state
        trials = tuple(
            self._trial(record, level, state, face.lq, after)
            for level, (face, after) in enumerate(zip(prepared.faces, restored, strict=True), 1)
            if after is not None
        )
        row = Row(record.index, record.key, "restored", sha256_in=state.digest)
        return TrialResult(row, trials)

    def reject(self, record: Placed, reason: str) -> TrialResult:
        """A face that says nothing."""
        return TrialResult(Row(record.index, record.key, "failed", reason))

    def _trial(self, record: Placed, level: int, state: _Truth, lq: Pixels, after: Pixels) -> Trial:
        look, truth = self._look, state.truth
        points = points_of(look.faces(lq))
        embeddings: list[Any] = [look.identity(picture, points) for picture in (lq, after)]
        packed = [None if each is None else each.tobytes() for each in embeddings]
        return Trial(
            key=record.key,
            level=level,
            quality=look.quality(lq),
            distance_before=self._closeness.distance(lq, truth),
            distance_after=self._closeness.distance(after, truth),
            classic_before=look.classic(lq),
            classic_after=look.classic(after),
            content_change=content_change(lq, after),
            num_faces_after=len(look.faces(after)),
            identity_damaged=packed[0],
            identity_restored=packed[1],
            person=state.person,
            shard=record.shard,
        )

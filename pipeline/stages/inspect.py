"""Look at every image of a shard once: face, measures, quality, prints, identity.

Everything is computed in the codec threads, one image at a time and one torch thread each, so that
no neighbour changes a bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field

from pipeline import images
from pipeline.cleaning.copies.prints import make_prints, phash_hex
from pipeline.cleaning.look import Look, LookConfig, points_of
from pipeline.cleaning.metadata import FieldMap, Metadata, metadata_of
from pipeline.cleaning.output import InspectOutput, InspectResult
from pipeline.cleaning.quality.measures import classic_quality, measure
from pipeline.cleaning.quality.pose import pose
from pipeline.cleaning.removal.pending import PLACEHOLDER
from pipeline.cleaning.removal.tombstones import Tombstones, digest_of
from pipeline.cleaning.tables import Inspected, Private
from pipeline.images import ImageFault, Pixels
from pipeline.replica import Frozen, canonical
from pipeline.sample import Sample
from pipeline.shards import read_shard
from pipeline.sidecar import Provenance, Row, Status, sha256
from pipeline.stage import Prepared, Task
from pipeline.storage import open_store

PIXEL_BUDGET = 2**24
"""Larger images are no aligned crops, and every measure holds several float planes of one."""


class InspectConfig(Frozen):
    """Everything that decides what is seen.

    Attributes:
        look: The networks.
        scorer_sha256: Of the quality network; another release may bring another.
        names: Where metadata are looked for.
        limit: Records of the whole input that are looked at; 0 for all.
        run: The cleaning run's output folder, where tombstones lie.
    """

    look: LookConfig = LookConfig()
    scorer_sha256: str = ""
    names: FieldMap = FieldMap()
    limit: int = Field(0, ge=0)
    run: str = ""

    @property
    def provenance(self) -> Provenance:
        """What the plan is known by."""
        settings = self.model_dump(mode="json", exclude={"look", "run"})
        settings["look"] = self.look.settings()
        return Provenance(0, "", self.look.identity_sha256, canonical(settings))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What `prepare` found."""

    row: Inspected
    private: Private


class InspectStage:
    """Inspect every record of a shard; see `InspectOutput` for what is written."""

    def __init__(self, config: InspectConfig) -> None:
        """Plan the stage; the networks are loaded when the worker sets it up."""
        self._config = config

    def setup(self) -> None:
        """Load the networks; each codec thread computes by itself."""
        self._threads_before = torch.get_num_threads(), cv2.getNumThreads()
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._look = Look(self._config.look)

    def close(self) -> None:
        """Free the networks and give the process its threads back."""
        torch.set_num_threads(self._threads_before[0])
        cv2.setNumThreads(self._threads_before[1])
        del self._look

    def read(self, task: Task) -> Iterator[Sample]:
        """Read the tar; what was forgotten is not looked at."""
        self.begin_shard()
        for sample in read_shard(task.source):
            yield self._unless_forgotten(sample, task.shard)

    def begin_shard(self) -> None:
        """See what was forgotten since the last shard."""
        self._tombstones = Tombstones.load(open_store(self._config.run))

    def _unless_forgotten(self, sample: Sample, shard: str) -> Sample:
        """A record without an image is known by its place; see `tombstones.digest_of`."""
        if sample.image is not None or not len(self._tombstones):
            return sample
        if not self._tombstones.covers(digest_of(shard, sample.key, None)):
            return sample
        return Sample(sample.index, PLACEHOLDER, ())

    def carried(self, task: Task) -> Iterator[InspectResult]:
        """Nothing: a shard is inspected as a whole."""
        return iter(())

    def open(self, task: Task) -> InspectOutput:
        """Write the tables of a shard."""
        return InspectOutput(task, self._config.provenance)

    def prepare(self, sample: Sample) -> Prepared:
        """Do the whole work at once, so that no decoded picture waits for anything."""
        return Prepared(sample, state=self._seen(sample))

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> InspectResult:
        """Hand over what `prepare` saw."""
        seen: _Seen = prepared.state
        return _result(seen.row, seen.private)

    def reject(self, sample: Sample, reason: str) -> InspectResult:
        """A record that could not be looked at."""
        row = _unseen(sample, "failed", reason)
        return _result(row, Private(sample.index))

    def _seen(self, sample: Sample) -> _Seen:
        image = sample.image
        is_covered = image is not None and self._tombstones.covers(sha256(image.data))
        if is_covered or sample.key.startswith(PLACEHOLDER):
            return _Seen(Inspected(sample.index, "", "forgotten"), Private(sample.index))
        if sample.fault:
            status = "truncated" if sample.truncated else "refused"
            return _Seen(_unseen(sample, status, sample.fault), Private(sample.index))
        if image is None:
            return _Seen(_unseen(sample, "copied", "no image member"), Private(sample.index))
        known = _with_metadata(_unseen(sample, "refused"), metadata_of(sample, self._config.names))
        try:
            header, pixels = images.decode(image.data, PIXEL_BUDGET)
        except ImageFault as fault:
            return _Seen(replace(known, reason=f"{image.name}: {fault}"), Private(sample.index))
        known = replace(
            known, status="inspected", width_px=header.width, height_px=header.height,
            format=header.format,
        )  # fmt: skip
        return self._look_at(known, pixels, image.data)

    def _look_at(self, row: Inspected, pixels: Pixels, data: bytes) -> _Seen:
        """Measure a decoded picture."""
        measures = measure(pixels, data, row.format or "")
        faces = self._look.faces(pixels)
        points = points_of(faces)
        prints = make_prints(pixels)
        identity = self._look.identity(pixels, points)
        values: dict[str, Any] = {
            name: getattr(measures, name)
            for name in measures.__slots__  # the columns have the same names
        }
        values |= {"quality": self._look.quality(pixels), "classic": classic_quality(measures)}
        values |= {"num_faces": len(faces), "phash": phash_hex(prints)}
        if points is not None:
            values |= _face_values(faces[0].box, points, faces[0].score)
        private = Private(row.index, prints, None if identity is None else identity.tobytes())
        return _Seen(replace(row, **values), private)


def _face_values(box: Sequence[float], points: Any, score: float) -> dict[str, Any]:
    yaw, pitch, roll = pose(points)
    return {
        "face_box": tuple(float(value) for value in box),
        "face_points": tuple(float(value) for value in np.ravel(points)),
        "face_score": float(score),
        "yaw_deg": yaw,
        "pitch_deg": pitch,
        "roll_deg": roll,
    }


def _unseen(sample: Sample, status: Any, reason: str = "") -> Inspected:
    """A row without measures; of an image at least its bytes are known."""
    image = sample.image
    return Inspected(
        index=sample.index,
        key=sample.key,
        status=status,
        reason=reason,
        member=image.name if image else None,
        sha256=sha256(image.data) if image else None,
        size_bytes=len(image.data) if image else None,
    )


def _with_metadata(row: Inspected, metadata: Metadata) -> Inspected:
    return replace(
        row,
        source=metadata.source,
        licence=metadata.licence,
        author=metadata.author,
        person=metadata.person,
        fields=metadata.fields,
    )


def _result(row: Inspected, private: Private) -> InspectResult:
    """Rows hold finite numbers or none; the engine's own row tells status and reason."""
    finite: dict[str, Any] = {
        name: None
        for name in row.__slots__
        if isinstance(value := getattr(row, name), float) and not math.isfinite(value)
    }
    status: Status = row.status
    engine = Row(
        row.index, row.key, status, row.reason, row.member, row.width_px, row.height_px,
        sha256_in=row.sha256,
    )  # fmt: skip
    return InspectResult(engine, replace(row, **finite), private)

"""Degrade the faces of a shard: a shard of faces to restore, whose answers are known."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
from pydantic import Field, model_validator

from pipeline import images
from pipeline.degradation import MIN_SIZE, PUBLISHED_SIZE, STAGE_2, DegradationConfig, degrade_pair
from pipeline.images import Header, ImageFault, Pixels
from pipeline.replica import Frozen, canonical
from pipeline.sample import Member, Sample
from pipeline.shards import ShardOutput, ShardResult, carried, read_shard
from pipeline.sidecar import Provenance, Row, Status, sha256
from pipeline.stage import Prepared, Task
from pipeline.stages.restore import quarantined

HQ_SUFFIX, PARAMS_SUFFIX = "hq.png", "degradation.json"
NO_MODEL = "degradation"  # stands in the sidecar where others name their model


class DegradeConfig(Frozen):
    """Everything that decides the bytes of a degraded shard.

    Attributes:
        size: Side of the degraded faces in pixels; blur and reduction are scaled to it.
        seed: With a record's key it fixes everything that is random.
        ranges: What is drawn from, at 512 pixels.
        keep_hq: Whether the true face at the same size goes into the record too, as `KEY.hq.png`,
            and the draw as `KEY.degradation.json`.
        quarantine: Whether refused and failed records are copied to the quarantine.
        limit: Records of the whole input that are looked at; 0 for all.
    """

    size: int = Field(PUBLISHED_SIZE, ge=MIN_SIZE)
    seed: int = Field(0, ge=0)
    ranges: DegradationConfig = STAGE_2
    keep_hq: bool = False
    quarantine: bool = False
    limit: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _keeps_what_it_changes(self) -> Self:
        if self.ranges.changes_truth and not self.keep_hq:
            raise ValueError("these ranges flip or gray the true face too; add --keep-hq")
        return self

    @property
    def provenance(self) -> Provenance:
        """What the sidecar says of the run; the ranges stand where others have weights."""
        return Provenance(
            seed=self.seed,
            model=NO_MODEL,
            model_sha256=sha256(canonical(self.ranges.model_dump(mode="json")).encode()),
            config=canonical(self.model_dump(mode="json")),
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a record: its status and what takes the image's place in the shard."""

    status: Status
    reason: str = ""
    header: Header | None = None
    made: tuple[Member, ...] = ()


class DegradeStage:
    """Degrade every record of a shard.

    The first image member is degraded and stored as `KEY.png`: a lossy format would add damage that
    nobody drew. Other members are copied byte for byte. A refused or failed record leaves a row and
    its other members, but no image.
    """

    def __init__(self, config: DegradeConfig) -> None:
        """Plan the stage."""
        self._config = config

    def setup(self) -> None:
        """Give the codecs one thread each; there is no model."""
        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)

    def close(self) -> None:
        """Give the process its threads back."""
        cv2.setNumThreads(self._threads_before)

    def read(self, task: Task) -> Iterator[Sample]:
        """Read the tar."""
        return read_shard(task.source)

    def carried(self, task: Task) -> Iterator[ShardResult]:
        """Read the output of an earlier try."""
        return carried(task)

    def open(self, task: Task) -> ShardOutput:
        """Write a tar and a sidecar."""
        return ShardOutput(task, self._config.provenance)

    def prepare(self, sample: Sample) -> Prepared:
        """Do the whole work at once, so that no decoded picture waits for anything."""
        return Prepared(sample, state=self._outcome(sample))

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> ShardResult:
        """Write the row; no face went through a model."""
        return self._result(prepared.record, prepared.state)

    def reject(self, sample: Sample, reason: str) -> ShardResult:
        """A failed record: its other members are kept."""
        return self._result(sample, _Outcome("failed", reason))

    def _outcome(self, sample: Sample) -> _Outcome:
        if sample.fault:
            return _Outcome("truncated" if sample.truncated else "refused", sample.fault)
        image = sample.image
        if image is None:
            return _Outcome("copied", "no image member")
        if fault := self._name_fault(sample, image):
            return _Outcome("refused", fault)
        try:
            header, pixels = images.decode(image.data)
        except ImageFault as error:
            return _Outcome("refused", f"{image.name}: {error}")
        if min(header.width, header.height) < self._config.size:
            size = min(header.width, header.height)
            reason = f"{header.width} x {header.height} is no truth at {self._config.size} pixels"
            return _Outcome("refused", f"{image.name}: {reason}; give --size {size}", header)
        return _Outcome("degraded", "", header, self._degraded(sample.key, pixels))

    def _name_fault(self, sample: Sample, image: Member) -> str:
        """Why the new members cannot be named, or ""."""
        names = {member.name.lower() for member in sample.members if member is not image}
        made = (_name(sample.key, suffix) for suffix in self._suffixes)
        taken = [name for name in made if name.lower() in names]
        return f"{taken[0]}: another member has that name" if taken else ""

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("png", HQ_SUFFIX, PARAMS_SUFFIX) if self._config.keep_hq else ("png",)

    def _degraded(self, key: str, pixels: Pixels) -> tuple[Member, ...]:
        """The members that stand for one clean face."""
        config = self._config
        pair = degrade_pair(pixels, key, config.seed, config.size, config.ranges)
        made = [images.encode(pair.lq, "png")]
        if config.keep_hq:
            params: dict[str, Any] = {"seed": config.seed, **pair.params.record()}
            text = json.dumps(params, sort_keys=True) + "\n"
            made += [images.encode(pair.truth, "png"), text.encode()]
        names = [_name(key, suffix) for suffix in self._suffixes]
        return tuple(Member(name, data) for name, data in zip(names, made, strict=True))

    def _result(self, sample: Sample, outcome: _Outcome) -> ShardResult:
        image, header = sample.image, outcome.header
        row = Row(
            index=sample.index,
            key=sample.key,
            status=outcome.status,
            reason=outcome.reason,
            member=image.name if image else None,
            width_in=header.width if header else None,
            height_in=header.height if header else None,
            sha256_in=sha256(image.data) if image else None,
        )
        if outcome.made:
            size, lq = self._config.size, outcome.made[0]
            row = replace(row, member=lq.name, width_out=size, height_out=size)
            row = replace(row, sha256_out=sha256(lq.data))
        rejected: tuple[Member, ...] = ()
        if self._config.quarantine and outcome.status in ("refused", "failed"):
            rejected = quarantined(sample)
        return ShardResult(row, _members(sample, outcome.made), rejected)


def _name(key: str, suffix: str) -> str:
    return f"{key}.{suffix}"


def _members(sample: Sample, made: tuple[Member, ...]) -> tuple[Member, ...]:
    """The record's files with the image replaced by what was made of it."""
    return tuple(
        kept
        for member in sample.members
        for kept in (made if member is sample.image else (member,))
    )

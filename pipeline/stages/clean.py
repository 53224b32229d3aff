"""Carry out what was decided about a shard: keep, leave out, or restore, verify, and take or not.

What is kept is kept byte for byte; so is what was restored and does not pass the verification.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from pipeline import images
from pipeline.cleaning.accept import Verified, accept, content_change, doubt
from pipeline.cleaning.calibration.thresholds import Thresholds
from pipeline.cleaning.look import Look, LookConfig, likeness, points_of
from pipeline.cleaning.output import CleanOutput, CleanResult
from pipeline.cleaning.tables import (
    DECISIONS,
    INSPECT,
    INSPECTED,
    THRESHOLDS,
    Cleaned,
    Decision,
    Entry,
    FallbackReason,
    Inspected,
    Outcome,
    read_table_rows,
)
from pipeline.images import Header, ImageFault, Pixels
from pipeline.replica import LoadModel, Replica, ReplicaConfig, canonical, load_model
from pipeline.sample import Member, Placed
from pipeline.shards import read_shard
from pipeline.sidecar import Provenance, Row, Status, sha256
from pipeline.stage import Face, Prepared, Task
from pipeline.stages.restore import output_members
from pipeline.storage import Store, open_store

STATUSES: dict[Outcome, Status] = {
    "kept": "copied", "fallback": "copied", "restored": "restored", "rejected": "rejected",
    "failed": "failed", "forgotten": "forgotten",
}  # fmt: skip
UNREAD = ("refused", "truncated", "failed")  # what the inspection could not use


class CleanConfig(ReplicaConfig):
    """Everything that decides the bytes of a cleaned shard, beside its decisions.

    Attributes:
        look: The networks that verify.
        scorer_sha256: Of the quality network.
        align: What made the crops, if the run did.
    """

    look: LookConfig = LookConfig()
    scorer_sha256: str = ""
    align: str = ""

    @property
    def provenance(self) -> Provenance:
        """What the sidecar says of the run."""
        settings = self.settings() | {"look": self.look.settings()}
        return Provenance(self.seed, self.model.name, self.model.sha256, canonical(settings))


@dataclass(frozen=True, slots=True)
class CleanRecord(Placed):
    """One record with what was seen and decided."""

    seen: Inspected
    decided: Decision


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the model's answer came to: the picture at the output's size, and what was measured."""

    picture: Pixels
    verified: Verified
    quality: float


class CleanStage:
    """Write the cleaned shard; see `CleanOutput`."""

    def __init__(self, config: CleanConfig, load: LoadModel = load_model) -> None:
        """Plan the stage; `load` makes the model when the worker sets the stage up."""
        self._config = config
        self._load = load

    def setup(self) -> Replica:
        """Load the model and the networks that look."""
        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._replica = Replica(self._config, self._load)
        self._look = Look(self._config.look)
        return self._replica

    def close(self) -> None:
        """Free the model and give the process its threads back."""
        self._replica.close()
        cv2.setNumThreads(self._threads_before)
        del self._replica, self._look

    def read(self, task: Task) -> Iterator[CleanRecord]:
        """Read the tar beside what was seen and decided of it."""
        store = open_store(task.out)
        self._thresholds = load_thresholds(store)
        seen = _rows(store, f"{INSPECT}/{INSPECTED}/{task.shard}.parquet", Inspected)
        decided = _rows(store, f"{DECISIONS}/{task.shard}.parquet", Decision)
        for sample, row, decision in zip(read_shard(task.source), seen, decided, strict=False):
            yield CleanRecord(sample, task.shard, row, decision)

    def carried(self, task: Task) -> Iterator[CleanResult]:
        """Nothing: a shard is cleaned as a whole."""
        return iter(())

    def open(self, task: Task) -> CleanOutput:
        """Write a tar, a sidecar and a part of the manifest."""
        return CleanOutput(task, self._config.provenance)

    def prepare(self, record: CleanRecord) -> Prepared:
        """Decode what is to be restored; all else is decided."""
        image = record.sample.image
        if record.decided.decision != "restore" or image is None:
            return Prepared(record)
        try:
            header, pixels = images.decode(image.data)
        except ImageFault as fault:
            return Prepared(record, state=str(fault))
        # Not the record's key: the same picture under another name gives the same face.
        face = Face(sha256(image.data), images.resize(pixels, self._replica.size))
        return Prepared(record, [face], header)

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> CleanResult:
        """Keep, leave out, or verify what the model gave."""
        record: CleanRecord = prepared.record
        if restored:
            answer = restored[0]
            if answer is None:
                return self._kept(record, "fallback", "not_finite")
            return self._judged(record, prepared.faces[0].lq, answer, prepared.state)
        if record.decided.decision == "restore":
            return self._kept(record, "fallback", "not_decodable")
        if record.seen.status == "forgotten":
            return self._without(record, "forgotten")
        if record.decided.decision == "reject":
            return self._without(record, "rejected")
        return self._kept(record, "kept")

    def reject(self, record: CleanRecord, reason: str) -> CleanResult:
        """A record that failed, or killed its worker: the original stays, and the row tells."""
        image, sample = record.sample.image, record.sample
        if record.seen.status == "forgotten" or record.decided.decision == "reject":
            return self._result(record, Cleaned("failed", "failed"), (), reason=reason)
        done = Cleaned("failed", "failed", sha256_out=sha256(image.data) if image else None)
        return self._result(record, done, sample.members, reason=reason)

    # ---------------------------------------------------------------------- what is not restored

    def _kept(self, record: CleanRecord, outcome: Outcome, why: FallbackReason = "") -> CleanResult:
        """The original, byte for byte."""
        image, seen = record.sample.image, record.seen
        done = Cleaned(
            outcome, why,
            sha256_out=sha256(image.data) if image else None,
            width_out_px=seen.width_px,
            height_out_px=seen.height_px,
            doubt=doubt(record.seen, record.decided, None, self._thresholds),
            operations=self._operations(record),
        )  # fmt: skip
        return self._result(record, done, record.sample.members)

    def _without(self, record: CleanRecord, outcome: Outcome) -> CleanResult:
        """No member goes into the output."""
        done = Cleaned(
            outcome,
            doubt=doubt(record.seen, record.decided, None, self._thresholds),
            operations=self._operations(record),
        )
        return self._result(record, done, ())

    # -------------------------------------------------------------------------- what is restored

    def _judged(
        self, record: CleanRecord, before: Pixels, after: Pixels, header: Header
    ) -> CleanResult:
        """Take the restored face if it passes, else the original."""
        answer = self._answer(before, after, header)
        why = self._verdict(record, answer.verified)
        image = record.sample.image
        assert image, "it was decoded"
        data = images.encode(answer.picture, header.format)
        done = self._done(record, answer, why, sha256(data if not why else image.data))
        if why:
            aside = Member(f"{record.index:06d}.jpg", images.encode(answer.picture, "jpeg"))
            return self._result(record, done, record.sample.members, (aside,))
        return self._result(record, done, output_members(record.sample, image, data))

    def _answer(self, before: Pixels, after: Pixels, header: Header) -> _Answer:
        """Look at both at the model's size, with the points of the original."""
        look = self._look
        points = points_of(look.faces(before))
        verified = Verified(
            identity=likeness(look.identity(before, points), look.identity(after, points)),
            classic_before=look.classic(before),
            classic_after=look.classic(after),
            num_faces_after=len(look.faces(after)),
            content_change=content_change(before, after),
        )
        picture = images.fit(after, header.width, header.height)
        return _Answer(picture, verified, look.quality(after))

    def _verdict(self, record: CleanRecord, verified: Verified) -> FallbackReason:
        """Why the restored face is not taken, or ""."""
        decided = record.decided
        if decided.reason == "overruled":
            return ""
        assert self._thresholds is not None, "nothing is restored without a calibration"
        assert decided.level is not None, "the gate knows the level of what it restores"
        return accept(verified, decided.level, self._thresholds)

    def _done(
        self, record: CleanRecord, answer: _Answer, why: FallbackReason, digest: str
    ) -> Cleaned:
        verified = answer.verified
        return Cleaned(
            "fallback" if why else "restored",
            why,
            sha256_out=digest,
            width_out_px=record.seen.width_px,
            height_out_px=record.seen.height_px,
            quality_after=answer.quality,
            classic_after=verified.classic_after,
            identity=verified.identity,
            identity_threshold=self._identity_threshold(record.decided.level),
            content_change=verified.content_change,
            num_faces_after=verified.num_faces_after,
            doubt=doubt(record.seen, record.decided, verified, self._thresholds),
            operations=self._operations(record, restored=True, taken=not why),
        )

    def _identity_threshold(self, level: int | None) -> float | None:
        if self._thresholds is None or level is None:
            return None
        return self._thresholds.at(level).identity_threshold

    def _operations(
        self, record: CleanRecord, *, restored: bool = False, taken: bool = False
    ) -> str:
        """What was done, as JSON: licences ask that changes are indicated."""
        config = self._config
        done: list[dict[str, Any]] = [{"operation": "align", "by": config.align}] * bool(
            config.align
        )
        if restored:
            done.append({
                "operation": "restore", "model": config.model.name, "taken": taken,
                "model_sha256": config.model.sha256, "seed": config.seed, "noise": config.noise,
                "size_px": self._replica.size, "precision": config.runtime.precision,
                "identity_sha256": config.look.identity_sha256,
            })  # fmt: skip
        return json.dumps(done, sort_keys=True)

    def _result(
        self,
        record: CleanRecord,
        done: Cleaned,
        members: Sequence[Member],
        rejected: tuple[Member, ...] = (),
        reason: str = "",
    ) -> CleanResult:
        seen = record.seen
        row = Row(
            index=record.index,
            key=seen.key,
            status=_status(seen, done.outcome),
            reason=reason or _reason(record, done),
            member=seen.member,
            width_in=seen.width_px,
            height_in=seen.height_px,
            width_out=done.width_out_px,
            height_out=done.height_out_px,
            sha256_in=seen.sha256,
            sha256_out=done.sha256_out if done.outcome == "restored" else None,
        )
        entry = Entry(record.shard, seen, record.decided, done)
        return CleanResult(row, tuple(members), rejected, entry)


def load_thresholds(store: Store) -> Thresholds | None:
    """What the calibration derived; None where there was none."""
    try:
        return Thresholds.model_validate_json(store.read(THRESHOLDS))
    except FileNotFoundError:
        return None


def _rows(store: Store, name: str, record: Any) -> list[Any]:
    with store.open(name) as file:
        return read_table_rows(file, record)


def _status(seen: Inspected, outcome: Outcome) -> Status:
    """The engine's word: what the inspection could not use is told as such."""
    if seen.status in UNREAD:
        return seen.status
    return STATUSES[outcome]


def _reason(record: CleanRecord, done: Cleaned) -> str:
    """One line for the sidecar."""
    seen, decided = record.seen, record.decided
    if seen.status in UNREAD:
        return seen.reason
    if done.fallback:
        return f"restored, not taken: {done.fallback}"
    word = decided.reason if done.outcome != "restored" else ""
    return f"{word}: {decided.detail}" if word and decided.detail else word

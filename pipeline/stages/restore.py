"""Restore the faces of a shard: one image a record, under its own name and in its own format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
from pydantic import Field

from pipeline import images
from pipeline.images import Header, ImageFault, Pixels
from pipeline.replica import LoadModel, Replica, ReplicaConfig, canonical, load_model
from pipeline.sample import Member, Sample
from pipeline.shards import ShardOutput, ShardResult, carried, read_shard
from pipeline.sidecar import Provenance, Row, Status, sha256
from pipeline.stage import Face, Prepared, Task


class RestoreConfig(ReplicaConfig):
    """Everything that decides the bytes of a restored shard, for one release on one device kind.

    Attributes:
        blend: Share of the restored face in the output; the rest is the input.
        keep_size: Whether the output has the input's size, not the model's.
        quarantine: Whether refused and failed records are copied to the quarantine.
        limit: Records of the whole input that are looked at; 0 for all.
    """

    blend: float = Field(1.0, ge=0, le=1)
    keep_size: bool = False
    quarantine: bool = False
    limit: int = Field(0, ge=0)

    @property
    def provenance(self) -> Provenance:
        """What the sidecar says of the run."""
        return Provenance(
            seed=self.seed,
            model=self.model.name,
            model_sha256=self.model.sha256,
            config=canonical(self.settings()),
        )


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What `finish` needs of a record: its header, or why there is no face to restore."""

    header: Header | None = None
    status: Status = "restored"
    reason: str = ""


class RestoreStage:
    """Restore every record of a shard; see `Row` for what is written about each.

    Members beside the first image are copied byte for byte. A refused or failed record leaves a row
    and its other members, but no image.
    """

    def __init__(self, config: RestoreConfig, load: LoadModel = load_model) -> None:
        """Plan the stage; `load` makes the model when the worker sets the stage up."""
        self._config = config
        self._load = load

    def setup(self) -> Replica:
        """Load the model; the codecs get one thread each."""
        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._replica = Replica(self._config, self._load)
        return self._replica

    def close(self) -> None:
        """Free the model and give the process its threads back."""
        self._replica.close()
        cv2.setNumThreads(self._threads_before)
        del self._replica

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
        """Decode a record's image, or decide at once what becomes of the record."""
        if sample.fault:
            status: Status = "truncated" if sample.truncated else "refused"
            return Prepared(sample, state=_Decoded(status=status, reason=sample.fault))
        image = sample.image
        if image is None:
            return Prepared(sample, state=_Decoded(status="copied", reason="no image member"))
        try:
            header, pixels = images.decode(image.data)
        except ImageFault as fault:
            reason = f"{image.name}: {fault}"
            return Prepared(sample, state=_Decoded(status="refused", reason=reason))
        face = Face(sample.key, images.resize(pixels, self._replica.size))
        return Prepared(sample, [face], _Decoded(header, reason=_merge_warning(sample)))

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> ShardResult:
        """Encode the restored face in place of the original."""
        sample, decoded = prepared.record, prepared.state
        if not restored:
            return self._result(sample, decoded.status, decoded.reason, decoded.header)
        if restored[0] is None:
            reason = "the model returned NaN or infinity"
            return self._result(sample, "failed", reason, decoded.header)
        face = self._shape(restored[0], prepared.faces[0].lq, decoded.header)
        data = images.encode(face, decoded.header.format)
        size = (face.shape[1], face.shape[0])
        return self._result(sample, "restored", decoded.reason, decoded.header, data, size)

    def _shape(self, face: Pixels, lq: Pixels, header: Header) -> Pixels:
        """Blend with the input and give its size back, as asked."""
        if self._config.blend < 1:
            face = images.blend(face, lq, self._config.blend)
        if self._config.keep_size:
            face = images.fit(face, header.width, header.height)
        return face

    def reject(self, sample: Sample, reason: str) -> ShardResult:
        """A failed record: its other members are kept."""
        return self._result(sample, "failed", reason, None)

    def _result(
        self,
        sample: Sample,
        status: Status,
        reason: str,
        header: Header | None,
        data: bytes | None = None,
        size_out: tuple[int | None, int | None] = (None, None),
    ) -> ShardResult:
        image = sample.image
        row = Row(
            index=sample.index,
            key=sample.key,
            status=status,
            reason=reason,
            member=image.name if image else None,
            width_in=header.width if header else None,
            height_in=header.height if header else None,
            width_out=size_out[0],
            height_out=size_out[1],
            sha256_in=sha256(image.data) if image else None,
            sha256_out=sha256(data) if data is not None else None,
            quality=self._replica.quality if status == "restored" else None,
        )
        rejected: tuple[Member, ...] = ()
        if self._config.quarantine and status in ("refused", "failed"):
            rejected = quarantined(sample)
        return ShardResult(row, output_members(sample, image, data), rejected)


def output_members(sample: Sample, image: Member | None, data: bytes | None) -> tuple[Member, ...]:
    """The record's files with the image replaced by `data`, or left out without it."""
    if image is None:
        return sample.members
    done = () if data is None else (Member(image.name, data),)
    return tuple(
        kept for member in sample.members for kept in (done if member is image else (member,))
    )


def quarantined(sample: Sample) -> tuple[Member, ...]:
    """A record's files under names that are safe whatever theirs were: its index and a number."""
    members = sample.members or sample.unusable
    return tuple(
        Member(f"{sample.index:06d}.{number}.{_safe_suffix(member.name)}", member.data)
        for number, member in enumerate(members)
    )


def _safe_suffix(name: str) -> str:
    suffix = name.rpartition(".")[2].lower()
    return suffix if suffix.isascii() and suffix.isalnum() and len(suffix) <= 8 else "bin"


def _merge_warning(sample: Sample) -> str:
    """Say that a key holds more images than one: often two files whose names merge at a dot."""
    others = [member for member in sample.members if member.is_image and not member.is_truth][1:]
    names = [member.name for member in others]
    return f"copied as they are: {', '.join(names)}" if names else ""

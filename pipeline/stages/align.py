"""Cut the faces out of a shard's photos: a shard of aligned crops, each under a key of its own."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2

from pipeline import images
from pipeline.cleaning.removal.tombstones import Tombstones, digest_of_face
from pipeline.cleaning.settings import AlignConfig
from pipeline.faces.align import align
from pipeline.faces.detect import DetectConfig, Detection, FaceDetector, choose
from pipeline.images import ImageFault, Pixels
from pipeline.replica import canonical
from pipeline.sample import Member, Sample
from pipeline.shards import ShardOutput, ShardResult, read_shard
from pipeline.sidecar import FaceRow, Provenance, Row, Status, sha256
from pipeline.stage import Prepared, Task
from pipeline.storage import open_store

TAKEN = ""  # what `detect.choose` says of a face that is chosen


@dataclass(frozen=True, slots=True)
class _Cut:
    """What became of a photo."""

    status: Status
    reason: str = ""
    faces: tuple[FaceRow, ...] = ()
    members: tuple[Member, ...] = ()


class AlignStage:
    """Every face of a photo becomes a record `KEY_NUMBER`: its crop as PNG, the photo's JSON.

    Faces count from the left. A photo without a face leaves a row and nothing else.
    """

    def __init__(self, config: AlignConfig, run: str) -> None:
        """Plan the stage; `run` is the cleaning run's output folder, where tombstones lie."""
        self._config = config
        self._run = run

    @property
    def provenance(self) -> Provenance:
        """What the plan is known by."""
        settings = self._config.model_dump(mode="json") | {"detector": self._detect.settings()}
        return Provenance(0, "", self._detect.sha256, canonical(settings))

    @property
    def _detect(self) -> DetectConfig:
        config = self._config
        return DetectConfig(
            min_score=config.min_score, min_face_px=config.min_face_px, which=config.which
        )

    def setup(self) -> None:
        """Load the detector; the codecs get one thread each."""
        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._detector = FaceDetector(self._detect)

    def close(self) -> None:
        """Give the process its threads back."""
        cv2.setNumThreads(self._threads_before)

    def read(self, task: Task) -> Iterator[Sample]:
        """Read the tar; faces of what was forgotten are not cut out again."""
        self._tombstones = Tombstones.load(open_store(self._run))
        return read_shard(task.source)

    def carried(self, task: Task) -> Iterator[ShardResult]:
        """Nothing: a shard is cut as a whole."""
        return iter(())

    def open(self, task: Task) -> ShardOutput:
        """Write a tar and a sidecar."""
        return ShardOutput(task, self.provenance)

    def prepare(self, sample: Sample) -> Prepared:
        """Do the whole work at once, so that no decoded picture waits for anything."""
        return Prepared(sample, state=self._cut(sample))

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> ShardResult:
        """Hand over what `prepare` made."""
        return _result(prepared.record, prepared.state)

    def reject(self, sample: Sample, reason: str) -> ShardResult:
        """A photo that could not be worked on."""
        return _result(sample, _Cut("failed", reason))

    def _cut(self, sample: Sample) -> _Cut:
        if sample.fault:
            return _Cut("truncated" if sample.truncated else "refused", sample.fault)
        image = sample.image
        if image is None:
            return _Cut("copied", "no image member")
        if self._tombstones.covers(sha256(image.data)):
            return _Cut("forgotten")
        try:
            photo = images.decode(image.data)[1]
        except ImageFault as fault:
            return _Cut("refused", f"{image.name}: {fault}")
        found = self._detector.find(photo)
        words = choose(found, self._detect, photo.shape[1], photo.shape[0])
        members: list[Member] = []
        photo_sha256 = sha256(image.data)
        for number, (face, word) in enumerate(zip(found, words, strict=True)):
            gone = self._tombstones.covers(digest_of_face(photo_sha256, number))
            if word == TAKEN and not gone:
                members += self._crop(sample, photo, face, number)
        reason = "" if members else "no face found"
        rows = tuple(_row(face, word) for face, word in zip(found, words, strict=True))
        return _Cut("copied", reason, rows, tuple(members))

    def _crop(self, sample: Sample, photo: Pixels, face: Detection, number: int) -> list[Member]:
        """A face as a record: its crop, and what is known of the photo."""
        key = f"{sample.key}_{number}"
        crop = align(photo, face.points, self._config.size_px)
        facts = next((m.data for m in sample.members if m.name.endswith(".json")), b"{}")
        return [
            Member(f"{key}.png", images.encode(crop, "png")),
            Member(f"{key}.json", _with_photo(facts, sample.key, number)),
        ]


def _with_photo(facts: bytes, photo: str, number: int) -> bytes:
    """The photo's metadata, and which face of it this is."""
    try:
        values = json.loads(facts)
    except (ValueError, RecursionError):
        values = {}
    known = values if isinstance(values, dict) else {}
    return json.dumps(known | {"photo": photo, "face": number}, sort_keys=True).encode()


def _row(face: Detection, word: str) -> FaceRow:
    points = tuple((float(x), float(y)) for x, y in face.points)
    decision = "cut out" if word == TAKEN else word
    return FaceRow(face.box, points, face.score, decision)


def _result(sample: Sample, cut: _Cut) -> ShardResult:
    image = sample.image
    forgotten = cut.status == "forgotten"
    row = Row(
        index=sample.index,
        key="" if forgotten else sample.key,
        status=cut.status,
        reason=cut.reason,
        member=image.name if image and not forgotten else None,
        sha256_in=sha256(image.data) if image and not forgotten else None,
        faces=cut.faces,
    )
    return ShardResult(row, cut.members)

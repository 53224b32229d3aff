"""Restore the faces inside whole photos: detect, align, restore, paste back."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from pipeline import images
from pipeline.chunks import PhotoOutput, PhotoRecord, PhotoResult, carried, read_chunk
from pipeline.faces.align import Matrix, crop_place, crop_side, cut
from pipeline.faces.detect import DetectConfig, Detection, FaceDetector, choose
from pipeline.faces.paste import Patch, paste
from pipeline.images import PIXEL_BUDGET, ImageFault, Pixels, to_rgb8
from pipeline.photo import Photo, read_photo
from pipeline.replica import LoadModel, Replica, ReplicaConfig, canonical, load_model
from pipeline.sidecar import FaceRow, Provenance, Row, Status, sha256
from pipeline.stage import Face, Prepared, Task

# A face whose crop is this many times the model's size is left alone: what the model gives back has
# less detail than what it would replace.
MAX_ENLARGEMENT = 1.25
# A crop's side over its box's: 1.15 to 1.67 in 334 faces of real photos. Far from that, the points
# are not those of a face, and the crop could be of any size.
PLAUSIBLE_SIDES = (0.6, 3.0)
RESTORED = "restored"
IMPLAUSIBLE = "left: points not of a face"
LARGER = "left: larger than the model"
FAILED = "failed: NaN"
# While a photo is worked on: as decoded, as RGB of 8 bits, pasted, and the encoder's copy of it.
BYTES_PER_PIXEL = 12
# And for each of a crop's: as cut, as float32 from the model, as restored, three colours each.
BYTES_PER_CROP_PIXEL = 3 * (1 + 4 + 1)
USUAL_FACES = 4  # how many a photo is taken to have before anybody looked
COMPARE_SIDE_PX = 1280


class PhotosConfig(ReplicaConfig):
    """The model, and how photos are restored.

    Attributes:
        detect: How faces are found, and which are restored.
        blend: Share of the restored face in the output; the rest is the photo.
        aligned: Whether each photo is one aligned face, to be restored as a whole.
        force: Whether faces larger than the model are restored too.
        pixel_budget: Photos of more pixels are refused, before memory is spent.
        compare: Whether a picture of before and after is kept for each restored photo.
        quarantine: Whether refused and failed photos are copied to the quarantine.
        limit: Only the first photos are done; 0 for all.
    """

    detect: DetectConfig = DetectConfig()
    blend: float = Field(1.0, ge=0, le=1)
    aligned: bool = False
    force: bool = False
    pixel_budget: int = Field(PIXEL_BUDGET, ge=1)
    compare: bool = False
    quarantine: bool = False
    limit: int = Field(0, ge=0)

    def settings(self) -> dict[str, Any]:
        """What decides a photo's bytes; what is kept beside the photos is left out."""
        settings = super().settings() | {"detect": self.detect.settings()}
        return {name: settings[name] for name in settings.keys() - {"compare", "quarantine"}}

    @property
    def provenance(self) -> Provenance:
        """What the sidecar says of the run."""
        return Provenance(
            seed=self.seed,
            model=self.model.name,
            model_sha256=self.model.sha256,
            config=canonical(self.settings()),
        )


@dataclass(slots=True)
class _Seen:
    """What `finish` needs of a photo.

    Attributes:
        photo: As decoded, or None where there is none.
        faces: Every face that was found.
        decisions: One a face.
        places: Where the crops of those faces lie that are to be restored, by their number.
        reason: Why the photo was refused.
    """

    photo: Photo | None = None
    faces: Sequence[Detection] = ()
    decisions: list[str] = field(default_factory=list)
    places: dict[int, Matrix] = field(default_factory=dict)
    reason: str = ""


class PhotosStage:
    """Restore every photo of a chunk; see `Row` for what is written about each.

    A photo keeps its name, format and whatever lies outside the faces. One without a restored face
    is copied byte for byte; a refused or failed one leaves a row and no file.
    """

    def __init__(self, config: PhotosConfig, load: LoadModel = load_model) -> None:
        """Plan the stage; `load` makes the model when the worker sets the stage up."""
        self._config = config
        self._load = load

    def setup(self) -> Replica:
        """Load model and detector; OpenCV gets one thread in each of the worker's."""
        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._detector = FaceDetector(self._config.detect)
        self._replica = Replica(self._config, self._load)
        return self._replica

    def close(self) -> None:
        """Free the model and give the process its threads back."""
        self._replica.close()
        cv2.setNumThreads(self._threads_before)
        del self._replica, self._detector

    def read(self, task: Task) -> Iterator[PhotoRecord]:
        """Read the chunk's files."""
        crops_bytes = USUAL_FACES * BYTES_PER_CROP_PIXEL * self._replica.size**2
        for record in read_chunk(task):
            pixels = min(num_pixels(record.data), self._config.pixel_budget)
            num_bytes = 2 * len(record.data) + BYTES_PER_PIXEL * pixels + crops_bytes
            yield replace(record, num_bytes=num_bytes)

    def carried(self, task: Task) -> Iterator[PhotoResult]:
        """Read the output of an earlier try."""
        return carried(task)

    def open(self, task: Task) -> PhotoOutput:
        """Write photos and a sidecar."""
        return PhotoOutput(task, self._config.provenance)

    def prepare(self, record: PhotoRecord) -> Prepared:
        """Decode a photo, find its faces and cut out those to be restored."""
        if record.fault:
            return Prepared(record, state=_Seen(reason=record.fault))
        config = self._config
        try:
            photo = read_photo(record.data, config.pixel_budget)
        except ImageFault as fault:
            return Prepared(record, state=_Seen(reason=str(fault)))
        pixels = np.ascontiguousarray(photo.rgb8())
        seen = self._all_of(photo, pixels) if config.aligned else self._look(photo, pixels)
        crops = []
        for number, place in seen.places.items():
            crop = self._cut(pixels, place)
            crops.append(Face(f"{record.key}#{number}", crop))
        return Prepared(record, crops, seen)

    def _look(self, photo: Photo, pixels: Pixels) -> _Seen:
        """Find the faces and decide which of them to restore."""
        height, width = pixels.shape[:2]
        faces = self._detector.find(pixels)
        seen = _Seen(photo, faces, choose(faces, self._config.detect, width, height))
        for number, face in enumerate(faces):
            place = crop_place(face.points)
            if not seen.decisions[number]:
                seen.decisions[number] = self._objection(crop_side(place), face.side_px)
            if not seen.decisions[number]:
                seen.places[number] = place
        return seen

    def _all_of(self, photo: Photo, pixels: Pixels) -> _Seen:
        """Take the whole photo for one face."""
        height, width = pixels.shape[:2]
        face = Detection((0.0, 0.0, float(width), float(height)), np.empty((0, 2)), 1.0)
        decision = self._objection(face.side_px, face.side_px)
        place = np.array([[1 / width, 0, 0], [0, 1 / height, 0]])
        return _Seen(photo, [face], [decision], {} if decision else {0: place})

    def _cut(self, pixels: Pixels, place: Matrix) -> Pixels:
        size = self._replica.size
        return images.resize(pixels, size) if self._config.aligned else cut(pixels, place, size)

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> PhotoResult:
        """Paste the restored faces and encode the photo."""
        record, seen = prepared.record, prepared.state
        if seen.photo is None:
            return self._without_file(record, "refused", seen.reason)
        patches = []
        for (number, place), face in zip(seen.places.items(), restored, strict=True):
            seen.decisions[number] = FAILED if face is None else RESTORED
            if face is not None:
                patches.append(Patch(face, place, fills=self._config.aligned))
        reason = self._reason(seen.decisions)
        if not patches and FAILED in seen.decisions:
            return self._without_file(record, "failed", reason, seen)
        if not patches:
            row = self._row(record, "copied", reason, seen, record.data)
            return PhotoResult(row, record.name, record.data)
        pasted = paste(seen.photo.color, patches, self._config.blend)
        data = seen.photo.encode(pasted)
        row = self._row(record, "restored", reason, seen, data)
        compare = None
        if self._config.compare:
            halves = [np.ascontiguousarray(to_rgb8(c)) for c in (seen.photo.color, pasted)]
            compare = before_after(*halves)
        return PhotoResult(row, record.name, data, compare)

    def reject(self, record: PhotoRecord, reason: str) -> PhotoResult:
        """A failed photo: no file of it."""
        return self._without_file(record, "failed", reason)

    def _objection(self, side_px: float, box_px: float) -> str:
        """Why a chosen face is left as it is, or ""; from the sides of its crop and its box."""
        least, most = PLAUSIBLE_SIDES
        if not least * box_px <= side_px <= most * box_px:
            return IMPLAUSIBLE
        if side_px > MAX_ENLARGEMENT * self._replica.size and not self._config.force:
            return f"{LARGER} ({side_px:.0f} px)"
        return ""

    def _without_file(
        self, record: PhotoRecord, status: Status, reason: str, seen: _Seen | None = None
    ) -> PhotoResult:
        row = self._row(record, status, reason, seen or _Seen())
        kept = record.data if self._config.quarantine and not record.fault else None
        return PhotoResult(row, record.name, rejected=kept)

    def _row(
        self, record: PhotoRecord, status: Status, reason: str, seen: _Seen,
        data: bytes | None = None,
    ) -> Row:  # fmt: skip
        height, width = seen.photo.color.shape[:2] if seen.photo else (None, None)
        return Row(
            index=record.index,
            key=record.key,
            status=status,
            reason=reason,
            member=record.key,
            width_in=width,
            height_in=height,
            width_out=None if data is None else width,
            height_out=None if data is None else height,
            sha256_in=None if record.fault else sha256(record.data),
            sha256_out=None if data is None else sha256(data),
            quality=self._replica.quality if status == "restored" else None,
            faces=None if seen.photo is None else tuple(
                _face_row(face, decision)
                for face, decision in zip(seen.faces, seen.decisions, strict=True)
            ),
        )  # fmt: skip

    def _reason(self, decisions: Sequence[str]) -> str:
        """What became of the faces that were not restored, and the way out; "" if all were."""
        if not decisions:
            return "no face found"
        num_larger = sum(decision.startswith(LARGER) for decision in decisions)
        counts = Counter(decisions)
        told = [
            (num_larger, f"larger than the model's {self._replica.size} px (--force restores)"),
            (counts["left: below min size"], f"below {self._config.detect.min_face_px:g} px"),
            (counts["left: not chosen"], "not chosen"),
            (counts[IMPLAUSIBLE], "with points not of a face"),
            (counts[FAILED], "failed, the model returned NaN or infinity"),
        ]
        return "; ".join(f"{_faces(count)} {what}" for count, what in told if count)


def num_pixels(data: bytes) -> int:
    """Pixels of an image by its header; a guess from the file's size where that cannot be read."""
    try:
        header = images.read_header(data)
    except ImageFault:  # `prepare` says what is wrong
        return 10 * len(data)
    return header.width * header.height


def before_after(before: Pixels, after: Pixels) -> bytes:
    """Show two versions of a photo, (H, W, 3) uint8 RGB, beside each other: a JPEG."""
    height, width = before.shape[:2]
    scale = min(1, COMPARE_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    halves = [cv2.resize(half, size, interpolation=cv2.INTER_AREA) for half in (before, after)]
    return images.encode(np.concatenate(halves, axis=1).astype(np.uint8, copy=False), "jpeg")


def _face_row(face: Detection, decision: str) -> FaceRow:
    points = tuple((float(x), float(y)) for x, y in face.points)
    return FaceRow(face.box, points, face.score, decision)


def _faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"

"""Score restored images: each is decoded once for all metrics, and has a row for every one.

Everything is computed in the codec threads, one image at a time and one torch thread each: on a CPU
images side by side use the cores better than threads inside one, and no neighbour changes a bit.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch

from pipeline import images
from pipeline.errors import one_line
from pipeline.faces.detect import DetectConfig, FaceDetector
from pipeline.images import ImageFault, Pixels
from pipeline.metrics.choose import Chosen
from pipeline.metrics.judge import RETRIED, Extractor, Face, Judge, Points, Role, Score, Status
from pipeline.metrics.landmarks import MIN_SCORE, face_of_truth
from pipeline.metrics.table import BY_NAME
from pipeline.replica import canonical
from pipeline.scoring.output import FeatureRow, ScoreOutput, ScoreResult
from pipeline.scoring.sources import Place, read_place
from pipeline.scoring.work import Item, Work
from pipeline.sidecar import Provenance, Row
from pipeline.sidecar import Status as RowStatus
from pipeline.stage import Prepared, Task
from pipeline.storage import StoreTrouble, open_input, open_store

PIXEL_BUDGET = 2**24
"""Larger images are refused: the float64 planes of SSIM are 130 bytes a pixel."""
LARGE_PX = 2**21
"""Above it images are scored one at a time, which bounds what all threads hold together."""


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """What is computed, with which files."""

    chosen: tuple[Chosen, ...]

    @property
    def provenance(self) -> Provenance:
        """What sidecars say; scores say more, row by row."""
        weights = {each.family: each.weights_sha256 for each in self.chosen}
        return Provenance(0, "", "", canonical(weights))


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One image with its truth, read and not yet decoded."""

    index: int
    key: str
    item: Item
    work: Work
    restored: bytes
    gt: bytes
    fault: str = ""

    @property
    def num_bytes(self) -> int:
        """What it holds until it is scored; decoded pixels live in one thread only."""
        return len(self.restored) + len(self.gt)


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why no metric, or none that compares, has a value."""

    status: Status
    error: str = ""
    only_comparing: bool = False


class ScoreStage:
    """Score every image of a unit; see `ScoreOutput` for what is written."""

    def __init__(self, config: ScoreConfig) -> None:
        """Plan the stage; the judges are built when the worker sets it up."""
        self._config = config
        self._large = threading.Lock()

    def setup(self) -> None:
        """Load every judge; each codec thread computes by itself."""
        self._threads_before = torch.get_num_threads(), cv2.getNumThreads()
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._detector = FaceDetector(DetectConfig(min_score=MIN_SCORE))
        self._judges: dict[str, Judge] = {}
        self._extractors: dict[str, Extractor] = {}
        for chosen in self._config.chosen:
            built: Any = chosen.definition.build(chosen.paths)
            (self._extractors if chosen.is_of_sets else self._judges)[chosen.family] = built
        self._by_family = {chosen.family: chosen for chosen in self._config.chosen}

    def close(self) -> None:
        """Free the judges and give the process its threads back."""
        torch.set_num_threads(self._threads_before[0])
        cv2.setNumThreads(self._threads_before[1])
        del self._judges, self._extractors

    def read(self, task: Task) -> Iterator[ScoreRecord]:
        """Read the images of a unit; a shard is opened once for its neighbours."""
        work = Work.load(open_store(task.out), task.shard)
        reader = _Reader()
        for index, item in enumerate(work.items):
            restored, gt, fault = b"", b"", ""
            try:
                restored, gt = reader.read(item.restored), reader.read(item.gt)
            except StoreTrouble:
                raise
            except OSError as error:
                fault = f"cannot be read ({error.strerror or type(error).__name__})"
            except ValueError as error:
                fault = str(error)
            yield ScoreRecord(index, item.image_id, item, work, restored, gt, fault)
        reader.close()

    def carried(self, task: Task) -> Iterator[ScoreResult]:
        """Nothing: a unit with failures is taken back and planned anew."""
        return iter(())

    def open(self, task: Task) -> ScoreOutput:
        """Write scores, features and a sidecar."""
        return ScoreOutput(task, self._config.provenance)

    def prepare(self, record: ScoreRecord) -> Prepared:
        """Decode and score one image."""
        face, fault = self._face(record)
        if face is None:
            return Prepared(record, state=self._result(record, None, fault))
        is_large = face.restored.shape[0] * face.restored.shape[1] > LARGE_PX
        with self._large if is_large else nullcontext():
            if face.truth is not None and self._uses_points(record.work):
                face.points = self._points(face)
            return Prepared(record, state=self._result(record, face, fault))

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> ScoreResult:
        """Hand over what `prepare` found."""
        result: ScoreResult = prepared.state
        return result

    def reject(self, record: ScoreRecord, reason: str) -> ScoreResult:
        """Rows that say that nothing could be computed."""
        return self._result(record, None, _Fault("failed", reason))

    # ------------------------------------------------------------------------- one image

    def _face(self, record: ScoreRecord) -> tuple[Face | None, _Fault | None]:
        """The decoded pair; without a face the fault is that of every metric."""
        if record.fault:
            return None, _Fault("failed", record.fault)
        if not record.item.restored.path:
            return None, _Fault("missing_pair", "the method has no such image")
        try:
            restored = images.decode(record.restored, PIXEL_BUDGET)[1]
        except ImageFault as fault:
            return None, _Fault("decode_error", str(fault))
        if record.work.side != "restored":
            return Face(record.key, restored, restored), None
        face = Face(record.key, restored)
        return face, self._add_truth(face, record)

    def _add_truth(self, face: Face, record: ScoreRecord) -> _Fault | None:
        """Decode the truth; or why it cannot be compared with, if that is wanted."""
        if not record.item.gt.path:
            fault = _Fault("missing_pair", "no truth of this name", only_comparing=True)
            return fault if record.work.compares else None
        try:
            truth = images.decode(record.gt, PIXEL_BUDGET)[1]
        except ImageFault as fault:
            return _Fault("decode_error", f"truth: {fault}", only_comparing=True)
        if truth.shape != face.restored.shape:
            sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (face.restored, truth)]
            return _Fault("shape_mismatch", " against ".join(sizes), only_comparing=True)
        face.truth = truth
        return None

    def _uses_points(self, work: Work) -> bool:
        return any(self._by_family[name].definition.uses_points for name in work.wanted)

    def _points(self, face: Face) -> Points | None:
        found = face_of_truth(face, "yunet", self._detector)
        return None if found is None else np.asarray(found.points, np.float64)

    def _result(self, record: ScoreRecord, face: Face | None, fault: _Fault | None) -> ScoreResult:
        scores: list[dict[str, Any]] = []
        features = []
        for family, metrics in record.work.wanted.items():
            if family in self._extractors:
                features.append(self._feature(record, family, face, fault))
            else:
                scores += self._scores(record, family, metrics, face, fault)
        outcomes = [(row["status"], row["error"]) for row in scores]
        outcomes += [(row.values["status"], row.error) for row in features]
        return ScoreResult(_row(record, fault, outcomes), scores, features)

    def _scores(
        self,
        record: ScoreRecord,
        family: str,
        metrics: Sequence[str],
        face: Face | None,
        fault: _Fault | None,
    ) -> Iterator[dict[str, Any]]:
        judge = self._judges[family]
        possible = [name for name in metrics if not _hits(fault, name)]
        found: Mapping[str, Score] = {}
        if face and possible:
            found = _guarded(lambda: judge.score(face), possible)
        for name in metrics:
            score = found[name] if name in possible else _as_score(fault)
            yield self._score_row(record, family, name, score, judge.library)

    def _score_row(
        self, record: ScoreRecord, family: str, name: str, score: Score, library: str
    ) -> dict[str, Any]:
        metric, chosen, item = BY_NAME[name], self._by_family[family], record.item
        lib, _, lib_version = library.partition(" ")
        return _shared(record) | {
            "metric": metric.protocol,
            "value": score.value,
            "higher_is_better": metric.better == "higher",
            "status": score.status,
            "error": score.error,
            "lib": lib,
            "lib_version": lib_version or version("vsp-restore"),
            "weights_sha256": chosen.weights_sha256,
            "dtype": chosen.definition.dtype,
            "restored_sha256": item.restored.sha256,
            "gt_sha256": item.gt.sha256,
        }

    def _feature(
        self, record: ScoreRecord, family: str, face: Face | None, fault: _Fault | None
    ) -> FeatureRow:
        extractor, chosen = self._extractors[family], self._by_family[family]
        role: Role = "gt" if record.work.side == "gt" else "restored"
        found: Any = _as_score(fault)
        needs_truth = chosen.definition.uses_points
        if face and not (fault and (needs_truth or not fault.only_comparing)):
            found = _guarded(lambda: {family: extractor.feature(face, role)}, [family])[family]
        is_score = isinstance(found, Score)
        values = {
            "image_id": record.key,
            "role": record.work.side,
            "method": record.work.method,
            "dataset": record.work.dataset,
            "extractor_id": extractor.id,
            "weights_sha256": chosen.weights_sha256,
            "sha256": record.item.restored.sha256,
            "gt_sha256": record.item.gt.sha256,
            "status": found.status if is_score else "ok",
        }
        if is_score:
            return FeatureRow(family, extractor.dim, values, None, found.error)
        return FeatureRow(family, extractor.dim, values, found)


class _Reader:
    """Reads images; neighbours in one shard share one open file."""

    def __init__(self) -> None:
        self._open: dict[str, BinaryIO] = {}

    def read(self, place: Place) -> bytes:
        """The bytes of an image, b"" for none.

        Raises:
            OSError: If they cannot be read.
            ValueError: If they are not those that were planned.
        """
        if not place.path:
            return b""
        if place.path not in self._open:
            if len(self._open) >= 2:  # a restored shard and its truths
                self._open.pop(next(iter(self._open))).close()
            self._open[place.path] = open_input(place.path)
        data = read_place(place, self._open[place.path])
        if hashlib.sha256(data).hexdigest() != place.sha256:
            raise ValueError("changed while the run was going on; score it again")
        return data

    def close(self) -> None:
        """Close what is open."""
        for file in self._open.values():
            file.close()


def _guarded(work: Callable[[], Mapping[str, Any]], names: Sequence[str]) -> Mapping[str, Any]:
    """What a judge says; what it raises is the status of each of its metrics."""
    try:
        return work()
    except (MemoryError, torch.OutOfMemoryError):
        return dict.fromkeys(names, Score.no("oom", "out of memory"))
    except Exception as error:
        return dict.fromkeys(names, Score.no("failed", one_line(error)))


def _hits(fault: _Fault | None, name: str) -> bool:
    """Whether a fault is one of this metric."""
    return fault is not None and not (fault.only_comparing and BY_NAME[name].kind == "alone")


def _as_score(fault: _Fault | None) -> Score:
    return Score.no(fault.status, fault.error) if fault else Score.no("failed")


def _shared(record: ScoreRecord) -> dict[str, Any]:
    work = record.work
    return {
        "method": work.method,
        "method_rev": work.method_rev,
        "dataset": work.dataset,
        "dataset_rev": work.dataset_rev,
        "image_id": record.key,
    }


def _row(record: ScoreRecord, fault: _Fault | None, outcomes: Sequence[tuple[Status, str]]) -> Row:
    """The engine's row: an image that cannot be scored is refused, a broken judge is a failure."""
    status: RowStatus = "scored"
    odd = sorted({status for status, _ in outcomes if status != "ok"})
    reason = ", ".join(odd)
    if fault is not None:
        status = "refused"
        reason = f"{fault.status}: {fault.error}"
    failed = [error for status, error in outcomes if status in RETRIED]
    if failed:
        status = "failed"
        reason = f"{len(failed)} of {len(outcomes)} metrics: {failed[0]}"
    sha256 = record.item.restored.sha256 or None
    return Row(record.index, record.key, status, reason, sha256_in=sha256)

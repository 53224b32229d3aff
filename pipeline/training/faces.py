"""From a stored face to what a network is fed: decoded, flipped, degraded, in [-1, 1].

Only numpy and the codecs work here, so that it can run in threads beside a training step: torch's
operators would start a pool of threads for each of them.
"""

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import images
from pipeline.degradation import Floats, degrade_float, draw_noise, draw_params, truth_float
from pipeline.errors import UserError
from pipeline.images import ImageFault, Pixels
from pipeline.training.ahead import run_ahead
from pipeline.training.data import DataConfig
from pipeline.training.index import Record
from vsp_model.randomness import generator_for
from vsp_model.train.batch import Batch

OnFault = Callable[[str, str], None]
MIRRORED = [1, 0, 2, 4, 3]  # left and right, of eyes and of mouth corners, change places
_FAR = 1.5  # sides of the image from its middle; a point farther away is a mistake


class Candidate(NamedTuple):
    """A record that may fill a place."""

    id: Hashable
    """Tells it from any other record of the set."""
    read: Callable[[], Record]


@dataclass
class Faults:
    """Records that can't be used, each told once.

    Jobs in threads add to it, the consumer tells.

    Attributes:
        on_fault: Called with key and reason.
        reasons: By the record's id.
    """

    on_fault: OnFault | None = None
    reasons: dict[Hashable, str] = field(default_factory=dict)
    _untold: deque[tuple[str, str]] = field(default_factory=deque)

    def add(self, id: Hashable, key: str, reason: str) -> None:
        """Note a record; a second note of it changes nothing."""
        told = f"{key}: {reason}"
        if self.reasons.setdefault(id, told) is told:
            self._untold.append((key, reason))

    def tell(self) -> None:
        """Call back for what was added since the last time."""
        while self._untold:
            key, reason = self._untold.popleft()
            if self.on_fault:
                self.on_fault(key, reason)


class Part:
    """A part of a global batch in the making, with room for B faces of S pixels a side."""

    def __init__(self, num_faces: int, size: int) -> None:
        """Nothing is in it yet."""
        self.lq = np.empty((num_faces, size, size, 3), np.float32)
        self.hq = np.empty((num_faces, size, size, 3), np.float32)
        self.points = np.empty((num_faces, 5, 2), np.float32)
        self.quality = np.full(num_faces, np.nan, np.float32)
        self.keys: list[str] = []
        self.streams: list[str] = []

    def batch(self) -> Batch:
        """The same memory as tensors, (B, 3, S, S) in channels_last."""
        lq, hq = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (self.lq, self.hq))
        points = torch.from_numpy(self.points)
        quality = torch.from_numpy(self.quality)
        return Batch(tuple(self.keys), tuple(self.streams), lq, hq, points, quality)


class FaceMaker:
    """Makes faces of records; what it draws depends on (seed, stream) alone."""

    def __init__(self, config: DataConfig, seed: int, faults: Faults) -> None:
        """Faces as `config` wants them; records that can't be used go to `faults`."""
        self.config = config
        self.seed = seed
        self.faults = faults

    def part(self, places: Sequence[tuple[str, Iterable[Candidate]]]) -> Part:
        """Fill a part.

        Args:
            places: For each face the stream of its random numbers, and the records that may be
                taken for it: the first that can be used is.

        Raises:
            UserError: If none of them can.
        """
        part = Part(len(places), self.config.size)
        for slot, (stream, candidates) in enumerate(places):
            record, pixels = self.first_usable(candidates)
            self._fill(part, slot, stream, record, pixels)
        return part

    def first_usable(self, candidates: Iterable[Candidate]) -> tuple[Record, Pixels]:
        """The first of some records that can be used, and its pixels.

        Raises:
            UserError: If none can.
        """
        tried = 0
        last = "there is none"
        for candidate in candidates:
            tried += 1
            if candidate.id not in self.faults.reasons:
                record = candidate.read()
                try:
                    return record, self.decode(record)
                except ImageFault as fault:
                    self.faults.add(candidate.id, record.key, str(fault))
            last = self.faults.reasons[candidate.id]
        raise UserError(f"no usable face in {tried} records in a row of data.train; {last}")

    def decode(self, record: Record) -> Pixels:
        """The pixels of a record, (H, H, 3).

        Raises:
            ImageFault: If the image is damaged, under half as large as wanted, or not square: an
                aligned face is, and to squeeze one would train on faces that nobody has.
        """
        _, pixels = images.decode(record.image)
        height, width = pixels.shape[:2]
        if height != width:
            raise ImageFault(f"{width} x {height} pixels, an aligned face is square")
        if 2 * height < self.config.size:
            raise ImageFault(f"{width} x {height} pixels, under half of {self.config.size}")
        return pixels

    def _fill(self, part: Part, slot: int, stream: str, record: Record, pixels: Pixels) -> None:
        config, seed = self.config, self.seed
        params = draw_params(config.degradation, config.size, seed=seed, key=stream)
        points = record.points * (config.size / len(pixels))
        if np.abs(points / config.size - 0.5).max() > _FAR:
            points[:] = np.nan
        pixels = images.resize(pixels, config.size)
        if params.flip:  # 8 bits are turned in no time, and the chain need not do it twice
            pixels = cv2.flip(pixels, 1).astype(np.uint8, copy=False)
            points = mirrored(points, config.size)
            params = params._replace(flip=False)
        clean: Floats = pixels.astype(np.float32) / np.float32(255)
        low = truth = truth_float(clean, params)
        if generator_for(seed, stream, "clean").random() >= config.clean_fraction:
            low = degrade_float(clean, params, draw_noise(params.low_side, seed=seed, key=stream))
        for values, out in ((low, part.lq[slot]), (truth, part.hq[slot])):
            np.multiply(values, 2, out=out)
            out -= 1
        part.points[slot] = points
        part.quality[slot] = record.quality  # flipped too: scored once, as it is stored [C]
        part.keys.append(record.key)
        part.streams.append(stream)


def mirrored(points: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Five points, (5, 2), of the mirrored face; the first pixel spans 0 to 1."""
    turned = points[MIRRORED]
    turned[:, 0] = size - turned[:, 0]
    return turned


Jobs = Generator[Sequence[Callable[[], Part]], None, None]
"""For each step, this worker's parts to be made."""
Batches = Generator[list[Batch], None, None]
"""For each step, this worker's parts; closing it ends the threads."""


def prepared(config: DataConfig, faults: Faults, steps: Jobs) -> Batches:
    """Yield the batches of each step, made ahead in threads; tells the faults met so far.

    The codecs get one thread each meanwhile.
    """
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        ahead = max(config.ahead_steps, config.threads)
        with closing(run_ahead(steps, config.threads, ahead)) as done:
            for parts in done:
                faults.tell()
                yield [part.batch() for part in parts]
    finally:
        cv2.setNumThreads(threads_before)

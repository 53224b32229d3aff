"""Faces into batches of one shape, and batches through the model, in a thread of its own.

A few input buffers take turns: one is filled while the model works on another. Nothing is converted
in the model's thread.
"""

import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pipeline import images
from pipeline.errors import one_line
from pipeline.images import Pixels
from pipeline.replica import Replica
from pipeline.stage import Face
from pipeline.tracker import Tracker
from vsp_model.faces import finite_items

NUM_BUFFERS = 3  # one in the model, one full, one being filled


class Holder(Protocol):
    """What a face belongs to: a block of records."""

    shard: str

    def hold(self) -> None:
        """One more batch holds a face of it."""


@dataclass(slots=True, eq=False)
class Batch:
    """Faces on their way through the model."""

    input: Tensor  # (B, 3, S, S) float32
    keys: list[str] = field(default_factory=list)
    indices: list[tuple[str, int]] = field(default_factory=list)  # shard and record of each face
    holders: list[Holder] = field(default_factory=list)
    outputs: list[Tensor | None] = field(default_factory=list)  # (n, 3, S, S) each, in order
    pixels: list[Pixels | None] = field(default_factory=list)  # made of them; None: not finite
    faults: dict[int, str] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def is_full(self) -> bool:
        """Whether no face can be added."""
        return len(self.keys) == len(self.input)

    def fault(self, slot: int) -> str:
        """Why the model could not be run on a face, or "".

        Raises:
            BaseException: What stopped the model itself.
        """
        if self.error is not None:
            raise self.error
        return self.faults.get(slot, "")

    def convert(self) -> None:
        """Turn the model's answers into pixels."""
        for restored in self.outputs:
            if restored is None:
                self.pixels.append(None)
                continue
            finite = finite_items(restored).tolist()
            pixels = images.to_uint8(restored if all(finite) else restored.nan_to_num())
            self.pixels += [pixels[n] if finite[n] else None for n in range(len(finite))]
        self.outputs.clear()


class Composer:
    """Fills batches in the caller's thread and runs them in order in its own."""

    def __init__(
        self,
        replica: Replica,
        tracker: Tracker,
        codecs: Executor,
        on_done: Callable[[Holder], None],
    ) -> None:
        """Start the model's thread; `on_done` is told each holder of a batch that is done."""
        self._replica, self._tracker = replica, tracker
        self._codecs, self._on_done = codecs, on_done
        self._free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(NUM_BUFFERS):
            self._free.put(replica.new_batch())
        self._full: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._batch: Batch | None = None
        self._limit = replica.batch_size
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> int:
        """Faces that a run of the model may hold; less than planned once memory ran out."""
        return self._limit

    @limit.setter
    def limit(self, num_faces: int) -> None:
        self._limit = min(self._limit, num_faces)

    def add(self, face: Face, holder: Holder, index: int) -> tuple[Batch, int]:
        """Put a face into the batch being filled; waits while all buffers are in use.

        Returns:
            The batch and the face's place in it.
        """
        if self._batch is None:
            self._batch = Batch(self._free.get())
        batch, slot = self._batch, len(self._batch.keys)
        images.to_model(face.lq, batch.input, slot)
        batch.keys.append(face.key)
        batch.indices.append((holder.shard, index))
        if holder not in batch.holders:
            holder.hold()
            batch.holders.append(holder)
        if batch.is_full:
            self.flush()
        return batch, slot

    def flush(self) -> None:
        """Hand the batch being filled to the model, full or not."""
        if self._batch is not None:
            self._full.put(self._batch)
            self._batch = None

    def close(self) -> None:
        """End the model's thread after what it was handed."""
        self._full.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._full.get()) is not None:
            by_shard = defaultdict(list)
            for shard, index in batch.indices:
                by_shard[shard].append(index)
            self._tracker.hold(by_shard)
            try:
                self._run(batch)
            except BaseException as error:  # told to whoever waits for the faces
                batch.error = error
            self._tracker.let_go()
            self._free.put(batch.input)
            self._codecs.submit(self._end, batch)

    def _end(self, batch: Batch) -> None:
        """In a codec thread, so that the model's goes on."""
        try:
            batch.convert()
        except Exception as error:
            batch.error = batch.error or error
        for holder in batch.holders:
            self._on_done(holder)

    def _run(self, batch: Batch) -> None:
        """Fill a batch's outputs; halve the runs when memory ends, single out what fails."""
        start = 0
        while start < len(batch.keys):
            size = self._limit
            try:
                batch.outputs.append(self._forward(batch, start, size, size))
            except Exception as error:
                if not _is_out_of_memory(error) or size == 1:
                    self._single_out(batch, start, error)
                    return
                self._limit = size // 2
                torch.cuda.empty_cache()
            else:
                start += size

    def _forward(self, batch: Batch, start: int, num_faces: int, size: int) -> Tensor:
        """Run up to `num_faces` faces from `start` on, in the shape of `size` faces."""
        keys = batch.keys[start : start + num_faces]
        lq = batch.input
        if len(keys) < len(batch.keys) or size < len(lq):
            lq = self._replica.new_batch(size)
            lq[: len(keys)] = batch.input[start : start + len(keys)]
        else:
            lq[len(keys) :].zero_()
        return self._replica.run(lq, keys)[: len(keys)]

    def _single_out(self, batch: Batch, start: int, error: Exception) -> None:
        """Run each face alone: the one that makes the model fail is not to cost its neighbours.

        Raises:
            Exception: The one that was met, where the model fails without any face, too.
        """
        try:
            self._replica.warm()
        except Exception:
            raise error from None
        for slot in range(start, len(batch.keys)):
            try:
                batch.outputs.append(self._forward(batch, slot, 1, self._limit))
            except Exception as own:
                batch.outputs.append(None)
                batch.faults[slot] = f"the model failed ({one_line(own)})"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

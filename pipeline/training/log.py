"""What a training run leaves for who watches it: log.jsonl, sample grids, TensorBoard's files.

log.jsonl          a line for each report: images, time_s, and its figures
grids/*.png        samples, a column each for what goes in, comes out and should come out
tensorboard/       the same for TensorBoard, where it is installed and the run is on a disk
_vsp/sittings.jsonl  when each process began and how long it worked, with what
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline import images
from pipeline.compare import GAP_PX, side_by_side
from pipeline.images import Pixels
from pipeline.storage import OWN_FOLDER, LocalStore, Store, StoreTrouble, read_log

LOG = "log.jsonl"
GRIDS = "grids"
SITTINGS = f"{OWN_FOLDER}/sittings.jsonl"
GRID_FACES = 8
CELL_PX = 128
TITLE_PX = 22


class RunLog:
    """The first worker's notes (`vsp_model.train.loop.Log`)."""

    def __init__(
        self, store: Store, say: Callable[[str], None], sitting: Mapping[str, Any] | None = None
    ) -> None:
        """Go on with a run's notes, or begin them.

        Args:
            store: The run's folder.
            say: Takes a line for the user.
            sitting: What computes now, for the report.
        """
        self._store = store
        self._say = say
        self._before_s = seconds_worked(store)
        self._start_s = time.monotonic()
        self._board = _tensorboard(store, say)
        self._sitting = dict(sitting or {})
        self._has_begun = False

    @property
    def time_s(self) -> float:
        """Seconds of work since the run began, over all sittings."""
        return self._before_s + time.monotonic() - self._start_s

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """See `Log`; a figure that is no number becomes null."""
        self._begin()
        figures = {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
        line = {"images": images_seen, "time_s": round(self.time_s, 1), **figures}
        with self._patience():
            self._store.append(LOG, json.dumps(line))
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, images_seen)

    def pictures(self, images_seen: int, columns: Mapping[str, Tensor]) -> None:
        """See `Log`."""
        self._begin()
        picture = grid(columns)
        with self._patience():
            self._store.write(f"{GRIDS}/{images_seen:09d}.png", images.encode(picture, "png"))
        if self._board:
            self._board.add_image("samples", picture, images_seen, dataformats="HWC")

    def say(self, line: str) -> None:
        """See `Log`."""
        self._say(line)

    def close(self) -> None:
        """Note how long this sitting was, if it has done anything."""
        if self._has_begun:
            with self._patience():
                self._store.append(SITTINGS, json.dumps({"time_s": round(self.time_s, 1)}))
        if self._board:
            self._board.close()

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            with self._patience():
                line = self._sitting | {"time_s": round(self.time_s, 1)}
                self._store.append(SITTINGS, json.dumps(line))

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """A full disk costs a note, not the run."""
        try:
            yield
        except StoreTrouble as error:
            self._say(f"not noted: {error.strerror or error}")


def read_figures(store: Store) -> list[dict[str, Any]]:
    """The lines of a run's log, ordered by images; of two reports on one point the later counts.

    A run that was killed writes the figures since its last checkpoint again.
    """
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in read_log(store, LOG):
        figures = json.loads(line)
        is_validation = any(name.startswith("val/") for name in figures)
        found[figures["images"], is_validation] = figures
    return [found[key] for key in sorted(found)]


def read_sittings(store: Store) -> list[dict[str, Any]]:
    """What each sitting was begun with, oldest first."""
    lines = [json.loads(line) for line in read_log(store, SITTINGS)]
    return [line for line in lines if "began" in line]


def seconds_worked(store: Store) -> float:
    """How long a run has worked so far, over all sittings; what a kill cut off is not in it."""
    lines = [*read_log(store, LOG), *read_log(store, SITTINGS)]
    return max((float(json.loads(line).get("time_s", 0)) for line in lines), default=0.0)


def grid(columns: Mapping[str, Tensor]) -> Pixels:
    """A sample grid: a row for each face, a column for each title.

    Args:
        columns: (B, 3, s, s) in [-1, 1] by title; sizes may differ.

    Returns:
        uint8 RGB.
    """
    pixels = [
        images.to_uint8(faces[:GRID_FACES].float().clamp(-1, 1)) for faces in columns.values()
    ]
    body = side_by_side(list(zip(*pixels, strict=True)), CELL_PX)
    head = Image.new("RGB", (body.shape[1], TITLE_PX), "white")
    draw, font = ImageDraw.Draw(head), ImageFont.load_default(14)
    for number, title in enumerate(columns):
        middle = GAP_PX + (CELL_PX + GAP_PX) * number + CELL_PX // 2
        draw.text((middle, TITLE_PX // 2), title, "black", font, anchor="mm")
    return np.concatenate([np.asarray(head), body], axis=0)


def _tensorboard(store: Store, say: Callable[[str], None]) -> Any:
    """TensorBoard's writer; None, and a word about it, where there can be none."""
    if not isinstance(store, LocalStore):
        say("tensorboard: off, its files need a folder on a disk; log.jsonl has the figures")
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("tensorboard: off, not installed; pip install -e '.[train]' (log.jsonl goes on)")
        return None
    return SummaryWriter(str(store.path("tensorboard")))

"""The quality score of `vsp clean`: the small network and its calibration, one face at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.images import Pixels, new_batch, resize, to_model
from vsp_model.files import CheckpointError, sha256_of
from vsp_model.quality import BUILT_IN, SIZES, load

MIN_SIDE_PX = SIZES[0]


def working_size(side_px: int) -> int:
    """The side at which a face is looked at: the largest of 32, 64, 128 that it has."""
    return max((size for size in SIZES if size <= side_px), default=SIZES[0])


class QualityScorer:
    """Scores faces; threads may share one.

    A face is brought to 128 pixels by area averages, one below 128 to 64 or 32: it is judged
    against what a face of that side can be. Damage that only shows above 128 pixels is not seen;
    `measures.native_side_px` tells it.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the network.

        Args:
            path: A file of `vsp weights fit-quality`; None for the one that comes with the program.

        Raises:
            UserError: If it is no such file.
        """
        path = path or BUILT_IN
        try:
            net, info = load(path)
        except (CheckpointError, OSError) as error:
            raise UserError(f"{error}; make one with `vsp weights fit-quality`") from None
        self._net = net.to(memory_format=torch.channels_last)
        self._calibration = info.calibration
        self.sha256 = sha256_of(path)

    def score(self, pixels: Pixels) -> float:
        """Share of the reference population that looks as bad or worse, 0 worst to 1 best.

        Args:
            pixels: uint8 (H, W, 3) RGB, an aligned face; below 32 pixels it is enlarged.
        """
        size = working_size(min(pixels.shape[:2]))
        return self._calibration[size].quality(self.severity(pixels))

    def severity(self, pixels: Pixels) -> float:
        """What the network says, uncalibrated: about 0 clean to 1.5; see `damage.damage`."""
        size = working_size(min(pixels.shape[:2]))
        batch = new_batch(1, size)
        to_model(resize(pixels, size), batch, 0)
        with torch.inference_mode(), _one_thread():
            return float(self._net(batch)[0])


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread for what this thread computes: its bits may depend on their number."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)

"""Doubles of a model and a stage that workers in other processes find by their name.

They lie apart from the tests because a child process has to import them: `tests` is a name that
installed packages take, too (torch-fidelity's wheel does).
"""

import os
import signal

import torch

from pipeline.stages.restore import RestoreStage

SIZE = 32


class Identity:
    """A restorer that gives back its input, and NaN where the key asks for it."""

    size = SIZE

    def __init__(self):
        self.shapes: list[tuple[int, ...]] = []

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        assert len(keys) == len(lq)
        self.shapes.append(tuple(lq.shape))
        restored = lq.clone()
        for slot, key in enumerate(keys):
            if "nan" in key:
                restored[slot, 0, 3, 3] = torch.nan
        return restored


def load_identity(config) -> Identity:
    """What a worker in another process loads; it finds this function by its name."""
    return Identity()


class Hazard(RestoreStage):
    """Does to its process what a record's key asks for."""

    def prepare(self, sample):
        if sample.key.startswith("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        killed = self._config.model.path.with_name("killed")
        if sample.key.startswith("once") and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(sample)

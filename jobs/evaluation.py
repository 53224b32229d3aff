"""An evaluation: a benchmark in an output folder, made in steps that are engine runs of their own.

OUT/_data/<data set>/lq         degraded faces; `packed` for given ones that were no shards
OUT/_restored/<method>/<data set>
OUT/_costs/<method>.json        what a method costs
and what `vsp score` writes
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.running import RunFlags
from pipeline.benchmark.config import Benchmark, FolderMethod
from pipeline.scoring.pairs import slug
from pipeline.scoring.tables import PAIRS

if TYPE_CHECKING:
    from pipeline.replica import ModelSpec

DATA, RESTORED, COSTS = "_data", "_restored", "_costs"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where networks run.

    Attributes:
        device: As torch calls it.
        batch_size: Faces a run; None for what the folder was begun with, or the device's usual.
        threads: Torch threads of a worker; None as before.
    """

    device: str = "cpu"
    batch_size: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A benchmark in an output folder.

    Attributes:
        benchmark: With absolute paths.
        models: What runs, by method; methods that only have images are not in it.
        out: The output folder.
        machine: Where networks run.
        flags: How the engine runs.
        iqa_python: Python of the environment that holds pyiqa.
    """

    benchmark: Benchmark
    models: "Mapping[str, ModelSpec]"
    out: Path
    machine: Machine
    flags: RunFlags
    iqa_python: Path | None = None

    @cached_property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Data set and method of everything that is scored."""
        return tuple(
            (dataset, name)
            for dataset in self.benchmark.datasets
            for name, method in self.benchmark.methods.items()
            if not isinstance(method, FolderMethod) or method.of(dataset)
        )

    @property
    def codec_flags(self) -> RunFlags:
        """How the engine runs what needs no network: every core has a picture of its own."""
        from jobs.models import num_cores

        threads = self.machine.threads or max(1, num_cores() // self.flags.workers)
        return replace(self.flags, codec_threads=min(threads, 24), gpus_per_worker=0.0)

    def data(self, dataset: str, what: str) -> Path:
        """A folder of what is made of a data set."""
        return self.out / DATA / slug(dataset) / what

    def lq(self, dataset: str) -> str:
        """Where the shards of degraded faces lie."""
        from pipeline.benchmark.data import is_folder_of_images

        settings = self.benchmark.datasets[dataset]
        if settings.is_synthetic:
            return str(self.data(dataset, "lq"))
        if is_folder_of_images(settings.lq):
            return str(self.data(dataset, "packed"))
        return settings.lq

    def gt(self, dataset: str) -> str | None:
        """Where the truths lie, if there are any."""
        settings = self.benchmark.datasets[dataset]
        if settings.is_synthetic:
            return self.lq(dataset)
        if settings.gt and settings.limit:
            return str(self.data(dataset, "gt"))
        return settings.gt or None

    def restored(self, dataset: str, method: str) -> Path:
        """Where the restored shards lie that are made here."""
        return self.out / RESTORED / slug(method) / slug(dataset)


def pairs_file(dataset: str, method: str) -> str:
    """Where in OUT the pairs of a method on a data set stand."""
    return f"{PAIRS}/{slug(dataset)}/{slug(method)}.parquet"

"""The training reader's images a second against the usual way: tarfile, Pillow, a DataLoader.

    python benchmarks/reader.py FACES
    python benchmarks/reader.py FACES --sizes 128 512 --threads 1 2 --rounds 5

FACES are shards as `vsp train` takes them; for each size they are written anew at that size, JPEG
of quality 95, in a temporary folder. The usual way reads members through `tarfile`, decodes with
Pillow, degrades by the same chain and collates in a `DataLoader` without workers, on one thread.
All sides take turns in one process; the ratio is taken within a round, and the median of the
rounds is printed. The last lines tell how fast a set is indexed, and what its records take.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.training.index import Index

BATCH_SIZE = 8
SEED = 0


def write_faces(index: Index, size: int, num_faces: int, path: Path) -> None:
    """A shard of the first faces at `size` pixels, with their facts."""
    from pipeline import images
    from pipeline.tar import TarWriter

    with path.open("wb") as file:
        tar = TarWriter(file)
        for number in range(min(num_faces, len(index))):
            record = index.read(number)
            _, pixels = images.decode(record.image)
            tar.add(f"{record.key}.jpg", images.encode(images.resize(pixels, size), "jpeg"))
            tar.add(f"{record.key}.json", record.facts or b"{}")
        tar.finish()


def usual_batches(path: Path, size: int) -> Iterator[Any]:
    """Batches as a short script would make them: every face a dataset's item."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from pipeline.degradation import FREE_FORM, degrade_float, draw_noise, draw_params, truth_float

    class Faces(Dataset[tuple[Any, Any]]):
        def __init__(self) -> None:
            self.tar = tarfile.open(path)  # noqa: SIM115 - open as long as the data set
            self.members = [m for m in self.tar.getmembers() if m.name.endswith(".jpg")]

        def __len__(self) -> int:
            return len(self.members)

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            file = self.tar.extractfile(self.members[number])
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((size, size))
            clean = np.asarray(image, dtype=np.float32) / np.float32(255)
            params = draw_params(FREE_FORM, size, seed=SEED, key=str(number))
            noise = draw_noise(params.low_side, seed=SEED, key=str(number))
            pair = degrade_float(clean, params, noise), truth_float(clean, params)
            lq, hq = (torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))) for x in pair)
            return lq * 2 - 1, hq * 2 - 1

    while True:
        yield from DataLoader(Faces(), BATCH_SIZE, shuffle=True, drop_last=True)


def our_batches(path: Path, size: int, threads: int) -> Generator[Any, None, None]:
    """Batches as `vsp train` reads them."""
    from pipeline.training.data import DataConfig
    from pipeline.training.index import build_index
    from pipeline.training.source import FaceSource
    from vsp_model.train.batch import Parts

    config = DataConfig(train=(str(path),), size=size, threads=threads)
    return FaceSource(config, build_index(config.train), SEED).batches(
        Parts(BATCH_SIZE, BATCH_SIZE), 0
    )


def rate(batches: Iterator[Any], num_batches: int) -> tuple[float, float]:
    """Images a second, and milliseconds of all cores that one takes."""
    for _ in range(4):  # so that as much is ready at the start as at the end
        next(batches)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(batches)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return num_batches * BATCH_SIZE / wall_s, 1000 * cpu_s / (num_batches * BATCH_SIZE)


def compare(path: Path, size: int, threads: list[int], rounds: int, num_batches: int) -> None:
    """Print the table of one size."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        usual, cpu_ms = rate(usual_batches(path, size), num_batches)
        found.setdefault("usual", []).append((usual, cpu_ms, 1.0))
        for count in threads:
            batches = our_batches(path, size, count)
            ours, cpu_ms = rate(batches, num_batches)
            batches.close()
            found.setdefault(f"{count} threads", []).append((ours, cpu_ms, ours / usual))
    for name, figures in found.items():
        images, cpu_ms, ratio = map(statistics.median, zip(*figures, strict=True))
        print(f"{size:4} px  {name:10}{images:7.0f} images/s{cpu_ms:8.2f} ms of CPU{ratio:7.2f} x")


def time_index(pattern: str, rounds: int) -> None:
    """Print records a second of the header walk, caches warm."""
    from pipeline.training.index import build_index

    rates = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        index = build_index([pattern])
        rates.append(len(index) / (time.perf_counter() - began_s))
    print(f"index: {statistics.median(rates):.0f} records/s, {index.num_bytes} bytes, "
          f"{len(index)} records")  # fmt: skip


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("faces", help="shards of faces")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batches", type=int, default=60, help="of 8 at 128 px, per side and round"
    )
    options = parser.parse_args()

    import cv2
    import torch

    from pipeline.training.index import build_index
    from vsp_model.runtime import keep_freed_memory

    keep_freed_memory()  # as `vsp train` does
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    index = build_index([options.faces])
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            path = Path(folder) / f"faces-{size}.tar"
            write_faces(index, size, 512, path)
            num_batches = max(4, options.batches * 128**2 // size**2)
            compare(path, size, options.threads, options.rounds, num_batches)
    time_index(options.faces, options.rounds)


if __name__ == "__main__":
    main()

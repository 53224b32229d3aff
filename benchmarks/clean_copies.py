"""Near copies and mirror images among a million images: time, memory, precision and recall.

    OMP_NUM_THREADS=1 python benchmarks/clean_copies.py FACES
    OMP_NUM_THREADS=1 python benchmarks/clean_copies.py FACES --sizes 10000 100000
    OMP_NUM_THREADS=1 python benchmarks/clean_copies.py FACES --max-bits 7

FACES is a folder of shards of aligned faces. Their spectra (24 x 24 waves) are fitted by a
Gaussian, of which entries are drawn, so that bits have the means and correlations of real aligned
faces. Of each set 2 % are planted copies of others: two of three cut by 0 to 5 % on each side, one
of four mirrored, and changed besides as JPEG, resizing or gamma changed the spectrum of a real face
drawn at random. Each size runs in a process of its own; its peak memory is that of the whole
process, whose threads are two. "Looked at" are the pairs that the hashes proposed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
from clean_kinds import Random, gamma, jpeg, read_faces, resize
from numpy.typing import NDArray

from pipeline.cleaning.copies.find import CopyConfig, Pairs, find_copies
from pipeline.cleaning.copies.prints import PRINT_BYTES, pack, plain_picture
from pipeline.cleaning.copies.waves import SIDE, centres, cosines, transform
from pipeline.images import Pixels

Spectra = NDArray[np.float64]
Prints = NDArray[np.uint8]

SIZES = (10_000, 100_000, 1_000_000)
WAVES = 24
PLANTED = 0.02
BLOCK = 5_000
NUM_DAMAGED = 2_000


def spectrum(face: Pixels) -> Spectra:
    """(24, 24) lowest waves of a face."""
    plain = plain_picture(face)
    assert plain is not None, "a blank face"
    return (transform() @ plain @ transform().T / SIDE)[:WAVES, :WAVES]


@dataclass(frozen=True)
class Model:
    """What entries are drawn from.

    Attributes:
        mean: (576,) of the faces' spectra.
        root: (576, 576) whose product with its transpose is their covariance.
        noise: (K, 24, 24) what a damage added to spectra.
    """

    mean: Spectra
    root: Spectra
    noise: Spectra


def fit(folder: str) -> Model:
    """Fit the spectra of real faces and of damaged ones."""
    random = np.random.default_rng(0)
    spectra, noise = [], []
    for number, (face, _) in enumerate(read_faces(folder)):
        spectra.append(spectrum(face))
        if number < NUM_DAMAGED:
            damage = (jpeg, resize, gamma)[number % 3]
            noise.append(spectrum(damage(face, random)) - spectra[-1])
    rows = np.array(spectra).reshape(len(spectra), -1)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    root = vectors * np.sqrt(np.maximum(values, 0))
    return Model(rows.mean(axis=0), root, np.array(noise))


def drawn(model: Model, num: int, random: Random) -> Spectra:
    """(num, 24, 24) spectra of faces that nobody has, their squares summing to 1."""
    rows = model.mean + random.standard_normal((num, WAVES**2)) @ model.root.T
    return (rows / np.linalg.norm(rows, axis=1)[:, None]).reshape(num, WAVES, WAVES)


def packed(spectra: Spectra) -> Prints:
    """Prints of (N, 24, 24)."""
    whole = np.zeros((len(spectra), SIDE, SIDE))
    whole[:, :WAVES, :WAVES] = spectra
    return pack(whole)


def copied(spectra: Spectra, model: Model, random: Random) -> tuple[Spectra, NDArray[np.bool_]]:
    """Damaged copies, and which of them are mirror images."""
    num = len(spectra)
    parts = random.uniform(0, 0.05, (num, 4)) * (random.random(num) < 2 / 3)[:, None]
    low = transform()[:WAVES]
    found = np.empty_like(spectra)
    for number, (left, right, top, bottom) in enumerate(parts):
        rows, columns = (
            low @ cosines(first + centres(SIDE) * (1 - first - last), SIDE)[:, :WAVES]
            for first, last in ((top, bottom), (left, right))
        )
        found[number] = rows @ spectra[number] @ columns.T
    found[:, 0, 0] = 0
    found /= np.linalg.norm(found, axis=(1, 2))[:, None, None]
    found += model.noise[random.integers(len(model.noise), size=num)]
    is_flip = random.random(num) < 1 / 4
    found[is_flip, :, 1::2] *= -1
    return found, is_flip


def constructed(model: Model, num: int) -> tuple[Prints, set[tuple[int, int, bool]]]:
    """Prints of a set, and its pairs as (original, copy, is_flip)."""
    num_copies = round(num * PLANTED)
    num_drawn = num - num_copies
    sources = np.sort(np.random.default_rng(1).choice(num_drawn, num_copies, replace=False))
    prints = np.empty((num, PRINT_BYTES), np.uint8)
    truth: set[tuple[int, int, bool]] = set()
    for number, start in enumerate(range(0, num_drawn, BLOCK)):
        random = np.random.default_rng([2, number])
        spectra = drawn(model, min(BLOCK, num_drawn - start), random)
        prints[start : start + len(spectra)] = packed(spectra)
        own = sources[(sources >= start) & (sources < start + len(spectra))]
        copies, is_flip = copied(spectra[own - start], model, random)
        at = num_drawn + len(truth)
        prints[at : at + len(own)] = packed(copies)
        places = range(at, at + len(own))
        truth |= set(zip(own.tolist(), places, is_flip.tolist(), strict=True))
    return prints, truth


def scores(pairs: Pairs, truth: set[tuple[int, int, bool]]) -> dict[str, float]:
    """Precision and recall, of near copies and of mirror images."""
    columns = (pairs.first, pairs.second, pairs.is_flip)
    found = set(zip(*(column.tolist() for column in columns), strict=True))
    result = {}
    for name, is_flip in (("near", False), ("flip", True)):
        ours, true = ({pair for pair in each if pair[2] == is_flip} for each in (found, truth))
        result[f"{name}_precision"] = len(ours & true) / max(len(ours), 1)
        result[f"{name}_recall"] = len(ours & true) / len(true)
    return result


def measure(folder: str, num: int, config: CopyConfig) -> dict[str, float]:
    """One size, in this process."""
    prints, truth = constructed(fit(folder), num)
    started, cpu = time.perf_counter(), time.process_time()
    pairs = find_copies(prints, np.ones(num, np.bool_), config)
    result = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "looked_at": pairs.num_looked_at,
        "pairs": len(pairs.first),
        "planted": len(truth),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    return result | scores(pairs, truth)


def row(num: int, found: dict[str, float]) -> str:
    """A line of the table."""
    rates = "near_precision", "near_recall", "flip_precision", "flip_recall"
    return (
        f"| {num:,} | {found['planted']:,} | {found['seconds']:.1f} | {found['cpu_seconds']:.1f} |"
        f" {found['looked_at']:,} | {found['peak_gb']:.2f} | "
        + " | ".join(f"{found[name]:.4f}" for name in rates)
        + " |"
    )


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", help="folder of shards of aligned faces")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    usual = CopyConfig().max_bits
    parser.add_argument("--max-bits", type=int, default=usual, help=f"default: {usual}")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        config = CopyConfig(max_bits=options.max_bits)
        print(json.dumps(measure(options.faces, options.one, config)))
        return
    print("| images | planted | s | CPU s | pairs looked at | peak GB | near precision | recall |"
          " flip precision | recall |")  # fmt: skip
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for num in options.sizes:
        command = [sys.executable, __file__, options.faces, "--one", str(num)]
        command += ["--max-bits", str(options.max_bits)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(row(num, json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()

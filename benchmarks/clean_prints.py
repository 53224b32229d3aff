"""Precision and recall of near copies and mirror images on real faces, kind by kind.

    OMP_NUM_THREADS=1 python benchmarks/clean_prints.py FACES
    OMP_NUM_THREADS=1 python benchmarks/clean_prints.py FACES --constants

FACES is a folder of shards of aligned faces. For each kind of damage a damaged copy of every sixth
face is put beside all faces; whatever else is called a copy is wrong. "hardest" are the likeness of
the worst copy in a thousand and of the likest other pair that the hashes proposed. `--constants`
prints what `prints_waves` holds, from the faces of FACES whose source is the Congress portraits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np
from clean_kinds import KINDS, Damage, read_faces
from numpy.typing import NDArray

from pipeline.cleaning.copies.find import CopyConfig, Pairs, find_copies
from pipeline.cleaning.copies.prints import PRINT_BYTES, make_prints, plain_picture
from pipeline.cleaning.copies.waves import SIDE, order, spread, transform
from pipeline.images import Pixels

EVERY = 6
PUBLIC_DOMAIN = "congress"
NUM_FITTED = 400


def printed(faces: Iterable[Pixels]) -> NDArray[np.uint8]:
    """Prints of faces, (N, PRINT_BYTES)."""
    return np.frombuffer(b"".join(map(make_prints, faces)), np.uint8).reshape(-1, PRINT_BYTES)


def damaged(faces: list[Pixels], damage: Damage) -> list[Pixels]:
    """A damaged copy of every sixth face."""
    random = np.random.default_rng(7)
    return [damage(face, random) for face in faces[::EVERY]]


def search(prints: NDArray[np.uint8], wanted: float | None = None) -> Pairs:
    """Copies at the shipped likeness, or at another."""
    config = CopyConfig() if wanted is None else CopyConfig(min_likeness=wanted)
    return find_copies(prints, np.ones(len(prints), np.bool_), config)


def line(name: str, faces: NDArray[np.uint8], copies: NDArray[np.uint8], is_flip: bool) -> str:
    """A row of the table."""
    prints = np.concatenate([faces, copies])
    true = set(zip(range(0, len(faces), EVERY), range(len(faces), len(prints)), strict=True))
    # Far below the shipped threshold, to see what comes nearest to it from either side.
    pairs = search(prints, 0.5)
    keys = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    is_true = np.array([key in true for key in keys]) & (pairs.is_flip == is_flip)
    taken = pairs.likeness >= CopyConfig().min_likeness
    right = int((is_true & taken).sum())
    worst = np.quantile(pairs.likeness[is_true], 0.001)
    other = pairs.likeness[~is_true].max(initial=0)
    precision = right / max(int(taken.sum()), 1)
    return f"| {name} | {precision:.4f} | {right / len(true):.4f} | {worst:.3f} | {other:.3f} |"


def mixture(faces: list[Pixels]) -> list[Pixels]:
    """Damaged copies of every sixth face, each of another kind, without mirror images."""
    random = np.random.default_rng(8)
    kinds = [kind for name, kind in KINDS.items() if "mirror" not in name]
    return [kinds[n % len(kinds)](face, random) for n, face in enumerate(faces[::EVERY])]


def constants(faces: Iterable[Pixels]) -> None:
    """Print `prints_waves.SPREAD` and `MEAN`."""
    plain = [each for each in map(plain_picture, faces) if each is not None]
    spectra = transform() @ np.array(plain) @ transform().T / SIDE
    mean = spectra.mean(axis=0)
    mean[:, 1::2] = 0
    deviation = np.sqrt(((spectra - mean) ** 2).mean(axis=0))
    places = np.indices((SIDE, SIDE)).reshape(2, -1)
    radius = np.hypot(*places)
    low = np.argsort(radius, kind="stable")[1 : NUM_FITTED + 1]
    at = np.log1p(radius[low])
    fit = np.polynomial.polynomial.polyfit(at, np.log(deviation[places[0][low], places[1][low]]), 2)
    print("SPREAD =", tuple(np.round(fit, 3).tolist()))
    down, across = order()
    print("MEAN =", np.rint(100 * mean[down, across] / spread(down, across)).astype(int).tolist())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", help="folder of shards of aligned faces")
    parser.add_argument("--constants", action="store_true", help="fit prints_waves anew")
    options = parser.parse_args()
    read = list(read_faces(options.faces))
    if options.constants:
        constants(face for face, facts in read if facts.get("source") == PUBLIC_DOMAIN)
        return
    faces = [face for face, _ in read]
    prints = printed(faces)
    print(f"{len(faces):,} faces; called copies of each other: {len(search(prints).first)}\n")
    print("| copies | precision | recall | hardest copy | hardest other |\n|---|--:|--:|--:|--:|")
    for name, damage in KINDS.items():
        copies = printed(damaged(faces, damage))
        print(line(name, prints, copies, "mirror" in name), flush=True)
    print(line("all but mirror images, mixed", prints, printed(mixture(faces)), False))


if __name__ == "__main__":
    main()

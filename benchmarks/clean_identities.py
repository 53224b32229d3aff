"""Wrong faces under a person, persons who are one, and clusters: precision and recall.

    OMP_NUM_THREADS=1 python benchmarks/clean_identities.py FACES WEIGHTS
    OMP_NUM_THREADS=1 python benchmarks/clean_identities.py FACES WEIGHTS --limit 1500

FACES is a folder of shards of aligned faces with `landmarks5`, WEIGHTS the file of MobileFaceNet.
There are no people with many photos at hand, so those are modelled: a person is the embedding of a
real face, its photos lie around it so that two of them have the given cosine on average (0.72 is
what the weights reach on real pairs). Strangers are real throughout: a wrong face is a photo of
another of the real people. Damaged copies of a tenth of the faces say how far damage alone goes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from clean_kinds import KINDS, read_faces
from numpy.typing import NDArray

from pipeline.cleaning.copies.groups import OTHER_PERSON
from pipeline.cleaning.persons.identities import IdentityConfig, clusters, find_persons
from pipeline.faces.detect import DetectConfig, FaceDetector
from pipeline.metrics.identity import FaceNet
from pipeline.metrics.judge import Face

Embeddings = NDArray[np.float32]
COSINES = (0.72, 0.6, 0.5)
# Images of a person, and how many of them are somebody else's.
SHAPES = ((4, 1), (8, 1), (8, 2), (20, 3))
EVERY = 10


def embedded(folder: str, weights: Path, limit: int) -> tuple[Embeddings, NDArray[np.float64]]:
    """Embeddings (N, 128), and the cosines of every tenth with a damaged copy."""
    torch.set_num_threads(1)
    net, detector = FaceNet(weights), FaceDetector(DetectConfig())
    random = np.random.default_rng(0)
    kinds = [kind for name, kind in KINDS.items() if "mirror" not in name]
    found, copies = [], []
    for number, (face, facts) in enumerate(read_faces(folder)):
        if number == limit:
            break
        found.append(embedding(net, face, np.array(facts["landmarks5"])))
        if number % EVERY == 0:
            damaged = kinds[number // EVERY % len(kinds)](face, random)
            faces = detector.find(damaged)
            if faces:
                copy = embedding(net, damaged, faces[0].points)
                copies.append(float(copy @ found[-1]))
    return np.array(found, np.float32), np.array(copies)


def embedding(net: FaceNet, face: NDArray[np.uint8], points: NDArray[np.float64]) -> Embeddings:
    """(128,) of one face."""
    found = net.embedding(Face("", face, points=points), "restored")
    assert found is not None, "points that are no numbers"
    return found


def photos(centres: Embeddings, num: int, cosine: float, random: np.random.Generator) -> Embeddings:
    """(P, num, 128) of people at `centres` (P, 128), two photos `cosine` apart on average."""
    noise = random.standard_normal((len(centres), num, centres.shape[1]))
    noise /= np.linalg.norm(noise, axis=2, keepdims=True)
    faces = np.sqrt(cosine) * centres[:, None] + np.sqrt(1 - cosine) * noise
    return np.asarray(faces / np.linalg.norm(faces, axis=2, keepdims=True), np.float32)


def outliers(centres: Embeddings, cosine: float) -> list[str]:
    """Rows about wrong faces under a person."""
    rows = []
    for num, num_wrong in SHAPES:
        faces = photos(centres, num, cosine, np.random.default_rng(1))
        strangers = np.roll(faces, len(faces) // 3, axis=0)
        faces[:, :num_wrong] = strangers[:, :num_wrong]
        truth = np.tile(np.arange(num) < num_wrong, len(centres))
        names = [str(person) for person in range(len(centres)) for _ in range(num)]
        known = np.full(len(names), True)
        found = find_persons(names, faces.reshape(len(names), -1), known, IdentityConfig())
        rows.append(line(f"{num_wrong} wrong of {num}", cosine, truth, found.is_outlier))
    return rows


def merges(centres: Embeddings, cosine: float) -> list[str]:
    """Rows about persons who are one: every tenth goes under two names."""
    rows = []
    num_people = len(centres)
    twice = np.concatenate([centres, centres[::EVERY]])
    true = {
        tuple(sorted((str(person), str(num_people + n))))
        for n, person in enumerate(range(0, num_people, EVERY))
    }
    for num in (1, 2, 5):
        faces = photos(twice, num, cosine, np.random.default_rng(2))
        names = [str(person) for person in range(len(twice)) for _ in range(num)]
        known = np.full(len(names), True)
        found = find_persons(names, faces.reshape(len(names), -1), known, IdentityConfig())
        pairs = {(merge.person, merge.other) for merge in found.merges}
        # Real faces that look like one person were like that before anything was planted.
        precision, recall = len(pairs & true) / max(len(pairs), 1), len(pairs & true) / len(true)
        rows.append(f"| merged, {num} photos each | {cosine} | {precision:.3f} | {recall:.3f} |")
    return rows


def grouped(centres: Embeddings, cosine: float) -> str:
    """A row about clusters of eight photos each, by pairs."""
    faces = photos(centres, 8, cosine, np.random.default_rng(3))
    label = clusters(faces.reshape(-1, centres.shape[1]), IdentityConfig()).reshape(-1, 8)
    same = sum(int((row[:, None] == row[None]).sum()) - 8 for row in label)
    sizes = np.bincount(label.ravel())
    precision, recall = same / max(int((sizes * (sizes - 1)).sum()), 1), same / (len(label) * 56)
    return f"| clusters, pairs of 8 photos | {cosine} | {precision:.3f} | {recall:.3f} |"


def line(name: str, cosine: float, truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> str:
    """A row of the table."""
    right = (truth & found).sum()
    return f"| {name} | {cosine} | {right / max(found.sum(), 1):.3f} | {right / truth.sum():.3f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", help="folder of shards of aligned faces with landmarks5")
    parser.add_argument("weights", type=Path, help="file of MobileFaceNet")
    parser.add_argument("--limit", type=int, default=0, help="so many faces; 0 for all")
    options = parser.parse_args()
    centres, copies = embedded(options.faces, options.weights, options.limit or -1)
    cosines = (centres @ centres.T)[np.triu_indices(len(centres), 1)]
    print(f"{len(centres):,} faces, {len(cosines):,} pairs of different photos:")
    for level in (OTHER_PERSON, 0.5, 0.6, 0.7):
        print(
            f"  cosine above {level}: {(cosines > level).sum():,} ({(cosines > level).mean():.2e})"
        )
    print(f"{len(copies):,} damaged copies: least cosine {copies.min():.3f},", end=" ")
    print(f"1 % below {np.quantile(copies, 0.01):.3f}, median {np.median(copies):.3f}\n")
    print("| what | cosine of two photos | precision | recall |\n|---|--:|--:|--:|")
    for cosine in COSINES:
        rows = [*outliers(centres, cosine), *merges(centres, cosine), grouped(centres, cosine)]
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()

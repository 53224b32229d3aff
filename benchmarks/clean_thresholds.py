"""Whether an identity threshold keeps its promise: derived from few faces, tried on many strangers.

    python benchmarks/clean_thresholds.py SHARED --weights FOLDER

Faces of SHARED/data/faces-train are embedded once. A threshold is derived from a random sample, as
the calibration does it for undamaged faces, and held against the pairs of 3,000 faces; pairs that
look like one person (0.6) count on neither side. Embedding takes minutes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "doubles"))

from constructed_pictures import shared_faces
from constructed_set import embed

from pipeline.cleaning.calibration.derive import stranger_threshold
from pipeline.cleaning.calibration.thresholds import CalibrateConfig

COUNTS, TRIES, STRANGERS = (32, 64, 128, 256), 12, 3000


def main() -> None:
    """Embed, derive, and print a row a number of faces."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = args.weights / "mobilefacenet_ms1m.safetensors"
    embeddings = embed(shared_faces(args.shared), network).astype(np.float64)
    config, draw = CalibrateConfig(), np.random.default_rng(0)
    many = embeddings[draw.choice(len(embeddings), STRANGERS, replace=False)]
    pairs = (many @ many.T)[np.triu_indices(len(many), 1)]
    pairs = pairs[pairs < config.same_person]
    print("| faces | threshold, median | passing, median | at most | kept the promise |")
    print("|--:|--:|--:|--:|--:|")
    for count in COUNTS:
        found = []
        for _ in range(TRIES):
            few = embeddings[draw.choice(len(embeddings), count, replace=False)]
            alike = few @ few.T
            apart = alike < config.same_person
            found.append(
                stranger_threshold(alike, apart, far=config.far, confidence=config.confidence)
            )
        passing = np.array([(pairs >= threshold).mean() for threshold in found])
        kept = int((passing <= config.far).sum())
        print(
            f"| {count} | {np.median(found):.2f} | {np.median(passing):.2%} | "
            f"{passing.max():.2%} | {kept} of {TRIES} |"
        )


if __name__ == "__main__":
    main()

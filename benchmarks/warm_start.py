"""What does a warm start give? A model, IDM from noise, and IDM from where the model ended.

    OMP_NUM_THREADS=1 python benchmarks/warm_start.py --truth faces-val/ --weights weights/ \
        --limit 160 --out warm/

Faces, columns and intervals are those of `benchmarks/dial.py`, with PSNR. A chain is written
T0[:STEPS[:ETA]]; what is left out is the model's own. Below the rows stands what each chain changes
face by face, against the estimate it starts from and against IDM from noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from card_faces import at_size, degraded, read_faces
from card_judges import Jury
from dial import JUDGED, open_model, scores, table
from model_card import restore

from pipeline.metrics.intervals import draws
from pipeline.metrics.pixels import Values
from vsp_model.ask import Ask

COLUMNS = (*JUDGED, "psnr")
CHAINS = ("0.4", "0.2", "0.1", "0.4:5", "0.4:5:0.5", "0.2:5:0.5")
NOISE = "from noise"


def asked(chain: str) -> Ask:
    """T0[:STEPS[:ETA]] as wishes."""
    return Ask.model_validate(dict(zip(("t0", "steps", "eta"), chain.split(":"), strict=False)))


def measure(options: argparse.Namespace) -> list[str]:
    """Every row; prints as it goes."""
    replicas = {
        options.estimate: open_model(options.estimate, Ask(), options),
        NOISE: open_model(options.model, Ask(), options),
    }
    for chain in options.chains:
        replicas[chain] = open_model(options.model, asked(chain), options, options.estimate)
    size = replicas[NOISE].size
    faces = [at_size(face, size) for face in read_faces(options.truth, options.limit)]
    lqs, keys = [degraded(face, size, options.seed) for face in faces], [f.key for f in faces]
    jury = Jury(options.weights, faces, COLUMNS)
    found: dict[str, dict[str, Values]] = {"degraded": scores(jury, lqs, keys, COLUMNS)}
    for row, replica in replicas.items():
        found[row] = scores(jury, restore(replica, lqs, keys), keys, COLUMNS)
        print(row, {c: round(float(np.nanmean(v)), 3) for c, v in found[row].items()}, flush=True)
    drawn = draws(len(faces), seed=options.seed, groups=[face.person for face in faces])
    steps = [(base, chain) for base in (options.estimate, NOISE) for chain in options.chains]
    return table(f"{len(faces)} faces", found, drawn, steps)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="idm", help="an IDM")
    parser.add_argument("--estimate", default="vspbfr", help="the model that it starts from")
    parser.add_argument("--chains", nargs="+", default=CHAINS, metavar="T0[:STEPS[:ETA]]")
    parser.add_argument("--truth", required=True, help="shards of clean faces, never trained on")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="judges' files")
    parser.add_argument("--out", type=Path, default=Path("warm"))
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = measure(options)
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "warm.json").write_text(json.dumps({"lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

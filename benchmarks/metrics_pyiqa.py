"""pyiqa's side of benchmarks/metrics_images.py: run by the Python that has pyiqa, not by hand.

    PYTHON benchmarks/metrics_pyiqa.py METRIC THREADS FOLDER [NIQE.npz] < names of .npy files

Says its version on a line; then for each .npy of a pair, uint8 (2, H, W, 3), the metric's value and
the seconds it took, from uint8 on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np


def main() -> None:
    """Answer until the input ends."""
    metric, threads, folder, *model = sys.argv[1:]
    os.environ["TORCH_HOME"] = folder  # nothing of the user's is read or written
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # libraries greet on stdout
        import pyiqa
        import torch

        torch.set_num_threads(int(threads))
        run = pyiqa.create_metric(metric, device="cpu", **niqe_model(model, folder))
    print(json.dumps({"version": pyiqa.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        pair = np.load(line.strip())
        began_s = time.perf_counter()
        with torch.inference_mode():
            both = [torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255 for x in pair]
            value = float(run(*both[: 1 if metric == "niqe" else 2]))
        seconds = time.perf_counter() - began_s
        print(json.dumps({"value": value, "seconds": seconds}), file=answers, flush=True)


def niqe_model(paths: list[str], folder: str) -> dict[str, str]:
    """The pristine model as pyiqa reads it."""
    if not paths:
        return {}
    from scipy.io import savemat

    with np.load(paths[0]) as held:
        model = {"mu_prisparam": held["mean"][None], "cov_prisparam": held["covariance"]}
    path = Path(folder, "niqe.mat")
    savemat(path, model)
    return {"pretrained_model_path": str(path)}


if __name__ == "__main__":
    main()

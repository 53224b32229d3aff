"""What a step of IDM's sampler costs beside the network that it calls.

    python benchmarks/sampler.py --model configs/models/idm-128.yaml --batch 1 8 --threads 1

Whole chains and bare forward passes of the same network on the same tensors take turns in one
process; on a CPU its processor time counts, so that the ratio survives a busy machine. Weights are
random, which changes no time. A step is a chain's time over its number of steps: noise, clipping,
sums and the picture at the end are all in it. At most 1.1 of a forward pass is the aim.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import Tensor

from vsp_model.ask import Ask
from vsp_model.idm.config import IDMConfig
from vsp_model.idm.model import IDM
from vsp_model.registry import untrained
from vsp_model.vspbfr import FORMAT

ROOT = Path(__file__).resolve().parent.parent
WISHES = {
    "ddim": {"sampler": "ddim", "eta": 0.0},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "ancestral": {"sampler": "ancestral"},
}


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, with all that it has queued."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def ratios(
    model: IDM, lq: Tensor, wishes: dict[str, object], options: argparse.Namespace
) -> list[float]:
    """A sampler's step over a forward pass, of each round after the first."""
    keys = [str(i) for i in range(len(lq))]
    settings = model.settle(Ask.model_validate({**wishes, "steps": options.steps}))
    drawn = model.drawn(keys).to(lq.device)
    signal = torch.full((len(lq),), 0.5, device=lq.device)
    quality = torch.full_like(signal, torch.nan)

    def forwards() -> None:
        for _ in range(options.steps):
            model.unet(drawn.start, signal, lq, quality)

    found = []
    for _ in range(options.rounds + 1):
        bare = seconds(forwards, lq.device)
        chain = seconds(lambda: model(lq, drawn, settings), lq.device)
        found.append(chain / bare)
        print(f"  {1e3 * bare / options.steps:8.2f} ms a pass, {found[-1]:.3f}", flush=True)
    return found[1:]


@torch.inference_mode()
def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "configs" / "models" / "idm-128.yaml")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = IDMConfig.model_validate(yaml.safe_load(options.model.read_text())["model"])
    model = untrained(config).to(options.device).to(memory_format=FORMAT)
    print(f"torch {torch.__version__}, {options.model.stem}, {options.threads} thread(s)")
    for batch in options.batch:
        shape = (batch, 3, config.size, config.size)
        lq = (torch.rand(shape, device=options.device) * 2 - 1).contiguous(memory_format=FORMAT)
        for name, wishes in WISHES.items():
            found = ratios(model, lq, wishes, options)
            print(f"batch {batch}, {name}: a step costs {statistics.median(found):.3f} passes")


if __name__ == "__main__":
    main()

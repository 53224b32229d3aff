"""Time per image of the full 512 model: the published way of computing against ours.

    python benchmarks/network.py --batch 1 4 --threads 2 --rounds 3

Both sides hold the same synthetic weights, run in one process and take turns, so that the ratio
survives a busy machine. The published side (``benchmarks/published``) draws its noise as the
release does; ours runs through ``Runtime.restore``, so its time includes the checks and the
drawing. Outputs are compared on one set of explicit random inputs before anything is timed.

``--compile`` adds a column (minutes of warm-up, needs a C++ compiler). ``--keep-freed-memory`` sets
the allocator of the whole process, for both sides alike: without it page faults slow the published
side more than ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from published import (
    PublishedCodeDiffuser,
    PublishedRestorer,
    PublishedStyleEncoder,
    PublishedStyleGAN2,
    PublishedVSPBFR,
)
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "parity_data"))
import parity_weights  # noqa: E402  (lies beside its vectors, in no package)

from vsp_model.published import (  # noqa: E402  (after the path above, with its neighbours)
    code_diffuser_layout,
    load_published,
    restoration_layout,
    style_encoder_layout,
    stylegan2_layout,
)
from vsp_model.randomness import draw, noise_maps  # noqa: E402
from vsp_model.runtime import Runtime, RuntimeConfig, keep_freed_memory  # noqa: E402
from vsp_model.vspbfr import FORMAT, VSPBFR, VSPBFRConfig  # noqa: E402

SEED = parity_weights.PUBLIC_BASE_SEED
TOLERANCE = 1e-4  # times max(1, max|reference|)


def published_model() -> PublishedVSPBFR:
    """The baseline with the parity recipe's weights."""
    nets = {
        "encoder": PublishedStyleEncoder(),
        "generator": PublishedStyleGAN2(),
        "code_diffuser": PublishedCodeDiffuser(),
        "restoration_net": PublishedRestorer(),
    }
    for namespace, net in nets.items():
        parity_weights.fill(net, SEED, namespace)
    average = torch.from_numpy(parity_weights.weight(SEED, "encoder", "latent_avg", (18, 512)))
    return PublishedVSPBFR(*nets.values(), latent_avg=average).eval()


def our_model(published: PublishedVSPBFR) -> VSPBFR:
    """Ours, with the baseline's weights under our names."""
    config = VSPBFRConfig()
    model = VSPBFR(config)
    parts = (
        (model.encoder, style_encoder_layout(config.encoder), published.encoder),
        (model.prior, stylegan2_layout(config.prior), published.decoder),
        (model.diffuser, code_diffuser_layout(config.diffuser), published.att_mapper),
        (model.restoration, restoration_layout(config.restoration), published.g_ema),
    )
    for ours, layout, theirs in parts:
        state = load_published(layout, theirs.state_dict())
        if ours is model.encoder:
            state["latent_avg"] = published.latent_avg
        ours.load_state_dict(state)
    return model.eval()


def faces(batch: int) -> Tensor:
    """Smooth synthetic images, (B, 3, 512, 512) in [-1, 1]."""
    return torch.from_numpy(parity_weights.image(SEED, "benchmark", (batch, 3, 512, 512)))


def compare(published: PublishedVSPBFR, ours: Runtime, lq: Tensor) -> float:
    """Largest difference on the same random inputs, in units of the tolerance."""
    keys = [str(i) for i in range(len(lq))]
    random = draw(ours.model.random_shapes, keys)
    maps = noise_maps(ours.model.prior.noise_sides(), keys, 0, "prior")
    with torch.inference_mode():
        reference = published(lq, random.start, random.z[:, 0], maps, random.restoration_noise)
        restored = ours.forward(lq.contiguous(memory_format=FORMAT), random)
    bound = TOLERANCE * max(1.0, reference.abs().max().item())
    return (restored - reference).abs().max().item() / bound


def time_in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in alternating rounds after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def report(batch: int, times: dict[str, list[float]], difference: float) -> None:
    """One table: seconds per image (best, median) and the ratios to the published way."""
    base = times["published"]
    print(f"\nbatch {batch}: outputs differ by {difference:.2f} of the tolerance")
    print(f"{'':24}{'best s/image':>14}{'median':>10}{'ratio best':>12}{'ratio median':>14}")
    for name, seconds in times.items():
        best, median = min(seconds), statistics.median(seconds)
        print(
            f"{name:24}{best / batch:14.2f}{median / batch:10.2f}"
            f"{min(base) / best:12.2f}{statistics.median(base) / median:14.2f}"
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-freed-memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = options.keep_freed_memory and keep_freed_memory()
    print(f"torch {torch.__version__}, {options.threads} threads, fp32, freed memory kept: {kept}")
    published = published_model()
    model = our_model(published)
    ours = Runtime(model, RuntimeConfig())
    compiled = Runtime(model, RuntimeConfig(compile=True)) if options.compile else None
    for batch in options.batch:
        lq, keys = faces(batch), [str(i) for i in range(batch)]
        difference = compare(published, ours, lq)
        calls: dict[str, Callable[[], object]] = {
            "published": torch.inference_mode()(lambda lq=lq: published(lq)),
            "ours": lambda lq=lq, keys=keys: ours.restore(lq, keys),
        }
        if compiled is not None:
            calls["ours, torch.compile"] = lambda lq=lq, keys=keys: compiled.restore(lq, keys)
        report(batch, time_in_turns(calls, options.rounds), difference)
        if difference > 1:
            raise SystemExit(f"batch {batch}: outputs differ by more than the tolerance")


if __name__ == "__main__":
    main()

"""Colours under water: IQP trained on crops of six colour pictures, tried on two others.

    python benchmarks/colour.py --out runs/colour

The pictures come with scikit-image and scikit-learn, nothing is downloaded: astronaut, chelsea,
rocket, motorcycle, immunohistochemistry and china to train on; coffee and flower, which no stage
sees, to be restored.
Random square crops of them are brought to 64 pixels. Settings are those of configs/train/colour,
which hold the ranges of the preset `underwater`. A stage that has ended is not repeated; `--share`
trains all of them for less. 8 minutes of one thread on a machine that was thrice overbooked.

Printed as Markdown: PSNR over the crops of the two pictures, of what was given, of two ways to
correct colours without learning (grey world, channels stretched), and of IQP by its codes alone and
with the input's features; and the gain over what was given and over the stretched channels, with
the 95 % interval of a bootstrap over crops, which says nothing of other pictures. OUT/pictures.png
shows some: truth, given, then the ways in the table's order.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data as skimage_data
from sklearn.datasets import load_sample_image

from jobs.training import TrainingJob, read_settings
from jobs.training_run import locked, work
from pipeline import images
from pipeline.degradation import DegradationConfig, degrade_pair
from pipeline.images import Pixels
from pipeline.metrics.intervals import Interval, difference_interval, draws, mean_interval
from pipeline.metrics.pixels import psnr
from pipeline.tar import TarWriter
from vsp_model.ask import Ask
from vsp_model.checkpoints import load
from vsp_model.randomness import generator_for
from vsp_model.train.distributed import Alone
from vsp_model.train.loop import Watcher

SIZE = 64
TRAINED = ("astronaut", "chelsea", "rocket", "motorcycle", "immunohistochemistry", "china")
TRIED = ("coffee", "flower")
STAGES = ("iqp-books", "iqp-codes", "iqp-fidelity")
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "train" / "colour"
RESULT, ENDED = "model.safetensors", "ended"
NUM_TRAINED, NUM_TRIED = 200, 32  # crops a picture
SEED = 0
GIVEN, UNLEARNED = "given", "channels stretched"
_LEAST_SPREAD = 10.0  # levels: a crop of a plain wall has no colours to be restored
_SHOWN = 12


class Tried(NamedTuple):
    """Crops of the pictures that were not trained on, (N, S, S, 3) uint8 each."""

    keys: list[str]
    truth: NDArray[np.uint8]
    given: NDArray[np.uint8]


# --------------------------------------------------------------------------------------- data


def picture(name: str) -> Pixels:
    """One of the pictures, uint8 (H, W, 3)."""
    if name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        pixels = skimage_data.stereo_motorcycle()[0]
    else:
        pixels = getattr(skimage_data, name)()
    return np.ascontiguousarray(pixels[:, :, :3])


def crops(name: str, count: int) -> dict[str, Pixels]:
    """Square crops at 64 pixels, of sides from 64 to the whole picture."""
    whole, stream = picture(name), generator_for(SEED, name, "crops")
    found: dict[str, Pixels] = {}
    while len(found) < count:
        side = int(np.exp(stream.uniform(np.log(SIZE), np.log(min(whole.shape[:2])))))
        top, left = (int(stream.integers(length - side + 1)) for length in whole.shape[:2])
        crop = images.resize(
            np.ascontiguousarray(whole[top : top + side, left : left + side]), SIZE
        )
        if crop.std() > _LEAST_SPREAD:
            found[f"{name}-{len(found):03d}"] = crop
    return found


def write_shard(path: Path, names: Sequence[str], count: int) -> None:
    """Crops of some pictures as a shard; they have no points, as nothing in them is a face."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = TarWriter(file)
        for name in names:
            for key, crop in crops(name, count).items():
                writer.add(f"{key}.png", images.encode(crop, "png"))
        writer.finish()


# ------------------------------------------------------------------------------------ training


def job_of(stage: str, out: Path, share: float, overrides: Sequence[str]) -> TrainingJob:
    """What a stage is made of.

    Raises:
        UserError: If its settings are wrong.
    """
    place = STAGES.index(stage)
    shards = {"train": [str(out / "train.tar")], "validation": [str(out / "tried.tar")]}
    kind, config, data = read_settings(stage, CONFIGS / f"{stage}.yaml", shards, overrides)
    run = config.run.model_copy(update={"num_images": int(share * config.run.num_images)})
    config = config.model_copy(update={"run": run})
    sources = tuple(out / earlier / RESULT for earlier in STAGES[:place][-1:])
    return TrainingJob(stage, kind, config, data, sources, str(out / stage), "cpu")


def train(stage: str, out: Path, share: float, overrides: Sequence[str]) -> None:
    """Train one stage to its end, unless that was done before."""
    if (out / stage / ENDED).exists():
        return
    job, start = job_of(stage, out, share, overrides), time.monotonic()
    with locked(job, restart=False):
        outcome = work(job, Alone(), Watcher(), lambda line: print(f"{stage}: {line}", flush=True))
    if outcome.finished:
        (out / stage / ENDED).write_text(f"{time.monotonic() - start:.0f} s\n")


# --------------------------------------------------------------------------------------- tables


def degraded(ranges: DegradationConfig, count: int) -> Tried:
    """The crops to be restored."""
    truths = {key: crop for name in TRIED for key, crop in crops(name, count).items()}
    straight = ranges.model_copy(update={"flip_probability": 0.0})
    pairs = [degrade_pair(crop, key, SEED, SIZE, straight) for key, crop in truths.items()]
    given = np.stack([pair.lq for pair in pairs])
    return Tried(list(truths), np.stack([pair.truth for pair in pairs]), given)


def restored(path: Path, tried: Tried, fidelity: float) -> NDArray[np.uint8]:
    """What the model makes of them."""
    batch = images.new_batch(len(tried.keys), SIZE)
    for slot, crop in enumerate(tried.given):
        images.to_model(crop, batch, slot)
    made = load(path).restore(batch, tried.keys, seed=SEED, ask=Ask(fidelity=fidelity))
    return images.to_uint8(made)


def grey_world(crop: Pixels) -> Pixels:
    """Gains that make the channels' means equal."""
    mean = crop.reshape(-1, 3).mean(axis=0)
    return _rounded(crop * (mean.mean() / np.maximum(mean, 1)))


def stretched(crop: Pixels) -> Pixels:
    """Each channel from its 1st to its 99th percentile spread over the whole range."""
    low, high = np.percentile(crop.reshape(-1, 3), (1, 99), axis=0)
    return _rounded((crop - low) * (255 / np.maximum(high - low, 1)))


def _rounded(values: NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def each(change: Callable[[Pixels], Pixels], crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A change of every crop."""
    return np.stack([change(crop) for crop in crops])


def measure(tried: Tried, made: Mapping[str, NDArray[np.uint8]]) -> dict[str, dict[str, Interval]]:
    """PSNR of each way, its gain over what was given, and over what needs no learning."""
    drawn = draws(len(tried.keys), seed=SEED)
    figures = {
        name: np.array([psnr(*pair) for pair in zip(crops, tried.truth, strict=True)])
        for name, crops in made.items()
    }
    return {
        name: {
            "psnr": mean_interval(values, drawn),
            "gain": difference_interval(values, figures[GIVEN], drawn),
            "learned": difference_interval(values, figures[UNLEARNED], drawn),
        }
        for name, values in figures.items()
    }


def table(measured: Mapping[str, Mapping[str, Interval]]) -> str:
    """As Markdown."""
    lines = [
        f"| | PSNR [dB] | over what was given [dB] | over {UNLEARNED} [dB] |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in measured.items():
        gains = (row["gain"], row["learned"])
        cells = [f"{g.mean:+.2f} ({g.low:+.2f} to {g.high:+.2f})" for g in gains]
        lines.append(f"| {name} | {row['psnr'].mean:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(
    out: Path, share: float = 1.0, overrides: Sequence[str] = ()
) -> dict[str, dict[str, Interval]]:
    """Make the shards, train what is not trained, measure."""
    if not (out / "tried.tar").exists():
        write_shard(out / "train.tar", TRAINED, NUM_TRAINED)
        write_shard(out / "tried.tar", TRIED, NUM_TRIED)
    for stage in STAGES:
        train(stage, out, share, overrides)
    tried = degraded(job_of(STAGES[-1], out, share, overrides).data.degradation, NUM_TRIED)
    result = out / STAGES[-1] / RESULT
    made = {
        GIVEN: tried.given,
        "grey world": each(grey_world, tried.given),
        UNLEARNED: each(stretched, tried.given),
        "IQP, its codes alone": restored(result, tried, 0.0),
        "IQP": restored(result, tried, 1.0),
    }
    columns = [tried.truth, *made.values()]
    shown = np.linspace(0, len(tried.keys) - 1, _SHOWN).astype(int)
    sheet = np.hstack([np.vstack(column[shown]) for column in columns])
    (out / "pictures.png").write_bytes(images.encode(np.ascontiguousarray(sheet), "png"))
    return measure(tried, made)


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the images of every stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = run(options.out, options.share, [f"run.threads={options.threads}"])
    if options.json:
        facts = {n: {k: asdict(i) for k, i in row.items()} for n, row in measured.items()}
        options.json.write_text(json.dumps(facts, indent=1))
    print(table(measured))


if __name__ == "__main__":
    main()

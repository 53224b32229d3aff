"""The quality table of a model on faces whose truth is known: the numbers of a model card.

    python benchmarks/model_card.py MODEL --truth faces-val/ --weights weights/ --out card/ \
        --fit faces-train/train-000003.tar
    python benchmarks/model_card.py --tune faces-train/train-000000.tar --weights weights/
    python benchmarks/model_card.py MODEL --show faces-train/train-000011.tar --out card/

The first writes card.md, card.json and three grids of faces (LQ | restored | truth) into --out; the
grids show whatever --truth holds, so look at their licence before they go anywhere. Faces are
degraded as `vsp degrade` does (stage-2, --seed, their key) after being averaged down to the model's
size; with --degraded, shards of `vsp degrade --keep-hq`, theirs and their KEY.hq.png are taken.
They are restored as `vsp restore` does with the same seed and batch size.

The second prints how the classic rows do under several settings. Those in use were chosen by LPIPS
on 60 degraded training faces (--limit 60, 128 px), never on the faces of the table: non-local means
of h 6 with unsharp 1.5, 3 gave 0.220 and 24.42 dB (1.5, 2: 0.223, 24.92 dB; 1, 1.5 and less unsharp
were worse), bilateral 20, 3 gave 0.315 and 24.93 dB; the degraded faces have 0.336 and 24.76 dB.

The third draws before and after of faces whose json says "public domain", and of no others; with
--also, every model has its column.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from card_faces import (
    CLASSIC,
    NLM_H,
    Face,
    at_size,
    bilateral,
    degraded,
    nlm,
    paired,
    read_degraded,
    read_faces,
    unsharp,
)
from card_judges import IDENTITY, Jury, scores_of
from card_tables import COLUMNS, COMPARED, STRESS, Card, as_json, markdown

from jobs.models import model_values
from pipeline import compare, images
from pipeline.degradation import STAGE_2
from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics import natural
from pipeline.metrics.families import SQUEEZENET
from pipeline.metrics.identity import cosine
from pipeline.metrics.intervals import draws
from pipeline.metrics.judge import Face as Pair
from pipeline.metrics.perceptual import PerceptualJudge
from pipeline.metrics.pixels import PixelJudge, Values
from pipeline.metrics.table import BY_NAME
from pipeline.plan import find_shards
from pipeline.replica import Replica, ReplicaConfig

NUM_TUNED, NUM_FITTED, NUM_IN_GRID = 200, 1500, 10
HEAVY_NOISE = STAGE_2.model_copy(update={"noise_sigma": (30.0, 40.0)})
TINY_PX = 16


def open_model(name: str, options: argparse.Namespace) -> Replica:
    """The model as `vsp restore` runs it."""
    settings = {"model": model_values(name), "seed": options.seed, "batch_size": options.batch,
                "threads": options.threads, "runtime": {"device": options.device}}  # fmt: skip
    return Replica(ReplicaConfig.model_validate(settings))


def others(options: argparse.Namespace) -> dict[str, str]:
    """Models beside the first, by the name that --also gives them."""
    named = (also.partition("=") for also in options.also)
    return {name: path for name, _, path in named}


def restore(replica: Replica, lqs: Sequence[Pixels], keys: Sequence[str]) -> list[Pixels]:
    """Restore faces of the model's size, in order."""
    done: list[Pixels] = []
    for start in range(0, len(lqs), replica.batch_size):
        batch, chosen = replica.new_batch(), lqs[start : start + replica.batch_size]
        for slot, lq in enumerate(chosen):
            images.to_model(lq, batch, slot)
        restored = replica.run(batch, keys[start : start + len(chosen)])
        done += list(images.to_uint8(restored[: len(chosen)]))
    return done


def stress_rows(
    jury: Jury, replica: Replica, faces: Sequence[Face], seed: int
) -> dict[str, dict[str, Values]]:  # fmt: skip
    """Inputs that training hardly showed: clean, tiny, and with more noise than was drawn."""
    keys, size = [face.key for face in faces], replica.size
    truths = [face.pixels for face in faces]
    once = restore(replica, truths, keys)
    tiny = [images.resize(images.resize(face, TINY_PX), size) for face in truths]
    noisy = [degraded(face, size, seed, HEAVY_NOISE) for face in faces]
    pictures = {
        "clean, restored once": once,
        "clean, restored twice": restore(replica, once, keys),
        f"{TINY_PX} px, enlarged": tiny,
        f"{TINY_PX} px, restored": restore(replica, tiny, keys),
        "noise of 30 to 40 levels": noisy,
        "noise of 30 to 40 levels, restored": restore(replica, noisy, keys),
    }
    return {name: jury.see(shown, STRESS).scores for name, shown in pictures.items()}


def measure(options: argparse.Namespace) -> None:
    """The whole card."""
    began_s = time.monotonic()
    replica = open_model(options.model, options)
    faces = [at_size(face, replica.size) for face in read_faces(options.truth, options.limit)]
    lqs = [degraded(face, replica.size, options.seed) for face in faces]
    if options.degraded:
        faces, lqs = paired(faces, read_degraded(options.degraded, replica.size))
    options.out.mkdir(parents=True, exist_ok=True)
    jury = Jury(options.weights, faces, COLUMNS, fitted(options, replica.size))
    keys = [face.key for face in faces]
    pictures, rates = restored_by(options, replica, lqs, keys)
    seen = {name: jury.see(shown, COLUMNS) for name, shown in pictures.items()}
    rows = {name: each.scores for name, each in (seen | {"truth": jury.truth}).items()}
    stress = stress_rows(jury, replica, faces, options.seed)
    sets = {name: jury.distances(each, options.seed) for name, each in seen.items()}
    drawn = draws(len(faces), seed=options.seed, groups=[face.person for face in faces])
    card = Card(rows, sets, stress, drawn, options.model, provenance(options, replica, jury))
    card.facts |= {"faces": len(faces), "people": len({face.person for face in faces})}
    if (embeddings := jury.truth.features.get(IDENTITY)) is not None:
        strangers = np.roll(embeddings, len(faces) // 2, axis=0)
        card.facts["identity of strangers"] = np.nanmean(cosine(embeddings, strangers)).round(3)
    card.facts["faces/s"] = rates
    card.facts["seconds"] = round(time.monotonic() - began_s)
    (options.out / "card.md").write_text(markdown(card))
    (options.out / "card.json").write_text(json.dumps(as_json(card, keys), indent=1) + "\n")
    columns = [lqs, pictures["model"], [face.pixels for face in faces]]
    draw_extremes(options.out, rows, columns, options.rank_by)
    print(markdown(card))


def restored_by(
    options: argparse.Namespace, replica: Replica, lqs: Sequence[Pixels], keys: Sequence[str]
) -> tuple[dict[str, list[Pixels]], dict[str, float]]:
    """What every row makes of the degraded faces, and how many it makes in a second."""
    makers: dict[str, Callable[[], list[Pixels]]] = {
        name: partial(_each, method, lqs) for name, method in CLASSIC.items()
    }
    makers["model"] = partial(restore, replica, lqs, keys)
    for name, path in others(options).items():
        makers[name] = partial(restore, open_model(path, options), lqs, keys)
    pictures, rates = {}, {}
    for name, make in makers.items():
        began_s = time.perf_counter()
        pictures[name] = make()
        rates[name] = round(len(lqs) / (time.perf_counter() - began_s), 1)
    rates.pop("degraded")  # nothing is done there
    return pictures, rates


def _each(method: Callable[[Pixels], Pixels], lqs: Sequence[Pixels]) -> list[Pixels]:
    return [method(lq) for lq in lqs]


def fitted(options: argparse.Namespace, size: int) -> Path | None:
    """A file of NIQE's model of clean small faces, other ones than the table's."""
    if not options.fit:
        return None
    faces = read_faces(options.fit, NUM_FITTED)
    path: Path = options.out / "niqe-small.npz"
    natural.save_model(path, natural.fit(at_size(face, size).pixels for face in faces))
    return path


def provenance(options: argparse.Namespace, replica: Replica, jury: Jury) -> dict[str, Any]:
    """What the numbers hang on."""
    return {
        "model sha256": replica.config.model.sha256,
        "model run": replica.config.settings(),
        "truth": [Path(shard).name for shard in find_shards(options.truth)],
        "degradation": options.degraded or f"stage-2, seed {options.seed}",
        "NIQE fitted on": options.fit or natural.SMALL_MODEL_PATH.name,
        "judges": jury.files,
        "not computed": jury.missing,
        "machine": f"{platform.processor() or platform.machine()}, {options.threads} threads",
        "torch": torch.__version__,
    }


# --------------------------------------------------------------------------------------- grids


def draw_extremes(
    out: Path, rows: dict[str, dict[str, Values]], columns: Sequence[Sequence[Pixels]], by: str
) -> None:  # fmt: skip
    """Ten best, median and worst faces by what the model gained over the input."""
    gain = rows["model"][by] - rows["degraded"][by]
    order = np.argsort(gain if BY_NAME[by].better == "lower" else -gain, kind="stable")
    middle = max(0, (len(order) - NUM_IN_GRID) // 2)
    for name, start in (("best", 0), ("median", middle), ("worst", -NUM_IN_GRID)):
        chosen = order[start:][:NUM_IN_GRID]
        draw_grid(out / f"{name}.png", [[column[i] for column in columns] for i in chosen])


def draw_grid(path: Path, faces: Sequence[Sequence[Pixels]], a_line: int = 2) -> None:
    """LQ | restored | truth, so many faces a line."""
    cells = [list(face) for face in faces]
    while len(cells) % a_line:
        cells.append([np.full_like(cells[0][0], 255)] * len(cells[0]))
    lines = [list(chain(*cells[n : n + a_line])) for n in range(0, len(cells), a_line)]
    path.write_bytes(images.encode(compare.side_by_side(lines), "png"))


def show(options: argparse.Namespace) -> None:
    """Public-domain faces before and after each model."""
    replicas = [open_model(name, options) for name in (options.model, *others(options).values())]
    free = [face for face in read_faces(options.show) if "public domain" in face.licence.lower()]
    if not free:
        raise UserError(f"--show {options.show}: no face whose json says 'public domain'")
    step, size = max(1, len(free) // options.show_count), replicas[0].size
    faces = [at_size(face, size) for face in free[::step][: options.show_count]]
    keys = [face.key for face in faces]
    lqs = [degraded(face, size, options.seed) for face in faces]
    restored = [restore(replica, lqs, keys) for replica in replicas]
    columns = [lqs, *restored, [face.pixels for face in faces]]
    options.out.mkdir(parents=True, exist_ok=True)
    rows = list(zip(*columns, strict=True))
    draw_grid(options.out / "faces.png", rows, 2 if len(replicas) == 1 else 1)
    print(f"{options.out / 'faces.png'}: {', '.join(keys)}")


def tune(options: argparse.Namespace) -> None:
    """The classic methods under several settings, on training faces."""
    faces = read_faces(options.tune, options.limit or NUM_TUNED)
    truths = [face.pixels for face in faces]
    lqs = [degraded(face, face.pixels.shape[0], options.seed) for face in faces]
    smooth = [nlm(lq) for lq in lqs]
    tries: dict[str, list[Pixels]] = {"degraded": lqs, f"nlm {NLM_H:g}": smooth}
    for color, space in product((20, 40, 80), (1.5, 3)):
        tries[f"bilateral {color} {space}"] = [bilateral(lq, color, space) for lq in lqs]
    for sigma, amount in product((1, 1.5, 2), (1, 2, 3)):
        tries[f"nlm + unsharp {sigma} {amount}"] = [unsharp(x, sigma, amount) for x in smooth]
    trunk = next(path for name in SQUEEZENET.names if (path := options.weights / name).is_file())
    judges = [PixelJudge(), PerceptualJudge(trunk, "squeeze")]
    for name, pictures in tries.items():
        pairs = [Pair("", *pair) for pair in zip(pictures, truths, strict=True)]
        scores = scores_of(judges, pairs)
        distance, decibels = scores["lpips-squeeze"].mean(), scores["psnr"].mean()
        print(f"{name:24}lpips {distance:.4f}  psnr {decibels:.2f}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a bundle, or a model's YAML, untrained")
    parser.add_argument("--truth", help="shards of clean faces that no training saw")
    parser.add_argument("--degraded", default="", help="the same keys, by vsp degrade --keep-hq")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="judges' files")
    parser.add_argument("--fit", default="", help="clean faces for the small NIQE: training ones")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("--out", type=Path, default=Path("card"))
    parser.add_argument("--rank-by", default="lpips-squeeze", choices=COMPARED)
    parser.add_argument("--show", metavar="SHARDS", help="only draw public-domain faces of these")
    parser.add_argument("--show-count", type=int, default=8)
    parser.add_argument("--tune", metavar="SHARDS", help="only try settings of classic methods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if not options.tune and not (options.model and (options.truth or options.show)):
        parser.error("give MODEL and --truth or --show, or --tune")
    return options


def main() -> None:
    """Parse the command line and run."""
    options = parse()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    try:
        (tune if options.tune else show if options.show else measure)(options)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

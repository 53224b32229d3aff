"""The proof of `vsp iterate` on targets of which a third is damaged by known amounts.

    python benchmarks/iterate.py prepare --faces FACES --out runs/iterate/data
    vsp iterate configs/iterate/loop.yaml runs/iterate/loop \
        --data runs/iterate/data/targets --held-out runs/iterate/data/held-out
    python benchmarks/iterate.py truth --data runs/iterate/data --loop runs/iterate/loop

FACES is a folder of shards of clean aligned faces whose JSON holds `sharpness`. `prepare` makes of
them, at 128 pixels, as PNG (no format tells what was damaged; trainings reduce them to 64):

    targets/     the first third of the shards; a third of their faces is damaged, at level 2, 3 or
                 4 of `pipeline.cleaning.levels`, drawn with the key; damage.csv tells which
    truth/       the same faces as they were
    held-out/    the sharper half of the faces of the last third: nothing is trained on them

`truth` looks at what each round cleaned: how many accepted changes came closer to the truth.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import images
from pipeline.cleaning.calibration.levels import damage, level_of
from pipeline.errors import UserError
from pipeline.plan import find_shards
from pipeline.tar import TarWriter
from pipeline.training.index import Record, build_index
from vsp_model.files import whole_or_absent
from vsp_model.randomness import generator_for

SIZE, SEED = 128, 0
SHARE_DAMAGED = 1 / 3
DRAWN = (2, 3, 4)  # level 1 is hardly visible, level 5 leaves nobody to know
DAMAGE = "damage.csv"
KEPT = ("key", "source", "licence", "labels")  # what a damaged face's JSON may still say


class Face(NamedTuple):
    """A face at `SIZE` pixels."""

    key: str
    pixels: images.Pixels
    facts: bytes


def faces_of(shard: str) -> Iterator[tuple[Face, float]]:
    """The faces of a shard, and how sharp their JSON says they are."""
    index = build_index([shard])
    for number in range(len(index)):
        record = index.read(number)
        _, pixels = images.decode(record.image)
        told = json.loads(record.facts)
        facts = facts_of(record, told, SIZE / len(pixels))
        yield Face(record.key, images.resize(pixels, SIZE), facts), float(told["sharpness"])


def facts_of(record: Record, told: Mapping[str, object], scale: float) -> bytes:
    """The JSON of the smaller face."""
    kept = {name: told[name] for name in KEPT if name in told}
    points = (record.points * scale).round(2).astype(float).tolist()
    return json.dumps(kept | {"size": SIZE, "landmarks5": points}, sort_keys=True).encode()


def level_drawn(key: str) -> int:
    """0 for a face that stays as it is, else its level of damage."""
    stream = generator_for(SEED, key, "iterate: damage")
    if stream.random() >= SHARE_DAMAGED:
        return 0
    return DRAWN[int(stream.integers(len(DRAWN)))]


def damaged(face: Face) -> Face:
    """The face as the targets hold it."""
    level = level_drawn(face.key)
    if level:
        return face._replace(pixels=damage(face.pixels, level, seed=SEED, key=face.key))
    return face


def write_shard(path: Path, faces: list[Face], change: Callable[[Face], Face]) -> None:
    """Write a shard, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path) as file:
        writer = TarWriter(file)
        for face in map(change, faces):
            writer.add(f"{face.key}.png", images.encode(face.pixels, "png"))
            writer.add(f"{face.key}.json", face.facts)
        writer.finish()


def prepare(source: str, out: Path) -> None:
    """Make targets, truth and held-out faces."""
    shards = find_shards(source)
    if len(shards) < 3:
        raise UserError(f"{source}: {len(shards)} shards; give at least three")
    third = len(shards) // 3
    levels: dict[str, int] = {}
    for shard in shards[:third]:
        faces = [face for face, _ in faces_of(shard)]
        levels |= {face.key: level_drawn(face.key) for face in faces}
        write_shard(out / "targets" / Path(shard).name, faces, damaged)
        write_shard(out / "truth" / Path(shard).name, faces, lambda face: face)
    with (out / DAMAGE).open("w", newline="") as file:
        csv.writer(file).writerows([("key", "level"), *sorted(levels.items())])
    rest = [each for shard in shards[-third:] for each in faces_of(shard)]
    middle = float(np.median([sharpness for _, sharpness in rest]))
    sharper = [face for face, sharpness in rest if sharpness > middle]
    write_shard(out / "held-out" / "held-out-000000.tar", sharper, lambda face: face)
    num_damaged = sum(level > 0 for level in levels.values())
    print(f"{len(levels)} targets, {num_damaged} of them damaged; {len(sharper)} held out")


def read_levels(data: Path) -> dict[str, int]:
    """The level of each target."""
    with (data / DAMAGE).open(newline="") as file:
        return {row["key"]: int(row["level"]) for row in csv.DictReader(file)}


def pictures(folder: Path, shard: str) -> dict[str, images.Pixels]:
    """The faces of one shard of a set, at `SIZE` pixels."""
    index = build_index([str(folder / f"{shard}.tar")])
    records = (index.read(number) for number in range(len(index)))
    return {r.key: images.resize(images.decode(r.image)[1], SIZE) for r in records}


class Changed(NamedTuple):
    """Distances to the truth of one accepted change."""

    before: float
    after: float


def changes(data: Path, cleaned: Path) -> dict[int, list[Changed]]:
    """Every accepted change of a cleaned set, by the level of its damage."""
    from pipeline.cleaning.calibration.closeness import Closeness
    from pipeline.cleaning.manifest.read import read_manifest
    from pipeline.storage import open_store
    from pipeline.weights import find

    levels = read_levels(data)
    closeness = Closeness(find("squeezenet1_1_imagenet1k_fp16.safetensors"))
    found: dict[int, list[Changed]] = defaultdict(list)
    rows = read_manifest(open_store(str(cleaned)), ["shard", "key", "outcome"]).to_pylist()
    for shard in sorted({row["shard"] for row in rows}):
        keys = [r["key"] for r in rows if r["shard"] == shard and r["outcome"] == "restored"]
        if not keys:
            continue
        truth, before, after = (
            pictures(folder, shard) for folder in (data / "truth", data / "targets", cleaned)
        )
        for key in keys:
            pair = (closeness.distance(each[key], truth[key]) for each in (before, after))
            found[levels[key]].append(Changed(*pair))
    return found


def tell_truth(data: Path, loop: Path) -> None:
    """A table for each cleaned set below a loop's folder, as Markdown."""
    counts: dict[int, int] = defaultdict(int)
    for level in read_levels(data).values():
        counts[level] += 1
    for cleaned in sorted(path.parent for path in loop.glob("*/clean/manifest")):
        found = changes(data, cleaned)
        print(f"\n{cleaned.relative_to(loop)}: LPIPS (squeeze) to the truth\n")
        print("| damage | targets | accepted | came closer | mean before | mean after |")
        print("|---|--:|--:|--:|--:|--:|")
        for level in sorted(counts):
            name = f"{level} {level_of(level).name}" if level else "none"
            print(f"| {name} | {counts[level]} | {told(found.get(level, []))} |")
        pooled = [each for some in found.values() for each in some]
        print(f"| all | {sum(counts.values())} | {told(pooled)} |")


def told(some: list[Changed]) -> str:
    """Cells of a row."""
    if not some:
        return "0 | | | "
    closer = sum(each.after < each.before for each in some)
    before, after = np.mean(some, axis=0)
    return f"{len(some)} | {closer} ({closer / len(some):.0%}) | {before:.4f} | {after:.4f}"


def main() -> None:
    """Prepare the sets, or look at what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("prepare", help="make targets, truth and held-out faces")
    made.add_argument("--faces", required=True, help="folder of shards of clean faces")
    made.add_argument("--out", type=Path, default=Path("runs/iterate/data"))
    looked = commands.add_parser("truth", help="how many accepted changes came closer")
    looked.add_argument("--data", type=Path, default=Path("runs/iterate/data"))
    looked.add_argument("--loop", type=Path, default=Path("runs/iterate/loop"))
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.faces, arguments.out)
    else:
        tell_truth(arguments.data, arguments.loop)


if __name__ == "__main__":
    main()

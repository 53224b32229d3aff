"""Every decision of `vsp clean` on a set whose composition is known, with precision and recall.

    python benchmarks/clean_set.py SHARED --weights FOLDER --images 600 --out runs/clean-set

SHARED holds `data/faces-train`. The set is built, cleaned by the command as a user would, and what
the manifest says is held against the truth: precision and recall of each decision, how the quality
follows the severity of damage, what became of good faces, how far restored faces moved from and to
the undamaged ones that were kept aside, and what a restorer that answers with somebody else's face
would have got accepted. Intervals are 95 %: Wilson's for shares, by bootstrap over images for
medians. An OUT that is there already is looked at again, not made again.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "doubles"), str(Path(__file__).parent)]

from clean_set_doubles import stranger_lines  # noqa: E402
from constructed_pictures import shared_faces  # noqa: E402
from constructed_set import Record, build, read_truth, with_persons  # noqa: E402

from pipeline import images  # noqa: E402
from pipeline.cleaning.calibration.closeness import Closeness  # noqa: E402
from pipeline.cleaning.calibration.derive import wilson  # noqa: E402
from pipeline.cleaning.look import Look, LookConfig, likeness, points_of  # noqa: E402
from pipeline.cleaning.manifest.read import read_manifest  # noqa: E402
from pipeline.images import Pixels  # noqa: E402
from pipeline.metrics.judge import Face  # noqa: E402
from pipeline.metrics.natural import SmallNiqeJudge  # noqa: E402
from pipeline.shards import read_shard  # noqa: E402
from pipeline.storage import open_store  # noqa: E402
from vsp_model.randomness import generator_for  # noqa: E402

Row = Mapping[str, Any]
TRUNK, IDENTITY = "squeezenet1_1_imagenet1k_fp16.safetensors", "mobilefacenet_ms1m.safetensors"
# Decision: the role it should find, and the aim for precision and recall.
DECISIONS = {
    "unusable": ("corrupt", 0.95), "no_face": ("no_face", 0.95),
    "duplicate_exact": ("exact", 0.95), "duplicate_near": ("near", 0.9),
    "duplicate_flip": ("flip", None), "several_faces": ("two_faces", None),
    "identity_outlier": ("intruder", None),
}  # fmt: skip
COPIES = ("exact", "near", "flip")
GOOD = ("good", "known", *COPIES)
RESAMPLES = 2000


def prepare(args: argparse.Namespace) -> tuple[list[Record], list[Row]]:
    """Build the set and clean it, as far as that is not done."""
    made, out = args.out / "made", args.out / "out"
    if not made.exists():
        sources = with_persons(shared_faces(args.shared), args.weights / IDENTITY)
        build(made, sources, size=args.images, seed=args.seed, persons=True)
    command = [sys.executable, "-m", "jobs.cli", "clean", str(made / "set"), str(out)]
    env = os.environ | {"VSP_WEIGHTS": str(args.weights)}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False)
    if done.returncode not in (0, 3):  # 3: some records could not be read, as is meant
        raise SystemExit(f"vsp clean ended with {done.returncode}")
    rows = read_manifest(open_store(str(out))).to_pylist()
    return read_truth(made), rows


# ------------------------------------------------------------------------------------ shares


def share(hits: int, count: int) -> str:
    """A share with its interval."""
    if not count:
        return "- of 0"
    low, high = wilson(hits, count)
    return f"{hits / count:.3f} [{low:.3f}, {high:.3f}] of {count}"


def decision_lines(truth: Mapping[str, Record], rows: Sequence[Row]) -> Iterable[str]:
    """Precision and recall of each decision.

    A group of copies is found if exactly one of its two records goes for being that copy; which of
    equal files that is does not matter.
    """
    yield "| decision | aim | precision | recall |"
    yield "|---|--:|---|---|"
    for reason, (role, aim) in DECISIONS.items():
        said = [row for row in rows if row["decision_reason"] == reason]
        records = [record for record in truth.values() if record.role == role]
        if role in COPIES:
            there = len({record.group for record in records})
            groups = Counter(truth[row["key"]].group for row in said)
            found = sum(groups[group] == 1 for group in {record.group for record in records})
        else:
            there = len(records)
            found = sum(truth[row["key"]].role == role for row in said)
        told = "-" if aim is None else f"{aim:.2f}"
        yield f"| `{reason}` | {told} | {share(found, len(said))} | {share(found, there)} |"


def near_lines(truth: Mapping[str, Record], rows: Sequence[Row]) -> Iterable[str]:
    """Recall of near copies by what was done to them."""
    gone = {truth[row["key"]].group for row in rows if row["decision_reason"] == "duplicate_near"}
    copies = [record for record in truth.values() if record.role == "near" and record.is_copy]
    for kind in sorted({record.kind for record in copies}):
        of_kind = [record.group in gone for record in copies if record.kind == kind]
        yield f"near copies, {kind}: found {share(sum(of_kind), len(of_kind))}"


def missed_lines(truth: Mapping[str, Record], rows: Sequence[Row]) -> Iterable[str]:
    """Decisions that the truth does not bear out, counted."""
    wrong = Counter(
        (row["decision_reason"], truth[row["key"]].role, truth[row["key"]].severity)
        for row in rows
        if row["decision_reason"] in DECISIONS
        and DECISIONS[row["decision_reason"]][0] != truth[row["key"]].role
    )
    for (reason, role, severity), count in sorted(wrong.items()):
        yield f"{reason} of a record made as {role}, severity {severity:g}: {count}"


# ----------------------------------------------------------------------------------- quality


def quality_lines(truth: Mapping[str, Record], rows: Sequence[Row]) -> Iterable[str]:
    """How the quality follows the severity, over faces that are not each other's copies."""
    seen = [
        (truth[row["key"]], row["quality"])
        for row in rows
        if row["quality"] is not None and truth[row["key"]].role in ("good", "degraded")
    ]
    damaged = [pair for pair in seen if pair[0].severity]
    for name, pairs in (("damaged and good", seen), ("damaged alone", damaged)):
        severities, qualities = ([pair[0].severity for pair in pairs], [pair[1] for pair in pairs])
        found = -spearmanr(severities, qualities).statistic
        yield f"Spearman of quality with severity, {name}: {found:.3f}, n = {len(pairs)}"
    for severity in sorted({record.severity for record, _ in seen}):
        values = [quality for record, quality in seen if record.severity == severity]
        yield f"median quality at severity {severity:g}: {np.median(values):.3f}, n = {len(values)}"


# ------------------------------------------------------------------------------- what it did


def harm_lines(truth: Mapping[str, Record], rows: Sequence[Row]) -> Iterable[str]:
    """What became of faces that nobody damaged."""
    good = [
        row for row in rows
        if truth[row["key"]].role in GOOD and not truth[row["key"]].is_copy
        and row["decision"] != "reject"
    ]  # fmt: skip
    changed = [row for row in good if row["outcome"] == "restored"]
    same = sum(row["sha256"] == row["sha256_out"] for row in good)
    yield f"undamaged faces that stay: changed {share(len(changed), len(good))}"
    yield f"undamaged faces that stay: byte-identical {share(same, len(good))}"
    for row in changed:
        record = truth[row["key"]]
        yield f"  changed: {row['key']} ({record.role}), quality {row['quality']:.3f}"
    done = Counter(row["outcome"] for row in rows if truth[row["key"]].role == "degraded")
    yield f"damaged faces: {', '.join(f'{n} {outcome}' for outcome, n in sorted(done.items()))}"


def pictures(folder: Path) -> dict[str, Pixels]:
    """Every picture of a folder of shards that can be decoded, by key."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        for sample in read_shard(str(path)):
            if sample.image:
                try:
                    found[sample.key] = images.decode(sample.image.data)[1]
                except images.ImageFault:
                    continue
    return found


class Judges:
    """Distances to the truth and a judge that knows no truth; none of them gates or verifies."""

    names = ("LPIPS to the truth", "identity with the truth", "NIQE, small blocks")

    def __init__(self, weights: Path) -> None:
        self._closeness = Closeness(weights / TRUNK)
        self.look = Look(LookConfig(identity=weights / IDENTITY))
        self._niqe = SmallNiqeJudge()

    def judge(self, face: Pixels, truth: Pixels) -> tuple[float, float, float]:
        """In the order of `names`; NaN where it cannot be said."""
        points = points_of(self.look.faces(truth))
        alike = likeness(self.look.identity(face, points), self.look.identity(truth, points))
        niqe = self._niqe.score(Face("", face))["niqe-small"].value
        return self._closeness.distance(face, truth), np.nan if alike is None else alike, niqe


def gain_lines(
    args: argparse.Namespace, truth: Mapping[str, Record], rows: Sequence[Row], judges: Judges
) -> Iterable[str]:
    """What restoring brought to damaged faces: accepted, and set aside."""
    before = pictures(args.out / "made" / "set")
    after = pictures(args.out / "out")
    aside = _aside(args.out / "out", rows)
    yield "| faces | n | judge | before | after | change, median | better |"
    yield "|---|--:|---|--:|--:|---|---|"
    for name, outcome, pool in (
        ("restored and taken", "restored", after), ("restored, not taken", "fallback", aside),
    ):  # fmt: skip
        keys = [
            row["key"] for row in rows
            if row["outcome"] == outcome and truth[row["key"]].role == "degraded"
        ]  # fmt: skip
        pairs = [
            [judges.judge(face, _original(args, key)) for face in (before[key], pool[key])]
            for key in keys
        ]
        if pairs:
            yield from _gain_rows(name, np.array(pairs), judges.names)


def _gain_rows(name: str, pairs: np.ndarray, names: Sequence[str]) -> Iterable[str]:
    for place, judge in enumerate(names):
        old, new = pairs[:, 0, place], pairs[:, 1, place]
        known = np.isfinite(old) & np.isfinite(new)
        change = (new - old)[known]
        low, high = median_interval(change)
        better = int((change > 0).sum() if judge.startswith("identity") else (change < 0).sum())
        yield (
            f"| {name} | {len(change)} | {judge} | {np.median(old[known]):.3f} | "
            f"{np.median(new[known]):.3f} | {np.median(change):+.3f} [{low:+.3f}, {high:+.3f}] | "
            f"{share(better, len(change))} |"
        )


def _original(args: argparse.Namespace, key: str) -> Pixels:
    return images.decode((args.out / "made" / "originals" / f"{key}.jpg").read_bytes())[1]


def _aside(out: Path, rows: Sequence[Row]) -> dict[str, Pixels]:
    """Restored faces that were not taken, by key."""
    keys = {(row["shard"], row["index"]): row["key"] for row in rows}
    found = {}
    for path in sorted((out / "_vsp" / "review").glob("*.tar")):
        for sample in read_shard(str(path)):
            if sample.image:
                place = keys[path.stem, int(sample.key)]
                found[place] = images.decode(sample.image.data)[1]
    return found


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a median, by bootstrap over images."""
    stream = generator_for(0, "median", "clean set")
    picked = stream.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picked], axis=1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    """Build, clean, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strangers", type=int, default=300, help="people that are mistaken")
    args = parser.parse_args()
    args.shared, args.weights, args.out = (
        path.resolve() for path in (args.shared, args.weights, args.out)
    )
    torch.set_num_threads(1)
    records, rows = prepare(args)
    truth = {record.key: record for record in records}
    print("\n" + ", ".join(f"{n} {role}" for role, n in Counter(r.role for r in records).items()))
    judges = Judges(args.weights)
    for title, lines in (
        ("Decisions", decision_lines(truth, rows)),
        ("By kind of near copy", near_lines(truth, rows)),
        ("Beside the truth", missed_lines(truth, rows)),
        ("Quality", quality_lines(truth, rows)),
        ("No harm", harm_lines(truth, rows)),
        ("Gain", gain_lines(args, truth, rows, judges)),
        ("Somebody else's face", stranger_lines(args, truth, judges.look)),
    ):
        print(f"\n{title}\n")
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()

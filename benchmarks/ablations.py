"""Table IV and Fig. 8 of the paper at 64 pixels: trains every variant equally long, compares them.

    VSP_WEIGHTS=WEIGHTS python benchmarks/ablations.py --train FACES --validation OTHER_FACES \
        --out runs/ablations --json docs/reproduce.json

FACES and OTHER_FACES are folders of shards of aligned faces with `landmarks5`. The last shard of
FACES is held out: its figures stand in the logs, nothing is chosen by them. Settings are those of
configs/ablations, changed by the overrides in `RUNS` alone. A run that has ended is not repeated, a
run that was stopped goes on from its checkpoint; names of runs given behind the options restrict
what is trained. The tables are printed as Markdown, all numbers are written as JSON.

One thread; about two hours on one core. Intervals are 95 %, by bootstrap over images; differences
are taken image by image. They say nothing of the chance in training; for that stand the runs of
`seed-1`, in which the seed of the last stage is another one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ablations_figures import SIZE, Faces, Judge, Measured, prompts, read_faces, restored

from jobs.training import TrainingJob, build_stage, find_judges, read_settings
from jobs.training_run import locked, work
from pipeline.errors import UserError
from pipeline.training.index import list_shards
from vsp_model.train.distributed import Alone
from vsp_model.train.judges import Judges
from vsp_model.train.loop import Watcher
from vsp_model.train.stage import Terms

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "ablations"
RESULT, COST = "model.safetensors", "run.json"
STEPS = (1, 2, 4, 8)
# Metric: decimals, and whether more is better.
METRICS = {
    "codes": (4, False), "lpips": (4, False), "identity": (3, True), "psnr": (2, True),
    "ssim": (4, True),
}  # fmt: skip


class Run(NamedTuple):
    """One training run."""

    stage: str
    source: str = ""
    """The run whose result it begins with."""
    overrides: tuple[str, ...] = ()
    title: str = ""


VARIANTS = {
    "full": Run("restorer", "diffuser-4", (), "full"),
    "no-diffuser": Run("restorer", "encoder", ("model.diffuser=null",), "(a) no diffuser"),
    "no-smart": Run(
        "restorer", "diffuser-4", ("model.restoration.smart=false",), "(b) no SMART layers"
    ),
    "no-prompt": Run(
        "restorer", "diffuser-4", ("model.restoration.style_prompt=false",),
        "(c) no prompt in the decoder",
    ),
    "no-priors": Run(
        "restorer", "diffuser-4", ("model.restoration.facial_priors=false",),
        "(d) no facial priors",
    ),
}  # fmt: skip
CURVE = {
    f"diffuser-{n}": Run("diffuser", "encoder", (f"model.diffuser.num_steps={n}",)) for n in STEPS
}


def reseeded(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The same with another seed of their own stage; what they begin with stays."""
    return {
        f"{name}-seed-1": run._replace(overrides=(*run.overrides, "run.seed=1"))
        for name, run in runs.items()
    }


RUNS: Mapping[str, Run] = {
    "prior": Run("prior"),
    "encoder": Run("encoder", "prior"),
    **CURVE,
    **VARIANTS,
    **reseeded({"diffuser-4": CURVE["diffuser-4"]}),
    **reseeded(VARIANTS),
}


# ------------------------------------------------------------------------------------- training


class Counter(Watcher):
    """Counts the steps of this sitting."""

    def __init__(self) -> None:
        self.steps = 0

    def stepped(self, images_seen: int, num_images: int, terms: Terms) -> None:
        """See ``Watcher``."""
        self.steps += 1


def job_of(name: str, out: Path, train: Sequence[str], held_out: Sequence[str]) -> TrainingJob:
    """What a run is made of.

    Raises:
        UserError: If its settings or its judges are not there.
    """
    run = RUNS[name]
    data = {"train": list(train), "validation": list(held_out)}
    path = CONFIGS / f"{run.stage}.yaml"
    kind, config, faces = read_settings(run.stage, path, data, run.overrides)
    judges, _ = find_judges(config)
    config = config.model_copy(update={"judges": judges})
    sources = (out / run.source / RESULT,) if run.source else ()
    return TrainingJob(run.stage, kind, config, faces, sources, str(out / name), "cpu")


def train(name: str, out: Path, train_shards: Sequence[str], held_out: Sequence[str]) -> None:
    """Train one run to its end, unless that was done before."""
    if (out / name / COST).exists():
        return
    job = job_of(name, out, train_shards, held_out)
    counter, start, cpu_start = Counter(), time.monotonic(), time.process_time()
    with locked(job, restart=False):
        outcome = work(job, Alone(), counter, lambda line: print(f"{name}: {line}", flush=True))
    if outcome.finished:
        cost = {
            "images": outcome.images_seen,
            "own_images": counter.steps * job.config.run.batch_size,
            "wall_seconds": time.monotonic() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "parameters": trained_parameters(job),
            "held_out": outcome.figures,
            "torch": torch.__version__,
        }
        (out / name / COST).write_text(json.dumps(cost, indent=1))


def trained_parameters(job: TrainingJob) -> int:
    """Numbers that the stage moves."""
    players = build_stage(job, Judges()).players.values()
    nets = [net for player in players for net in player.nets.values()]
    return sum(p.numel() for net in nets for p in net.parameters())


# --------------------------------------------------------------------------------------- tables


def evaluate(out: Path, faces: Faces) -> dict[str, Any]:
    """Everything that can be said of the runs that are there."""
    judge = Judge(faces)
    costs = {
        name: json.loads((out / name / COST).read_text())
        for name in RUNS
        if (out / name / COST).exists()
    }
    measured = {"degraded": judge(faces.degraded)}
    for name in costs:
        if RUNS[name].stage == "restorer":
            measured[name] = judge(restored(out / name / RESULT, faces))
    again = {name: each for name, each in measured.items() if name in reseeded(VARIANTS)}
    first = {name: each for name, each in measured.items() if name not in again}
    if "full-seed-1" in again:
        first["full-seed-1"] = again["full-seed-1"]
    return {
        "faces": len(faces.keys),
        "size": SIZE,
        "restorers": judge.compare(first, "full"),
        "restorers_seed_1": judge.compare(again, "full-seed-1"),
        "prompts": judge.compare(measure_prompts(out, faces, judge, set(costs)), "diffuser-4"),
        "runs": costs,
    }


def measure_prompts(out: Path, faces: Faces, judge: Judge, there: set[str]) -> dict[str, Measured]:
    """The pictures of the codes without diffusion, with it, and of the true face's codes."""
    kinds = {"no diffuser": ("encoder", "degraded")}
    kinds |= {name: (name, "diffused") for name in RUNS if name.startswith("diffuser")}
    kinds["true codes"] = ("encoder", "true")
    found = {}
    for title, (name, kind) in kinds.items():
        if name in there:
            pictures, errors = prompts(out / name / RESULT, faces, kind)
            found[title] = judge(pictures, codes=errors)
    return found


def show(value: Mapping[str, float], decimals: int, *, sign: bool = False) -> str:
    """An interval as ``0.123 (0.120 to 0.126)``."""
    mark = "+" if sign else ""
    mean, low, high = (f"{value[k]:{mark}.{decimals}f}" for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def verdict(value: Mapping[str, float], *, more_is_better: bool) -> str:
    """Whether the base is ahead or the variant, by the interval of the difference to the base."""
    if value["low"] <= 0 <= value["high"]:
        return "="
    return "base" if (value["mean"] < 0) == more_is_better else "variant"


def table(found: Mapping[str, Any], names: Mapping[str, str], metrics: Sequence[str]) -> list[str]:
    """Means, then differences to the base with who is ahead, as Markdown."""
    head = [*metrics, "squeeze-fd"]
    lines = ["", "| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name in [n for n in names if n in found]:
        each = found[name]
        cells = [show(each[metric], METRICS[metric][0]) for metric in metrics]
        lines.append(f"| {names[name]} | {' | '.join(cells)} | {each['squeeze-fd']:.0f} |")
    lines.append("")
    lines += ["| difference | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name in [n for n in names if "difference" in found.get(n, {})]:
        each = found[name]["difference"]
        cells = []
        for metric in metrics:
            decimals, up = METRICS[metric]
            ahead = verdict(each[metric], more_is_better=up)
            cells.append(f"{show(each[metric], decimals, sign=True)} {ahead}")
        set_distance = each["squeeze-fd"]
        cells.append(f"{set_distance['mean']:+.0f} (s.e. {set_distance['standard_error']:.0f})")
        lines.append(f"| {names[name]} | {' | '.join(cells)} |")
    return lines


def tables(result: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    titles = {"degraded": "degraded"} | {name: run.title for name, run in VARIANTS.items()}
    titles |= {name: f"{run.title}, seed 1" for name, run in reseeded(VARIANTS).items()}
    kinds = {name: name for name in result["prompts"]}
    lines = table(result["restorers"], titles, list(METRICS)[1:])
    lines += table(result["restorers_seed_1"], titles, list(METRICS)[1:])
    lines += table(result["prompts"], kinds, list(METRICS))
    lines += [
        "",
        "| run | trained parameters | images | images/s of CPU time |",
        "|---|--:|--:|--:|",
    ]
    for name, cost in result["runs"].items():
        rate = cost["own_images"] / cost["cpu_seconds"]
        lines.append(f"| {name} | {cost['parameters']:,} | {cost['images']:,} | {rate:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="folder of shards")
    parser.add_argument("--validation", required=True, help="folder of shards")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--compare-only", action="store_true", help="train nothing")
    parser.add_argument("names", nargs="*", help="runs to train; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = list_shards([arguments.train])
    unknown = set(arguments.names) - set(RUNS)
    if unknown:
        raise UserError(f"{min(unknown)}: no such run; known: {', '.join(RUNS)}")
    for name in () if arguments.compare_only else arguments.names or RUNS:
        train(name, arguments.out, shards[:-1], shards[-1:])
    result = evaluate(arguments.out, read_faces([arguments.validation]))
    print(tables(result))
    if arguments.json:
        temporary = arguments.json.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        temporary.replace(arguments.json)


if __name__ == "__main__":
    main()

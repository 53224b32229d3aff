"""Cleaning a data set, as `vsp clean`, `vsp manifest apply` and `vsp iterate` ask for it.

    inspect -> calibrate -> decide -> clean

Each step is a run of the engine in its own place below OUT, or one deterministic pass; what is done
is not done again. The folder's lock is held from the first to the last.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jobs.running import RunFlags

if TYPE_CHECKING:
    from jobs.cleaning_plan import CleanRun
    from pipeline.cleaning.calibration.thresholds import Thresholds
    from pipeline.runner import Summary
    from vsp_model.ask import Ask


EXIT_BAD_RECORDS = 3


@dataclass(frozen=True, slots=True)
class CleanRequest:
    """What is to be cleaned, and how.

    Attributes:
        source: Shards of aligned crops; with `align` of anything with faces.
        out: The output folder.
        model: As `vsp restore --model`.
        ask: What is wanted of it: quality, fidelity, steps; None: what it does by itself.
        weights: Folder of weight files; None for the usual one.
        seed: Fixes everything random.
        calibrate: Try the model on the set's own faces first; without it nothing is restored.
        faces: How many faces the calibration takes; None for what time allows.
        limit: Records of the whole input that are looked at; 0 for all.
        align: Cut the faces out first.
        overrule: CSV of keys and verdicts of the user's.
        keep_embeddings: Leave the embeddings in OUT.
        device: Where the model runs.
        batch_size: Faces per run of the model; None for what the folder was begun with, or usual.
        threads: Torch threads of a worker; None as before.
        overrides: Other settings, as `gate.worst_share=0.2`.
    """

    source: str
    out: str
    model: str | None = None
    ask: "Ask | None" = None
    weights: Path | None = None
    seed: int = 0
    calibrate: bool = True
    faces: int | None = None
    limit: int = 0
    align: bool = False
    overrule: Path | None = None
    keep_embeddings: bool = False
    device: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CleanEnd:
    """What a run came to.

    Attributes:
        exit_code: As the engine's.
        counts: Outcome -> images; empty after a dry run.
        reasons: "decision: reason" -> images.
        thresholds: What the calibration derived; None without one.
    """

    exit_code: int
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    thresholds: "Thresholds | None" = None


def run_clean(request: CleanRequest, flags: RunFlags) -> CleanEnd:
    """Clean a data set; what is done already is not done again.

    Raises:
        UserError: If request and folders do not fit.
        RunError: If a step cannot go on.
        Stopped: By a signal.
    """
    from jobs.cleaning_plan import ADD_IDENTITY, make_run, tell_plan
    from jobs.cleaning_steps import check_out, start_over
    from pipeline.cleaning.removal.forget import finish_pending
    from pipeline.locks import run_lock

    run = make_run(request, flags)
    if flags.dry_run:
        tell_plan(run)
        return CleanEnd(0)
    check_out(run)
    if not run.look.identity:
        typer.echo(ADD_IDENTITY, err=True)
    run.begin()
    with run_lock(run.store):
        finish_pending(run.store)
        return _all_steps(start_over(run) if flags.restart else run)


def _all_steps(run: "CleanRun") -> CleanEnd:
    from jobs import cleaning_steps as steps
    from jobs.cleaning_estimate import tell_estimate
    from jobs.cleaning_plan import take_crops
    from jobs.cleaning_trials import calibrate

    tell_estimate(run)
    is_whole = True
    if run.request.align:
        is_whole = steps.align(run)
        run = take_crops(run)
    steps.inspect(run)
    thresholds = calibrate(run)
    steps.decide(run, thresholds)
    summary = steps.clean(run)
    if not run.request.keep_embeddings and not summary.stopped and summary.exit_code != 1:
        steps.remove_embeddings(run)
    code = summary.exit_code or (0 if is_whole else EXIT_BAD_RECORDS)
    return _end(run, code, thresholds)


def run_decided(request: CleanRequest, flags: RunFlags) -> "Summary":
    """Carry out decisions that lie in OUT already, beside the tables of what was seen.

    Raises:
        UserError: If request and folders do not fit.
        RunError: If the step cannot go on.
    """
    from jobs import cleaning_steps as steps
    from jobs.cleaning_plan import make_run
    from pipeline.locks import run_lock

    run = make_run(replace(request, calibrate=False), flags)
    run.begin()
    with run_lock(run.store):
        return steps.clean(run)


def _end(run: "CleanRun", code: int, thresholds: "Thresholds | None") -> CleanEnd:
    """Count what became of the images."""
    from pipeline.cleaning.manifest.read import read_manifest

    columns = ["outcome", "fallback", "decision", "decision_reason"]
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in read_manifest(run.store, columns).to_pylist():
        counts[row["outcome"]] += 1
        reasons[f"{row['outcome']}: {row['fallback'] or row['decision_reason']}"] += 1
    return CleanEnd(code, counts, reasons, thresholds)


def show(end: CleanEnd, out: str) -> None:
    """Print what became of the set, on stdout."""
    if not end.counts:
        return
    for outcome, count in sorted(end.counts.items()):
        typer.echo(f"{outcome:<10} {count}")
        for line, number in end.reasons.most_common():
            if line.startswith(f"{outcome}: "):
                typer.echo(f"           {number:>7} {line.partition(': ')[2]}")
    typer.echo(f"out        {out}")


def as_json(end: CleanEnd, out: str) -> dict[str, Any]:
    """The end of a run for a program."""
    return {
        "out": out,
        "exit_code": end.exit_code,
        "outcomes": dict(end.counts),
        "reasons": dict(end.reasons),
        "thresholds": end.thresholds.model_dump(mode="json") if end.thresholds else None,
    }

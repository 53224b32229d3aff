"""The steps of a round: train the restorer's stages, clean the set, measure what that did."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jobs.iteration import (
    BUILT_IN,
    FIGURES,
    ROUNDS,
    TRAINED,
    FaceSet,
    Iteration,
    Step,
    digest_of,
    shards_digest,
    write_json,
)
from jobs.iteration_training import RESULT, Training, training
from jobs.steps import quiet
from pipeline.cleaning.loop import rounds
from pipeline.cleaning.loop.sets import Name, Ruler, Seen, distance, make_ruler, measure
from pipeline.errors import RunError, UserError
from vsp_model.ask import Ask

FAILED = 1  # exit code of a cleaning run


def round_name(number: int) -> str:
    """Where a round lies."""
    return ROUNDS.format(number)


def faces_of(run: Iteration, number: int) -> FaceSet:
    """What a round trains on: the raw set, or what the round before has cleaned."""
    return cleaned_set(run, cleaning(run, number - 1)) if number else run.raw


def cleaned_set(run: Iteration, step: Step) -> FaceSet:
    """What a cleaning step makes."""
    return FaceSet(str(run.folder(step.name)), step.digest, step.name)


def round_steps(run: Iteration, number: int) -> list[Step]:
    """All steps of a round; the one after the last cleaning only trains."""
    steps = trainings(run, number)
    if number < run.config.rounds:
        steps += [cleaning(run, number), measuring(run, number)]
    return steps


def trainings(run: Iteration, number: int) -> list[Step]:
    """The restorer's stages, each taking its parts from the one before."""
    steps: list[Step] = []
    faces = faces_of(run, number)
    for stage in run.config.stages:
        name = f"{round_name(number)}/train/{stage.stage}"
        steps.append(training(run, Training(name, stage, faces, steps[-1] if steps else None)))
    return steps


# ------------------------------------------------------------------------------------- cleaning


def cleaning(run: Iteration, number: int) -> Step:
    """A round's cleaning: of the originals, unless the loop is cumulative."""
    faces = faces_of(run, number) if run.config.cumulative else run.raw
    name = f"{round_name(number)}/clean"
    asked = run.config.clean.ask
    if run.config.clean.model != TRAINED:
        return clean_step(run, name, faces, run.config.clean.model, asked)
    trained = trainings(run, number)[-1]
    return clean_step(run, name, faces, str(run.folder(trained.name) / RESULT), asked, trained)


def clean_step(
    run: Iteration,
    name: str,
    faces: FaceSet,
    model: str,
    ask: Ask | None = None,
    trained: Step | None = None,
) -> Step:
    """A run of `vsp clean` as a step.

    Args:
        run: The loop.
        name: Of the step.
        faces: What is cleaned.
        model: "default" for the built-in one, or as `vsp restore --model`.
        ask: What is wanted of it; None: what it does by itself.
        trained: The step that makes the model, if it is the loop's own.
    """
    settings = run.config.clean
    wishes = filter(None, [_wishes(ask)])  # a loop that asks nothing goes on as it was begun
    return Step(
        name=name,
        made_of={
            "settings": digest_of([settings.seed, settings.set, *wishes]),
            "model": trained.digest if trained else digest_of(model),
            "faces": faces.digest,
        },
        outputs=(run.folder(name) / "manifest",),
        work=partial(clean, run, name, faces, model, ask),
        needs=tuple(filter(None, (trained.name if trained else "", faces.needs))),
    )


def _wishes(ask: Ask | None) -> dict[str, Any]:
    return ask.model_dump(mode="json", exclude_defaults=True) if ask else {}


def clean(
    run: Iteration, name: str, faces: FaceSet, model: str, ask: Ask | None
) -> Mapping[str, Any]:
    """Clean a set, from where an earlier sitting stopped; returns outcomes and calibration.

    Raises:
        RunError: If it can't go on.
        Stopped: By a signal.
    """
    from jobs.cleaning import CleanRequest, run_clean
    from jobs.models import default_codec_threads
    from jobs.running import RunFlags
    from pipeline.cleaning.calibration.thresholds import table_lines

    request = CleanRequest(
        source=faces.shards,
        out=str(run.folder(name)),
        model=None if model == BUILT_IN else model,
        ask=ask,
        seed=run.config.clean.seed,
        device=run.device,
        overrides=run.config.clean.set,
    )
    with quiet():
        end = run_clean(request, RunFlags(codec_threads=default_codec_threads(run.device)))
    if end.exit_code == FAILED:
        raise RunError(f"{name}: not all shards were cleaned; run the same command again")
    return {
        "model": model,
        "ask": _wishes(ask),
        "counts": dict(end.counts),
        "reasons": dict(end.reasons),
        "calibration": table_lines(end.thresholds) if end.thresholds else [],
    }


# ------------------------------------------------------------------------------------- figures


def measuring(run: Iteration, number: int) -> Step:
    """A round's figures."""
    cleaned = cleaning(run, number)
    name = f"{round_name(number)}/figures"
    before = faces_of(run, number)
    return measure_step(run, name, number, before, cleaned)


def measure_step(run: Iteration, name: str, number: int, before: FaceSet, cleaned: Step) -> Step:
    """The figures of one cleaning as a step; they lie beside what was cleaned.

    Args:
        run: The loop.
        name: Of the step; its last word is "figures".
        number: Of the round.
        before: The set that the cleaned one replaces.
        cleaned: The cleaning.
    """
    held_out = shards_or_nothing(run)
    return Step(
        name=name,
        made_of={
            "cleaning": cleaned.digest,
            "faces": before.digest,
            "held-out faces": digest_of([run.config.size, held_out]),
        },
        outputs=(run.folder(name).with_name(FIGURES),),
        work=partial(figures_of, run, name, number, before, cleaned),
        needs=tuple(filter(None, (cleaned.name, before.needs))),
        is_derived=True,
    )


def shards_or_nothing(run: Iteration) -> str:
    """Digest of the held-out faces, "" without any."""
    return shards_digest(run.held_out) if run.held_out else ""


def figures_of(
    run: Iteration, name: str, number: int, before: FaceSet, cleaned: Step
) -> Mapping[str, Any]:
    """Measure the set before and after; returns `rounds.Figures` as JSON."""
    from pipeline.cleaning.manifest.read import read_manifest
    from pipeline.storage import open_store

    out = run.folder(cleaned.name)
    manifest = read_manifest(open_store(str(out)), rounds.MANIFEST_COLUMNS)
    names = rounds.accepted(manifest)
    held_out = (run.held_out,) if run.held_out else ()
    ruler = make_ruler(run.config.size, held_out)
    first = measure((before.shards,), ruler, names)
    counted = rounds.counts(manifest)
    is_empty = counted["num_rejected"] == counted["num_images"]  # nothing is left to look at
    second = None if is_empty else measure((str(out),), ruler, names)
    reference = measure(held_out, ruler) if held_out else None
    drifted = run.config.cumulative and number > 0
    found = rounds.Figures(
        round=number,
        cleaned_by=cleaner_of(run, cleaned),
        **counted,
        scorer=ruler.scorer,
        **_gain(first, second),
        below=rounds.share_below(manifest, _drift(run, ruler, second) if drifted else None),
        feature=ruler.feature,
        distance_before=_distance(first, reference),
        distance_after=_distance(second, reference),
        identity_before=first.identity_spread,
        identity_after=second and second.identity_spread,
        identity_held_out=reference and reference.identity_spread,
        spread_before=first.spread,
        spread_after=second and second.spread,
        spread_held_out=reference and reference.spread,
        shifts=rounds.attribute_shifts(manifest),
    )
    values = found.model_dump(mode="json")
    write_json(run.folder(name).with_name(FIGURES), values)
    return values


def cleaner_of(run: Iteration, cleaned: Step) -> str:
    """What cleaned, and what was asked of it, for people."""
    facts = run.record(cleaned.name)["facts"]
    model = str(facts["model"])
    name = "own" if model.startswith(str(run.out)) else model
    name = "built-in" if model == BUILT_IN else name
    asked = ", ".join(f"{wish} {value}" for wish, value in facts.get("ask", {}).items())
    return f"{name} ({asked})" if asked else name


def _distance(seen: Seen | None, reference: Seen | None) -> float | None:
    return distance(seen.features, reference.features) if seen and reference else None


def _gain(first: Seen, second: Seen | None) -> dict[str, float | None]:
    after = second.scores if second else {}
    both = sorted(first.scores.keys() & after.keys())
    pairs = np.array([(first.scores[name], after[name]) for name in both]).reshape(-1, 2)
    return rounds.median_gain(pairs[:, 0], pairs[:, 1])


def _drift(run: Iteration, ruler: Ruler, second: Seen | None) -> dict[Name, float] | None:
    """Cosines of accepted faces with the very first originals, of which a later round is not."""
    if second is None or not second.embeddings:
        return None
    first = measure((run.raw.shards,), ruler, second.embeddings.keys())
    return {
        name: float(first.embeddings[name] @ embedding)
        for name, embedding in second.embeddings.items()
        if name in first.embeddings
    }


def figures_there(run: Iteration, name: str) -> rounds.Figures | None:
    """What a step of figures came to, None before it is done."""
    record = run.record(name)
    if not record.get("finished"):
        return None
    try:
        return rounds.Figures.model_validate(record["facts"])
    except ValueError:
        raise UserError(f"{run.out}/{name}: its record is damaged; choose another OUT") from None


def stops_of(run: Iteration, number: int) -> list[rounds.Stop]:
    """The rules that end the loop after a round; none before its figures are there."""
    figures = figures_there(run, measuring(run, number).name)
    if figures is None:
        return []
    return rounds.stops(figures, run.config.rounds, run.config.stop)


def ends_at(run: Iteration, number: int) -> bool:
    """Whether nothing is trained on what a round has cleaned."""
    return any(stop.refuses or stop.is_idle for stop in stops_of(run, number))


def last_round(run: Iteration) -> int:
    """The round in which the loop ended, or the one that it has come to."""
    for number in range(run.config.rounds - 1):
        if figures_there(run, measuring(run, number).name) is None or ends_at(run, number):
            return number
    return run.config.rounds - 1

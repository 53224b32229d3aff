"""The proof: a small generator trained on raw and on cleaned faces, seed by seed, and compared."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jobs.iteration import (
    FIGURES,
    PROOF,
    FaceSet,
    Iteration,
    ProofConfig,
    StageFile,
    Step,
    digest_of,
    write_json,
)
from jobs.iteration_steps import (
    clean_step,
    cleaned_set,
    cleaning,
    figures_there,
    last_round,
    measure_step,
    measuring,
    shards_or_nothing,
    stops_of,
)
from jobs.iteration_training import RESULT, Training, training
from pipeline.cleaning.loop.proof import Arm, Comparison, compare, drawn_faces
from pipeline.cleaning.loop.sets import Ruler, distance, features_of, make_ruler, measure
from pipeline.metrics.frechet import Gaussian, frechet_error
from pipeline.metrics.moments import Features, Moments

ARMS = ("raw", "cleaned")
CLEANING, MEASURING = f"{PROOF}/clean", f"{PROOF}/cleaning/figures"
REFERENCES = ("raw set", "held-out")


def last_cleaning(run: Iteration) -> tuple[Step, str]:
    """The cleaning that the proof is about, and the step that measures it.

    That of the last round that was not refused, or of the last at all; the proof's own where the
    loop's changed nothing.
    """
    last = last_round(run)
    changed = []
    for number in range(last + 1):
        figures = figures_there(run, measuring(run, number).name)
        if figures is None:
            return cleaning(run, number), measuring(run, number).name
        if figures.num_accepted:
            changed.append(number)
    kept = [n for n in changed if not any(stop.refuses for stop in stops_of(run, n))]
    if changed:
        chosen = (kept or changed)[-1]
        return cleaning(run, chosen), measuring(run, chosen).name
    if run.config.proof and run.config.proof.cleaner:
        return clean_step(run, CLEANING, run.raw, run.config.proof.cleaner), MEASURING
    return cleaning(run, 0), measuring(run, 0).name


def fallback_steps(run: Iteration) -> list[Step]:
    """Cleaning by another model for the proof alone, where the loop's own changed nothing."""
    step, measured = last_cleaning(run)
    if step.name != CLEANING:
        return []
    return [step, measure_step(run, measured, 0, run.raw, step)]


def arm_steps(run: Iteration, proof: ProofConfig) -> list[Step]:
    """The trainings, pair by pair, so that an unfinished proof has whole pairs."""
    cleaned = cleaned_set(run, last_cleaning(run)[0])
    sets = dict(zip(ARMS, (run.raw, cleaned), strict=True))
    return [_arm(run, proof, arm, sets[arm], seed) for seed in proof.seeds for arm in ARMS]


def _arm(run: Iteration, proof: ProofConfig, arm: str, faces: FaceSet, seed: int) -> Step:
    stage = StageFile(stage="prior", file=proof.file, images_per_s=proof.images_per_s)
    name = f"{PROOF}/{arm}/seed-{seed}"
    return training(run, Training(name, stage, faces, seed=seed))


def conclusion(run: Iteration, proof: ProofConfig) -> Step:
    """The distances of all generators, compared."""
    arms = arm_steps(run, proof)
    return Step(
        name=f"{PROOF}/figures",
        made_of={
            "generators": digest_of([step.digest for step in arms]),
            "settings": digest_of([proof.size, proof.num_faces]),
            "held-out faces": shards_or_nothing(run),
        },
        outputs=(run.out / PROOF / FIGURES,),
        work=partial(conclude, run, proof),
        needs=tuple(step.name for step in arms),
        is_derived=True,
    )


def conclude(run: Iteration, proof: ProofConfig) -> Mapping[str, Any]:
    """Draw, measure, compare; returns arms and comparisons as JSON."""
    held_out = (run.held_out,) if run.held_out else ()
    ruler = make_ruler(proof.size)
    sets = dict(zip(REFERENCES, ((run.raw.shards,), held_out), strict=True))
    references = {name: measure(shards, ruler).features for name, shards in sets.items() if shards}
    arms = [
        each
        for seed in proof.seeds
        for arm in ARMS
        for each in _measured(run, proof, arm, seed, ruler, references)
    ]
    values = {
        "feature": ruler.feature,
        "num_faces": proof.num_faces,
        "arms": [arm.model_dump() for arm in arms],
        "comparisons": [compare(arms, name).model_dump() for name in references],
    }
    write_json(run.out / PROOF / FIGURES, values)
    return values


def _measured(
    run: Iteration, proof: ProofConfig, arm: str, seed: int, ruler: Ruler,
    references: Mapping[str, Moments],
) -> list[Arm]:  # fmt: skip
    """One generator's distances to each reference; both arms of a pair draw the same z's."""
    bundle = run.out / PROOF / arm / f"seed-{seed}" / RESULT
    features = features_of(drawn_faces(bundle, proof.num_faces, seed), ruler)
    return [
        Arm(arm=arm, seed=seed, reference=name, **_distance(features, moments, seed))
        for name, moments in references.items()
    ]


def _distance(features: Features, moments: Moments, seed: int) -> dict[str, float | None]:
    reference = Gaussian.of(moments)
    return {
        "distance": distance(Moments.of(features), moments),
        "error": frechet_error(features, reference, seed=seed),
    }


def comparisons_there(run: Iteration) -> tuple[Mapping[str, Any], list[Comparison]]:
    """What the proof came to; ({}, []) before it is done."""
    record = run.record(f"{PROOF}/figures")
    if not record.get("finished"):
        return {}, []
    facts = record["facts"]
    return facts, [Comparison.model_validate(each) for each in facts["comparisons"]]

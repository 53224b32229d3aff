"""A loop from its first step to its last: who is next, when it ends, what is told."""

from collections.abc import Iterator

import typer

from jobs.iteration import BUILT_IN, PROOF, STEPS, Iteration, Step
from jobs.iteration_proof import (
    arm_steps,
    comparisons_there,
    conclusion,
    fallback_steps,
    last_cleaning,
)
from jobs.iteration_steps import (
    cleaning,
    ends_at,
    figures_there,
    measuring,
    round_name,
    round_steps,
    stops_of,
)
from pipeline.cleaning.loop import proof as proofs
from pipeline.cleaning.loop import rounds
from pipeline.errors import UserError

ROUNDS_FILE = "rounds.md"


def steps_of(run: Iteration) -> Iterator[Step]:
    """The steps in order, as far as what is known by then tells that they come.

    Who takes one does it before asking for the next.
    """
    for number in range(run.config.rounds + 1):
        yield from round_steps(run, number)
        if number < run.config.rounds and ends_at(run, number):
            break
    if run.config.proof is None:
        return
    yield from fallback_steps(run)
    if is_provable(run):
        yield from arm_steps(run, run.config.proof)
        yield conclusion(run, run.config.proof)


def is_provable(run: Iteration) -> bool:
    """Whether there is another set to train on, as far as is known."""
    figures = figures_there(run, last_cleaning(run)[1])
    return figures is None or figures.num_accepted > 0


def check(run: Iteration) -> None:
    """Refuse what can't be before anything is done.

    Raises:
        UserError: In one line.
    """
    from pipeline.plan import check_apart, find_shards

    given = (*find_shards(run.data), *(find_shards(run.held_out) if run.held_out else ()))
    check_apart(given, str(run.out))
    if run.out.is_dir() and any(run.out.iterdir()) and not (run.out / STEPS).is_dir():
        raise UserError(f"{run.out}: holds files of others; choose another OUT")


def go_on(run: Iteration) -> None:
    """Take every step that is left.

    Raises:
        UserError: If a step was begun with other things.
        RunError: If one can't go on.
        Stopped: By a signal.
    """
    for step in steps_of(run):
        run.take(step)
        if step.name.endswith("/figures"):
            write_tables(run)
            if step.name.startswith(PROOF):
                continue
            for stop in stops_of(run, int(step.name.split("/")[0].split("-")[1])):
                typer.echo(f"vsp: rule {stop.rule} ends the loop: {stop.words}", err=True)
    write_tables(run)


def take_only(run: Iteration, prefix: str) -> None:
    """Take the steps whose names begin so; what they need must be done.

    Raises:
        UserError: If there is none, or something is missing before.
    """
    known = {step.name: step for step in steps_of(run)}
    chosen = [step for name, step in known.items() if name.startswith(prefix)]
    if not chosen:
        raise UserError(f"--only {prefix}: no such step; known: {', '.join(known)}")
    for step in chosen:
        missing = [name for name in step.needs if not run.record(name).get("finished")]
        if missing:
            raise UserError(f"--only {prefix}: {step.name} needs {missing[0]}, which is not done")
        run.take(step)
    write_tables(run)


# -------------------------------------------------------------------------------------- tables


def write_tables(run: Iteration) -> None:
    """Write OUT/rounds.md anew."""
    from vsp_model.files import whole_or_absent

    with whole_or_absent(run.out / ROUNDS_FILE) as file:
        file.write(("\n".join(lines_of(run)) + "\n").encode())


def lines_of(run: Iteration) -> list[str]:
    """All tables as Markdown."""
    return [*_round_lines(run), *_restorer_lines(run), *_proof_lines(run)]


def _round_lines(run: Iteration) -> list[str]:
    rows, notes = [], []
    for number in range(run.config.rounds):
        figures = figures_there(run, measuring(run, number).name)
        if figures is None:
            continue
        rows.append(rounds.row_of(figures))
        notes += [f"- round {number}, rule {s.rule}: {s.words}" for s in stops_of(run, number)]
        notes += _calibration(run, cleaning(run, number).name)
        feature, scorer = figures.feature, figures.scorer
    if not rows:
        return ["# Rounds", "", "No round has cleaned yet."]
    lines = ["# Rounds", "", *rounds.markdown(rounds.HEAD, rows), ""]
    lines += [f"Distance: {feature}. Gain: {scorer or 'no scorer for faces this small'}.", ""]
    return [*lines, "Why the loop ends:", "", *notes] if notes else lines


def _calibration(run: Iteration, name: str) -> list[str]:
    table = run.record(name)["facts"]["calibration"]
    return ["", "```", *table, "```"] if table else []


def _restorer_lines(run: Iteration) -> list[str]:
    """What held-out faces say of each round's restorer; one training each."""
    found = {}
    for number in range(run.config.rounds + 1):
        if run.config.stages:
            record = run.record(f"{round_name(number)}/train/{run.config.stages[-1].stage}")
            if record.get("finished") and record["facts"]["figures"]:
                found[number] = record["facts"]["figures"]
    if not found:
        return []
    names = sorted({name for figures in found.values() for name in figures})
    rows = [
        [str(number), *(f"{figures[name]:.4f}" if name in figures else "-" for name in names)]
        for number, figures in found.items()
    ]
    head = ["round", *(name.removeprefix("val/") for name in names)]
    return ["", "## Each round's restorer, on held-out faces", "", *rounds.markdown(head, rows),
            "", "One training each: a difference may be chance."]  # fmt: skip


def _proof_lines(run: Iteration) -> list[str]:
    if run.config.proof is None:
        return []
    head = ["", "## Proof: a generator trained on raw and on cleaned faces", ""]
    if not is_provable(run):
        return [*head, "Nothing was cleaned, so there is nothing to compare."]
    lines = head + _fallback_lines(run)
    facts, comparisons = comparisons_there(run)
    if not comparisons:
        return [*lines, "Not finished."]
    arms = [proofs.Arm.model_validate(each) for each in facts["arms"]]
    lines += rounds.markdown(proofs.HEAD, [proofs.row_of(each) for each in comparisons])
    lines += ["", proofs.caution(comparisons[0].num_seeds), ""]
    lines += [f"{facts['feature']}, {facts['num_faces']:,} drawn faces each.", ""]
    return lines + rounds.markdown(_ARM_HEAD, [_arm_row(run, arm) for arm in arms])


def _fallback_lines(run: Iteration) -> list[str]:
    """Said plainly: the loop's own model cleaned nothing."""
    steps = fallback_steps(run)
    if not steps:
        return []
    model = run.config.proof.cleaner if run.config.proof else ""
    who = "the built-in model" if model == BUILT_IN else model
    lines = [f"The loop's own model changed nothing; for the proof the set is cleaned by {who}."]
    figures = figures_there(run, steps[-1].name)
    if figures is not None:
        lines += ["", *rounds.markdown(rounds.HEAD, [rounds.row_of(figures)])]
        lines += _calibration(run, steps[0].name)
    return [*lines, ""]


_ARM_HEAD = ("arm", "seed", "reference", "distance", "error over faces", "images", "minutes")


def _arm_row(run: Iteration, arm: proofs.Arm) -> list[str]:
    record = run.record(f"{PROOF}/{arm.arm}/seed-{arm.seed}")
    return [
        arm.arm,
        str(arm.seed),
        arm.reference,
        rounds.number(arm.distance),
        rounds.number(arm.error),
        f"{record['facts']['images']:,}",
        f"{record['seconds'] / 60:.1f}",
    ]


# -------------------------------------------------------------------------------- plan and status


def plan_lines(run: Iteration) -> list[str]:
    """Each step: whether it is done, what is left of it, how long that takes.

    A training's rate is what the same training had in an earlier round, or what its YAML says.
    """
    lines, total_s, unknown = [], 0.0, False
    rates: dict[str, float] = {}
    for step in steps_of(run):
        record = run.record(step.name)
        kind = step.name.split("/")[-1] if not step.name.startswith(PROOF) else PROOF
        if run.is_done(step):
            spent_s = float(record["seconds"])
            lines.append(f"done   {step.name:<32} {spent_s / 60:6.1f} min")
            if step.num_images and spent_s:
                rates[kind] = step.num_images / spent_s
            continue
        rate = rates.get(kind, step.images_per_s) if step.num_images else 0.0
        left_s = step.num_images / rate if rate else 0.0
        total_s += left_s
        unknown |= not rate
        told = f"{left_s / 60:6.1f} min, {step.num_images:,} images" if rate else "     ? min"
        lines.append(f"to do  {step.name:<32} {told}")
    more = ", and the steps without a number" if unknown else ""
    return [*lines, f"left: about {total_s / 60:.0f} min{more}"]


def tell_tables(run: Iteration) -> None:
    """Print all tables on stdout."""
    for line in lines_of(run):
        typer.echo(line)
